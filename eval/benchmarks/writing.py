"""Answers of a model to a benchmark's problems, in a JSON Lines file that grows by a batch at a time.

A run that was interrupted continues where it stopped. Batches are made of all problems and samples, whatever is already
there, so a continued run computes each batch as an uninterrupted one does: on the same machine with the same number of
threads the files are equal byte for byte. The random numbers of an answer depend on the seed, the problem's id and the
sample's number alone.
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
from moe.files import json_lines, read_json_lines
from moe.inference.generation import answer_limit, generate_many
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
    prompts = [encode(p, settings.style, tokenizer, loaded.template, settings.ask) for p in problems]
    for problem, prompt in zip(problems, prompts):
        answer_limit(loaded.model, len(prompt), settings.max_new_tokens, f"the prompt of {problem.where}")
    jobs = [(place, sample) for place in range(len(problems)) for sample in range(settings.samples)]
    jobs.sort(key=lambda job: -len(prompts[job[0]]))  # similar lengths share a batch: little padding
    there = read_rows(path)
    done = 0
    for start in range(0, len(jobs), settings.batch_size):
        batch = jobs[start : start + settings.batch_size]
        missing = [job for job in batch if (problems[job[0]].language, problems[job[0]].id, job[1]) not in there]
        if missing:
            rows = _write_batch(
                loaded, [(problems[place], prompts[place], sample) for place, sample in batch], settings
            )
            append_rows(path, [row for row in rows if key_of(row) not in there])
        done += len(batch)
        on_progress(done, len(jobs))


def _write_batch(
    loaded: LoadedModel, batch: Sequence[tuple[Problem, list[int], int]], settings: WritingSettings
) -> list[dict[str, Any]]:
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    streams = [AnswerStream(tokenizer, problem, settings.style) for problem, _, _ in batch]

    def on_token(row: int, token: int) -> bool:
        streams[row].push(token)
        return streams[row].stopped

    found = generate_many(
        loaded.model,
        [prompt for _, prompt, _ in batch],
        max_new_tokens=settings.max_new_tokens,
        stop_ids=stop_ids(tokenizer, loaded.template),
        sampling=settings.sampling,
        row_ids=[row_id(problem, sample) for problem, _, sample in batch],
        on_token=on_token,
    )
    rows = []
    for (problem, prompt, sample), stream, answer in zip(batch, streams, found):
        stream.flush()
        rows.append(
            {
                "id": problem.id,
                "language": problem.language,
                "sample": sample,
                "answer": stream.text,
                "finished": "stop" if stream.stopped else answer.finished,
                "prompt_tokens": len(prompt),
                "tokens": len(answer.tokens),
            }
        )
    return rows


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
