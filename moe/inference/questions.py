"""Files of prompts, and files of the answers to them."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe.errors import UserError
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
    if not path.is_file():
        state = "is not a file" if path.exists() else "no such file"
        raise UserError(f"{path}: {state}; expected a file of prompts, *.jsonl or plain text with one a line")
    name, unpack = path.name.removesuffix(".gz"), path.name.endswith(".gz")
    try:
        data = path.read_bytes()
        content = (gzip.decompress(data) if unpack else data).removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}); expected UTF-8 text") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    questions = []
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            is_json = name.endswith(".jsonl")
            questions.append(_parse(line, where, language) if is_json else Question(line.strip(), language))
    if not questions:
        raise UserError(f"{path}: holds no prompts; expected at least one line")
    return questions


def _parse(line: str, where: str, default: str | None) -> Question:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); expected one JSON object on each line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: found a JSON {type(row).__name__}; expected an object with 'text' and 'language'")
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
    """Raises :class:`UserError` where :func:`write_rows` could not write; to be called before the work."""
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


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_rows(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Writes JSON Lines to a file that appears whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json_lines(rows), encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
