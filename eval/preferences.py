"""``python -m eval preferences``: pairs of answers of a run's mixture, one that passes its tests and one that fails."""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints.model_io import LoadedModel, load_model
from checkpoints.progress import CountDisplay, make_console
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.finished import model_of
from checkpoints.runs.preflight import run_data, run_dtype
from eval.answer_code import answer_code, is_code
from eval.rewards import usable_tasks
from eval.verdicts import UNJUDGED, run_all
from moe.data.pairs import Pair
from moe.data.prompt import encode_prompt, instruction_for, stop_ids
from moe.data.rows import Row
from moe.data.sources import sample_all
from moe.errors import UserError
from moe.files import Journal, write_json_lines
from moe.hardware import choose_device
from moe.inference.generation import Generation, generate_many
from moe.inference.sampling import Sampling


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``preferences`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "preferences",
        help="make preference pairs from tests, for train.py --preferences",
        description="Samples answers of a finished run's mixture to its training tasks that have tests, runs the "
        "tests, and pairs answers that pass with answers that fail: JSON Lines of id, language, prompt, chosen and "
        "rejected. The same command goes on where it was interrupted.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's directory")
    parser.add_argument("--output", type=Path, help="the file to write (default: RUN/preferences.jsonl)")
    parser.add_argument("--tasks", type=int, default=100, metavar="N", help="tasks per language, 0 for all (100)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="answers to each task (8)")
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of their sampling (1.0)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="draws tasks, answers and pairs (0)")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for name, least in (("tasks", 0), ("samples", 2)):
        if getattr(arguments, name) < least:
            raise UserError(f"--{name} is {getattr(arguments, name)}, expected at least {least}")
    sampling = Sampling(arguments.temperature, seed=arguments.seed)
    if sampling.greedy:
        raise UserError("--temperature is 0, expected a positive number: equal answers make no pairs")
    config, path = RunDirectory.resume(arguments.run).config, model_of(arguments.run)
    output = arguments.output or arguments.run / "preferences.jsonl"
    if output.exists():
        raise UserError(f"{output} exists; give another --output, or remove it")
    journals = [output.with_name(output.name + suffix) for suffix in (".answers", ".verdicts")]
    tested = usable_tasks(run_data(config).train)
    tasks = [pair for pairs in sample_all(tested, arguments.tasks, arguments.seed).values() for pair in pairs]
    device = choose_device(config.device)
    loaded = load_model(path, run_dtype(config, device), device, packed="int4")
    console = make_console()
    with CountDisplay(console, "answers") as show:
        answers = sample_answers(
            loaded, tasks, arguments.samples, sampling, (config.max_new_tokens, config.eval_batch_size),
            journals[0], show,
        )  # fmt: skip
    with CountDisplay(console, "tests") as show:
        passed = judged(tasks, answers, journals[1], show)
    rows = paired(tasks, passed, arguments.seed)
    for language in tested:
        own = [found for task, found in zip(tasks, passed, strict=True) if task.language == language]
        judgments = [verdict for found in own for verdict in found.values()]
        pairs = sum(row["language"] == language for row in rows)
        counts = f"{len(own)} tasks, {len(judgments)} different answers, {sum(judgments)} passed, {pairs} pairs"
        print(f"{language}: {counts}")
    if not rows:
        raise UserError("no task has both an answer that passes and one that fails; give more --tasks or --samples")
    write_json_lines(output, rows)
    for journal in journals:
        journal.unlink(missing_ok=True)
    print(f"{len(rows)} preferences in {output}; next: train.py --preferences {output} --to {arguments.run}")
    return 0


def sample_answers(
    loaded: LoadedModel,
    tasks: Sequence[Pair],
    samples: int,
    sampling: Sampling,
    limits: tuple[int, int],
    journal: Path,
    show: CountDisplay,
) -> list[list[str]]:
    """Different finished answers to each task, at most ``samples``; those that ``journal`` has are not written again.

    Args:
        limits: longest answer in tokens, and answers at a time.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise UserError(f"{loaded.path} has no tokenizer")
    prompts = [encode_prompt(tokenizer, loaded.template, instruction_for(x.text, x.language)) for x in tasks]
    total = len(tasks) * samples
    noted = Journal(journal, [str(loaded.path), prompts, samples, sampling.temperature, sampling.seed, limits[0]])
    known = {row["place"]: row["answer"] for row in noted.rows}
    missing = [place for place in range(total) if place not in known]

    def note(number: int, found: Generation) -> None:
        text = tokenizer.decode(found.tokens).strip() if found.finished == "stop" else ""
        known[missing[number]] = text
        noted.add({"place": missing[number], "answer": text})
        show(len(known), total)

    generate_many(
        loaded.model,
        [prompts[place // samples] for place in missing],
        max_new_tokens=limits[0],
        batch_size=limits[1],
        stop_ids=stop_ids(tokenizer, loaded.template),
        sampling=sampling,
        row_ids=missing,
        on_progress=note,
    )
    of_tasks = ([known[task * samples + i] for i in range(samples)] for task in range(len(tasks)))
    return [list(dict.fromkeys(filter(None, found))) for found in of_tasks]


def judged(
    tasks: Sequence[Pair], answers: Sequence[Sequence[str]], journal: Path, show: CountDisplay
) -> list[dict[str, bool]]:
    """For each task whether its answers pass, by answer; those that cannot be judged are left out.

    Answers that do not parse fail without being run: half of a small model's, and compilers take most of the time.

    Raises:
        UserError: nothing contains programs here.
    """
    passed: list[dict[str, bool]] = [{} for _ in tasks]
    placed, rows = [], []
    for place, (task, found) in enumerate(zip(tasks, answers, strict=True)):
        for answer in found:
            code = answer_code(answer, task.language)
            passed[place][answer] = False
            if is_code(code, task.language):
                placed.append((place, answer))
                rows.append(Row(task.id, task.language, tests=task.tests, answer=code))
    for (place, answer), (verdict, detail) in zip(placed, run_all(rows, show, journal), strict=True):
        if verdict == UNJUDGED[0]:
            raise UserError(f"the tests cannot be run: {detail}")
        if verdict in UNJUDGED:
            del passed[place][answer]
        else:
            passed[place][answer] = verdict == "passed"
    return passed


def paired(tasks: Sequence[Pair], passed: Sequence[dict[str, bool]], seed: int) -> list[dict[str, Any]]:
    """Rows of preferences: each passing answer with a failing one of its task, as long as there are both."""
    rows = []
    for place, (task, found) in enumerate(zip(tasks, passed, strict=True)):
        good, bad = ([answer for answer, ok in found.items() if ok == wanted] for wanted in (True, False))
        random.Random(f"{seed}-{place}").shuffle(bad)
        for chosen, rejected in zip(good, bad):
            row = {"id": task.id, "language": task.language, "prompt": task.text}
            rows.append({**row, "chosen": chosen, "rejected": rejected})
    return rows
