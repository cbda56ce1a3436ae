"""Text-to-code pairs on disk: JSON Lines, one object a line, plain or gzipped.

A data directory holds one folder per split and one file per language::

    DIR/train/python.jsonl.gz   DIR/train/java.jsonl   ...   DIR/test/python.jsonl.gz

Each line has the keys ``language``, ``text`` (what the code does) and ``code``, and may have ``id``, ``tests`` and
``license``; other keys are allowed and ignored.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from moe.errors import UserError, did_you_mean

SUFFIXES = (".jsonl", ".jsonl.gz")
REQUIRED_KEYS = ("language", "text", "code")


@dataclass(frozen=True)
class Pair:
    """A description in English and the code that does it, with executable ``tests`` (source text) where there are any.

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
    path = Path(path)
    if limit is not None and limit < 1:
        raise UserError(f"a limit of {limit} pairs was asked for; it must be at least 1")
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: pairs are read from a file named *.jsonl or *.jsonl.gz")
    if not path.is_file():
        raise UserError(
            f"{path}: {'is not a file' if path.exists() else 'no such file'}; expected a file of JSON Lines"
        )
    pairs: list[Pair] = []
    for number, line in _lines(path):
        if line.strip():
            pairs.append(_parse_pair(line, f"{path}, line {number}"))
        if len(pairs) == limit:
            break
    if not pairs:
        raise UserError(f"{path}: holds no pairs; expected at least one line with {', '.join(REQUIRED_KEYS)}")
    return pairs


def write_pairs(pairs: Iterable[Pair], path: str | Path) -> None:
    """Writes pairs to a ``.jsonl`` or ``.jsonl.gz`` file that appears whole or not at all; keys that are None are left
    out. The same pairs give the same bytes."""
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: pairs are written to a file named *.jsonl or *.jsonl.gz")
    lines = (
        json.dumps({key: value for key, value in asdict(pair).items() if value is not None}, ensure_ascii=False)
        for pair in pairs
    )
    try:
        content = "".join(line + "\n" for line in lines).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: a pair holds text that is not valid Unicode ({error.reason})") from error
    if path.name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        if partial.exists():
            partial.unlink()
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


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


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields (line number from 1, line); lines end at LF only, as other separators may stand inside JSON strings."""
    opener = gzip.open if path.name.endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after line {number}: the gzip data are broken or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse_pair(line: bytes, where: str) -> Pair:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1}: {error.reason}); expected UTF-8 JSON") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); expected one JSON object on each line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: found {_json_type(row)}; expected an object with {', '.join(REQUIRED_KEYS)}")
    missing = [key for key in REQUIRED_KEYS if key not in row]
    if missing:
        found = ", ".join(map(repr, row)) or "no keys"
        raise UserError(f"{where}: lacks the key {missing[0]!r}; found {found}; expected {', '.join(REQUIRED_KEYS)}")
    for key in PAIR_KEYS:
        value = row.get(key)
        if value is None and key not in REQUIRED_KEYS:
            continue
        if not isinstance(value, str):
            raise UserError(f"{where}: {key!r} is {_json_type(value)}; expected a string")
        if key in REQUIRED_KEYS and not value.strip():
            raise UserError(f"{where}: {key!r} is empty; expected text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write half of a surrogate pair, which no tokenizer can take
            raise UserError(f"{where}: {key!r} holds a lone surrogate at character {error.start + 1}") from error
    return Pair(**{key: row.get(key) for key in PAIR_KEYS})


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]
