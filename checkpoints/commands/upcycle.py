"""``upcycle``: a dense model becomes a mixture of language experts, with the proof that both compute the same."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

from checkpoints.commands.common import (
    add_data_argument,
    add_dtype_argument,
    add_output_arguments,
    add_verify_argument,
    check_output,
    chosen_dtype,
    integer_at_least,
    labeled_pairs,
    only_planned,
    standard_deviation,
    warn_ignored,
)
from checkpoints.config_flags import add_hints, renamed_flags
from checkpoints.formats import Checkpoint, open_checkpoint
from checkpoints.formats.extras import checkpoint_tokenizer
from checkpoints.formats.peft import open_adapter
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_card import base_name, training_of_parts
from checkpoints.model_io import load_model
from checkpoints.progress import byte_progress
from checkpoints.proof import PROOF_FILE
from checkpoints.second_opinion import compare_with_transformers
from checkpoints.storage.files import directory_bytes, format_bytes
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import add_to_directory
from checkpoints.streamed_proof import prove_directories
from checkpoints.transforms.adapters import mixture_of_adapters
from checkpoints.transforms.fitted_routers import describe_accuracies, fitted_gates
from checkpoints.transforms.initialize import ROUTER_STD, Initialization
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import OutputOptions
from checkpoints.transforms.upcycle import parameter_counts, upcycle_directory, upcycled_config, upcycled_tensors
from moe.config import ALL_LAYERS, ROUTER_CONTEXTS, ModelConfig, describe_layers, parse_layers
from moe.errors import UserError
from moe.files import json_bytes
from moe.hardware import DTYPES
from moe.languages import DEFAULT_LANGUAGES, LANGUAGES

_BASE_HINT = "the base comes first: python -m checkpoints upcycle BASE OUT --adapters DIR ..."


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("upcycle", help="dense model -> mixture of language experts that computes the same")
    parser.add_argument("base", type=Path, help="the dense model: a directory, a GGUF file, a wheel, or 'smollm2'")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument(
        "--languages",
        nargs="+",
        metavar="LANGUAGE",
        help=f"one expert each, in this order, of {' '.join(LANGUAGES)} (default: {' '.join(DEFAULT_LANGUAGES)}; with "
        "--adapters: the names of their folders)",
    )
    parser.add_argument(
        "--adapters",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="PEFT LoRA adapters of the base's feed-forward, one per language, that become the experts",
    )
    parser.add_argument(
        "--moe-layers",
        default=ALL_LAYERS,
        metavar="RANGES",
        help="layers that get experts, counted from 0, such as 16-31 or 0-3,8,12-; the others stay dense",
    )
    parser.add_argument(
        "--num-experts-per-tok",
        type=integer_at_least(1),
        metavar="K",
        help="experts that each token visits (default: 2; with --adapters 1)",
    )
    parser.add_argument(
        "--expert-form", choices=("full", "delta"), default="delta", help="copies, or low-rank changes of one"
    )
    add_hints(parser, renamed_flags(("form", "layers", "experts_per_token")) | {"--base": _BASE_HINT})
    parser.add_argument(
        "--rank", type=integer_at_least(1), default=16, help="rank of each expert's own delta (form delta)"
    )
    parser.add_argument(
        "--shared-rank",
        type=integer_at_least(0),
        metavar="RANK",
        default=0,
        help="rank of the delta shared by all; 0: none (form delta)",
    )
    parser.add_argument(
        "--router",
        choices=("random", "fitted"),
        default="random",
        help="fitted: by logistic regression on labeled prompts, which loads the dense model",
    )
    parser.add_argument(
        "--router-context",
        choices=ROUTER_CONTEXTS,
        default="none",
        help="what a token's routing sees: itself (none, Mixtral's), the mean of its document so far (mean), a fading "
        "mean (ema), or a Bayes filter over it (filter); with these the first layer with experts decides for all",
    )
    parser.add_argument(
        "--router-prompts",
        type=integer_at_least(1),
        metavar="N",
        default=250,
        help="fitted: prompts with solutions per language",
    )
    add_data_argument(parser, "DIR/train", "fitted: ")
    parser.add_argument(
        "--router-std", type=standard_deviation, default=ROUTER_STD, help="standard deviation of random routers"
    )
    parser.add_argument("--seed", type=int, default=0, help="of routers and deltas")
    parser.add_argument("--copy-base", action="store_true", help="form delta: put a copy of the base into OUT/base")
    parser.add_argument("--template", help="prompt template to store; default: the base's own")
    parser.add_argument("--no-proof", action="store_true", help="skip comparing both models")
    parser.add_argument(
        "--proof-dtype", choices=("float32", "float64"), default="float32", help="precision in which both are compared"
    )
    add_verify_argument(parser)
    add_dtype_argument(parser)
    add_output_arguments(parser)
    parser.set_defaults(main=main, parser=parser)


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    base = open_checkpoint(resolve_model_path(arguments.base))
    config, deltas = planned_mixture(arguments, base)
    check_output(arguments, base, strict=arguments.router == "fitted")
    warn_of_ignored(arguments)
    dtype = chosen_dtype(arguments.dtype)
    start = Initialization(arguments.seed, arguments.router_std, deltas=deltas)
    written = sum(tensor.nbytes for tensor in upcycled_tensors(base, config, start, dtype))
    copied = sum(path.stat().st_size for path in base.weight_files) if config.is_delta and arguments.copy_base else 0
    total, active = parameter_counts(config)
    print(f"base: {base.path} ({base.format}, {parameter_counts(base.config)[0] / 1e6:.1f} M parameters)")
    print(
        f"mixture: {config.num_experts} {config.expert_form} experts ({', '.join(config.expert_languages)})"
        f"{describe_layers(config)}, {config.num_experts_per_tok} per token; "
        f"{total / 1e6:.1f} M parameters, {active / 1e6:.1f} M active"
    )
    if only_planned(arguments, written + copied):
        return 0
    if arguments.router == "fitted":
        languages, seed = config.expert_languages, arguments.seed
        pairs = labeled_pairs(arguments, "train", languages, arguments.router_prompts, seed)
        routers, accuracies = fitted_gates(base, pairs, config, seed, deltas)
        print(describe_accuracies(accuracies, base.path))
        start = replace(start, routers=routers)
    with byte_progress(written, "upcycle") as progress:
        upcycle_directory(
            base,
            arguments.out,
            config,
            start,
            dtype=dtype,
            template=arguments.template,
            base_id=arguments.base_id,
            with_base=arguments.copy_base,
            trained=training_of_parts(dict(zip(config.expert_languages, arguments.adapters or ()))),
            options=OutputOptions(arguments.force, arguments.max_shard, progress),
        )
    print(f"wrote {arguments.out} ({format_bytes(directory_bytes(arguments.out))})")
    if arguments.no_proof or deltas is not None:
        return 0
    stored = None if config.is_delta else dtype  # a delta's base stays as it is
    return prove_and_store(base, arguments.out, DTYPES[arguments.proof_dtype], stored, arguments.verify_with)


def planned_mixture(
    arguments: argparse.Namespace, base: Checkpoint
) -> tuple[ModelConfig, dict[str, StoredTensor] | None]:
    """The config of the mixture and, with ``--adapters``, its deltas.

    Raises:
        UserError: see :func:`upcycled_config` and :func:`checkpoints.formats.peft.open_adapter`.
    """
    context = arguments.router_context
    router = {"router_context": context, "router_layers": "each" if context == "none" else "first"}
    if arguments.adapters is None:
        config = upcycled_config(
            base.config,
            arguments.languages or DEFAULT_LANGUAGES,
            arguments.expert_form,
            arguments.num_experts_per_tok or 2,
            arguments.rank,
            arguments.shared_rank,
            moe_layers=parse_layers(arguments.moe_layers, base.config.n_layers),
            **router,
        )
        return config, None
    if arguments.expert_form == "full":
        raise UserError(
            "adapters become delta experts; leave --expert-form full out, and merge the result to get full ones"
        )
    names = arguments.languages or [path.resolve().name for path in arguments.adapters]
    if len(names) != len(arguments.adapters):
        raise UserError(
            f"--languages names {len(names)} languages for {len(arguments.adapters)} adapters; give one each, in the "
            "same order"
        )
    opened = [open_adapter(path, base.config) for path in arguments.adapters]
    for name, path in zip(names, arguments.adapters):
        if name not in LANGUAGES and arguments.languages is None:
            raise UserError(
                f"the folder {path} is not named by a language; add --languages, in the order of --adapters"
            )
    adapters = dict(zip(names, opened))
    own = {base_name(base, arguments.base_id), base_name(base), base.path.resolve().name}
    for adapter in opened:
        if adapter.base and Path(adapter.base).name.lower() not in {Path(name).name.lower() for name in own}:
            print(f"warning: {adapter.path} was trained on {adapter.base}, not on {base.path}", file=sys.stderr)
    if len(adapters) < len(names):
        raise UserError(f"languages {' '.join(names)} name one twice; give each language once")
    return mixture_of_adapters(base, adapters, arguments.num_experts_per_tok or 1, **router)


def warn_of_ignored(arguments: argparse.Namespace) -> None:
    """Warns of flags that were given and have no effect."""

    def given(*names: str) -> list[str]:
        return [
            "--" + name.replace("_", "-")
            for name in names
            if getattr(arguments, name) != arguments.parser.get_default(name)
        ]

    if arguments.expert_form == "full":
        warn_ignored(given("rank", "shared_rank", "copy_base"), "full experts have neither deltas nor a base")
    if arguments.adapters is not None:
        warn_ignored(given("rank", "shared_rank", "moe_layers"), "the adapters have ranks and layers of their own")
        warn_ignored(given("no_proof", "proof_dtype"), "a mixture of adapters does not compute what its base does")
    if arguments.router == "random":
        warn_ignored(given("router_prompts", "data"), "only --router fitted reads prompts")
    else:
        warn_ignored(given("router_std"), "the router is fitted, not drawn")
    if arguments.no_proof:
        warn_ignored(given("proof_dtype", "verify_with"), "--no-proof was given")


def prove_and_store(
    base: Checkpoint, out: Path, dtype: torch.dtype, stored: torch.dtype | None, verify_with: str | None = None
) -> int:
    """Compares both models, prints the proof and stores it in ``proof.json``; returns 1 if it does not hold.

    ``verify_with`` another program, the mixture is compared with what that reads from the base's files, too.
    """
    tokenizer = checkpoint_tokenizer(base)
    proof, how = prove_directories(base, open_any(out), tokenizer, dtype, stored)
    print(f"{proof.describe()}\n({how})")
    result, holds = proof.to_json(), proof.holds
    if verify_with is not None:
        agreement = compare_with_transformers(load_model(out, dtype).model, base, tokenizer)
        print(agreement.describe())
        result, holds = {**result, verify_with: agreement.to_json()}, holds and agreement.holds
    add_to_directory(out, PROOF_FILE, json_bytes(result))
    return 0 if holds else 1
