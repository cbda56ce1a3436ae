"""Runs answers against a benchmark's tests; verdicts are kept in a JSON Lines file, so that scoring resumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eval.benchmarks.libraries import find_libraries, missing_toolchain, return_checks
from eval.benchmarks.problems import Problem
from eval.benchmarks.programs import Tests, problem_tests
from eval.benchmarks.prompts import Style
from eval.benchmarks.writing import Key, append_rows, read_rows
from eval.execution import Limits, ProgramTests, Verdict, judge_many


@dataclass(frozen=True)
class Answer:
    """An answer to be judged: ``code`` with what it needs of the prompt; ``own`` says that it is the benchmark's."""

    problem: Problem
    sample: int
    code: str
    style: Style
    own: bool = False

    @property
    def key(self) -> Key:
        return self.problem.language, self.problem.id, self.sample


def score(
    answers: Sequence[Answer],
    path: Path | None,
    limits: Limits,
    workers: int | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, Verdict]:
    """A verdict for each answer. Equal code for the same problem is run once.

    path: where verdicts are kept and found again under the same limits; those that lacked a tool or a library are not
    kept, so that they are run once it is installed.
    """
    terms = {"seconds": limits.seconds, "sanitize": limits.sanitize}
    rows = read_rows(path) if path is not None else {}
    known = {k: Verdict(row["status"], row["detail"]) for k, row in rows.items() if terms.items() <= row.items()}
    verdicts = {answer.key: known[answer.key] for answer in answers if answer.key in known}
    jobs: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in answers:
        if answer.key not in verdicts:
            jobs.setdefault((*answer.key[:2], answer.code), []).append(answer)

    def keep(same: Sequence[Answer], verdict: Verdict) -> None:
        verdicts.update((answer.key, verdict) for answer in same)
        if path is not None and verdict.status != "unavailable":
            rows = [{"id": a.problem.id, "language": a.problem.language, "sample": a.sample} for a in same]
            append_rows(path, [{**row, **vars(verdict), **terms, "code": same[0].code} for row in rows])
        on_progress(len(verdicts), len(answers))

    runnable: list[tuple[list[Answer], str, Tests]] = []
    for same in jobs.values():
        job = prepare(same[0], limits)
        if isinstance(job, Verdict):
            keep(same, job)
        else:
            runnable.append((same, *job))
    todo: Iterator[Verdict] = judge_many(((s[0].problem.language, code, t) for s, code, t in runnable), limits, workers)
    for (same, _, _), verdict in zip(runnable, todo, strict=True):
        keep(same, verdict)
    return verdicts


def prepare(answer: Answer, limits: Limits) -> tuple[str, Tests] | Verdict:
    """The code and tests for the judge, or the verdict ``unavailable`` that says what to install."""
    problem = answer.problem
    lacking = missing_toolchain(problem.language)
    if lacking is not None:
        return Verdict("unavailable", f"needs {lacking}")
    code, tests = problem_tests(problem, answer.style, answer.code)
    if not isinstance(tests, ProgramTests):
        return code, tests
    given = "\n".join((tests.before, problem.prompt if problem.in_program else "", tests.after))
    program = "\n".join((given, code))
    found = find_libraries(problem.language, program, program if answer.own else given)
    if found.missing:
        return Verdict("unavailable", f"needs {', '.join(found.missing)}")
    checks = return_checks() if answer.own and problem.language == "cpp" and not limits.sanitize else ()
    return code, replace(tests, flags=(*checks, *found.flags), paths=found.paths)
