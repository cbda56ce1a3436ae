"""Answers that other programs wrote, as JSON Lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from eval.benchmarks.problems import Problem, language_key
from eval.benchmarks.programs import answer_code
from eval.benchmarks.prompts import Style
from eval.benchmarks.scoring import Answer
from moe.errors import UserError, did_you_mean
from moe.files import json_type, read_json_lines

ID_KEYS = ("id", "task_id", "name")
# What each key holds: the continuation of the prompt, a whole program, or what --style says.
TEXT_KEYS = ("completion", "solution", "answer")


def read_answers(path: Path, problems: Sequence[Problem], style: Style) -> list[Answer]:
    """Reads answers to ``problems``; further rows with one id are further samples, rows of other problems are skipped.

    A row has the problem's ``task_id`` (or ``id``, ``name``), ``language`` where the id alone is not unique, and one
    of ``completion`` (continues the prompt, as in OpenAI's samples), ``solution`` (whole code, as EvalPlus writes) and
    ``answer`` (what ``style`` says, as this command writes).

    Raises:
        UserError: with file and line, for rows of another form; and when a problem has no answer.
    """
    by_id: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_id[problem.id].append(problem)
    answers: list[Answer] = []
    counts: dict[tuple[str, str], int] = defaultdict(int)
    skipped = ""
    for where, row in read_json_lines(path, "task_id and completion, solution or answer"):
        identity = next((row[key] for key in ID_KEYS if row.get(key) is not None), None)
        text_key = next((key for key in TEXT_KEYS if key in row), None)
        if identity is None or text_key is None:
            found = ", ".join(map(repr, row)) or "no keys"
            raise UserError(f"{where}: found {found}; expected task_id and one of {', '.join(TEXT_KEYS)}")
        text = row[text_key]
        if not isinstance(text, str):
            raise UserError(f"{where}, {identity}: {text_key!r} is {json_type(text)}; expected a string")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{where}, {identity}: {text_key!r} holds a lone surrogate; expected Unicode text")
        language = None if row.get("language") is None else language_key(str(row["language"]))
        meant = [problem for problem in by_id.get(str(identity), []) if language in (None, problem.language)]
        if not meant:
            skipped = skipped or f"{where}: no problem {str(identity)!r}{did_you_mean(str(identity), by_id)}"
            continue
        if len(meant) > 1:
            raise UserError(f"{where}: {identity!r} is a problem in several languages; add 'language' to the rows")
        problem = meant[0]
        key = (problem.language, problem.id)
        own_style: dict[str, Style] = {"completion": "completion", "solution": "instruction"}
        its_style = own_style.get(text_key, style)
        code = text if text_key == "solution" else answer_code(problem, text, its_style)
        answers.append(Answer(problem, counts[key], code, its_style))
        counts[key] += 1
    without = next((problem for problem in problems if not counts[problem.language, problem.id]), None)
    if not answers:
        raise UserError(skipped or f"{path}: holds no answers; expected at least one line")
    if without is not None:
        raise UserError(f"{path}: no answer to {without.id}; give all, or choose with --language and --problems")
    return answers
