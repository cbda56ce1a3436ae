"""Writes code: answers one prompt, a file of prompts, questions at the terminal, or OpenAI's API.

    python generate.py "Return the sum of all even numbers in a list." --language python
    python generate.py --prompts prompts.jsonl --output answers.jsonl
    python generate.py
    python generate.py --serve 8000

--model defaults to the newest run of train.py. Without --language the prompt is passed to the model as it is, and the
router decides which experts answer.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":  # until the imports are done Ctrl-C ends the program without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from checkpoints.answers_file import AnswersFile
from checkpoints.cli import ArgumentParser, check_output_file, run, script_command
from checkpoints.model_io import load_model
from checkpoints.runs.finished import model_of, newest_model
from checkpoints.terminal import Session, answer_file, line_reader
from moe.config import ModelConfig
from moe.data.prompt import OWN, TEMPLATES, check_template
from moe.decoder import most_invariant_rows
from moe.errors import UserError
from moe.hardware import choose_device, decoding_dtype, describe_hardware, dtype_name, keep_freed_memory
from moe.inference.answers import Question, Writer, check_stop
from moe.inference.chat import Chat
from moe.inference.expert_choice import ROUTINGS
from moe.inference.function_end import FunctionEnd
from moe.inference.questions import read_questions
from moe.inference.sampling import Sampling
from moe.languages import LANGUAGES, get_language
from moe.serving.start import open_port, serve

BATCH_SIZE = 32


def main(arguments: argparse.Namespace) -> int:
    # 1. Check everything that was typed before the model is read.
    a = arguments
    sampling = Sampling(a.temperature, a.top_k, a.top_p, a.seed, a.min_p, a.repetition_penalty)
    stop = check_stop(arguments.stop)
    questions = read_input(arguments)
    listener = None if arguments.serve is None else open_port(arguments.serve)
    device = choose_device(arguments.device)
    keep_freed_memory(device)
    dtype = decoding_dtype(device, arguments.dtype)
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

    # 2. Load the model.
    path = model_of(arguments.model) if arguments.model else newest_model(arguments.runs)
    console.print(f"model {path}" + ("" if arguments.model else " (the newest run; --model DIR takes another)"))
    loaded = load_model(
        path, dtype, device, base=arguments.base, template=arguments.template, check=not arguments.no_check, packed=True
    )
    if loaded.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or tokenizer.model beside the weights")
    console.print(f"{describe_hardware(device)}, weights in {dtype_name(loaded.model.dtype)}")
    warn(arguments, sampling, loaded.config, console)
    writer = Writer(
        *(loaded.model, loaded.tokenizer, loaded.template, arguments.max_new_tokens, sampling, stop),
        draft=arguments.draft,
        truncate=arguments.truncate,
        stop_at_function=arguments.stop_at is not None,
        routing=arguments.routing,
        experts=None if arguments.experts is None else arguments.experts.split(","),
        batch_invariant=arguments.batch_invariant,
    )
    check_routing(arguments, writer)

    # 3. Answer.
    rows = arguments.batch_size or BATCH_SIZE
    most = most_invariant_rows(loaded.model) if arguments.batch_invariant else rows
    if most < (arguments.batch_size or 0):
        console.print(f"warning: --batch-invariant answers at most {most} prompts of this model at once, not {rows}")
    show_routing = arguments.show_routing and loaded.config.is_moe
    if listener is not None:
        serve(writer, Path(path), listener, rows, console.print)
        return 0
    if arguments.prompts is not None:
        output = None
        if arguments.output not in (None, "-"):
            output = AnswersFile(arguments.output, answer_settings(arguments, path, questions), arguments.force)
        failed = answer_file(writer, questions, rows, output, console, show_routing, arguments.samples)
        return 1 if failed else 0
    session = Session(writer, console, show_routing, arguments.json)
    if not questions:
        reader, typing = line_reader(sys.stdin), sys.stdin.isatty()
        Chat(session.answer, arguments.language, reader, console.print, typing, session.write_new, sampling).run()
    elif arguments.samples > 1:
        session.answer_often(questions[0], arguments.samples)
    else:
        session.answer(questions[0])
    if arguments.trace is not None:
        console.print(session.trace(arguments.trace))
    return 0


def check_routing(arguments: argparse.Namespace, writer: Writer) -> None:
    """Raises :class:`UserError` where the model cannot be routed or traced as the flags say."""
    if arguments.trace is not None and not writer.model.config.is_moe:
        raise UserError("this model has no experts, so there is nothing to trace; leave --trace out")
    if arguments.prompt is not None or arguments.language is not None or arguments.routing == "free":
        writer.bias(arguments.language)


def read_input(arguments: argparse.Namespace) -> list[Question]:
    """The prompts to answer; empty for a chat at the terminal."""
    for flag in ("model", "runs", "base", "prompts", "output", "trace"):
        if getattr(arguments, flag) == "":
            raise UserError(f"--{flag} is empty; give a path or leave the flag out")
    if arguments.template is not None:
        check_template(arguments.template)
    if arguments.language is not None:
        get_language(arguments.language)
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {arguments.max_new_tokens}, expected at least 1")
    if arguments.samples < 1:
        raise UserError(f"--samples is {arguments.samples}, expected at least 1")
    if arguments.draft < 0:
        raise UserError(f"--draft is {arguments.draft}, expected 0 (none) or a number of tokens")
    check_together(arguments)
    if arguments.trace is not None:
        check_output_file(arguments.trace, arguments.force)
    if arguments.prompts is None and arguments.prompt is None:
        return []
    if arguments.prompt is not None:
        return [Question(arguments.prompt, arguments.language, suffix=arguments.suffix)]
    questions = read_questions(arguments.prompts, arguments.language)
    if arguments.output not in (None, "-"):
        check_output_file(arguments.output, force=True)  # one that exists may be continued
        if os.path.realpath(arguments.output) == os.path.realpath(arguments.prompts):
            raise UserError(f"{arguments.output} is where the prompts are read from; give another --output")
    return questions


def answer_settings(arguments: argparse.Namespace, model: Path, questions: Sequence[Question]) -> dict[str, Any]:
    """What the answers to a file of prompts depend on, besides the machine."""
    flags = (
        "temperature top_k top_p min_p repetition_penalty seed max_new_tokens stop stop_at truncate samples template "
        "routing experts batch_invariant"
    )
    files = sorted(model.iterdir()) if model.is_dir() else [model]  # a hub's name is no file
    weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    digest = hashlib.sha256(repr([(q.text, q.language, q.id) for q in questions]).encode()).hexdigest()
    settings = {name: getattr(arguments, name) for name in (*flags.split(), "dtype", "show_routing")}
    return {"model": str(model.absolute()), "weights": weights, "prompts": digest, **settings}


def check_together(arguments: argparse.Namespace) -> None:
    """Raises :class:`UserError` for flags that do not go together."""
    one, many, server = (getattr(arguments, name) is not None for name in ("prompt", "prompts", "serve"))
    if one + many + server > 1:
        raise UserError("of a prompt, --prompts FILE and --serve PORT, two were given; expected one of them")
    for flag, applies, owner in (
        ("output", many, "--prompts FILE"),
        ("batch_size", many or server, "--prompts FILE or --serve PORT"),
        ("force", many or arguments.trace is not None, "--prompts FILE or --trace FILE"),
        ("suffix", one, "a prompt"),
        ("samples", one or many or arguments.samples == 1, "a prompt or --prompts FILE"),
        ("trace", one and arguments.samples == 1, "one answer to a prompt (in a chat, type /trace FILE)"),
        ("batch_invariant", not arguments.draft, "answers without --draft"),
        ("json", not (many or server), "a prompt or a chat (--prompts writes JSON in any case)"),
        ("show_routing", not server, "a prompt, a chat or --prompts FILE (the server's answers have it)"),
    ):
        value = getattr(arguments, flag)
        if not applies and value is not None and value is not False:
            raise UserError(f"--{flag.replace('_', '-')} is for {owner}")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UserError(f"--batch-size is {arguments.batch_size}, expected at least 1")
    if arguments.stop_at is not None and arguments.language is None and not (many or server):
        raise UserError("--stop-at function needs --language NAME, whose syntax says where a function ends")
    if arguments.stop_at is not None and arguments.language is not None:
        FunctionEnd(arguments.language)


def warn(arguments: argparse.Namespace, sampling: Sampling, config: ModelConfig, console: Console) -> None:
    """Says which settings have no effect."""
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1 or sampling.min_p or sampling.seed):
        console.print(
            "warning: at temperature 0 --top-k, --top-p, --min-p and --seed do nothing; add --temperature 0.8"
        )
    if sampling.greedy and arguments.samples > 1:
        console.print("warning: at temperature 0 all --samples of a prompt are equal; add --temperature 0.8")
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
    add(
        "--routing",
        choices=ROUTINGS,
        default="free",
        help="what --language does to the router: nothing, favor its expert, or use it alone",
    )
    add("--experts", metavar="LIST", help="choose among these experts only, such as 0,2 or python,cpp")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer, in tokens")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: the most likely token (greedy)")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K most likely tokens; 0: all")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the most likely tokens that hold P")
    add(
        "--min-p", type=float, default=0.0, metavar="P", help="drop tokens less likely than P times the most likely one"
    )
    add("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: discourage what is there already")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    add("--stop", action="append", default=[], metavar="TEXT", help="end the answer before this text; repeatable")
    add("--stop-at", choices=("function",), help="end the answer with its first function, found by a parser")
    add("-n", "--samples", type=int, default=1, metavar="N", help="answers to each prompt, which is read once")
    add("--suffix", metavar="TEXT", help="fill the gap between the prompt and TEXT, for models trained to")
    add("--truncate", action="store_true", help="drop the start of a prompt that does not fit the context")
    add(
        "--draft",
        type=int,
        default=0,
        metavar="N",
        help="guess N tokens a step from what the text repeats; same answers",
    )
    add("--prompts", metavar="FILE", help="*.jsonl[.gz] with text, language, perhaps id; else one prompt a line")
    add(
        "--output",
        metavar="FILE",
        help="JSON Lines of answers to --prompts, continued if it is unfinished (default, and -: stdout)",
    )
    add("--batch-size", type=int, metavar="N", help=f"prompts answered at once (default: {BATCH_SIZE})")
    add("--batch-invariant", action="store_true", help="answers that no other prompt changes, in bfloat16 too (CPU)")
    add("--json", action="store_true", help="print an answer as a line of JSON, with its routing")
    add("--trace", metavar="FILE", help="also write an HTML page on which expert wrote each token")
    add("--serve", type=int, metavar="PORT", help="serve OpenAI's API on this port of 127.0.0.1 (0: a free one)")
    add("--force", action="store_true", help="replace --output or --trace if it exists")
    add("--show-routing", action="store_true", help="also show which experts wrote the answer")
    add("--no-check", action="store_true", help="load the model without comparing it with its manifest")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", default="auto", help="auto (the one that decodes faster), float32 or bfloat16")
    return parser


def command(argv: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # code and JSON are UTF-8, whatever the system's own encoding
    return run(make_parser(), main, argv)


if __name__ == "__main__":
    sys.exit(command())
