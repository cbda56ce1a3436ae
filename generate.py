"""Writes code: answers one prompt, a file of prompts, or questions at the terminal.

    python generate.py "Return the sum of all even numbers in a list." --language python
    python generate.py --prompts prompts.jsonl --output answers.jsonl
    python generate.py

Without --model the newest run of train.py is used. Without --language nothing is said of a language: the prompt is
passed to the model as it is, and the router decides which experts answer.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from checkpoints.cli import ArgumentParser, run
from checkpoints.model_io import load_model
from checkpoints.runs.finished import model_of, newest_model
from moe.config import ModelConfig
from moe.errors import UserError
from moe.files import json_lines, write_json_lines
from moe.hardware import choose_device, choose_dtype, describe_hardware, keep_freed_memory
from moe.inference.answers import Answer, Question, Writer, check_stop
from moe.inference.chat import Session
from moe.inference.questions import check_output, read_questions
from moe.inference.sampling import Sampling
from moe.languages import LANGUAGES, get_language
from moe.routing_stats import RoutingShares, expert_names

BATCH_SIZE = 32


def main(arguments: argparse.Namespace) -> int:
    # 1. Look at everything that was typed before the model is read.
    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed)
    stop = check_stop(arguments.stop)
    questions = read_input(arguments)
    device = choose_device(arguments.device)
    keep_freed_memory(device)
    dtype = choose_dtype(device, arguments.dtype)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    # 2. Load the model.
    path = model_of(arguments.model) if arguments.model else newest_model(arguments.runs)
    console.print(f"model {path}" + ("" if arguments.model else " (the newest run; --model DIR takes another)"))
    loaded = load_model(path, dtype, device, base=arguments.base)
    if loaded.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or tokenizer.model beside the weights")
    console.print(f"{describe_hardware(device)}, weights in {str(dtype).removeprefix('torch.')}")
    warn(arguments, sampling, loaded.config, console)
    writer = Writer(loaded.model, loaded.tokenizer, loaded.template, arguments.max_new_tokens, sampling, stop)

    # 3. Answer.
    show_routing = arguments.show_routing and loaded.config.is_moe
    if arguments.prompts is not None:
        answer_file(writer, questions, arguments, console, show_routing)
        return 0
    printer = Printer(writer, console, show_routing)
    if questions:
        printer(questions[0])
        return 0
    return Session(printer, arguments.language, sys.stdin, sys.stderr).run()


def read_input(arguments: argparse.Namespace) -> list[Question]:
    """What is to be answered; empty for a session at the terminal."""
    for flag in ("model", "runs", "base", "prompts", "output"):
        if getattr(arguments, flag) == "":
            raise UserError(f"--{flag} is empty; give a path or leave the flag out")
    if arguments.language is not None:
        get_language(arguments.language)
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {arguments.max_new_tokens}, expected at least 1")
    if arguments.prompts is None:
        for flag in ("output", "batch_size", "force"):
            if getattr(arguments, flag) is not None and getattr(arguments, flag) is not False:
                raise UserError(f"--{flag.replace('_', '-')} is for --prompts FILE, which was not given")
        return [] if arguments.prompt is None else [Question(arguments.prompt, arguments.language)]
    if arguments.prompt is not None:
        raise UserError("a prompt and --prompts FILE were given; expected one of them")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size is {arguments.batch_size}, expected at least 1")
    questions = read_questions(arguments.prompts, arguments.language)
    if arguments.output not in (None, "-"):
        check_output(arguments.output, arguments.force)
        if os.path.realpath(arguments.output) == os.path.realpath(arguments.prompts):
            raise UserError(f"{arguments.output} is where the prompts are read from; give another --output")
    return questions


def warn(arguments: argparse.Namespace, sampling: Sampling, config: ModelConfig, console: Console) -> None:
    """Says which settings have no effect."""
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1 or sampling.seed):
        console.print("warning: at temperature 0 --top-k, --top-p and --seed do nothing; add --temperature 0.8")
    if arguments.show_routing and not config.is_moe:
        console.print("warning: this model has no experts, so --show-routing shows nothing")
    if arguments.language and config.expert_languages and arguments.language not in config.expert_languages:
        names = ", ".join(config.expert_languages)
        console.print(f"warning: this model has experts for {names}; none for {arguments.language}")


class Printer:
    """Prints answers as they are written, and what they cost to stderr."""

    def __init__(self, writer: Writer, console: Console, show_routing: bool):
        self.writer, self.console, self.show_routing = writer, console, show_routing

    def __call__(self, question: Question, number: int = 0) -> None:
        config = self.writer.model.config
        shares = RoutingShares(config, 1) if self.show_routing else None
        answer = self.writer.answer(question, lambda text: print(text, end="", flush=True), shares, number)
        if not answer.text.endswith("\n"):
            print(flush=True)
        self.console.print(costs([answer], answer.seconds))
        if shares is not None:
            self.console.print(routing_table(shares, config))


def answer_file(
    writer: Writer, questions: list[Question], arguments: argparse.Namespace, console: Console, show_routing: bool
) -> None:
    """Answers a file of prompts in batches and writes JSON Lines in their order; on Ctrl-C the answers so far."""
    from eval.reporting.display import CountDisplay  # brings in all of scoring, which a single prompt need not wait for

    config, started = writer.model.config, time.monotonic()
    shares = RoutingShares(config, len(questions)) if show_routing else None
    answers: dict[int, Answer] = {}

    def on_answer(place: int, answer: Answer) -> None:
        answers[place] = answer
        progress(len(answers), len(questions))

    try:
        with CountDisplay(console, "answers") as progress:
            writer.answer_many(questions, arguments.batch_size or BATCH_SIZE, on_answer, shares)
    except KeyboardInterrupt:
        console.print(f"stopped with {len(answers)} of {len(questions)} prompts answered")
        if answers:
            write_answers(questions, answers, arguments, console, config, shares)
        raise
    console.print(costs(list(answers.values()), time.monotonic() - started))
    write_answers(questions, answers, arguments, console, config, shares)


def write_answers(
    questions: list[Question],
    answers: Mapping[int, Answer],
    arguments: argparse.Namespace,
    console: Console,
    config: ModelConfig,
    shares: RoutingShares | None,
) -> None:
    """Writes the answers that there are, by their questions' places, to the output that was asked for."""
    rows = []
    for place, answer in sorted(answers.items()):
        question = questions[place]
        row = {"id": question.id, "language": question.language, "text": question.text, "answer": answer.text}
        row |= {"finished": answer.finished, "prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens}
        if shares is not None:
            row["routing"] = {n: round(s, 4) for n, s in zip(expert_names(config), shares.shares(place), strict=True)}
        rows.append(row)
    if arguments.output in (None, "-"):
        print(json_lines(rows), end="", flush=True)
    else:
        write_json_lines(arguments.output, rows)
        console.print(f"wrote {len(rows)} answers to {arguments.output}")


def costs(answers: list[Answer], seconds: float) -> str:
    """How much was written and how fast, in one line."""
    tokens, prompt = sum(a.tokens for a in answers), sum(a.prompt_tokens for a in answers)
    cut = sum(a.finished == "length" for a in answers)
    line = f"{prompt} tokens read, {tokens} written in {seconds:.1f} s: {tokens / max(seconds, 1e-9):.1f} tokens/s"
    if cut:
        which = "the answer was" if len(answers) == 1 else f"{cut} of {len(answers)} answers were"
        line += f"; {which} cut off at the length limit (--max-new-tokens, or the model's context)"
    return line


def routing_table(shares: RoutingShares, config: ModelConfig) -> Table:
    """Share of each expert in the answer's tokens, overall and layer by layer."""
    table = Table(title="share of each expert", title_justify="left")
    table.add_column("layer")
    for name in expert_names(config):
        table.add_column(name, justify="right")
    by_layer = zip(config.sparse_layers, shares.shares_by_layer(0), strict=True)
    for label, row in [("all", shares.shares(0)), *by_layer]:
        table.add_row(str(label), *(Text(f"{v:.0%}", style="bold" if v == max(row) else "") for v in row))
    return table


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="generate.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("prompt", nargs="?", help="what the code shall do; without it a session starts")
    parser.add_argument("--language", metavar="NAME", help=f"language to write in ({', '.join(LANGUAGES)})")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", help="a model directory or a GGUF file; not given: the newest run's")
    source.add_argument("--runs", default="runs", metavar="DIR", help="where runs are looked for")
    parser.add_argument("--base", metavar="DIR", help="the base of a model made of deltas, where it moved")
    parser.add_argument("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer, in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: the most likely token (greedy)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0: all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens that hold P"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; repeatable"
    )
    parser.add_argument(
        "--prompts", metavar="FILE", help="*.jsonl[.gz] with text, language, perhaps id; else text, one a line"
    )
    parser.add_argument("--output", metavar="FILE", help="JSON Lines of answers to --prompts; not given or -: stdout")
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help=f"answers written at once (not given: {BATCH_SIZE})"
    )
    parser.add_argument("--force", action="store_true", help="replace --output when it exists")
    parser.add_argument("--show-routing", action="store_true", help="also tell which experts wrote the answer")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto (bfloat16 where it is native), float32 or bfloat16")
    return parser


def command(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # code and JSON are UTF-8, whatever the system's own encoding
    return run(make_parser(), main, argv)


if __name__ == "__main__":
    sys.exit(command())
