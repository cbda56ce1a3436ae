"""Writes code: answers one prompt, a file of prompts, or questions at the terminal.

    python generate.py "Return the sum of all even numbers in a list." --language python
    python generate.py --prompts prompts.jsonl --output answers.jsonl
    python generate.py

--model defaults to the newest run of train.py. Without --language the prompt is passed to the model as it is, and the
router decides which experts answer.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until the imports are done Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import sys
from collections.abc import Sequence

from rich.console import Console

from checkpoints.cli import ArgumentParser, check_output_file, run, script_command
from checkpoints.model_io import load_model
from checkpoints.runs.finished import model_of, newest_model
from checkpoints.terminal import answer_file, costs, expert_share_table, line_reader
from moe.config import ModelConfig
from moe.data.prompt import OWN, TEMPLATES, check_template
from moe.errors import UserError
from moe.hardware import choose_device, choose_dtype, describe_hardware, dtype_name, keep_freed_memory
from moe.inference.answers import Question, Writer, check_stop
from moe.inference.chat import Chat
from moe.inference.questions import read_questions
from moe.inference.sampling import Sampling
from moe.languages import LANGUAGES, get_language
from moe.routing_stats import RoutingShares

BATCH_SIZE = 32


def main(arguments: argparse.Namespace) -> int:
    # 1. Check everything that was typed before the model is read.
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
    check = not arguments.no_check
    loaded = load_model(path, dtype, device, base=arguments.base, template=arguments.template, check=check)
    if loaded.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or tokenizer.model beside the weights")
    console.print(f"{describe_hardware(device)}, weights in {dtype_name(dtype)}")
    warn(arguments, sampling, loaded.config, console)
    writer = Writer(loaded.model, loaded.tokenizer, loaded.template, arguments.max_new_tokens, sampling, stop)

    # 3. Answer.
    show_routing = arguments.show_routing and loaded.config.is_moe
    if arguments.prompts is not None:
        answer_file(writer, questions, arguments.batch_size or BATCH_SIZE, arguments.output, console, show_routing)
        return 0

    def answer(question: Question, number: int = 0) -> None:
        shares = RoutingShares(loaded.config, 1) if show_routing else None
        written = writer.answer(question, lambda text: print(text, end="", flush=True), shares, number)
        if not written.text.endswith("\n"):
            print(flush=True)
        console.print(costs([written], written.seconds))
        if shares is not None:
            console.print(expert_share_table(shares))

    if questions:
        answer(questions[0])
    else:
        Chat(answer, arguments.language, line_reader(sys.stdin), console.print, sys.stdin.isatty()).run()
    return 0


def read_input(arguments: argparse.Namespace) -> list[Question]:
    """The prompts to answer; empty for a chat at the terminal."""
    for flag in ("model", "runs", "base", "prompts", "output"):
        if getattr(arguments, flag) == "":
            raise UserError(f"--{flag} is empty; give a path or leave the flag out")
    if arguments.template is not None:
        check_template(arguments.template)
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
        check_output_file(arguments.output, arguments.force)
        if os.path.realpath(arguments.output) == os.path.realpath(arguments.prompts):
            raise UserError(f"{arguments.output} is where the prompts are read from; give another --output")
    return questions


def warn(arguments: argparse.Namespace, sampling: Sampling, config: ModelConfig, console: Console) -> None:
    """Says which settings have no effect."""
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1 or sampling.seed):
        console.print("warning: at temperature 0 --top-k, --top-p and --seed do nothing; add --temperature 0.8")
    if arguments.show_routing and not config.is_moe:
        console.print("warning: this model has no experts, so --show-routing shows nothing")
    if arguments.base is not None and not config.is_delta:
        console.print("warning: this model is not made of deltas, so --base does nothing")
    if arguments.language and config.expert_languages and arguments.language not in config.expert_languages:
        names = ", ".join(config.expert_languages)
        console.print(f"warning: this model has experts for {names}; none for {arguments.language}")


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog=script_command("generate"), description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("prompt", nargs="?", help="what the code should do; without it a chat starts")
    add("--language", metavar="NAME", help=f"language to write in ({', '.join(LANGUAGES)})")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", metavar="DIR", help="a model directory or a GGUF file (default: the newest run's)")
    source.add_argument("--runs", default="runs", metavar="DIR", help="where to look for runs")
    add("--base", metavar="DIR", help="the base of a model made of deltas, where it moved")
    add(
        "--template",
        metavar="NAME",
        help=f"prompt template ({', '.join((*TEMPLATES, OWN))}; default: the model's)",
    )
    add("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer, in tokens")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: the most likely token (greedy)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K most likely tokens; 0: all")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the most likely tokens that hold P")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    add("--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; repeatable")
    add("--prompts", metavar="FILE", help="*.jsonl[.gz] with text, language, perhaps id; else one prompt a line")
    add("--output", metavar="FILE", help="JSON Lines of answers to --prompts (default, and -: stdout)")
    add("--batch-size", type=int, metavar="N", help=f"prompts answered at once (default: {BATCH_SIZE})")
    add("--force", action="store_true", help="replace --output if it exists")
    add("--show-routing", action="store_true", help="also show which experts wrote the answer")
    add("--no-check", action="store_true", help="load the model without comparing it with its manifest")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", default="auto", help="auto (bfloat16 where it is native), float32 or bfloat16")
    return parser


def command(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # code and JSON are UTF-8, whatever the system's own encoding
    return run(make_parser(), main, argv)


if __name__ == "__main__":
    sys.exit(command())
