"""Answers to show in a report, each with its difference to the reference."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from moe.data.rows import parse_row

PER_LANGUAGE = 3
MOST_LINES = 120  # of one difference


def choose_examples(rows: Sequence[Mapping[str, Any]], languages: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """For each language a good, a middling and a bad answer.

    Answers are ordered by whether they passed their tests and then by CodeBLEU; the best, the median and the worst are
    chosen. Each has ``id``, ``text``, ``verdict`` and ``detail`` (empty without tests), the scores, ``answer`` and
    ``difference``.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for language in languages:
        own = [row for row in rows if row.get("language") == language]
        own.sort(key=lambda row: (row.get("verdict") == "passed", row.get("codebleu", 0.0)), reverse=True)
        places = sorted({0, len(own) // 2, len(own) - 1}) if own else []
        found[language] = [_example(own[place]) for place in places[:PER_LANGUAGE]]
    return found


def _example(written: Mapping[str, Any]) -> dict[str, Any]:
    row = parse_row(written)
    return {
        "id": "" if row.id is None else str(row.id),
        "text": row.text or "",
        "verdict": written.get("verdict", ""),
        "detail": written.get("detail", ""),
        "codebleu": written.get("codebleu"),
        "answer": row.answer or "",
        "difference": difference(row.references[0] if row.references else "", row.answer or ""),
    }


def difference(reference: str, answer: str) -> list[tuple[str, str]]:
    """(sign, line) of the whole texts: ``-`` only in the reference, ``+`` only in the answer, a space in both."""
    before, after = reference.splitlines(), answer.splitlines()
    lines: list[tuple[str, str]] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if kind == "equal":
            lines += [(" ", line) for line in before[a:b]]
            continue
        lines += [("-", line) for line in before[a:b]]
        lines += [("+", line) for line in after[c:d]]
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], (" ", f"... {left} more lines")] if left > 0 else lines
