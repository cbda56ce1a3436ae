"""Tables of a run's results, for the terminal (rich) and for files (Markdown, JSON)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from eval.scoring import language_names
from eval.verdicts import pass_at_1

PART_NAMES = ("CodeBLEU", "n-gram", "weighted n-gram", "syntax", "dataflow")
ARROW = " → "
Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]  # split -> model -> language -> score and loss


def score_table(results: Results, split: str, languages: Sequence[str]) -> Table:
    """CodeBLEU per language of every model scored on ``split``, the last one's ratio to the first, and pass@1 where
    tests were run."""
    models = results[split]
    rows = score_rows(models, languages)
    what = "CodeBLEU and pass@1" if "pass@1" in rows[0] else "CodeBLEU"
    table = Table(title=f"{what} on held-out pairs ({split})", title_justify="left", caption_justify="left")
    table.caption = ARROW.join(models)
    table.add_column("language")
    for name in list(rows[0])[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        if row["language"] == "mean":
            table.add_section()
        table.add_row(*row.values())
    return table


def score_rows(models: Mapping[str, Mapping[str, Mapping[str, Any]]], languages: Sequence[str]) -> list[dict[str, str]]:
    """The cells of :func:`score_table` by column, a row for each language and their mean.

    A cell goes from model to model: ``0.156 → 0.434``. ``-`` stands where no tests were run; without any in the whole
    table there is no column ``pass@1``. Means are over the languages that have a value.
    """
    found = list(models.values())
    bleu = [[scores[language]["codebleu"] for scores in found] for language in languages]
    passed = [[pass_at_1(scores[language]) for scores in found] for language in languages]
    tested = any(value is not None for values in passed for value in values)
    rows = []
    names = [*language_names(languages), "mean"]
    for name, scores, rates in zip(names, [*bleu, _means(bleu)], [*passed, _means(passed)], strict=True):
        row = {"language": name, "CodeBLEU": ARROW.join(f"{x:.3f}" for x in scores)}
        if len(found) > 1:
            row["ratio"] = f"{scores[-1] / scores[0]:.2f}" if scores[0] else "-"
        if tested:
            row["pass@1"] = ARROW.join("-" if x is None else f"{x:.2f}" for x in rates)
        rows.append(row)
    return rows


def _means(rows: Sequence[Sequence[float | None]]) -> list[Any]:
    """The mean of each column over the rows that have a value; None without any."""
    columns = [[x for x in column if x is not None] for column in zip(*rows, strict=True)]
    return [sum(column) / len(column) if column else None for column in columns]


def loss_table(results: Results, split: str, languages: Sequence[str]) -> Table:
    """Held-out loss per language of every model on ``split``."""
    models = [model for model in results[split] if all("loss" in results[split][model][x] for x in languages)]
    table = Table(title=f"Held-out loss, nats per response token ({split})", title_justify="left")
    table.add_column("language")
    for model in models:
        table.add_column(model, justify="right")
    for language, name in zip(languages, language_names(languages), strict=True):
        table.add_row(name, *(f"{results[split][model][language]['loss']:.3f}" for model in models))
    return table


def share_text(share: float) -> str:
    """A share in percent; a dash for NaN, where nothing was counted."""
    return "-" if math.isnan(share) else f"{share:.0%}"


def routing_table(shares: Sequence[Sequence[float]], languages: Sequence[str], title: str) -> Table:
    """Share of each language's gate weight (or routed slots) that each expert got; expert i is language i's."""
    table = Table(title=title, title_justify="left")
    table.add_column("tokens of \\ expert")
    names = language_names(languages)
    for name in names:
        table.add_column(name, justify="right")
    for row, (name, values) in enumerate(zip(names, shares, strict=True)):
        cells = [f"[bold]{share_text(v)}[/bold]" if i == row else share_text(v) for i, v in enumerate(values)]
        table.add_row(name, *cells)
    return table
