"""Text-to-code pairs on disk: JSON Lines, plain or gzipped.

A data directory holds one folder per split and one file per language::

    DIR/train/python.jsonl.gz   DIR/train/java.jsonl   ...   DIR/test/python.jsonl.gz

Each line is a row (:mod:`moe.data.rows`) with ``language``, ``text`` and ``reference`` (or ``code``), and may have
``id``, ``tests`` and ``license``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moe.data.rows import Row, read_rows
from moe.errors import UserError, did_you_mean

SUFFIXES = (".jsonl", ".jsonl.gz")
REQUIRED_KEYS = ("language", "text", "reference")


@dataclass(frozen=True)
class Pair:
    """An English description and the code that does it, with executable ``tests`` (a JSON object) where there are any.

    ``language`` is a key of :data:`moe.languages.LANGUAGES`; ``license`` is an SPDX expression.
    """

    language: str
    text: str
    code: str
    id: str | None = None
    tests: str | None = None
    license: str | None = None


def read_pairs(path: str | Path, limit: int | None = None) -> list[Pair]:
    """Reads the pairs of a ``.jsonl`` or ``.jsonl.gz`` file, only the first ``limit`` when that is given.

    Blank lines are allowed. Raises :class:`UserError` with file and line number for everything else that is not a pair,
    and for a file without any pair.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 pair")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: pairs are read from a file named *.jsonl or *.jsonl.gz")
    pairs = [_pair(row, where) for where, row in read_rows(path, REQUIRED_KEYS, limit)]
    if not pairs:
        raise UserError(f"{path}: holds no pairs; expected at least one line with {', '.join(REQUIRED_KEYS)}")
    return pairs


def load_split(
    data_dir: str | Path, split: str, languages: Sequence[str], limit: int | None = None
) -> dict[str, list[Pair]]:
    """Reads ``DIR/<split>/<language>.jsonl(.gz)`` for each language, the first ``limit`` pairs of each.

    Returns ``{language: pairs}`` in the order of ``languages``. Raises :class:`UserError`, naming what is there, when
    the directory, the split or a language's file is missing, and for a pair of another language than its file's name.
    """
    directory = Path(data_dir)
    if not directory.is_dir():
        state = "is not a directory" if directory.exists() else "no such directory"
        raise UserError(f"{directory}: {state}; expected a data directory with <split>/<language>.jsonl files")
    splits = sorted(entry.name for entry in directory.iterdir() if entry.is_dir() and _languages_in(entry))
    if split not in splits:
        raise UserError(
            f"{directory}: no split {split!r}{did_you_mean(split, splits)}; splits there: {', '.join(splits) or 'none'}"
        )
    files = _languages_in(directory / split)
    result: dict[str, list[Pair]] = {}
    for language in languages:
        if language not in files:
            hint = did_you_mean(language, files)
            raise UserError(
                f"{directory / split}: no data for language {language!r}{hint}: expected {language}.jsonl or "
                f"{language}.jsonl.gz; languages there: {', '.join(sorted(files))}"
            )
        if len(files[language]) > 1:
            names = " and ".join(path.name for path in files[language])
            raise UserError(f"{directory / split}: both {names} are there; remove one of them")
        pairs = read_pairs(files[language][0], limit)
        for index, pair in enumerate(pairs, start=1):
            if pair.language != language:
                raise UserError(
                    f"{files[language][0]}, pair {index}: language is {pair.language!r}; expected {language!r}, "
                    "as in the file's name"
                )
        result[language] = pairs
    return result


def _languages_in(directory: Path) -> dict[str, list[Path]]:
    """Maps each language that has data in a split's folder to its files (two when both forms are there)."""
    found: dict[str, list[Path]] = {}
    for path in sorted(directory.iterdir()):
        for suffix in SUFFIXES:
            if path.name.endswith(suffix) and path.name != suffix and path.is_file():
                found.setdefault(path.name.removesuffix(suffix), []).append(path)
    return found


def _pair(row: Row, where: str) -> Pair:
    """The pair in a row; its first reference is the one to learn."""
    code = row.references[0]
    for key, value in (("language", row.language), ("text", row.text), ("reference", code)):
        if value is None or not value.strip():
            raise UserError(f"{where}: {key!r} is empty; expected text")
    assert row.language is not None and row.text is not None, "both are required"
    return Pair(row.language, row.text, code, None if row.id is None else str(row.id), row.tests, row.license)
