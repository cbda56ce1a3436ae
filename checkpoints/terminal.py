"""Answers at a terminal and in files: lines to answer, answers files, costs of answers, shares of experts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from checkpoints.answers_file import AnswersFile
from checkpoints.progress import CountDisplay
from moe.errors import UserError
from moe.files import json_lines
from moe.inference.answers import Answer, Question, Writer, question_name
from moe.inference.questions import answer_row, error_row
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
    output: AnswersFile | None,
    console: Console,
    show_routing: bool = False,
    samples: int = 1,
) -> int:
    """Answers all questions; each answer is kept as soon as it is done. Returns how many could not be answered.

    Args:
        output: the file, which may hold some answers already; None prints to stdout, in the order of the prompts.
        console: for progress and costs.
        show_routing: adds the share of each expert to each row.
        samples: answers to each question.
    """
    started, total = time.monotonic(), len(questions) * samples
    rows: dict[int, dict[str, Any]] = {} if output is None else output.rows
    if kept := len(rows):
        console.print(f"continuing: {kept} of {total} prompts are answered")
    config = writer.model.config
    shares = RoutingShares(config, total) if show_routing else None
    answers: list[Answer] = []
    printed = 0

    def keep(number: int, row: dict[str, Any]) -> None:
        nonlocal printed
        if output is not None:
            output.add(number, row)
        else:
            rows[number] = row
            while printed in rows:
                print(json_lines([rows[printed]]), end="", flush=True)
                printed += 1
        progress(len(rows), total)

    def done(number: int, answer: Answer) -> None:
        answers.append(answer)
        row = answer_row(questions[number // samples], answer, number % samples if samples > 1 else None)
        if shares is not None:
            by_name = zip(expert_names(config), shares.shares(number))
            row["routing"] = {name: round(share, 4) for name, share in by_name}
        keep(number, row)

    try:
        with CountDisplay(console, "answers") as progress:
            engine = writer.engine(batch_size, shares)
            for number in range(total):
                question = questions[number // samples]
                if number in rows:
                    continue
                try:
                    name = question_name(number // samples, question)
                    engine.submit(writer.request(question, partial(done, number), number=number, name=name, key=number))
                except UserError as error:
                    keep(number, error_row(question, str(error), number % samples if samples > 1 else None))
            engine.run()
    except KeyboardInterrupt:
        console.print(f"stopped with {len(rows)} of {total} prompts answered")
        if output is not None:
            console.print(f"{output.path} has them; the same command continues")
        raise
    console.print(costs(answers, time.monotonic() - started))
    if output is not None:
        output.finish()
        console.print(f"wrote {len(rows)} answers to {output.path}")
    failed = [row for row in rows.values() if "error" in row]
    if failed:
        console.print(f"warning: {len(failed)} of {total} prompts were not answered; the first: {failed[0]['error']}")
    return len(failed)


def costs(answers: Sequence[Answer], seconds: float) -> str:
    """How much was read and written, how fast, and how many answers were cut off, in one line."""
    tokens, prompt = sum(a.tokens for a in answers), sum(a.prompt_tokens for a in answers)
    line = f"{prompt} tokens read, {tokens} written in {seconds:.1f} s: {tokens / max(seconds, 1e-9):.1f} tokens/s"
    if drafted := sum(a.drafted for a in answers):
        line += f"; {sum(a.accepted for a in answers) / drafted:.0%} of {drafted} drafted tokens were right"
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
