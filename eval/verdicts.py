"""Pass@1 of a run: the tests of its scored answers. This is where a run calls the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.data.rows import Row, parse_row
from moe.data.sources import sample
from moe.errors import UserError
from moe.files import Journal, read_json_lines, write_json_lines

UNJUDGED = ("unavailable", "unusable")  # verdicts that say nothing about the answer


def run_all(
    jobs: Sequence[Row], on_progress: Callable[[int, int], None] | None = None, journal: Path | None = None
) -> list[tuple[str, str]]:
    """The verdict of each row's answer, and its detail in one line; ``on_progress`` gets (done, total).

    Rows whose tests cannot be used, or whose language cannot be run, are ``unusable``; where nothing contains
    programs all are ``unavailable``. Other verdicts are noted in ``journal`` one by one; a later call with the same
    rows goes on behind them.
    """
    from eval.execution.cases import CaseTests  # here, as it needs tree-sitter, which a run does without
    from eval.execution.judge import Job, check_language, judge_many

    noted = Journal(journal, [row.to_json() for row in jobs])
    found: dict[int, tuple[str, str]] = {row["place"]: (row["verdict"], row["detail"]) for row in noted.rows}
    usable: dict[int, Job] = {}
    for place, row in enumerate(jobs):
        if place in found:
            continue
        language = row.language or ""
        try:
            check_language(language)
            usable[place] = (language, row.answer or "", CaseTests.parse(row.tests or "", language))
        except UserError as error:
            found[place] = ("unusable", str(error))
    try:
        for place, verdict in zip(usable, judge_many(usable.values())):
            found[place] = (verdict.status, verdict.detail)
            if verdict.status not in UNJUDGED:
                noted.add({"place": place, "verdict": verdict.status, "detail": verdict.detail})
            if on_progress is not None:
                on_progress(len(found), len(jobs))
    except UserError as error:
        found |= {place: ("unavailable", str(error)) for place in usable if place not in found}
    return [found[place] for place in range(len(jobs))]


def add_verdicts(
    path: Path, per_language: int, seed: int, on_progress: Callable[[int, int], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Runs the tests of the answers in a file and writes ``verdict`` and ``detail`` into its rows.

    Args:
        path: an answers file of a run.
        per_language: answers to run, drawn by ``seed``; 0 for all that have tests.

    Returns:
        by language: how many answers were ``tested`` and ``passed``, the ``verdicts`` with their counts, and ``why``,
        where none were, the reason in one line. Languages without tests are left out.
    """
    written = [
        {key: value for key, value in row.items() if key not in ("verdict", "detail")}  # of an earlier try
        for _, row in read_json_lines(path, "a scored answer")
    ]
    rows = [parse_row(row) for row in written]
    chosen: list[int] = []
    for language in dict.fromkeys(row.language for row in rows):
        tested = [i for i, row in enumerate(rows) if row.language == language and row.tests]
        chosen += sample(tested, per_language, seed)
    journal = path.with_suffix(".untested")
    found = run_all([rows[i] for i in chosen], on_progress, journal)
    for i, (verdict, detail) in zip(chosen, found, strict=True):
        written[i] |= {"verdict": verdict, "detail": detail} if detail else {"verdict": verdict}
    write_json_lines(path, written)
    journal.unlink(missing_ok=True)
    return count_verdicts(written)


def count_verdicts(written: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What :func:`add_verdicts` returns, from rows with verdicts."""
    result: dict[str, dict[str, Any]] = {}
    for row in written:
        if "verdict" not in row:
            continue
        counts = result.setdefault(row["language"], {"tested": 0, "passed": 0, "verdicts": Counter(), "why": ""})
        counts["verdicts"][row["verdict"]] += 1
        counts["tested"] += row["verdict"] not in UNJUDGED
        counts["passed"] += row["verdict"] == "passed"
        if row["verdict"] in UNJUDGED:
            counts["why"] = counts["why"] or row.get("detail", "")
    return {language: {**counts, "verdicts": dict(counts["verdicts"])} for language, counts in result.items()}


def pass_at_1(score: Mapping[str, Any]) -> float | None:
    """The share of tested answers that passed; None where none were tested."""
    return score["passed"] / score["tested"] if score.get("tested") else None
