"""Files of prompts, and files of the answers to them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe.data.rows import Row, read_rows
from moe.errors import UserError
from moe.files import json_bytes, json_lines, named, read_json_lines, read_lines, replace_file, write_json_lines
from moe.inference.answers import Answer, Question
from moe.languages import get_language


def read_questions(path: str | Path, language: str | None = None) -> list[Question]:
    """Reads prompts: JSON Lines from ``*.jsonl``, else plain text, one prompt a line; ``*.gz`` is unpacked.

    A JSON line is a row (:mod:`moe.data.rows`) with ``text`` and ``language`` (null mentions none), so a file of pairs
    is fine; ``id``, ``reference`` and ``tests`` go into the answers file. ``language`` is the default for lines without
    one. Blank lines are skipped.

    Raises:
        UserError: with file and line number, for everything that is not such a line, and for a file without prompts.
    """
    path = Path(path)
    if path.name.removesuffix(".gz").endswith(".jsonl"):
        questions = [_question(row, where, language) for where, row in read_rows(path, ("text",))]
    else:
        questions = [Question(line.strip(), language) for _, line in read_lines(path)]
    if not questions:
        raise UserError(f"{path}: holds no prompts; expected at least one line")
    return questions


def _question(row: Row, where: str, default: str | None) -> Question:
    language = row.language if row.language is not None or row.no_language else default
    if language is None and not row.no_language:
        raise UserError(f"{where}: lacks the key 'language'; add it (null mentions none) or set a default")
    assert row.text is not None, "it is required"
    with named(where):
        if language is not None:
            get_language(language)
        return Question(row.text, language, None if row.id is None else str(row.id), row.references, row.tests)


def answer_row(question: Question, answer: Answer, sample: int | None = None) -> dict[str, Any]:
    """The row of an answers file (:mod:`moe.data.rows`); ``sample`` numbers those to one prompt."""
    return {
        **_question_keys(question, sample),
        "answer": answer.text,
        "finished": answer.finished,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
    }


def error_row(question: Question, message: str, sample: int | None = None) -> dict[str, Any]:
    """The row of a prompt that could not be answered."""
    return {**_question_keys(question, sample), "error": message}


def _question_keys(question: Question, sample: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": question.id, "language": question.language}
    row |= Row(text=question.text, references=question.references, tests=question.tests).to_json()
    return row if sample is None else {**row, "sample": sample}


class AnswersFile:
    """A JSON Lines file that grows by an answer at a time, and continues after the process was killed.

    Rows come in the order in which answers are done, each with its ``number``, and are on the disk when :meth:`add`
    returns. Until :meth:`finish` puts them in order, a file beside it, ``*.unfinished``, holds what they depend on.

    Args:
        settings: what the answers depend on, JSON-able; a file that was begun with others is not continued.
        force: begin anew.

    Raises:
        UserError: the file exists, and was not left unfinished with these settings.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], force: bool = False):
        self.path = Path(path)
        self.note = self.path.with_name(self.path.name + ".unfinished")
        self.rows: dict[int, dict[str, Any]] = {}
        if self.path.exists() and not force:
            self._continue(settings)
        else:
            replace_file(self.note, json_bytes(dict(settings)))
            replace_file(self.path, b"")

    def _continue(self, settings: Mapping[str, Any]) -> None:
        if not self.note.exists():
            raise UserError(f"{self.path} exists; give another --output or --force to replace it")
        if json.loads(self.note.read_bytes()) != json.loads(json_bytes(dict(settings))):
            raise UserError(
                f"{self.path} was begun with other prompts, settings or another model; give those, another --output, "
                "or --force to begin anew"
            )
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):  # a line that a kill cut short
            with self.path.open("r+b") as file:
                file.truncate(data.rfind(b"\n") + 1)
        for _, row in read_json_lines(self.path, "answers"):
            self.rows[row.pop("number")] = row

    def add(self, number: int, row: dict[str, Any]) -> None:
        """Adds a row and flushes it to the disk."""
        with self.path.open("ab") as file:
            file.write(json_lines([{**row, "number": number}]).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows[number] = row

    def finish(self) -> None:
        """Puts the rows in the order of their numbers, which they lose; atomic."""
        write_json_lines(self.path, [row for _, row in sorted(self.rows.items())])
        self.note.unlink()
