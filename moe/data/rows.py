"""Rows of JSON Lines, in one vocabulary from the prompt to the verdict.

Every command reads and writes the same keys: ``id``, ``language``, ``text`` (what the code does), ``reference``,
``tests`` and ``answer``. :data:`ALIASES` lists names of earlier versions and of other programs. Other keys are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import decode_line, json_type, numbered_lines, parse_object
from moe.languages import language_key

ALIASES: dict[str, tuple[str, ...]] = {
    "language": ("lang",),
    "reference": ("references", "code"),
    "answer": ("hypothesis", "prediction"),
}
_ARRAY = re.compile(rb"\s*\[\s*(\{|$)")


@dataclass(frozen=True)
class Row:
    """One line; what it lacks is None (empty for ``references``).

    Attributes:
        id: a name, as it is in the file.
        language: a key of :data:`moe.languages.LANGUAGES` where the name is known, else the name.
        text: what the code does, in English.
        references: code that does it.
        tests: executable tests, a JSON object as text.
        answer: what a model wrote.
        license: an SPDX expression.
        weights: of CodeBLEU's parts, unchecked.
        no_language: whether ``language`` is there and null: the prompt is to name none.
    """

    id: str | int | None = None
    language: str | None = None
    text: str | None = None
    references: tuple[str, ...] = ()
    tests: str | None = None
    answer: str | None = None
    license: str | None = None
    weights: list[Any] | None = None
    no_language: bool = False

    def to_json(self) -> dict[str, Any]:
        """The row as it is written: ``reference`` is a list where there are several, absent values are left out."""
        references = self.references[0] if len(self.references) == 1 else list(self.references) or None
        values = {"id": self.id, "language": self.language, "text": self.text, "reference": references}
        values |= {"tests": self.tests, "answer": self.answer}
        return {key: value for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class BadRow:
    """A line that is no row: its ``id`` where it has one, and what is wrong with it."""

    id: str | int | None
    problem: str


def read_each(path: Path, required: Sequence[str]) -> Iterator[tuple[int, Row | BadRow]]:
    """Yields every line that is not blank with its number from 1; a line that is no row comes as a :class:`BadRow`.

    Args:
        required: keys that a row must have, in the order that messages list them.

    Raises:
        UserError: the file is missing, cannot be read or is one JSON array.
    """
    first = True
    for number, line in numbered_lines(path):
        found: dict[str, Any] = {}
        try:
            found = parse_object(decode_line(line), ", ".join(required))
            row: Row | BadRow = parse_row(found, required)
        except UserError as error:
            if first and _ARRAY.match(line):
                raise UserError(f"{path}: holds a JSON array; expected JSON Lines, one object on each line") from None
            name = found.get("id")
            row = BadRow(name if isinstance(name, str | int) else None, str(error))
        first = False
        yield number, row


def read_rows(path: str | Path, required: Sequence[str], limit: int | None = None) -> Iterator[tuple[str, Row]]:
    """Yields the rows of a ``.jsonl`` or ``.jsonl.gz`` file with their places (``"FILE, line N"``).

    Args:
        required: keys that every row must have.
        limit: read only the first ``limit`` rows.

    Raises:
        UserError: as for :func:`read_each`, and for the first line that is no row.
    """
    for number, row in islice(read_each(Path(path), required), limit):
        if isinstance(row, BadRow):
            raise UserError(f"{path}, line {number}: {row.problem}")
        yield f"{path}, line {number}", row


@dataclass(frozen=True)
class Judged:
    """Code to run against tests, from the row at ``where``; ``answer``: it is an answer, not a reference."""

    where: str
    id: str | int | None
    language: str
    code: str
    tests: str | None
    answer: bool


def read_judged(path: str | Path, limit: int | None = None) -> list[Judged]:
    """Reads what tests judge: the answer of each row, in a row without one its reference (``code`` in a pair).

    Raises:
        UserError: as for :func:`read_rows`, and for a row with neither, and a file without rows.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit is {limit}, expected at least 1 row")
    found = []
    for where, row in read_rows(path, ("language",), limit):
        assert row.language is not None, "it is required"
        code = row.answer if row.answer is not None or not row.references else row.references[0]
        if code is None:
            raise UserError(f"{where}: has no code to run; expected 'answer' or 'reference'")
        found.append(Judged(where, row.id, row.language, code, row.tests, row.answer is not None))
    if not found:
        raise UserError(f"{path}: holds no rows; expected at least one line with language, tests, answer or reference")
    return found


def describe_judged(rows: Sequence[Judged]) -> str:
    """What is judged, in one line."""
    answers = sum(row.answer for row in rows)
    if answers and answers < len(rows):
        return f"judged: {answers} answers, and {len(rows) - answers} references in rows without an answer"
    return f"judged: {len(rows)} answers" if answers else f"judged: {len(rows)} references (no row has an answer)"


def parse_row(found: Mapping[str, Any], required: Sequence[str] = ()) -> Row:
    """The row in a JSON object.

    Raises:
        UserError: a required key is missing, a value has another type, or two names of one key disagree.
    """
    values = {key: _value(found, key) for key in ("id", "language", "text", "reference", "tests", "answer", "license")}
    for key in required:
        if not values[key] and values[key] != "":
            given = next((name for name in (key, *ALIASES.get(key, ())) if name in found), None)
            if given is not None:
                what = "an empty list" if found[given] == [] else json_type(found[given])
                raise UserError(f"{given!r} is {what}; expected a string")
            listed = ", ".join(map(repr, found)) or "no keys"
            raise UserError(f"lacks the key {key!r}; found {listed}; expected {', '.join(required)}")
    weights = found.get("weights")
    if not isinstance(weights, list | None):
        raise UserError(f"'weights' is {json_type(weights)}; expected a list")
    references = values["reference"]
    language = values["language"]
    return Row(
        id=values["id"],
        language=None if language is None else language_key(language),
        text=values["text"],
        references=(references,) if isinstance(references, str) else tuple(references or ()),
        tests=values["tests"],
        answer=values["answer"],
        license=values["license"],
        weights=weights,
        no_language=language is None and any(name in found for name in ("language", *ALIASES["language"])),
    )


def _value(found: Mapping[str, Any], key: str) -> Any:
    """The checked value of a key under any of its names; None without one."""
    name, value = key, None
    for other in (key, *ALIASES.get(key, ())):
        new = found.get(other)
        if new is None:
            continue
        new = new[0] if key == "reference" and isinstance(new, list) and len(new) == 1 else new
        if value is not None and new != value:
            raise UserError(f"{name!r} and {other!r} are two names of the same thing and differ; give one of them")
        name, value = (other, new) if value is None else (name, value)
    return _checked(name, key, value)


def _checked(name: str, key: str, value: Any) -> Any:
    if key == "reference" and isinstance(value, list):
        if name == "code" and len(value) > 1:  # lines or tokens of one text, or several texts: nobody knows
            raise UserError("'code' is a list; expected a string (several solutions are named 'references')")
        return [_checked(name, "", text) for text in value]
    if key == "tests" and isinstance(value, dict):
        value = json.dumps(value)
    number = key == "id" and isinstance(value, int) and not isinstance(value, bool)
    if not isinstance(value, str) and not number and (value is not None or not key):
        wanted = "a string or a whole number" if key == "id" else "a string"
        raise UserError(f"{name!r} is {json_type(value)}; expected {wanted}")
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write lone surrogates, which no tokenizer takes
            raise UserError(f"{name!r} holds a lone surrogate at character {error.start + 1}") from error
    return value
