"""Tables of a run's results, for the terminal (rich) and for files (Markdown, JSON)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from eval.scoring import PARTS, language_names

PART_NAMES = ("CodeBLEU", "n-gram", "weighted n-gram", "syntax", "dataflow")
Results = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]  # split -> model -> language -> score and loss


def score_table(results: Results, split: str, languages: Sequence[str]) -> Table:
    """CodeBLEU per language of every model scored on ``split``, and the last model's ratio to the first."""
    models = list(results[split])
    table = Table(title=f"CodeBLEU on held-out pairs ({split})", title_justify="left")
    table.add_column("language")
    for model in models:
        table.add_column(model, justify="right")
    if len(models) > 1:
        table.add_column(f"{models[-1]} / {models[0]}", justify="right")
    for language, name in zip(languages, language_names(languages), strict=True):
        values = [results[split][model][language]["codebleu"] for model in models]
        ratio = [f"{values[-1] / values[0]:.2f}" if values[0] else "-"] if len(models) > 1 else []
        table.add_row(name, *(f"{value:.3f}" for value in values), *ratio)
    means = [sum(results[split][m][lang]["codebleu"] for lang in languages) / len(languages) for m in models]
    ratio = [f"{means[-1] / means[0]:.2f}" if means[0] else "-"] if len(models) > 1 else []
    table.add_section()
    table.add_row("mean", *(f"{mean:.3f}" for mean in means), *ratio)
    return table


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


def markdown_report(summary: Mapping[str, Any]) -> str:
    """Everything that a run measured, as Markdown: scores with their parts, losses, routing, information."""
    languages, results = summary["languages"], summary["results"]
    names = language_names(languages)
    lines = [f"# {summary['name']}", "", f"`{summary['command']}`", "", f"{summary['hardware']}, {summary['date']}", ""]
    for split, models in results.items():
        lines += [f"## {split}", "", f"| language | model | {' | '.join(PART_NAMES)} | answers | loss |"]
        lines += ["|" + "---|" * (len(PART_NAMES) + 4)]
        for language, name in zip(languages, names, strict=True):
            for model, scores in models.items():
                score = scores[language]
                parts = " | ".join(f"{score[part]:.4f}" for part in PARTS)
                loss = f"{score['loss']:.4f}" if "loss" in score else "-"
                lines.append(f"| {name} | {model} | {parts} | {score['answers']} | {loss} |")
        lines.append("")
    if summary.get("specialization"):
        found = summary["specialization"]
        lines += [
            "## Routing: gate weight of each expert",
            "",
            f"| tokens of | {' | '.join(names)} |",
            "|" + "---|" * (len(names) + 1),
        ]
        for name, row in zip(names, found["table"], strict=True):
            lines.append(f"| {name} | {' | '.join(f'{share:.1%}' for share in row)} |")
        information = ", ".join(f"{bits:.2f}" for bits in found["information"])
        chance = max(found["shuffled"])
        lines += ["", f"I(language; first-choice expert) in bits, layer by layer: {information}."]
        lines += [f"With shuffled labels at most {chance:.3f} bits.", ""]
    return "\n".join(lines)
