"""Text-to-code pairs on disk: JSON Lines, plain or gzipped.

A data directory holds one folder per split and one file per language::

    DIR/train/python.jsonl.gz   DIR/train/java.jsonl   ...   DIR/test/python.jsonl.gz

Each line has the keys ``language``, ``text`` (what the code does) and ``code``, and may have ``id``, ``tests`` and
``license``; other keys are allowed and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from moe.errors import UserError, did_you_mean
from moe.files import json_type, read_json_lines

SUFFIXES = (".jsonl", ".jsonl.gz")
REQUIRED_KEYS = ("language", "text", "code")


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


PAIR_KEYS = tuple(field.name for field in fields(Pair))


def read_pairs(path: str | Path, limit: int | None = None) -> list[Pair]:
    """Reads the pairs of a ``.jsonl`` or ``.jsonl.gz`` file, only the first ``limit`` when that is given.

    Blank lines are allowed. Raises :class:`UserError` with file and line number for everything else that is not a pair,
    and for a file without any pair.
    """
    return [pair for _, pair in read_places(path, limit)]


def read_places(path: str | Path, limit: int | None = None) -> list[tuple[str, Pair]]:
    """As :func:`read_pairs`, each pair with its place (``"FILE, line N"``)."""
    path = Path(path)
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 pair")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: pairs are read from a file named *.jsonl or *.jsonl.gz")
    rows = islice(read_json_lines(path, ", ".join(REQUIRED_KEYS)), limit)
    pairs = [(where, _parse_pair(row, where)) for where, row in rows]
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


def _parse_pair(row: dict[str, Any], where: str) -> Pair:
    missing = [key for key in REQUIRED_KEYS if key not in row]
    if missing:
        found = ", ".join(map(repr, row)) or "no keys"
        raise UserError(f"{where}: lacks the key {missing[0]!r}; found {found}; expected {', '.join(REQUIRED_KEYS)}")
    for key in PAIR_KEYS:
        value = row.get(key)
        if value is None and key not in REQUIRED_KEYS:
            continue
        if not isinstance(value, str):
            raise UserError(f"{where}: {key!r} is {json_type(value)}; expected a string")
        if key in REQUIRED_KEYS and not value.strip():
            raise UserError(f"{where}: {key!r} is empty; expected text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write lone surrogates, which no tokenizer takes
            raise UserError(f"{where}: {key!r} holds a lone surrogate at character {error.start + 1}") from error
    values: dict[str, Any] = {key: row.get(key) for key in PAIR_KEYS}
    return Pair(**values)
