"""``python -m eval routing``: loss and routing under prompts that name the language, do not, or name another one, and
after a change of language inside one document."""

# E experts, K top-k, W tokens after a change of language

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from checkpoints.cli import add_fields_argument, check_output_file
from checkpoints.model_io import LoadedModel, load_model
from checkpoints.progress import make_console, say
from checkpoints.runs.finished import model_of, newest_model
from eval.specialization import RoutingCounter
from moe.data.packing import Example, make_batch
from moe.data.pairs import Pair
from moe.data.prompt import encode_example, instruction_for
from moe.data.sources import SYNTHETIC, load_held_out, sample_all
from moe.errors import UserError
from moe.files import json_bytes, replace_file
from moe.hardware import choose_device, choose_dtype
from moe.training.held_out_loss import held_out_loss
from moe.training.trainer import batch_losses, forward_batch

WINDOW = 128  # tokens after a change of language that are looked at
STEADY = 8  # tokens over which the share has to stay
SWITCHED = 0.9  # of the gate weight on the new language's expert


@dataclass(frozen=True)
class PromptKind:
    """What was measured with one way of asking.

    Attributes:
        loss: nats per response token, by language.
        own_share: share of each language's gate weight that its own expert has; empty for a model without experts.
        bits: I(language; first-choice expert), the mean over layers.
    """

    loss: dict[str, float]
    own_share: dict[str, float]
    bits: float


def encode(pairs: Mapping[str, Sequence[Pair]], loaded: LoadedModel, kind: str, limit: int) -> dict[str, list[Example]]:
    """Examples whose prompts name their language (``named``), none (``unnamed``) or the next one (``misnamed``).

    ``forced`` prompts are ``named`` ones.
    """
    languages = list(pairs)
    assert loaded.tokenizer is not None
    examples: dict[str, list[Example]] = {}
    for index, language in enumerate(languages):
        said = {"unnamed": None, "misnamed": languages[(index + 1) % len(languages)]}.get(kind, language)
        encoded = (
            encode_example(loaded.tokenizer, loaded.template, instruction_for(pair.text, said), pair.code)
            for pair in pairs[language]
        )
        examples[language] = [Example(tuple(ids), start, index) for ids, start in encoded if len(ids) <= limit]
        if pairs[language] and not examples[language]:
            raise UserError(
                f"none of {len(pairs[language])} {language} pairs fits into {limit} tokens; give more or shorter ones, "
                "such as --pairs 1000"
            )
    return examples


def measure_prompts(loaded: LoadedModel, pairs: Mapping[str, Sequence[Pair]], kind: str) -> PromptKind:
    """Loss and routing of one kind of prompt; ``forced`` sends each token to the expert of its language."""
    config = loaded.config
    counter = None
    if config.is_moe:
        counter = RoutingCounter(len(pairs), len(config.sparse_layers), config.num_experts)
    examples = encode(pairs, loaded, kind, config.max_seq_len)
    losses = held_out_loss(loaded.model, examples, on_output=counter, forced=kind == "forced")
    found = counter.specialization() if counter is not None else None
    return PromptKind(
        {language: loss.loss for language, loss in losses.items()},
        {language: found.table[i][i] for i, language in enumerate(pairs)} if found else {},
        sum(found.information) / len(found.information) if found else 0.0,
    )


@torch.inference_mode()
def measure_change(
    loaded: LoadedModel, pairs: Mapping[str, Sequence[Pair]], kind: str, count: int
) -> tuple[float, float, Tensor | None]:
    """Two pairs of different languages, one after the other in one document.

    Args:
        kind: how the second prompt asks; the first names its language.
        count: documents per ordered pair of languages.

    Returns:
        the loss of the second response in nats per token; the mean gate weight on the second language's expert in that
        response; and [W] the same by tokens since the second prompt began, as many as there are (None without experts).
    """
    config = loaded.config
    first, second = (encode(pairs, loaded, k, config.max_seq_len // 2) for k in ("named", kind))
    languages = list(pairs)
    shares, seen = torch.zeros(WINDOW, dtype=torch.float64), torch.zeros(WINDOW, dtype=torch.float64)
    total, weight, tokens = 0.0, 0.0, 0
    for i, before in enumerate(languages):
        for j, after in enumerate(languages):
            for k in range(count if i != j else 0):
                a, b = first[before][k % len(first[before])], second[after][(k + 1) % len(second[after])]
                batch = make_batch([Example(a.tokens + b.tokens, len(a.tokens) + b.response_start, j)])
                batch = batch.to(loaded.model.device)
                output = forward_batch(loaded.model, batch, forced=False)
                losses = batch_losses(loaded.model, output, batch)
                total += losses.double().sum().item()
                tokens += len(losses)
                if output.routing:
                    own = torch.stack([(r.gates * (r.expert_ids == j)).sum(-1) for r in output.routing]).mean(0)
                    weight += own[batch.positions].double().sum().item()
                    own = own[len(a.tokens) :][:WINDOW].double().cpu()
                    shares[: len(own)] += own
                    seen[: len(own)] += 1
    by_token = (shares / seen)[seen > 0] if config.is_moe else None
    return total / max(1, tokens), weight / max(1, tokens), by_token


def tokens_to_switch(shares: Tensor) -> int | None:
    """The first token from which on :data:`STEADY` tokens give the new expert 90% of the weight on average."""
    steady = shares.unfold(0, min(STEADY, len(shares)), 1).mean(-1)
    found = (steady >= SWITCHED).nonzero()
    return int(found[0]) if len(found) else None


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``routing`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "routing",
        help="measure what the router does with prompts that name, hide or change the language",
        description="Measures loss and routing of a mixture (or the loss of a dense model) on held-out pairs: prompts "
        "that name the language, that do not, that name another one, and two languages in one document.",
    )
    parser.add_argument("--model", metavar="DIR", help="a run or a model directory (default: the newest run's)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where runs are looked for")
    parser.add_argument("--data", default=SYNTHETIC, help="a folder of pairs, or 'synthetic'")
    add_fields_argument(parser)
    parser.add_argument("--split", default="test", help="the held-out split")
    parser.add_argument("--languages", nargs="+", metavar="NAME", help="default: the model's experts")
    parser.add_argument("--pairs", type=int, default=100, help="pairs per language")
    parser.add_argument("--changes", type=int, default=10, help="documents per ordered pair of languages")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto (bfloat16 where it is native), float32 or bfloat16")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the numbers to this JSON file")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for flag in ("pairs", "changes"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag} is {getattr(arguments, flag)}, expected at least 1")
    if arguments.output:
        check_output_file(arguments.output, force=True)
    device = choose_device(arguments.device)
    path = model_of(arguments.model) if arguments.model else newest_model(arguments.runs)
    loaded = load_model(path, choose_dtype(device, arguments.dtype), device)
    if loaded.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or tokenizer.model beside the weights")
    if loaded.config.is_moe and not loaded.config.expert_languages:
        raise UserError(f"the experts of {path} are not named by languages; give a mixture that this project made")
    languages = arguments.languages or list(loaded.config.expert_languages)
    if not languages:
        raise UserError(f"{path} has no experts; name the languages, for example --languages python java")
    if len(set(languages)) < len(languages):
        raise UserError(f"--languages names one twice: {' '.join(languages)}; give each once")
    if loaded.config.is_moe and languages != list(loaded.config.expert_languages):
        raise UserError(f"{path} has experts for {' '.join(loaded.config.expert_languages)}; leave --languages out")
    held_out = load_held_out(arguments.data, languages, arguments.split, arguments.seed, arguments.fields)
    pairs = sample_all(held_out, arguments.pairs, arguments.seed)
    console = make_console()
    table = Table(title=f"routing of {path}", title_justify="left")
    for name in ("prompts", "loss", *languages, "own share", "bits", "tokens to switch"):
        table.add_column(name, justify="left" if name == "prompts" else "right")
    results: dict[str, Any] = {}
    several = len(languages) > 1  # else there is no other language to name, or to change to
    for kind in ("named", "unnamed", *["misnamed"] * several, *["forced"] * loaded.config.is_moe):
        found = measure_prompts(loaded, pairs, kind)
        results[kind] = asdict(found)
        mean = sum(found.loss.values()) / len(found.loss)
        own = f"{sum(found.own_share.values()) / len(found.own_share):.1%}" if found.own_share else "-"
        table.add_row(kind, f"{mean:.3f}", *(f"{x:.3f}" for x in found.loss.values()), own, f"{found.bits:.2f}", "")
    for kind in ("named", "unnamed") if several else ():
        loss, share, shares = measure_change(loaded, pairs, kind, arguments.changes)
        steps = None if shares is None else tokens_to_switch(shares)
        results[f"change, {kind}"] = {
            "loss": loss,
            "own_share": share,
            "tokens_to_switch": steps,
            "own_share_by_token": None if shares is None else [round(x, 4) for x in shares.tolist()],
        }
        shown = "-" if shares is None else f"over {len(shares)}" if steps is None else str(steps)
        own = "-" if shares is None else f"{share:.1%}"
        table.add_row(f"second language, {kind}", f"{loss:.3f}", *[""] * len(languages), own, "", shown)
    console.print(table)
    if arguments.output:
        replace_file(arguments.output, json_bytes({"model": str(path), "seed": arguments.seed, **results}))
        say(console, f"wrote {arguments.output}")
    return 0
