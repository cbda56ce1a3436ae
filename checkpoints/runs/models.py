"""The models of a run: its dense base, what is made of it, and where they are written."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoints.formats import open_checkpoint
from checkpoints.formats.config_json import ROUTER_KEYS
from checkpoints.formats.delta import is_delta, open_delta
from checkpoints.formats.extras import checkpoint_tokenizer
from checkpoints.formats.parameters import meta_model, set_parameter
from checkpoints.formats.quantized import is_quantized
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_card import base_name, is_hub_id, stated_base
from checkpoints.model_io import LoadedModel, load_model, save_model
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.finished import model_of
from checkpoints.runs.preflight import given_template, require_tokenizer, shards
from checkpoints.runs.staged_run import StagedRun
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.transforms.experts import grown_model
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.quantize import quantized_rewrite
from checkpoints.transforms.rewrite import dense_part, merge_directory, own_template, write_rewritten
from checkpoints.transforms.upcycle import continued_model, upcycle_model
from moe.config import parse_layers
from moe.data.examples import Examples
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.pairs import Pair
from moe.errors import UserError
from moe.experts import widen_trainable
from moe.languages import get_language
from moe.model import Transformer
from moe.training import distributed, sharding
from moe.training.config import INT4, TINY, RunConfig
from moe.training.tiny_base import encode_files, tiny_config, train_tiny_tokenizer

ROUNDED = "base-int4"  # the folder of the base that a run rounds
Pairs = Mapping[str, Sequence[Pair]]


def load_base(
    run: StagedRun, train_pairs: Pairs, dtype: torch.dtype, device: torch.device, check: bool = True
) -> LoadedModel:
    """Loads the dense model, frozen; it has a tokenizer.

    The tiny base is trained first, unless the run's directory has it already; with ``base_dtype`` int4 the base is
    rounded into that directory, once, to which the deltas then refer. ``check`` is that of :func:`load_model`. A base
    whose cards hold parts of it (:func:`placed`) stays whole in the host's memory.
    """
    path: str | Path = run.config.base
    if path == TINY:
        path = run.directory.path / "base"
        if not path.exists():
            _train_tiny_base(run, train_pairs, path, device)
    if run.config.base_dtype == INT4:
        with distributed.main_first():  # which writes it; the others find it
            path = _rounded_base(run, resolve_model_path(path))
    packed: Literal["int4"] | bool = "int4" if run.config.expert_form == "delta" else False
    place = torch.device("cpu") if is_sharded(run.config) else device
    base = load_model(path, dtype, place, template=given_template(run.config), check=check, packed=packed)
    require_tokenizer(base.tokenizer, base.path)
    base.model.requires_grad_(False)
    return base


def is_sharded(config: RunConfig) -> bool:
    """Whether the run's processes hold a part of each model."""
    return shards(config) > 1


def placed(model: Transformer, config: RunConfig, device: torch.device) -> Transformer:
    """The model itself, or where the run is sharded this process's part of a copy, on ``device``."""
    if not is_sharded(config):
        return model
    copied = meta_model(model.config)
    for name, parameter in model.named_parameters():
        set_parameter(copied, name, parameter.detach())
    return sharding.shard(copied, device, config.expert_parallel)


def _rounded_base(run: StagedRun, path: Path) -> Path:
    source = open_checkpoint(path)
    target = run.directory.path / ROUNDED
    if is_quantized(source.settings):
        return path
    if not target.exists():
        config = run.config
        base_id = base_name(source) if config.base_id == "auto" else config.base_id
        action = "Feed-forward matrices were rounded to int4 (nearest)"
        rewrite = quantized_rewrite(source, action, base_id=base_id if is_hub_id(base_id) else None)
        write_rewritten(replace(rewrite, template=given_template(config)), target)
    return target


def _train_tiny_base(run: StagedRun, train_pairs: Pairs, path: Path, device: torch.device) -> None:
    config = run.config
    with tempfile.TemporaryDirectory() as other:  # each rank trains the same one
        folder = run.directory.path / "tokenizer" if distributed.is_main() else Path(other)
        tokenizer = train_tiny_tokenizer(train_pairs, folder, config.seed)
    encode_pairs(train_pairs, tokenizer, "plain", config.max_tokens)  # refuses pairs that do not fit, before training
    model = Transformer(tiny_config(tokenizer.vocab_size)).reset(config.seed).to(device)
    examples = encode_files(train_pairs, tokenizer, config.max_tokens)
    run.train(model, "pretrain", MixedBatches(examples, config.tokens_per_batch, config.seed + 1))
    if distributed.is_main():
        save_model(model, tokenizer, path, template="plain")
    distributed.wait_for_all()


def trained_examples(config: RunConfig, examples: Mapping[str, Examples]) -> Mapping[str, Examples]:
    """The examples by language that branch and mix train on: beside a new expert its language's alone."""
    return {name: x for name, x in examples.items() if config.new_language in ("", name)}


def steps_of_epochs(config: RunConfig, train_pairs: Pairs, epochs: float) -> int:
    """Steps of the mix stage with which branch and mix together pass ``epochs`` times over the training data.

    Encodes the data to count its tokens; reads the base's tokenizer, not its weights.

    Raises:
        UserError: the branch stage alone takes as many steps.
    """
    template = given_template(config)
    if config.base == TINY:
        template = template or "plain"
        with tempfile.TemporaryDirectory() as directory:
            tokenizer = train_tiny_tokenizer(train_pairs, Path(directory), config.seed)
    else:
        source = open_any(resolve_model_path(config.base))
        tokenizer = require_tokenizer(checkpoint_tokenizer(dense_part(source)), source.path)
        template = template or own_template(source, tokenizer)[0]
        assert template is not None, "a model with a tokenizer has one"
    encoded = encode_pairs(train_pairs, tokenizer, template, config.max_tokens, config.unnamed_share, config.seed)
    trained = trained_examples(config, encoded.examples)
    one_epoch = MixedBatches(trained, config.tokens_per_batch, config.seed).epoch_batches / config.accumulate
    steps = round(epochs * one_epoch) - config.branch_steps
    if steps < 1:
        raise UserError(
            f"{epochs:g} epochs are {epochs * one_epoch:.0f} steps, and the branch stage takes {config.branch_steps} "
            f"(one epoch is {one_epoch:.0f} steps); give more --epochs or fewer --branch-steps"
        )
    return steps


def make_mixture(dense: Transformer, config: RunConfig) -> Transformer:
    """One expert per language; computes what ``dense`` does, with which it shares the memory of frozen weights.

    A base that is a mixture already keeps its experts and routers, and gains one for ``new_language``; where it learns
    from answers it is the same one, with deltas of its own.
    """
    if config.new_language or config.policy:
        return grown_model(dense, config.new_language, config.seed, stored_deltas(config))
    if dense.config.is_moe:
        weights = {name: getattr(config, name) for name in ("balance_loss_weight", "z_loss_weight")}
        return continued_model(dense, config.languages, **weights)
    return _upcycle(
        dense, config, config.languages, config.expert_form, config.num_experts_per_tok, config.expert_rank,
        config.shared_rank,
    )  # fmt: skip


def config_on(run: Path, language: str, given: Mapping[str, Any]) -> RunConfig:
    """Settings with which a finished run's mixture is trained further: the run's own, but for ``given``.

    It gains an expert for ``language``, or without one learns from answers, as ``given`` says.

    Raises:
        UserError: ``run`` is not finished, has the language already, or ``given`` changes what its mixture fixes.
    """
    config, path = RunDirectory.resume(run).config, model_of(run)
    fixed = {"base", "template", "languages", "new_language", "expert_form", "moe_layers", "expert_rank", "shared_rank"}
    fixed |= {"num_experts_per_tok", "router_context", "router_layers", "router_half_life", "delta_scale"}
    fixed |= {"baseline", "base_dtype", "attention_experts"}
    if wrong := sorted(fixed & given.keys()):
        raise UserError(f"{wrong[0]} is the mixture's, which is trained further as it is; leave it out")
    changed: dict[str, Any] = {"base": str(path.absolute()), "new_language": "", "template": "auto"}
    changed |= {"base_dtype": "auto", "baseline": False, "merge": False, "chat_base": False, "pretrain_steps": 0}
    changed |= {"preferences": "", "learn_from_tests": False}
    if language:
        language = get_language(language).key
        if language in config.languages:
            raise UserError(f"{run} has an expert for {language} already; its languages: {' '.join(config.languages)}")
        changed |= {"new_language": language, "languages": (*config.languages, language)}
    else:
        given = {**given, "validation_steps": 0}  # which measure the loss of pairs
    return replace(config, **{**changed, **given}).with_absolute_paths()


def stored_deltas(config: RunConfig) -> Mapping[str, StoredTensor]:
    """Deltas and routers of the run's base as they are on disk; empty for a base of another form."""
    path = resolve_model_path(config.base)
    return open_delta(path).tensors if is_delta(path) else {}


def make_adapter(dense: Transformer, config: RunConfig) -> Transformer:
    """The baseline: one low-rank adapter with as many active parameters as the mixture's deltas.

    Beside full experts it is a copy of the dense model, whose feed-forwards are trained whole.
    """
    if config.expert_form == "full":
        return copy.deepcopy(dense)
    return _upcycle(dense, config, (), "delta", 1, 0, config.adapter_rank)


def _upcycle(
    dense: Transformer, config: RunConfig, languages: Sequence[str], form: str, top_k: int, rank: int, shared_rank: int
) -> Transformer:
    router = {name: getattr(config, name) for name in ROUTER_KEYS if languages}
    model = upcycle_model(
        dense,
        languages,
        form,
        top_k,
        rank,
        shared_rank,
        seed=config.seed,
        own_experts=not is_sharded(config),
        moe_layers=parse_layers(config.moe_layers, dense.config.n_layers),
        delta_scale=config.delta_scale,
        attention_experts=config.attention_experts,
        balance_loss_weight=config.balance_loss_weight,
        z_loss_weight=config.z_loss_weight,
        **router,
    )
    widen_trainable(model)
    return model


def write_model(loaded: LoadedModel, base: LoadedModel, config: RunConfig) -> None:
    """Writes a trained model to its path, unless it is there; deltas refer to their base on disk.

    With ``config.merge``, a mixture of deltas is also written as full experts, to ``mixtral/`` beside it. The main
    process writes, others help to gather what is sharded.
    """
    sharding.on_main(lambda: _write_model(loaded, base, config))


def _write_model(loaded: LoadedModel, base: LoadedModel, config: RunConfig) -> None:
    base_id = None if config.base_id == "auto" else config.base_id
    if base_id is None and base.path.name == ROUNDED:
        base_id = stated_base(base.path)  # of the model that it was rounded from
    if not loaded.path.exists():
        reference = base.path if loaded.config.is_delta else None
        if reference is not None and is_delta(reference):
            reference = open_delta(reference).base.path
        save_model(
            loaded.model, loaded.tokenizer, loaded.path, template=loaded.template, base=reference, base_id=base_id
        )
    merged = loaded.path.with_name("mixtral")
    if config.merge and loaded.config.is_moe and loaded.config.is_delta and not merged.exists():
        merge_directory(loaded.path, merged, base_id)
