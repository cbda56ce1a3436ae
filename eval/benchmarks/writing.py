"""Answers of a model to a benchmark's problems, in a JSON Lines file that grows by an answer at a time.

A run that was interrupted continues where it stopped; the finished file has the order of problems and samples. The
random numbers of an answer depend on the seed, the problem's id and the sample's number alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.model_io import LoadedModel
from eval.benchmarks.problems import Problem
from eval.benchmarks.prompts import AnswerStream, Style, encode
from moe.data.prompt import stop_ids
from moe.errors import UserError
from moe.files import json_lines, read_json_lines, write_json_lines
from moe.inference.engine import Engine, Generation, Request
from moe.inference.generation import answer_limit
from moe.inference.sampling import Sampling

Key = tuple[str, str, int]  # language, problem's id, sample's number


@dataclass(frozen=True)
class WritingSettings:
    """How answers are written: ``ask`` words instructions (:func:`moe.data.prompt.instruction_for`)."""

    style: Style
    samples: int
    sampling: Sampling
    max_new_tokens: int
    batch_size: int
    ask: str


def key_of(row: Mapping[str, Any]) -> Key:
    """What an answer's row is about."""
    return row["language"], row["id"], row["sample"]


def read_rows(path: Path) -> dict[Key, dict[str, Any]]:
    """The rows of a file that :func:`append_rows` wrote; a last line that a kill cut short is removed from the file."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
    return {key_of(row): row for _, row in read_json_lines(path, "language, id and sample")}


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows to a JSON Lines file and flushes them to the disk."""
    with path.open("ab") as file:
        file.write(json_lines(rows).encode("utf-8", "replace"))
        file.flush()
        os.fsync(file.fileno())


def write_answers(
    loaded: LoadedModel,
    problems: Sequence[Problem],
    settings: WritingSettings,
    path: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes ``settings.samples`` answers to each problem into ``path``; those that are there are kept.

    Raises:
        UserError: a prompt leaves no room in the model's context.
    """
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    there, total = set(read_rows(path)), len(problems) * settings.samples
    stop, engine = stop_ids(tokenizer, loaded.template), Engine(loaded.model, settings.batch_size)

    def submit(problem: Problem, prompt: list[int], limit: int, key: Key) -> None:
        stream = AnswerStream(tokenizer, problem, settings.style)

        def on_token(token: int) -> bool:
            stream.push(token)
            return stream.stopped

        def on_finished(found: Generation) -> None:
            stream.flush()
            finished = "stop" if stream.stopped else found.finished
            row = {"id": key[1], "language": key[0], "sample": key[2], "answer": stream.text, "finished": finished}
            append_rows(path, [row | {"prompt_tokens": len(prompt), "tokens": len(found.tokens)}])
            there.add(key)
            on_progress(len(there), total)

        numbers = row_id(problem, key[2])
        engine.submit(
            Request(prompt, limit, settings.sampling, stop, numbers, on_token=on_token, on_finished=on_finished)
        )

    keys = []
    for problem in problems:
        prompt = encode(problem, settings.style, tokenizer, loaded.template, settings.ask)
        limit = answer_limit(loaded.model, len(prompt), settings.max_new_tokens, f"the prompt of {problem.where}")
        for sample in range(settings.samples):
            keys.append((problem.language, problem.id, sample))
            if keys[-1] not in there:
                submit(problem, prompt, limit, keys[-1])
    on_progress(len(there), total)
    engine.run()
    rows = read_rows(path)
    write_json_lines(path, [rows[key] for key in keys])


def row_id(problem: Problem, sample: int) -> int:
    """What an answer's random numbers are drawn for, besides the seed."""
    digest = hashlib.sha256(f"{problem.language}\0{problem.id}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def check_settings(found: Mapping[str, Any], wanted: Mapping[str, Any], path: Path) -> None:
    """Raises :class:`UserError` when the run in ``path`` was started with other settings."""
    for key in (*wanted, *found):
        if found.get(key) != wanted.get(key):
            raise UserError(
                f"{path} was started with {key} {found.get(key)!r}, now it is {wanted.get(key)!r}; "
                "give another --output, or the same settings to continue it"
            )
