"""Judges answers, one or many at a time; :mod:`eval.execution` lists what is limited."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from eval.execution import programs
from eval.execution.cases import CaseTests, ProgramTests
from eval.execution.programs import STATUSES, Status, missing_tools

__all__ = ["STATUSES", "Job", "Limits", "Status", "Verdict", "judge", "judge_many", "missing_tools"]

Job = tuple[str, str, "CaseTests | ProgramTests"]  # language, answer, tests
Containment = Literal["auto", "bubblewrap", "namespaces", "none"]


@dataclass(frozen=True)
class Verdict:
    """How an answer fared; ``detail`` is one line: which case failed and how, or what the compiler said."""

    status: Status
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class Limits:
    """Limits of one run of a program.

    seconds and compile_seconds: wall time. memory, disk, output: bytes of all its processes together, of all files,
    and of standard output and error. sanitize: run C++ again under AddressSanitizer and UndefinedBehaviorSanitizer.
    unsafe: where nothing contains programs, run them with these limits alone instead of raising ``UserError``.
    """

    seconds: float = 10.0
    compile_seconds: float = 120.0
    memory: int = 1 << 30
    disk: int = 64 << 20
    output: int = 4 << 20
    processes: int = 64
    sanitize: bool = True
    unsafe: bool = False
    containment: Containment = "auto"


def judge(language: str, answer: str, tests: CaseTests | ProgramTests, limits: Limits = Limits()) -> Verdict:
    """Runs one answer against its tests. Raises ``UserError`` for a language that cannot be run."""
    if isinstance(tests, ProgramTests):
        output = programs.run_program(language, "\n".join((tests.before, answer, tests.after)), limits.seconds)
        return Verdict(output.status, output.stderr[-300:])
    data = {
        "function": tests.function,
        "parameters": [[name, str(type_)] for name, type_ in tests.parameters],
        "returns": str(tests.returns),
        "cases": [{"arguments": case.arguments, "expected": case.expected} for case in tests.cases],
    }
    result = programs.run_tests(language, answer, json.dumps(data), limits.seconds)
    return Verdict(result.status, result.detail)


def judge_many(jobs: Iterable[Job], limits: Limits = Limits(), workers: int | None = None) -> Iterator[Verdict]:
    """Verdicts of (language, answer, tests) in order, each as soon as it and those before it are there.

    workers: answers at a time (default: one per processor core).
    """
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as pool:
        yield from pool.map(lambda job: judge(*job, limits), jobs)
