"""Counts many pairs, optionally on several cores; a bad pair costs one error and never the others."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from itertools import islice

from eval.codebleu.counts import Counts
from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import find_language
from eval.codebleu.score import Mode, PairCounter, make_scorer, paused_collection

CHUNK = 64  # pairs sent to a process at a time; pairs with the same reference are best kept together
MAX_AHEAD = 4  # chunks per process that are submitted before the first result is back

Task = tuple[str, Sequence[str], str]
"""Language, references, hypothesis."""
Outcome = Counts | str
"""Counts, or an error message."""


class PairCounters:
    """Counts pairs of any language in one process; creates the scorer of a language when it is first needed."""

    def __init__(self, mode: Mode):
        self._mode = mode
        self._scorers: dict[str, PairCounter] = {}

    def count(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Counts or the error of each pair."""
        with paused_collection():
            return [self._count(*task) for task in tasks]

    def _scorer(self, language: str) -> PairCounter:
        if language not in self._scorers:
            self._scorers[language] = make_scorer(language, self._mode)
        return self._scorers[language]

    def _count(self, language: str, references: Sequence[str], hypothesis: str) -> Outcome:
        try:
            language = find_language(language)
            return self._scorer(language).count(references, hypothesis)
        except CodeBLEUError as error:
            return str(error)
        except Exception as error:  # one pair must not stop the others
            self._scorers.pop(language, None)
            return f"scoring failed with {type(error).__name__}: {error}"


@cache
def _counters_of_process(mode: Mode) -> PairCounters:
    return PairCounters(mode)


def _count_chunk(mode: Mode, tasks: Sequence[Task]) -> list[Outcome]:
    return _counters_of_process(mode).count(tasks)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_pairs(tasks: Iterable[Task], mode: Mode = "reference", jobs: int = 1) -> Iterator[Outcome]:
    """Counts or the error of every pair, in order.

    Args:
        tasks: the pairs.
        mode: ``"reference"`` or ``"corrected"``.
        jobs: number of processes; the outcomes do not depend on it.

    A pair that crashes its process becomes an error as well.
    """
    return _count_here(tasks, mode) if jobs <= 1 else _count_parallel(tasks, mode, jobs)


def _count_here(tasks: Iterable[Task], mode: Mode) -> Iterator[Outcome]:
    counters, remaining = PairCounters(mode), iter(tasks)
    while chunk := list(islice(remaining, CHUNK)):
        yield from counters.count(chunk)


def _executor(jobs: int) -> ProcessPoolExecutor:
    # A process forked from one with threads can hang, so processes are spawned.
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))


def _count_parallel(tasks: Iterable[Task], mode: Mode, jobs: int) -> Iterator[Outcome]:
    remaining = iter(tasks)
    waiting: deque[tuple[list[Task], Future[list[Outcome]]]] = deque()
    executor = _executor(jobs)
    try:
        while True:
            while len(waiting) < MAX_AHEAD * jobs and (chunk := list(islice(remaining, CHUNK))):
                waiting.append((chunk, executor.submit(_count_chunk, mode, chunk)))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            try:
                outcomes = future.result()
            except BrokenProcessPool:
                executor.shutdown(wait=False, cancel_futures=True)
                outcomes = _count_one_by_one(chunk, mode)
                executor = _executor(jobs)
                waiting = deque((other, executor.submit(_count_chunk, mode, other)) for other, _ in waiting)
            yield from outcomes
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _count_one_by_one(tasks: Sequence[Task], mode: Mode) -> list[Outcome]:
    """Finds the pair of a chunk that crashes its process."""
    outcomes: list[Outcome] = []
    executor = _executor(1)
    for task in tasks:
        try:
            outcomes += executor.submit(_count_chunk, mode, [task]).result()
        except BrokenProcessPool:
            outcomes.append("scoring this pair crashes the process; the parser cannot handle its text")
            executor.shutdown(wait=False)
            executor = _executor(1)
    executor.shutdown()
    return outcomes
