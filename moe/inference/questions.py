"""Files of prompts, and files of the answers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.data.rows import Row, read_rows
from moe.errors import UserError
from moe.files import named, read_lines
from moe.inference.answers import Answer, Question
from moe.inference.routing_stats import RoutingShares, expert_names
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


def answer_rows(
    questions: Sequence[Question], answers: Mapping[int, Answer], shares: RoutingShares | None = None
) -> list[dict[str, Any]]:
    """The rows of an answers file (:mod:`moe.data.rows`), for the questions that have an answer.

    Args:
        answers: by the question's index; some may be missing.
        shares: adds ``routing``, the share of each expert by its name.
    """
    rows = []
    for index, answer in sorted(answers.items()):
        question = questions[index]
        row: dict[str, Any] = {"id": question.id, "language": question.language}
        row |= Row(text=question.text, references=question.references, tests=question.tests).to_json()
        row |= {"answer": answer.text, "finished": answer.finished}
        row |= {"prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens}
        if shares is not None:
            row["routing"] = {
                name: round(share, 4) for name, share in zip(expert_names(shares.config), shares.shares(index))
            }
        rows.append(row)
    return rows
