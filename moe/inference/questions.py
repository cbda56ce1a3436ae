"""Files of prompts, and files of the answers to them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import read_json_lines, read_lines
from moe.inference.answers import Answer, Question
from moe.languages import get_language
from moe.routing_stats import RoutingShares, expert_names


def read_questions(path: str | Path, language: str | None = None) -> list[Question]:
    """Reads prompts: JSON Lines from ``*.jsonl``, else plain text, one prompt a line; ``*.gz`` is unpacked.

    A JSON line is an object with ``text``, ``language`` (null mentions none) and perhaps ``id``; other keys are
    ignored, so a file of pairs is fine. ``language`` is the default for lines without one. Blank lines are skipped.

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
        raise UserError(
            f"{where}: lacks the key 'language'; found {found}; add it (null mentions none) or set a default"
        )
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


def answer_rows(
    questions: Sequence[Question], answers: Mapping[int, Answer], shares: RoutingShares | None = None
) -> list[dict[str, Any]]:
    """The rows of an answers file, for the questions that have an answer.

    Args:
        answers: by the question's index; some may be missing.
        shares: adds ``routing``, the share of each expert by its name.
    """
    rows = []
    for index, answer in sorted(answers.items()):
        question = questions[index]
        row: dict[str, Any] = {"id": question.id, "language": question.language, "text": question.text}
        row |= {"answer": answer.text, "finished": answer.finished}
        row |= {"prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens}
        if shares is not None:
            row["routing"] = {
                name: round(share, 4) for name, share in zip(expert_names(shares.config), shares.shares(index))
            }
        rows.append(row)
    return rows
