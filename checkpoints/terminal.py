"""Answers at a terminal and in files: lines to answer, answers files, costs of answers, shares of experts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from checkpoints.progress import CountDisplay
from moe.files import json_lines, write_json_lines
from moe.inference.answers import Answer, Question, Writer
from moe.inference.questions import answer_rows
from moe.inference.routing_stats import RoutingShares, expert_names


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


def answer_file(
    writer: Writer,
    questions: Sequence[Question],
    batch_size: int,
    output: str | None,
    console: Console,
    show_routing: bool = False,
) -> None:
    """Answers all questions in batches and writes JSON Lines in their order; on Ctrl-C the answers so far.

    Args:
        output: the file to write, atomically; None or ``-`` prints to stdout.
        console: for progress and costs.
        show_routing: adds the share of each expert to each row.
    """
    started = time.monotonic()
    shares = RoutingShares(writer.model.config, len(questions)) if show_routing else None
    answers: dict[int, Answer] = {}

    def on_answer(place: int, answer: Answer) -> None:
        answers[place] = answer
        progress(len(answers), len(questions))

    def write() -> None:
        rows = answer_rows(questions, answers, shares)
        if output is None or output == "-":
            print(json_lines(rows), end="", flush=True)
        else:
            write_json_lines(output, rows)
            console.print(f"wrote {len(rows)} answers to {output}")

    try:
        with CountDisplay(console, "answers") as progress:
            writer.answer_many(questions, batch_size, on_answer, shares)
    except KeyboardInterrupt:
        console.print(f"stopped with {len(answers)} of {len(questions)} prompts answered")
        if answers:
            write()
        raise
    console.print(costs(list(answers.values()), time.monotonic() - started))
    write()


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
