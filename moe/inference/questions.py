"""Files of prompts, and files of the answers to them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import read_json_lines, read_lines
from moe.inference.answers import Question
from moe.languages import get_language


def read_questions(path: str | Path, language: str | None = None) -> list[Question]:
    """Reads prompts: JSON Lines from ``*.jsonl``, else plain text, one prompt a line; ``*.gz`` is unpacked.

    A JSON line is an object with ``text``, with ``language`` where no ``language`` is given here (null: none is
    named), and perhaps an ``id``; other keys are ignored, so a file of pairs is fine. A line's own language comes
    first. Blank lines are skipped.

    Raises:
        UserError: with file and line number, for everything that is not such a line, and for a file without prompts.
    """
    path = Path(path)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        rows = read_json_lines(path, "'text' and 'language'")
        questions = [_parse(row, where, language) for where, row in rows]
    else:
        questions = [Question(line.strip(), language) for _, line in read_lines(path)]
    if not questions:
        raise UserError(f"{path}: holds no prompts; expected at least one line")
    return questions


def _parse(row: dict[str, Any], where: str, default: str | None) -> Question:
    found = ", ".join(map(repr, row)) or "no keys"
    if "text" not in row:
        raise UserError(f"{where}: lacks the key 'text'; found {found}; expected 'text' and 'language'")
    if "language" not in row and default is None:
        raise UserError(f"{where}: lacks the key 'language'; found {found}; add it (null: none is named) or --language")
    values = {"text": row["text"], "language": row.get("language", default), "id": row.get("id")}
    for key, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and key == "id":
            values[key] = str(value)
        elif not (isinstance(value, str) or (value is None and key != "text")):
            raise UserError(f"{where}: {key!r} is {json.dumps(value)[:40]}; expected a string")
    try:
        if values["language"] is not None:
            get_language(values["language"])
        return Question(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_output(path: str | Path, force: bool = False) -> Path:
    """Raises :class:`UserError` where ``path`` cannot be written; call it before the work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; expected the name of a file to write")
    if path.exists() and not force:
        raise UserError(f"{path} exists; give another --output or --force to replace it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no directory; make it first: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} cannot be written to; give another --output")
    return path
