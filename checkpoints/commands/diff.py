"""``diff``: how two models differ, tensor by tensor."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch

from checkpoints.commands.common import find_model
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import dense_part
from moe.config import ModelConfig
from moe.hardware import dtype_name


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("diff", help="compare two models, of any formats, tensor by tensor")
    parser.add_argument("first", type=Path, help="a model in any supported format")
    parser.add_argument("second", type=Path, help="the model to compare it with")
    parser.add_argument("--all", action="store_true", help="list every tensor that differs, not the 20 largest")
    parser.set_defaults(main=main)


def all_tensors(path: Path) -> tuple[ModelConfig, dict[str, StoredTensor]]:
    """A model's config and tensors by name; for a delta directory its own and its base's."""
    opened = open_any(find_model(path))
    tensors = dict(dense_part(opened).tensors)
    if isinstance(opened, DeltaCheckpoint):
        tensors |= opened.tensors
    return opened.config, tensors


def largest_difference(first: StoredTensor, second: StoredTensor) -> float:
    """max |a - b|, a few rows at a time; NaN counts as infinite."""
    largest = 0.0
    for x, y in zip(first.parts(), second.parts()):
        if x.dtype == y.dtype and torch.equal(x, y):
            continue
        difference = (x.double() - y.double()).abs()
        largest = max(largest, torch.nan_to_num(difference, nan=float("inf")).max().item())
    return largest


def compare(first: Mapping[str, StoredTensor], second: Mapping[str, StoredTensor]) -> list[tuple[str, float, str]]:
    """Returns (name, max |difference|, note) of every tensor that differs, largest first."""
    rows = [(name, float("inf"), "only in the first") for name in first if name not in second]
    rows += [(name, float("inf"), "only in the second") for name in second if name not in first]
    for name in first:
        if name not in second:
            continue
        a, b = first[name], second[name]
        if a.shape != b.shape:
            rows.append((name, float("inf"), f"shape {list(a.shape)} and {list(b.shape)}"))
            continue
        note = "" if a.dtype == b.dtype else f"{dtype_name(a.dtype)} and {dtype_name(b.dtype)}"
        difference = largest_difference(a, b)
        if difference or note:
            rows.append((name, difference, note))
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; exit code 1 if the models differ, as with diff."""
    (config_a, first), (config_b, second) = all_tensors(arguments.first), all_tensors(arguments.second)
    b_values = asdict(config_b)
    for key, value in asdict(config_a).items():
        if value != b_values[key]:
            print(f"config {key}: {value} and {b_values[key]}")
    rows = compare(first, second)
    shown = rows if arguments.all else rows[:20]
    for name, difference, note in shown:
        print(f"{name:<60} {difference:10.3e}  {note}".rstrip())
    if len(shown) < len(rows):
        print(f"... and {len(rows) - len(shown)} more; --all lists them")
    same = len(set(first) & set(second)) - sum(not note.startswith("only") for _, _, note in rows)
    print(f"{same} tensors are equal, {len(rows)} differ")
    return 1 if rows or config_a != config_b else 0
