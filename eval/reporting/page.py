"""The report of one or more runs: a self-contained HTML page and the same in Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.reporting.examples import choose_examples
from eval.reporting.plots import INSTALL, THEMES, can_plot, loss_curves, routing_layers, routing_maps
from eval.reporting.record import STAGES, RunRecord
from eval.reporting.tables import ARROW, PART_NAMES, score_rows, share_text
from eval.scoring import PARTS, language_names
from eval.verdicts import pass_at_1
from moe.files import replace_file

TEMPLATES = Path(__file__).resolve().parent
PAGE, TEXT = "report.html", "report.md"


def write_report(runs: Sequence[RunRecord], folder: Path, comparison: dict[str, Any] | None = None) -> list[str]:
    """Writes ``report.html``, ``report.md`` and the plots into ``folder``; returns lines to print.

    Args:
        comparison: of several runs (:func:`eval.compare.compare_runs`), with how to read it as ``explained``.
    """
    names = [run.name for run in runs]
    alike = len(set(names)) < len(names)
    prefixes = [f"{number}-{name}-" if alike else f"{name}-" for number, name in enumerate(names, start=1)]
    pages = [_run_page(run, folder, prefix if len(runs) > 1 else "") for run, prefix in zip(runs, prefixes)]
    context = {"runs": pages, "comparison": comparison, "title": ", ".join(run.name for run in runs)}
    context["no_plots"] = "" if can_plot() else INSTALL
    environment = _environment()
    for name in (PAGE, TEXT):
        text = environment.get_template(f"{name}.jinja").render(context)
        replace_file(folder / name, text.encode("utf-8", "replace"))
    lines = [f"report: {folder / PAGE} (and {TEXT})"]
    return lines if can_plot() else [*lines, INSTALL]


def _environment() -> Environment:
    """Answers are untrusted text: HTML is escaped everywhere, Markdown by the filters ``fenced`` and ``cell``."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "fenced": fenced,
        "cell": cell,
        "share": share_text,
        "percent": "{:.1%}".format,
    }
    environment.filters |= filters
    return environment


def fenced(text: str, language: str = "") -> str:
    """A Markdown code block, with a fence longer than any in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def cell(text: Any) -> str:
    """Text in a Markdown table or line, where it starts no markup."""
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(re.sub(r"([\\`*_{}\[\]()#!|~])", r"\\\1", escaped).split())


def _run_page(run: RunRecord, folder: Path, prefix: str) -> dict[str, Any]:
    plots = _plots(run, folder, prefix) if can_plot() else {}
    routing = run.routing
    shown = run.models[-1]
    return {
        "name": run.name,
        "command": run.settings.get("command", ""),
        "facts": [str(x) for x in (run.results.get("hardware"), run.settings.get("date")) if x],
        "models": list(map(run.title, run.models)),
        "arrow": ARROW.join(map(run.title, run.models)),
        "languages": language_names(run.languages),
        "plots": plots,
        "splits": [_split_page(run, split, shown) for split in run.splits],
        "shown": run.title(shown),
        "routing": None
        if routing is None
        else {
            "layers": [("all layers", routing["table"]), *_apart(routing)],
            "bits": ", ".join(f"{bits:.2f}" for bits in routing["information"]),
            "chance": f"{max(routing['shuffled']):.3f}",
        },
        "stages": [
            {
                "stage": name,
                "steps": f"{len(stage.steps):,}",
                "tokens": f"{stage.tokens:,}",
                "seconds": f"{stage.seconds:,.0f}",
                "loss, first tenth": f"{_mean(stage.losses[: max(1, len(stage.losses) // 10)]):.3f}",
                "loss, last tenth": f"{_mean(stage.losses[-max(1, len(stage.losses) // 10) :]):.3f}",
            }
            for name, stage in run.stages().items()
        ],
        "costs": cost_rows(run),
    }


def _apart(routing: dict[str, Any]) -> list[tuple[str, Any]]:
    layers = routing_layers(routing)
    return layers if len(layers) > 1 else []


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _split_page(run: RunRecord, split: str, shown: str) -> dict[str, Any]:
    models = run.titled(run.scores(split))
    parts = []
    for language, name in zip(run.languages, language_names(run.languages), strict=True):
        for model, scores in models.items():
            score = scores[language]
            rate = pass_at_1(score)
            parts.append(
                {
                    "language": name,
                    "model": model,
                    **{head: f"{score[part]:.4f}" for head, part in zip(PART_NAMES, PARTS, strict=True)},
                    "answers": str(score["answers"]),
                    "pass@1": "-" if rate is None else f"{rate:.2f} ({score['passed']} of {score['tested']})",
                    "loss": f"{score['loss']:.4f}" if "loss" in score else "-",
                }
            )
    examples = choose_examples(run.answers(shown, split), run.languages)
    named = zip(language_names(run.languages), run.languages, strict=True)
    return {
        "name": split,
        "results": score_rows(models, run.languages),
        "parts": parts,
        "examples": [(name, key, examples[key]) for name, key in named if examples[key]],
    }


def cost_rows(run: RunRecord) -> list[dict[str, str]]:
    """What each model of a run takes, as cells by column; a dash for what the run did not note."""
    rows = []
    stages = run.stages()
    for model in run.models:
        cost = run.cost(model)
        own = [stages[name] for name in STAGES[model] if name in stages]
        rows.append(
            {
                "model": run.title(model),
                "parameters": _number(cost.get("parameters")),
                "trained": _number(cost.get("trained")),
                "active per token": _number(cost.get("active")),
                "FLOPs per token": _number(cost.get("flops_per_token")),
                "steps": f"{sum(len(stage.steps) for stage in own):,}" if own else "-",
                "tokens": _number(sum(stage.tokens for stage in own)) if own else "-",
                "seconds": f"{sum(stage.seconds for stage in own):,.0f}" if own else "-",
            }
        )
    return rows


def _number(value: float | None) -> str:
    """Four digits and a unit: 1.353 M."""
    if value is None:
        return "-"
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:#.4g}{unit}"
    return f"{value:.4g}"


def _plots(run: RunRecord, folder: Path, prefix: str) -> dict[str, dict[str, str]]:
    """Data URLs of the plots by theme; the light ones are also written as files."""
    made = {}
    if run.stages():
        made["curves"] = loss_curves
    if run.routing is not None:
        made["routing"] = routing_maps
    found: dict[str, dict[str, str]] = {}
    for name, draw in made.items():
        pictures = {theme: draw(run, theme) for theme in THEMES}
        replace_file(folder / f"{prefix}{name}.png", pictures["light"])
        urls = {theme: f"data:image/png;base64,{base64.b64encode(x).decode()}" for theme, x in pictures.items()}
        found[name] = {**urls, "file": f"{prefix}{name}.png"}
    return found
