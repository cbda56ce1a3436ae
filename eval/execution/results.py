"""What the results of an answer's programs say: its verdict."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.execution.cases import CaseTests, ProgramTests
from eval.execution.sandbox import Ended, Program
from eval.execution.values import decode, same, text

Status = Literal["passed", "failed", "compile_error", "runtime_error", "timeout", "unavailable"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "compile_error", "runtime_error", "timeout", "unavailable")
_SHOWN_CHARACTERS = 500


@dataclass(frozen=True)
class Verdict:
    """How an answer fared; ``detail`` is one line: which case failed and how, or what the compiler said.

    ``share`` of the cases are right in an answer that ran through them and did not pass.
    """

    status: Status
    detail: str = ""
    share: float = 0.0

    @property
    def passed(self) -> bool:
        return self.status == "passed"


def read_verdict(secret: str, tests: CaseTests | ProgramTests, program: Program, ended: Ended) -> Verdict:
    """What the results of one program say, in the lines that ``secret`` opens."""
    try:
        return _verdict(f"{secret} ".encode(), tests, program, ended)
    except (ValueError, RuntimeError, StopIteration):  # an answer that found out how results are sent wrote some
        return Verdict("runtime_error", "its results cannot be read")


def _verdict(secret: bytes, tests: CaseTests | ProgramTests, program: Program, ended: Ended) -> Verdict:
    lines = [line[len(secret) :].decode() for line in ended.results.split(b"\n") if line.startswith(secret)]
    if ended.why == "timeout" or ended.code == -signal.SIGXCPU:
        if program.sanitized:  # it is slower than the program that was timed; no report is no undefined behavior
            return Verdict("passed")
        return Verdict("timeout", f"no end after {program.seconds:g} s")
    stopped = {"memory": "it took too much memory", "processes": "it started too many processes"}
    stopped["results"] = "its result is too large"
    if ended.why:
        return Verdict("passed") if program.sanitized else Verdict("runtime_error", stopped[ended.why])
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "C":
            return Verdict("compile_error", one_line(text(rest)))
        if kind == "M":
            return Verdict("runtime_error", f"it defines no function {text(rest)!r}, and no other")
        if kind == "A":
            return Verdict("failed", one_line(text(rest)))
        if line.startswith("R - "):
            return Verdict("runtime_error", "raised " + one_line(text(rest[2:])))
    over = lines[-1:] == ["E"]
    if isinstance(tests, ProgramTests):
        if over:
            return Verdict("passed")
        detail = _shown(ended.errors)
        asserted = "Assertion `" in ended.errors and ended.code == -signal.SIGABRT
        return Verdict("failed" if asserted else "runtime_error", detail or f"ended early, exit code {ended.code}")
    return _case_verdict(tests, lines, ended, over)


def _case_verdict(tests: CaseTests, lines: Sequence[str], ended: Ended, over: bool) -> Verdict:
    raised, failed, count, right = "", "", 0, 0
    for index, (case, line) in enumerate(zip(tests.cases, lines)):
        kind, number, rest = (line.split(" ", 2) + ["", ""])[:3]
        if kind not in ("R", "V") or number != str(index):
            break
        count += 1
        if kind == "R":
            raised = raised or f"case {index} raised {text(rest)}"
        elif same(actual := decode(iter(rest.split(" "))), case.expected, tests.returns):
            right += 1
        else:
            failed = failed or f"case {index} got {_short(actual)}"
    if raised or failed:
        share = right / len(tests.cases)
        return Verdict("runtime_error" if raised else "failed", one_line(raised or failed), share)
    if count < len(tests.cases) or not over:
        return Verdict("runtime_error", _shown(ended.errors) or f"ended after {count} of {len(tests.cases)} cases")
    return Verdict("passed")


def _short(value: object) -> str:
    try:
        shown = repr(value)
    except (RecursionError, ValueError):  # Python prints no integer of more than 4300 digits
        return "a large value"
    return shown[:200]


def one_line(message: str) -> str:
    shown = " ".join(message.split())[:_SHOWN_CHARACTERS]
    return shown.encode("utf-8", errors="replace").decode()  # an exception may hold lone surrogates


def _shown(errors: str) -> str:
    """The line of an interpreter's or sanitizer's messages that names the error; Python names it last."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    named = [line for line in lines if "error" in line.lower() or "Exception" in line or "Assertion" in line]
    return (named or lines or [""])[-1 if named and "Traceback" in errors else 0][:_SHOWN_CHARACTERS]
