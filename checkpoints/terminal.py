"""What a person types and sees at a terminal: lines to answer, costs of answers, shares of experts."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.table import Table
from rich.text import Text

from moe.inference.answers import Answer
from moe.routing_stats import RoutingShares, expert_names


def line_reader(lines: TextIO) -> Callable[[str], str | None]:
    """Reads a line for the prompt given, None at the end; on a terminal lines can be edited and recalled."""
    if not lines.isatty():
        return lambda prompt: lines.readline() or None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history for input(), where the system has them

    def read(prompt: str) -> str | None:
        try:
            return input(prompt)
        except EOFError:
            return None

    return read


def costs(answers: Sequence[Answer], seconds: float) -> str:
    """How much was read and written, how fast, and how many answers were cut off, in one line."""
    tokens, prompt = sum(a.tokens for a in answers), sum(a.prompt_tokens for a in answers)
    line = f"{prompt} tokens read, {tokens} written in {seconds:.1f} s: {tokens / max(seconds, 1e-9):.1f} tokens/s"
    if cut := sum(a.finished == "length" for a in answers):
        which = "the answer was" if len(answers) == 1 else f"{cut} of {len(answers)} answers were"
        line += f"; {which} cut off at the length limit (--max-new-tokens, or the model's context)"
    return line


def expert_share_table(shares: RoutingShares) -> Table:
    """Share of each expert in the tokens of the first answer, overall and layer by layer."""
    table = Table(title="share of each expert", title_justify="left")
    table.add_column("layer")
    for name in expert_names(shares.config):
        table.add_column(name, justify="right")
    by_layer = zip(shares.config.sparse_layers, shares.shares_by_layer(0), strict=True)
    for label, row in [("all", shares.shares(0)), *by_layer]:
        table.add_row(str(label), *(Text(f"{v:.0%}", style="bold" if v == max(row) else "") for v in row))
    return table
