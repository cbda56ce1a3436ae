"""Text-to-code pairs on disk.

A data directory holds one folder per split and one file per language::

    DIR/train/python.jsonl.gz   DIR/train/java.jsonl   ...   DIR/test/python.jsonl.gz

Each line is a row (:mod:`moe.data.rows`) with ``language``, ``text`` and ``reference`` (or ``code``), and may have
``id``, ``tests`` and ``license``. Other containers, layouts and names are read too (:mod:`moe.data.containers`,
:mod:`moe.data.layouts`, :mod:`moe.data.splits`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from moe.data.containers import data_suffix, read_objects
from moe.data.layouts import Layout, Reading, Skip, find_layout, pair_parts, parse_fields
from moe.data.rows import Row, parse_row
from moe.data.splits import data_language, find_split
from moe.data.stored import Pair as Pair
from moe.data.stored import StoredPairs
from moe.errors import UserError, did_you_mean
from moe.files import named
from moe.languages import LANGUAGES

REQUIRED_KEYS = ("language", "text", "reference")
PACKAGE_FIELDS = ("package", "repo", "repository_name", "repo_name")


@dataclass(frozen=True)
class Split:
    """Pairs per language, and how they were read."""

    pairs: dict[str, StoredPairs]
    reading: Reading


def iterate_pairs(
    path: Path, fields: Mapping[str, str], reading: Reading, language: str | None = None
) -> Iterator[tuple[str, Pair]]:
    """Yields the pairs of a file with their places (``"FILE, line N"``), one at a time, and counts them in ``reading``.

    Args:
        fields: what :func:`moe.data.layouts.parse_fields` returns; empty to recognize the layout.
        language: what the file's name says; pairs of another one are an error.

    Raises:
        UserError: with file and place, for everything that is no pair, and for a file without any.
    """
    layout: Layout | None = None
    count, skipped = 0, Counter[str]()
    for place, found in read_objects(path):
        where = f"{path}, {place}"
        with named(where):
            layout = layout or find_layout(found, fields)
            try:
                pair, source = _parsed(layout, found, language)
            except Skip as reason:
                skipped[str(reason)] += 1
                reading.left_out[str(reason)] += 1
                continue
        if language is not None and pair.language != language:
            raise UserError(
                f"{where}: language is {pair.language!r}; expected {language!r}, as in the file's name (set fields to "
                "language= to go by the name)"
            )
        count += 1
        reading.layouts[layout.name] += 1
        reading.languages[source] += 1
        yield where, pair
    if not count:
        reasons = f" (left out {', '.join(f'{number:,} {why}' for why, number in skipped.items())})"
        raise UserError(
            f"{path}: holds no pairs{reasons if skipped else ''}; expected at least one line with "
            f"{', '.join(REQUIRED_KEYS)}"
        )


def _parsed(layout: Layout, found: Mapping[str, Any], language: str | None) -> tuple[Pair, str]:
    row, source = pair_parts(layout, found, language)
    if layout.answers and "language" not in row:
        raise Skip("that name no language (name the file after it, or set fields to language=NAME)")
    package = next((found[name] for name in PACKAGE_FIELDS if isinstance(found.get(name), str)), None)
    return replace(_pair(parse_row(row, REQUIRED_KEYS)), package=package), source


def read_pairs(path: str | Path, limit: int | None = None, fields: Sequence[str] = ()) -> list[Pair]:
    """Reads the pairs of a file, only the first ``limit`` when that is given.

    Blank lines are allowed. Raises :class:`UserError` with file and line number for everything else that is not a pair,
    and for a file without any pair.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 pair")
    if data_suffix(path.name) is None:
        raise UserError(f"{path}: pairs are read from a file named *.jsonl or *.jsonl.gz, *.json, *.parquet and so on")
    pairs = iterate_pairs(path, parse_fields(fields), Reading(), data_language(path.name))
    return [pair for _, pair in islice(pairs, limit)]


def read_split(
    data_dir: str | Path, split: str, languages: Sequence[str], limit: int | None = None, fields: Sequence[str] = ()
) -> Split:
    """Reads a split of a data directory, the first ``limit`` pairs of each language, into temporary files.

    Pairs are in the order of ``languages``. Raises :class:`UserError`, naming what is there, when the directory, the
    split or a language is missing, and for a pair of another language than its file's name.
    """
    files = find_split(Path(data_dir), split)
    chosen, reading = parse_fields(fields), Reading()
    of_all = [path for language, path in files if language is None]
    there = sorted({language for language, _ in files if language is not None})
    result = {language: StoredPairs() for language in languages}
    for wanted in languages:
        own = [path for language, path in files if language == wanted]
        if not own and not of_all:
            hint = did_you_mean(wanted, there)
            raise UserError(
                f"{Path(data_dir) / split}: no data for language {wanted!r}{hint}: expected {wanted}.jsonl or "
                f"{wanted}.jsonl.gz; languages there: {', '.join(there)}"
            )
        for path in own:
            left = None if limit is None else limit - len(result[wanted])
            for _, pair in islice(iterate_pairs(path, chosen, reading, wanted), left):
                result[wanted].append(pair)
    for path in of_all:
        for _, pair in iterate_pairs(path, chosen, reading):
            if pair.language not in result:
                known = LANGUAGES.get(pair.language)
                reading.left_out[f"in {known.name}" if known else f"in the unknown language {pair.language!r}"] += 1
            elif limit is None or len(result[pair.language]) < limit:
                result[pair.language].append(pair)
    for language, pairs in result.items():
        if not pairs:
            raise UserError(f"{Path(data_dir) / split}: no pairs in {language!r}; {reading.describe()}")
    return Split(result, reading)


def load_split(
    data_dir: str | Path, split: str, languages: Sequence[str], limit: int | None = None, fields: Sequence[str] = ()
) -> dict[str, StoredPairs]:
    """The pairs alone of :func:`read_split`: ``{language: pairs}``."""
    return read_split(data_dir, split, languages, limit, fields).pairs


def _pair(row: Row) -> Pair:
    """The pair in a row; its first reference is the one to learn."""
    code = row.references[0]
    for key, value in (("language", row.language), ("text", row.text), ("reference", code)):
        if value is None or not value.strip():
            raise UserError(f"{key!r} is empty; expected text")
    assert row.language is not None and row.text is not None, "both are required"
    return Pair(row.language, row.text, code, None if row.id is None else str(row.id), row.tests, row.license)
