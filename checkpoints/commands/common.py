"""Arguments and printing that several subcommands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from checkpoints.files import format_bytes, free_bytes
from checkpoints.model_io import DTYPE_NAMES
from checkpoints.writer import Progress
from moe.errors import UserError

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "b": 1}


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
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write for example 4GiB or 500MB")
    return value


def layer_range(text: str) -> tuple[int, int]:
    """Parses ``16-31`` (both included) or ``16``; for argparse."""
    first, dash, last = text.partition("-")
    try:
        bounds = int(first), int(last if dash else first)
    except ValueError:
        bounds = (-1, -1)
    if not 0 <= bounds[0] <= bounds[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of layers; write for example 16-31")
    return bounds


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every subcommand that writes a model directory."""
    parser.add_argument("--force", action="store_true", help="replace OUT, once the new directory is complete")
    parser.add_argument("--dry-run", action="store_true", help="print sizes and the disk needed, write nothing")
    parser.add_argument("--max-shard", type=byte_size, default="4GiB", metavar="SIZE", help="largest tensor file")


def add_dtype_argument(parser: argparse.ArgumentParser) -> None:
    """``--dtype`` of the written tensors."""
    parser.add_argument("--dtype", choices=("keep", *DTYPE_NAMES), default="keep", help="dtype of the written tensors")


def chosen_dtype(name: str) -> torch.dtype | None:
    """None for ``keep``."""
    return DTYPE_NAMES.get(name)


def print_disk(target: Path, needed: int) -> None:
    """Prints what a job would write and refuses when the disk is too small."""
    free = free_bytes(target)
    print(f"would write {format_bytes(needed)} to {target}; free on that disk: {format_bytes(free)}")
    if free < needed:
        raise UserError(
            f"not enough disk for {target}: {format_bytes(needed)} needed, {format_bytes(free)} free; "
            "free some space or give an output path on another disk"
        )


@contextmanager
def progress_bar(total: int, title: str) -> Iterator[Progress]:
    """A bar with bytes, speed and ETA on stderr; only where stderr is a terminal."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=title, disable=quiet) as bar:
        yield lambda count: bar.update(count) and None


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
