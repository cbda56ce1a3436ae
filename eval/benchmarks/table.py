"""pass@k per language, with bootstrap intervals over problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from eval.execution.pass_at_k import pass_at_k
from moe.languages import get_language

RESAMPLES = 10_000
Outcome = Mapping[str, Sequence[str]]  # problem's id -> status of each sample


@dataclass(frozen=True)
class Rate:
    """Mean pass@k over problems and its 95% percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def rate(outcome: Outcome, k: int) -> Rate | None:
    """pass@k of the problems that could be run; None when there are none, or one has fewer than ``k`` samples."""
    counts = [(len(statuses), statuses.count("passed")) for statuses in map(list, outcome.values())]
    if not counts or min(samples for samples, _ in counts) < k:
        return None
    values = np.array([pass_at_k(samples, passed, k) for samples, passed in counts])
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return Rate(float(values.mean()), float(low), float(high))


def summarize(outcomes: Mapping[str, Outcome], ks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Per language: problems, those that could be run, how often each status came, and pass@k.

    A problem with a sample that could not be run (a tool or library is missing) is left out of pass@k.
    """
    summary: dict[str, dict[str, Any]] = {}
    for language, outcome in outcomes.items():
        run = {name: statuses for name, statuses in outcome.items() if statuses and "unavailable" not in statuses}
        rates = {k: rate(run, k) for k in ks}
        summary[language] = {
            "problems": len(outcome),
            "run": len(run),
            "statuses": dict(sorted(Counter(s for statuses in outcome.values() for s in statuses).items())),
            "pass_at_k": {str(k): None if found is None else vars(found) for k, found in rates.items()},
        }
    return summary


def _cells(language: str, found: Mapping[str, Any]) -> list[str]:
    run, problems = found["run"], found["problems"]
    cells = [get_language(language).name, str(run) if run == problems else f"{run} of {problems}"]
    for value in found["pass_at_k"].values():
        if value is None:
            cells.append("too few samples" if run else "-")
        else:
            cells.append(f"{value['mean']:.1%} [{value['low']:.1%}, {value['high']:.1%}]")
    counts = found["statuses"]
    return [*cells, ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in counts.items())]


def terminal_table(summary: Mapping[str, Mapping[str, Any]], ks: Sequence[int], title: str) -> Table:
    """The table for the terminal."""
    table = Table(title=title, title_justify="left")
    table.add_column("language")
    table.add_column("problems", justify="right")
    for k in ks:
        table.add_column(f"pass@{k} [95% interval]", justify="right")
    table.add_column("answers")
    for language, found in summary.items():
        table.add_row(*_cells(language, found))
    return table


def markdown_table(summary: Mapping[str, Mapping[str, Any]], ks: Sequence[int]) -> str:
    """The same table in Markdown."""
    heads = ["language", "problems", *(f"pass@{k} [95% interval]" for k in ks), "answers"]
    rows = [_cells(language, found) for language, found in summary.items()]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)) + "\n"
