"""What several subcommands share: arguments, checks, and writing a rewritten model."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from checkpoints.cli import add_fields_argument
from checkpoints.formats import Checkpoint, open_checkpoint
from checkpoints.formats.delta import is_delta
from checkpoints.formats.hub import is_hub_id
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.progress import byte_progress
from checkpoints.runs.finished import model_of
from checkpoints.second_opinion import READERS
from checkpoints.storage.files import format_bytes, free_bytes, require_free_space, require_new
from checkpoints.storage.writer import MANIFEST, SMALL_FILES_BYTES
from checkpoints.transforms.rewrite import OutputOptions, Rewrite, Source, source_files, write_rewritten
from moe.data.pairs import load_split
from moe.data.sources import Pairs, sample_all
from moe.data.synthetic import generate_pairs
from moe.errors import UserError
from moe.hardware import DTYPES

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
UNITS |= {"tb": 10**12, "tib": 1 << 40, "b": 1}


def find_model(path: str | Path) -> Path:
    """Where a model lies that is named by its path, its hub id or the run that made it."""
    return resolve_model_path(model_of(path))


def byte_size(text: str) -> int:
    """Parses a size such as ``4GiB`` or ``500MB``; for argparse."""
    lowered = text.strip().lower()
    unit = next((unit for unit in UNITS if lowered.endswith(unit)), "")
    number, factor = lowered.removesuffix(unit), UNITS.get(unit, 1)
    try:
        value = int(float(number) * factor)
    except (ValueError, OverflowError):
        value = 0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write for example 4GiB or 500MB")
    return value


def integer_at_least(least: int) -> Callable[[str], int]:
    """A parser of integers of at least ``least``; for argparse."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r}, expected an integer of at least {least}")
        return value

    return parse


def standard_deviation(text: str) -> float:
    """Parses a standard deviation; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a standard deviation; write for example 0.02")
    return value


def hub_id(text: str) -> str:
    """Parses ORG/NAME; for argparse."""
    if not is_hub_id(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected ORG/NAME, such as mistralai/Mistral-7B-v0.3")
    return text


def add_output_arguments(parser: argparse.ArgumentParser, sharded: bool = True) -> None:
    """Arguments of every subcommand that writes a model directory; ``sharded`` if its tensors may fill many files."""
    parser.add_argument("--force", action="store_true", help="replace OUT, once the new directory is complete")
    parser.add_argument("--dry-run", action="store_true", help="print sizes and the disk needed, write nothing")
    if sharded:
        parser.add_argument("--max-shard", type=byte_size, default="4GiB", metavar="SIZE", help="largest tensor file")
    parser.add_argument(
        "--base-id",
        type=hub_id,
        metavar="ORG/NAME",
        help="the base's name on a model hub, for the model card; default: from config.json, a hub cache's path or the "
        "directory's name",
    )


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """``--dtype`` of the written tensors."""
    parser.add_argument("--dtype", choices=("keep", *DTYPES), default="keep", help="dtype of the written tensors")


def add_verify_argument(parser: argparse.ArgumentParser) -> None:
    """``--verify-with`` another program that reads the same files."""
    parser.add_argument(
        "--verify-with", choices=READERS, help="also compare with the logits that this program computes from the files"
    )


def chosen_dtype(name: str) -> torch.dtype | None:
    """None for ``keep``."""
    return DTYPES.get(name)


def add_data_argument(parser: argparse.ArgumentParser, splits: str, purpose: str = "") -> None:
    """``--data``: a folder of labeled pairs in place of the tasks that come with the project."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help=f"{purpose}pairs in {splits} (LANGUAGE.jsonl[.gz]); default: generated tasks",
    )
    add_fields_argument(parser)


def labeled_pairs(
    arguments: argparse.Namespace, split: str, languages: Sequence[str], count: int, seed: int = 0
) -> Pairs:
    """Up to ``count`` pairs per language of a split of a folder, or of the generated tasks.

    Raises:
        UserError: the folder lacks the split or a language.
    """
    if arguments.data is None:
        return {language: generate_pairs(language, count, seed, split) for language in languages}
    return sample_all(load_split(arguments.data, split, languages, fields=arguments.fields), count, seed)


def open_full(path: Path, merged: Path) -> Checkpoint:
    """Opens a model of any format but delta experts; for those, :class:`UserError` says how to merge to ``merged``."""
    path = find_model(path)
    if is_delta(path):
        merge = shlex.join(["python", "-m", "checkpoints", "merge", str(path), str(merged)])
        raise UserError(f"{path} has delta experts; type: {merge}")
    return open_checkpoint(path)


def check_output(arguments: argparse.Namespace, source: Source, strict: bool = False) -> None:
    """Refuses an OUT that cannot be written, before the work begins.

    An OUT with a manifest may be the result of this very job, which the writer checks; ``strict`` refuses it right
    away, for jobs with long work before the first byte.

    Raises:
        UserError: see :func:`checkpoints.storage.files.require_new`.
    """
    wrote = not strict and not arguments.dry_run and (arguments.out / MANIFEST).is_file()
    require_new(arguments.out, arguments.force or wrote, source_files(source))


def warn_ignored(flags: Iterable[str], reason: str) -> None:
    """Warns on stderr of flags that have no effect."""
    for flag in flags:
        print(f"warning: {flag} is ignored: {reason}", file=sys.stderr)


def only_planned(arguments: argparse.Namespace, tensor_bytes: int) -> bool:
    """Whether this is a dry run; if so, prints what it would write and raises :class:`UserError` on a small disk."""
    if not arguments.dry_run:
        return False
    needed, free = tensor_bytes + SMALL_FILES_BYTES, free_bytes(arguments.out)
    print(f"would write {format_bytes(needed)} to {arguments.out}; free on that disk: {format_bytes(free)}")
    require_free_space(arguments.out, needed)
    return True


def write_output(arguments: argparse.Namespace, rewrite: Rewrite) -> bool:
    """Writes the model with a progress bar, as the output arguments say; False if it was a dry run."""
    if only_planned(arguments, rewrite.nbytes):
        return False
    with byte_progress(rewrite.nbytes, arguments.command) as progress:
        write_rewritten(rewrite, arguments.out, OutputOptions(arguments.force, arguments.max_shard, progress))
    print(f"wrote {arguments.out} ({format_bytes(rewrite.nbytes)} of tensors)")
    return True
