"""Arguments and printing that several subcommands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from checkpoints.model_io import DTYPE_NAMES
from checkpoints.storage.files import format_bytes, free_bytes, require_free_space, require_new
from checkpoints.storage.writer import MANIFEST, Progress
from checkpoints.transforms.rewrite import Source, source_files

UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
UNITS |= {"tb": 10**12, "tib": 1 << 40, "b": 1}


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


def check_output(arguments: argparse.Namespace, source: Source, strict: bool = False) -> None:
    """Refuses an OUT that cannot be written, before the work begins.

    ``strict`` is for jobs with long work before the first byte: without it, an OUT that a job wrote is left to the
    writer, which finds out whether this very job was finished before.

    Raises:
        UserError: see :func:`checkpoints.storage.files.require_new`.
    """
    wrote = not strict and not arguments.dry_run and (arguments.out / MANIFEST).is_file()
    require_new(arguments.out, arguments.force or wrote, source_files(source))


def warn_ignored(flags: Iterable[str], reason: str) -> None:
    """Says on stderr which given flags change nothing."""
    for flag in flags:
        print(f"warning: {flag} is ignored: {reason}", file=sys.stderr)


def whole(least: int) -> Callable[[str], int]:
    """A parser of whole numbers of at least ``least``; for argparse."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return value

    return parse


def spread(text: str) -> float:
    """Parses a standard deviation; for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no standard deviation; write for example 0.02")
    return value


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
    print(f"would write {format_bytes(needed)} to {target}; free on that disk: {format_bytes(free_bytes(target))}")
    require_free_space(target, needed)


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
