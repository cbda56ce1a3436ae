"""Judges answers, one or many at a time; :mod:`eval.execution` lists what is limited."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path

from eval.execution.builds import Builds
from eval.execution.cases import CaseTests, ProgramTests
from eval.execution.limits import Limits
from eval.execution.results import Verdict, read_verdict
from eval.execution.sandbox import Sandbox
from eval.execution.toolchains import TOOLS, Task, java_file, make_task, missing_tools, steps
from moe.errors import UserError, did_you_mean

Job = tuple[str, str, CaseTests | ProgramTests]  # language, answer, tests
_DEFAULT = Limits()
_JAVA_BATCH = 32  # answers compiled by one run of the compiler


@cache
def _builds(folder: Path | None) -> Builds:
    return Builds(folder)


def judge(language: str, answer: str, tests: CaseTests | ProgramTests, limits: Limits = _DEFAULT) -> Verdict:
    """Runs one answer against its tests.

    Raises ``UserError`` for a language that cannot be run, and where nothing contains programs (see :class:`Limits`).
    """
    check_language(language)
    return _judge(language, make_task(answer, tests), Sandbox(limits), _builds(limits.cache))


def judge_many(jobs: Iterable[Job], limits: Limits = _DEFAULT, workers: int | None = None) -> Iterator[Verdict]:
    """Verdicts of (language, answer, tests) in order, each as soon as it and those before it are there.

    workers: answers at a time (default: one per processor core). Raises as :func:`judge`, before anything is run.
    """
    listed = list(jobs)
    for language, _, _ in listed:
        check_language(language)
    sandbox, builds = Sandbox(limits), _builds(limits.cache)
    return _verdicts(listed, sandbox, builds, workers or os.cpu_count() or 1)


def _verdicts(jobs: list[Job], sandbox: Sandbox, builds: Builds, workers: int) -> Iterator[Verdict]:
    tasks = [make_task(answer, tests) for _, answer, tests in jobs]
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        futures: list[Future[Verdict]] = []
        for start in range(0, len(jobs), _JAVA_BATCH):
            batch = range(start, min(start + _JAVA_BATCH, len(jobs)))
            java = [tasks[i] for i in batch if jobs[i][0] == "java"]
            compiled = pool.submit(_compile_java, java, sandbox, builds) if len(java) > 1 else None
            for i in batch:
                after = compiled if jobs[i][0] == "java" else None
                futures.append(pool.submit(_judge, jobs[i][0], tasks[i], sandbox, builds, after))
        for future in futures:
            yield future.result()
    finally:
        sandbox.stop()
        pool.shutdown(cancel_futures=True)


def _compile_java(tasks: list[Task], sandbox: Sandbox, builds: Builds) -> None:
    if missing_tools("java"):
        return
    sources = defaultdict(list)
    for task in tasks:
        paths = task.tests.paths if isinstance(task.tests, ProgramTests) else ()
        sources[paths].append(java_file(task))
    for paths, found in sources.items():
        builds.java(sandbox, list(dict.fromkeys(found)), paths)


def _judge(language: str, task: Task, sandbox: Sandbox, builds: Builds, after: Future[None] | None = None) -> Verdict:
    if missing := missing_tools(language):
        return Verdict("unavailable", f"{' and '.join(missing)} not found on the path")
    if after is not None:
        after.result()
    for step in steps(language, task, sandbox, builds):
        verdict = step if isinstance(step, Verdict) else read_verdict(task.secret, task.tests, step, sandbox.run(step))
        if not verdict.passed:
            return verdict
    return Verdict("passed")


def check_language(language: str) -> None:
    """Raises ``UserError`` for a language that cannot be run."""
    if language not in TOOLS:
        raise UserError(
            f"cannot run {language!r}{did_you_mean(language, TOOLS)}; languages that can be run: {', '.join(TOOLS)}"
        )
