"""Sets of layers as people write them: ``16-31``, ``0-3,8,12-``."""

from __future__ import annotations

import re
from collections.abc import Iterable

from moe.config import ModelConfig
from moe.errors import UserError

ALL = "all"
_RANGE = re.compile(r"(\d{1,6})(?:(-)(\d{1,6})?)?", re.ASCII)
_EXAMPLE = "write for example 16-31 or 0-3,8,12-"


def parse_layers(text: str, n_layers: int | None = None) -> tuple[int, ...] | None:
    """Turns ``0-3,8,12-`` into layer numbers, smallest first; ``all`` into None.

    Args:
        n_layers: of the model, where it is known: gives ``12-`` its end, and checks that the layers are there.

    Raises:
        UserError: nothing named, no number, a range that runs backwards, or a layer that the model does not have.
    """
    if text.strip().lower() == ALL:
        return None
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            what = f"{part.strip()!r} is no layer" if part.strip() else f"{text!r} names no layer"
            raise UserError(f"{what}; {_EXAMPLE}, or {ALL}")
        first = last = int(match[1])
        if match[3]:
            last = int(match[3])
        elif match[2]:
            last = max(first, (n_layers or 0) - 1)
        if last < first:
            raise UserError(f"layers {part.strip()} run backwards; write {last}-{first}")
        if n_layers is not None and last >= n_layers:
            raise UserError(f"layers {part.strip()} were asked for; this model has the layers 0 to {n_layers - 1}")
        found.update(range(first, last + 1))
    return tuple(sorted(found))


def format_layers(layers: Iterable[int]) -> str:
    """The short form of layer numbers: ``0-3, 8`` for 0, 1, 2, 3 and 8."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def describe_layers(config: ModelConfig) -> str:
    """For the terminal, after a model's size: where its experts are; nothing when they are in every layer."""
    return "" if config.moe_layers is None else f" in layers {format_layers(config.moe_layers)} of {config.n_layers}"
