"""Files of prompts, and files of the answers to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moe.data.rows import Row, read_rows
from moe.errors import UserError
from moe.files import named, read_lines
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
