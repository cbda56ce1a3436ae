"""The subcommand ``benchmark`` of ``python -m eval``: from a model, or answers, to a pass@k table."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from checkpoints.progress import CountDisplay, make_console, say
from eval.benchmarks.answer_files import read_answers
from eval.benchmarks.libraries import missing_toolchain
from eval.benchmarks.problems import LAYOUTS, Problem, read_problems
from eval.benchmarks.programs import answer_code, canonical_code
from eval.benchmarks.prompts import STYLES, Style, check_style
from eval.benchmarks.scoring import Answer, score
from eval.benchmarks.table import markdown_table, summarize, terminal_table
from eval.benchmarks.writing import WritingSettings, check_settings, read_rows, write_answers
from eval.execution import Verdict
from eval.execution.cli import CONTAINMENT, add_limits, limits_of
from moe.errors import UserError
from moe.files import json_bytes, replace_file
from moe.languages import get_language

ANSWERS_FILE, VERDICTS_FILE, SETTINGS_FILE, RESULTS_FILE = "answers.jsonl", "verdicts.jsonl", "settings.json", "results"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``benchmark`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "benchmark",
        help="pass@k on HumanEval, HumanEval-X, MBPP, MBXP, MultiPL-E, or pairs with tests",
        description="Lets a model answer a benchmark's problems (or takes answers from a file), runs the answers "
        "against the tests and prints pass@k with 95% bootstrap intervals over problems. The same command continues "
        "after an interruption. " + CONTAINMENT,
    )
    add = parser.add_argument
    add("name", choices=list(LAYOUTS), metavar="NAME", help=", ".join(LAYOUTS))
    add("--data", type=Path, required=True, metavar="PATH", help="the benchmark's file, or a directory of its files")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="DIR", help="a run, a model directory, a GGUF file or a wheel with one")
    source.add_argument("--answers", type=Path, metavar="FILE", help="*.jsonl[.gz] of answers, written by any program")
    source.add_argument("--canonical", action="store_true", help="score the benchmark's own solutions")
    add("--language", nargs="+", default=[], metavar="NAME", help="default: all in the data that can be run")
    add("--problems", metavar="FIRST-LAST", help="choose by number, such as 0-19 (MBPP's test split: 11-510)")
    add("--style", choices=STYLES, help="completion: the signature is continued; instruction: the description is asked "
        "through the model's chat template (default: completion, for pairs instruction)")  # fmt: skip
    add("--samples", type=int, default=1, metavar="N", help="answers to each problem")
    add("--temperature", type=float, default=0.0, metavar="T", help="0: greedy")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the most likely tokens that hold P")
    add("--seed", type=int, default=0, metavar="N", help="seed of the draws")
    add("--max-new-tokens", type=int, default=512, metavar="N", help="longest answer, in tokens")
    add("--batch-size", type=int, default=32, metavar="N", help="answers written at once")
    add("--k", type=int, nargs="+", default=[1], metavar="K", help="pass@k for these k")
    add("--workers", type=int, metavar="N", help="programs at a time (default: one per core)")
    add("--output", type=Path, metavar="DIR", help="settings, answers, verdicts and results (default: a folder in "
        "runs/benchmarks named after the settings)")  # fmt: skip
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--dtype", default="auto", help="auto (the one that decodes faster), float32 or bfloat16")
    add_limits(parser)
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    # 1. Read the problems and check everything that was typed before the model is read.
    check_arguments(arguments)
    style: Style = arguments.style or ("instruction" if arguments.name == "pairs" else "completion")
    by_language = read_problems(arguments.name, arguments.data, arguments.language, read_numbers(arguments.problems))
    problems = [problem for items in by_language.values() for problem in items]
    if not arguments.canonical:
        check_style(style, problems)
    console = make_console()
    for language in by_language:
        if (lacking := missing_toolchain(language)) is not None:
            say(console, f"{get_language(language).name} cannot be run here: needs {lacking}")
    settings: dict[str, Any] = {
        "benchmark": arguments.name,
        "data": _digest("".join(f"{p.language}\0{p.id}\0{p.prompt}\0{p.tests}\0{p.solution}\0" for p in problems)),
    }

    # 2. Collect the answers: the benchmark's own, another program's, or the model's.
    if arguments.canonical:
        answers = [Answer(p, 0, canonical_code(p), "completion", own=True) for p in problems if p.solution is not None]
        if len(answers) < len(problems):
            say(console, f"{len(problems) - len(answers)} of {len(problems)} problems have no solution")
        if not answers:
            raise UserError(f"{arguments.data}: has no solutions; give --model or --answers")
        settings["source"] = "canonical"
        folder = _folder(arguments, settings)
    elif arguments.answers is not None:
        answers = read_answers(arguments.answers, problems, style)
        settings |= {"source": "answers", "style": style, "answers": _digest("\0".join(a.code for a in answers))}
        folder = _folder(arguments, settings)
    else:
        folder, answers = _write(arguments, settings, style, problems, console)

    # 3. Run them, and print the table.
    limits = limits_of(arguments)
    if arguments.canonical:  # two of MBXP's own C++ solutions have undefined behavior
        limits = replace(limits, sanitize=False)
    with CountDisplay(console, "verdicts") as progress:
        verdicts = score(answers, folder / VERDICTS_FILE, limits, arguments.workers, progress)
    outcomes: dict[str, dict[str, list[str]]] = {language: {} for language in by_language}
    for answer in answers:
        outcomes[answer.problem.language].setdefault(answer.problem.id, []).append(verdicts[answer.key].status)
    summary = summarize(outcomes, arguments.k)
    title = f"{LAYOUTS[arguments.name].title}, {'own solutions' if arguments.canonical else style}"
    console.print(terminal_table(summary, arguments.k, title))
    for line in not_run(answers, verdicts):
        say(console, line)
    replace_file(folder / f"{RESULTS_FILE}.json", json_bytes({**settings, "languages": summary}))
    replace_file(folder / f"{RESULTS_FILE}.md", markdown_table(summary, arguments.k).encode())
    say(console, f"wrote {folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return 0


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises :class:`UserError` for values out of range, and flags that have no effect on what was asked."""
    limits_of(arguments)
    for flag in ("workers", "samples", "max_new_tokens", "batch_size"):
        if (value := getattr(arguments, flag)) is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} is {value}, expected at least 1")
    if min(arguments.k) < 1:
        raise UserError(f"--k is {min(arguments.k)}, expected at least 1")
    if arguments.model is not None and max(arguments.k) > arguments.samples:
        raise UserError(f"--k {max(arguments.k)} needs as many samples; type --samples {max(arguments.k)} or more")
    if arguments.model is not None and arguments.samples > 1 and arguments.temperature == 0:
        raise UserError("at temperature 0 all samples are the same; add --temperature 0.8, or leave --samples out")
    if arguments.canonical and arguments.style is not None:
        raise UserError("--style is for answers; the benchmark's own solutions complete its prompts")
    for language in arguments.language:
        get_language(language)


def read_numbers(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None or int(match[1]) > int(match[2]):
        raise UserError(f"--problems is {text!r}; expected FIRST-LAST, such as 0-19")
    return int(match[1]), int(match[2])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _folder(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> Path:
    """The run's directory, made if need be; raises :class:`UserError` if it belongs to other settings."""
    name = f"{arguments.name}-{_digest(json.dumps(settings, sort_keys=True))[:8]}"
    folder: Path = arguments.output or Path("runs", "benchmarks", name)
    file = folder / SETTINGS_FILE
    if file.is_file():
        check_settings(json.loads(file.read_bytes()), settings, folder)
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not a benchmark's run; give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(file, json_bytes(settings))
    return folder


def _write(
    arguments: argparse.Namespace, settings: dict[str, Any], style: Style, problems: Sequence[Problem], console: Any
) -> tuple[Path, list[Answer]]:
    """Lets the model answer; returns the run's directory and the answers."""
    from checkpoints.model_io import load_model  # torch is not needed to score what is there
    from checkpoints.runs.finished import model_of
    from moe.hardware import choose_device, decoding_dtype, dtype_name
    from moe.inference.sampling import Sampling

    sampling = Sampling(arguments.temperature, 0, arguments.top_p, arguments.seed)
    device = choose_device(arguments.device)
    path = model_of(arguments.model)
    loaded = load_model(path, decoding_dtype(device, arguments.dtype), device)
    if loaded.tokenizer is None:
        raise UserError(f"{path} has no tokenizer; expected tokenizer.json or tokenizer.model beside the weights")
    ask = "train" if is_trained_here(path, loaded.config.expert_languages) else "code-only"
    writing = WritingSettings(style, arguments.samples, sampling, arguments.max_new_tokens, arguments.batch_size, ask)
    settings |= {"source": "model", "model": fingerprint(loaded.model), "template": loaded.template}
    settings |= {"device": device.type, "dtype": dtype_name(loaded.model.dtype), **asdict(writing)}
    folder = _folder(arguments, settings)
    say(console, f"model {path}, weights in {settings['dtype']} on {device.type}; {len(problems)} problems; {folder}")
    started = time.monotonic()
    with CountDisplay(console, "answers") as progress:
        write_answers(loaded, problems, writing, folder / ANSWERS_FILE, progress)
    rows = read_rows(folder / ANSWERS_FILE)
    tokens, cut = sum(row["tokens"] for row in rows.values()), sum(row["finished"] == "length" for row in rows.values())
    say(
        console, f"{len(rows)} answers, {tokens} tokens, {time.monotonic() - started:.0f} s; {cut} cut off at the limit"
    )
    by_key = {(p.language, p.id): p for p in problems}
    answers = []
    for (language, name, sample), row in sorted(rows.items()):
        problem = by_key[language, name]
        answers.append(Answer(problem, sample, answer_code(problem, row["answer"], style), style))
    return folder, answers


def is_trained_here(path: Path, expert_languages: Sequence[str]) -> bool:
    """Whether ``train.py`` made the model: it then answers instructions with code alone, as it was trained to."""
    from checkpoints.model_card import RUN_FILE

    return bool(expert_languages) or (path.parent / RUN_FILE).is_file()


def fingerprint(model: Any) -> str:
    """Tells weights apart: a digest of the names, the shapes and up to 4096 values of each parameter."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        values = flat[:: max(1, len(flat) // 4096)].float().cpu().contiguous()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def not_run(answers: Sequence[Answer], verdicts: Mapping[Any, Verdict]) -> list[str]:
    """A line for each library or tool that is missing, with the problems that need it."""
    needing: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        verdict = verdicts[answer.key]
        if verdict.status == "unavailable" and answer.problem.id not in needing[verdict.detail]:
            needing[verdict.detail].append(answer.problem.id)
    lines = []
    for detail, ids in needing.items():
        shown = ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        lines.append(f"not run, left out of pass@k: {shown}: {detail}")
    return lines
