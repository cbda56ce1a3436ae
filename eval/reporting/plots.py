"""Plots of a run as PNG: loss curves, and the routing of each layer. They need matplotlib."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.reporting.record import ADAPTER, STAGES, RunRecord, StageSteps
from eval.scoring import language_names

INSTALL = "no plots: matplotlib is not installed; pip install matplotlib, then python -m eval report"
SMOOTHING = 0.05  # share of the steps that a drawn mean is over
# Text, lines and a second kind of lines that are readable on a light and on a dark page.
THEMES = {"light": ("#1f2328", "#0969da", "#bc4c00"), "dark": ("#e6edf3", "#4493f8", "#f0883e")}
PANELS = 8  # heat maps in one row


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def smooth(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbors on both sides, as many as there are on the shorter side."""
    sums = [0.0, *itertools.accumulate(values)]
    half = max(1, round(len(values) * SMOOTHING / 2))
    result = []
    for place in range(len(values)):
        reach = min(half, place, len(values) - 1 - place)
        result.append((sums[place + reach + 1] - sums[place - reach]) / (2 * reach + 1))
    return result


def loss_curves(run: RunRecord, theme: str) -> bytes:
    """Training and validation loss by step: pretraining where there was any, then mixture and baseline together."""
    stages = run.stages()
    text, blue, orange = THEMES[theme]
    panels: list[tuple[str, list[tuple[str, str, StageSteps]]]] = []
    if "pretrain" in stages:
        panels.append(("pretraining of the base", [("base", blue, stages["pretrain"])]))
    lines = [(run.title(ADAPTER), orange, stages["adapter"])] if "adapter" in stages else []
    mixture = StageSteps()
    for name in STAGES["mixture"]:
        if name in stages:
            before = len(mixture.steps)
            mixture.steps += [before + step for step in stages[name].steps]
            mixture.losses += stages[name].losses
            mixture.validation += [(before + step, loss) for step, loss in stages[name].validation]
    if mixture.steps:
        lines.append(("mixture", blue, mixture))
    if lines:
        panels.append((" and ".join(label for label, *_ in reversed(lines)), lines))
    figure, axes = _figure(1, max(1, len(panels)), 6.4, 2.8)  # one below the other: readable on a phone
    for axis, (title, curves) in zip(axes, panels):
        for label, color, stage in curves:
            axis.plot(stage.steps, stage.losses, color=color, alpha=0.25, linewidth=0.8)
            axis.plot(stage.steps, smooth(stage.losses), color=color, linewidth=1.6, label=label)
            if stage.validation:
                axis.plot(*zip(*stage.validation), "o--", color=color, markersize=3, label=f"{label}, validation")
        axis.set_title(title, color=text, fontsize=11)
        axis.set_xlabel("step", color=text, fontsize=9)
        axis.locator_params(axis="x", integer=True)
        axis.set_ylabel("loss, nats", color=text, fontsize=9)
        axis.legend(frameon=False, labelcolor=text, fontsize=9)
        _recolor(axis, text)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return _png(figure, theme)


def routing_maps(run: RunRecord, theme: str) -> bytes:
    """A heat map for each layer: the share of each language's (row) gate weight that each expert (column) has."""
    assert run.routing is not None, "a run with a mixture"
    text = THEMES[theme][0]
    layers = routing_layers(run.routing)
    names = language_names(run.languages)
    columns = min(PANELS, len(layers))
    figure, axes = _figure(columns, math.ceil(len(layers) / columns), 1.5 if len(layers) > 1 else 3.2, None)
    shown = None
    for index, (axis, (title, table)) in enumerate(zip(axes, layers)):
        shown = axis.imshow(table, vmin=0, vmax=1, cmap="viridis")
        axis.set_title(title, color=text, fontsize=9)
        axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7, color=text)
        first = index % columns == 0
        axis.set_yticks(range(len(names)), names if first else [""] * len(names), fontsize=7, color=text)
        for row, values in enumerate(table):
            for column, share in enumerate(values):
                color = "black" if share > 0.6 else "white"
                axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=6, color=color)
        _recolor(axis, text)
    for axis in axes[len(layers) :]:
        axis.set_visible(False)
    if shown is not None:
        bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="share of gate weight")
        bar.ax.tick_params(colors=text, labelsize=7)
        bar.set_label("share of gate weight", color=text, fontsize=8)
    return _png(figure, theme)


def routing_layers(routing: Mapping[str, Any]) -> list[tuple[str, list[list[float]]]]:
    """(name, language x expert shares) of each layer; one for all where the first layer decides for the others."""
    layers = routing.get("layers") or [routing["table"]]
    numbers = routing.get("layer_numbers", range(len(layers)))
    if all(layer == layers[0] for layer in layers):
        return [("all layers", layers[0])]
    return [(f"layer {number}", layer) for number, layer in zip(numbers, layers, strict=True)]


def _figure(columns: int, rows: int, width: float, height: float | None) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    size = (columns * width + (1.4 if height is None else 0), rows * (height or width + 0.3))
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.12))
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _recolor(axis: Any, text: str) -> None:
    axis.tick_params(colors=text, labelsize=7)
    axis.set_facecolor("none")
    for spine in axis.spines.values():
        spine.set_color(text)


def _png(figure: Any, theme: str) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130, transparent=theme == "dark")  # the light ones are files, too: on white
    return out.getvalue()
