"""Answers at a terminal and in files: lines to answer, answers files, costs of answers, shares of experts."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from checkpoints.answers_file import AnswersFile
from checkpoints.progress import CountDisplay
from moe.errors import UserError
from moe.files import json_lines
from moe.inference.answers import Answer, Question, Writer, question_name
from moe.inference.engine import Request
from moe.inference.expert_choice import expert_names
from moe.inference.questions import answer_row, error_row
from moe.inference.routing_stats import RoutingShares, routing_of
from moe.inference.sampling import Sampling
from moe.inference.trace import write_trace


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


class Session:
    """Answers questions at the terminal: the text as it is written, then what it took and which experts wrote it.

    Args:
        writer: its sampling changes with each question's.
        console: for everything but the answers, which go to stdout.
        show_routing: adds the share of each expert, layer by layer.
        as_json: prints each answer as a line of JSON, with its routing, when it is done.
    """

    def __init__(self, writer: Writer, console: Console, show_routing: bool = False, as_json: bool = False):
        self.writer, self.console = writer, console
        self.show_routing, self.as_json = show_routing, as_json
        self._last: tuple[Request, list[int], str] | None = None

    def answer(self, question: Question, number: int = 0, sampling: Sampling | None = None) -> str:
        """Answers a question, the ``number``-th of its session, and returns the text."""
        writer, config = self.writer, self.writer.model.config
        writer.sampling = sampling or writer.sampling
        question = self._shortened(question)
        shares = RoutingShares(config, 1) if config.is_moe else None
        show = (lambda text: None) if self.as_json else lambda text: print(text, end="", flush=True)
        answers: list[Answer] = []
        tokens: list[int] = []
        request = writer.request(question, answers.append, show, number)
        decode = request.on_token
        assert decode is not None

        def on_token(token: int) -> object:
            tokens.append(token)
            return decode(token)

        self._last = request, tokens, question.text
        engine = writer.engine(1, shares)
        engine.submit(replace(request, key=0, on_token=on_token))
        engine.run()
        (written,) = answers
        if self.as_json:
            row = answer_row(question, written) | (
                {} if shares is None else {"routing": routing_of(shares, 0)["shares"]}
            )
            print(json_lines([row]), end="", flush=True)
        elif not written.text.endswith("\n"):
            print(flush=True)
        self.console.print(costs([written], written.seconds))
        if shares is not None and written.tokens:
            self.console.print(decision(shares, question.language, writer.routing))
            if self.show_routing:
                self.console.print(expert_share_table(shares))
        return written.text

    def answer_often(self, question: Question, count: int) -> None:
        """Writes ``count`` answers to a question at the same time and shows them when all are done."""
        answers = self.writer.answer_many([question] * count, count)
        for number, answer in enumerate(answers):
            if self.as_json:
                print(json_lines([answer_row(question, answer, number)]), end="", flush=True)
            else:
                self.console.print(f"answer {number + 1} of {count}")
                print(answer.text, end="" if answer.text.endswith("\n") else "\n", flush=True)
        self.console.print(costs(answers, max(answer.seconds for answer in answers)))

    def _shortened(self, question: Question) -> Question:
        fitting = self.writer.fitting(question)
        if dropped := len(question.history) - len(fitting.history):
            self.console.print(f"warning: the context is full; the first {dropped} messages are forgotten")
        return fitting

    def trace(self, path: str) -> str:
        """Writes a page about the last answer, and returns what to say about it."""
        if self._last is None:
            raise UserError("there is no answer to trace yet; type a prompt first")
        request, tokens, text = self._last
        model, tokenizer = self.writer.model, self.writer.tokenizer
        write_trace(path, model, tokenizer, request.prompt, tokens, request.expert_bias, text)
        return f"wrote {path}"

    def write_new(self, path: str) -> str:
        """:meth:`trace` into a file that does not exist."""
        if Path(path).exists():
            raise UserError(f"{path} exists; give another name")
        return self.trace(path)


def decision(shares: RoutingShares, language: str | None, routing: str) -> str:
    """Which expert wrote the first answer, in one line."""
    found = routing_of(shares, 0)
    listed = ", ".join(f"{name} {share:.0%}" for name, share in found["shares"].items())
    if routing == "forced":
        return f"forced to {language}"
    return f"the router decided for {found['expert']}: {listed}"


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
            row["routing"] = routing_of(shares, number)["shares"]
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
