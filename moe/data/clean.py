"""Writes a cleaned copy of a data directory: no copies, no leaks, no benchmarks, no secrets, languages in balance.

Held-out splits stay as they are, but for secrets; training pairs that are like them go.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from moe.data.layouts import Reading
from moe.data.overlap import Benchmarks, ExactCopies, NearCopies
from moe.data.pairs import Pair, iterate_pairs
from moe.data.secrets import mask
from moe.data.splits import File
from moe.errors import UserError
from moe.languages import LANGUAGES


@dataclass(frozen=True)
class CleanOptions:
    """What is done.

    Attributes:
        near: remove near copies, too (:class:`moe.data.overlap.NearCopies`).
        benchmarks: remove training pairs that share words with these.
        mask: replace secrets and e-mail addresses.
        most: training pairs per language, drawn by ``seed``; 0 for all, -1 for as many as the smallest language has.
        held_out: share of each language's pairs that becomes ``test``, whole packages at a time; 0 for none.
    """

    near: bool = True
    benchmarks: Benchmarks | None = None
    mask: bool = True
    most: int = 0
    held_out: float = 0.0
    seed: int = 0


@dataclass
class CleanReport:
    """Pairs written by (split, language), training pairs removed by (language, reason), secrets masked."""

    written: Counter[tuple[str, str]]
    removed: Counter[tuple[str, str]]
    masked: int = 0

    def lines(self) -> list[str]:
        """One line per language, and one for secrets."""
        found = []
        for language in sorted({language for _, language in (*self.written, *self.removed)} - {""}):
            counts = ", ".join(f"{n:,} {split}" for (split, x), n in sorted(self.written.items()) if x == language)
            removed = ", ".join(f"{n:,} {why}" for (x, why), n in self.removed.most_common() if x == language)
            found.append(f"{language}: wrote {counts or 'nothing'}" + (f"; removed {removed}" if removed else ""))
        return [*found, f"masked {self.masked:,} keys, passwords and e-mail addresses"]


def clean(
    splits: Mapping[str, list[File]], output: Path, fields: Mapping[str, str], options: CleanOptions
) -> CleanReport:
    """Writes ``output/SPLIT/LANGUAGE.jsonl.gz``; the directory appears when all of it is there.

    Memory grows by digests and shingles, not by pairs.

    Raises:
        UserError: broken data, an ``output`` that exists, or packages that cannot be told apart.
    """
    if output.exists():
        raise UserError(f"{output} exists; give the name of a new directory")
    if "train" not in splits:
        raise UserError(f"no split 'train' to clean; splits there: {', '.join(splits) or 'none'}")
    if options.held_out and "test" in splits:
        raise UserError("there is a split 'test' already; leave out the share to hold out, or remove test")
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    report = CleanReport(Counter(), Counter())
    try:
        _copy_cleaned(splits, temporary, fields, options, report)
        counts = {language: n for (split, language), n in report.written.items() if split == "train"}
        if not counts:
            raise UserError("no training pair is left")
        for language in counts:
            if options.held_out:
                _hold_out(temporary, language, options, report)
        smallest = min(n for (split, _), n in report.written.items() if split == "train")
        most = smallest if options.most < 0 else options.most
        for language in counts:
            if most and report.written["train", language] > most:
                _reduce(temporary, language, most, options.seed, report)
        os.replace(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return report


def _copy_cleaned(
    splits: Mapping[str, list[File]],
    folder: Path,
    fields: Mapping[str, str],
    options: CleanOptions,
    report: CleanReport,
) -> None:
    held_exact: dict[str, ExactCopies] = defaultdict(ExactCopies)
    exact: dict[str, ExactCopies] = defaultdict(ExactCopies)
    held_near: dict[str, NearCopies] = defaultdict(NearCopies)
    near: dict[str, NearCopies] = defaultdict(NearCopies)

    def reason(pair: Pair) -> str | None:
        if held_exact[pair.language].has_code(pair):
            return "that held-out splits have too"
        if options.near and held_near[pair.language].find(pair.code):
            return "that are like held-out pairs"
        if options.benchmarks is not None and options.benchmarks.touch(pair):
            return "that share 13 words in a row with a benchmark"
        if exact[pair.language].add(pair):
            return "that repeat another"
        if options.near and near[pair.language].add(pair.code):
            return "that are near copies of another"
        return None

    for split in (*sorted(splits.keys() - {"train"}), "train"):
        with _Writer(folder / split) as writer:
            for language, path in splits[split]:
                for _, pair in iterate_pairs(path, fields, Reading(), language):
                    if pair.language not in LANGUAGES:
                        report.removed[pair.language, "in an unknown language"] += 1
                        continue
                    if options.mask:
                        text, in_text = mask(pair.text)
                        code, in_code = mask(pair.code)
                        pair = replace(pair, text=text, code=code)
                        report.masked += in_text + in_code
                    if split != "train":
                        held_exact[pair.language].add(pair)
                        if options.near:
                            held_near[pair.language].add(pair.code)
                    elif why := reason(pair):
                        report.removed[pair.language, why] += 1
                        continue
                    writer.write(pair)
                    report.written[split, pair.language] += 1


class _Writer:
    """Writes pairs into a file per language."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: dict[str, TextIO] = {}
        self.stack = ExitStack()

    def __enter__(self) -> _Writer:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def write(self, pair: Pair) -> None:
        if pair.language not in self.files:
            self.files[pair.language] = self.stack.enter_context(open_packed(self.folder / f"{pair.language}.jsonl.gz"))
        row = {"id": pair.id, "language": pair.language, "text": pair.text, "reference": pair.code}
        row |= {"tests": pair.tests, "license": pair.license, "package": pair.package}
        kept = {key: value for key, value in row.items() if value is not None}
        self.files[pair.language].write(json.dumps(kept, ensure_ascii=False) + "\n")


@contextmanager
def open_packed(path: Path) -> Iterator[TextIO]:
    """A gzipped text file to write, whose bytes depend on its content alone; a context."""
    with (
        path.open("wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="\n") as text,
    ):
        yield text


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line, json.loads(line)


def _hold_out(folder: Path, language: str, options: CleanOptions, report: CleanReport) -> None:
    """Moves whole packages, in an order drawn by the seed, from train to test until the share is reached."""
    path = folder / "train" / f"{language}.jsonl.gz"
    sizes = Counter(row.get("package", "") for _, row in _rows(path))
    if "" in sizes or len(sizes) < 2:
        found = f"{sizes['']:,} of {sizes.total():,} pairs name none" if "" in sizes else "all pairs are of one"
        raise UserError(f"{language}: cannot hold out packages: {found}; expected the field package or repo")
    names = sorted(sizes)
    random.Random(f"packages-{options.seed}-{language}").shuffle(names)
    wanted, held, count = options.held_out * sizes.total(), set[str](), 0
    for name in names:
        if count + sizes[name] <= max(wanted, min(sizes.values())):
            held.add(name)
            count += sizes[name]
    (folder / "test").mkdir(exist_ok=True)
    rest = path.with_name(f".{path.name}")
    with open_packed(rest) as train, open_packed(folder / "test" / path.name) as test:
        for line, row in _rows(path):
            (test if row["package"] in held else train).write(line)
    os.replace(rest, path)
    report.written["train", language] -= count
    report.written["test", language] += count


def _reduce(folder: Path, language: str, most: int, seed: int, report: CleanReport) -> None:
    path = folder / "train" / f"{language}.jsonl.gz"
    count = report.written["train", language]
    kept = set(random.Random(f"balance-{seed}-{language}").sample(range(count), most))
    rest = path.with_name(f".{path.name}")
    with open_packed(rest) as file:
        for number, (line, _) in enumerate(_rows(path)):
            if number in kept:
                file.write(line)
    os.replace(rest, path)
    report.written["train", language] = most
    report.removed[language, "for the balance of languages"] += count - most
