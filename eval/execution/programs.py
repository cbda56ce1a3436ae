"""Runs programs, and functions against their test cases; :mod:`eval.execution` lists what is limited."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moe.data.synthetic import TASK_LANGUAGES, render_program
from moe.errors import UserError, did_you_mean

Status = Literal["passed", "failed", "compile_error", "runtime_error", "timeout", "unavailable"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "compile_error", "runtime_error", "timeout", "unavailable")

_MEBIBYTE = 1 << 20
_MEMORY = {"python": 1024 * _MEBIBYTE, "cpp": 1024 * _MEBIBYTE}  # address space; Java and JavaScript reserve far more
_FILE_BYTES = 64 * _MEBIBYTE  # any file, standard output among them
_READ_BYTES = 4 * _MEBIBYTE  # of standard output and error each
_SHOWN_CHARACTERS = 500
_SOURCES = {"python": "main.py", "java": "Main.java", "javascript": "main.js", "cpp": "main.cpp"}
_TOOLS = {"python": (), "java": ("javac", "java"), "javascript": ("node",), "cpp": ("g++",)}
# Sets the limits, then becomes the program. A preexec_fn would do the same but may deadlock where threads are.
_LIMITER = """
import os, resource, sys
cpu, memory, size = map(int, sys.argv[1:4])
resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
if memory:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.execv(sys.argv[4], sys.argv[4:])
"""


@dataclass(frozen=True)
class ExecutionResult:
    """How one function fared; ``detail`` says which case failed and how, or quotes the compiler."""

    status: Status
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class ProgramOutput:
    """``status`` is ``passed`` when the program exited with code 0, whatever it printed."""

    status: Status
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True)
class _Ended:
    """How one process ended; ``code`` is None after a timeout."""

    code: int | None
    stdout: str
    stderr: str


def missing_tools(language: str) -> tuple[str, ...]:
    """The tools that running ``language`` needs and that are not on the path."""
    return tuple(tool for tool in _TOOLS[_known(language)] if shutil.which(tool) is None)


def run_program(language: str, source: str, timeout_s: float = 10.0, compile_timeout_s: float = 120.0) -> ProgramOutput:
    """Compiles and runs a complete program (Java: the class ``Main``); both limits are wall time in seconds."""
    if missing := missing_tools(language):
        return ProgramOutput("unavailable", stderr=f"{' and '.join(missing)} not found on the path")
    with tempfile.TemporaryDirectory(prefix="execution-") as folder:
        Path(folder, _SOURCES[language]).write_text(source, encoding="utf-8", errors="replace")
        compiler, program = _commands(language)
        if compiler:
            built = _run(compiler, folder, compile_timeout_s, memory=0)
            if built.code != 0:
                return ProgramOutput("timeout" if built.code is None else "compile_error", built.stdout, built.stderr)
        ended = _run(program, folder, timeout_s, memory=_MEMORY.get(language, 0))
    if ended.code is None or ended.code == -signal.SIGXCPU:
        return ProgramOutput("timeout", ended.stdout, ended.stderr)
    return ProgramOutput("passed" if ended.code == 0 else "runtime_error", ended.stdout, ended.stderr)


def run_tests(language: str, code: str, tests: Mapping[str, Any] | str, timeout_s: float = 10.0) -> ExecutionResult:
    """Runs one function against its test cases.

    tests: an object as in ``moe.data.synthetic.render_program``, or the same as JSON. timeout_s: wall time in seconds
    of the run, compiling not counted. The status is ``passed`` only when every case passed, ``runtime_error`` when a
    case raised or the program ended early. Raises ``UserError`` for an unknown language or unusable tests.
    """
    parsed = _parse_tests(tests)
    _known(language)
    # The marker is a secret of this run, so that nothing the code prints can be taken for a result.
    marker = f"case-{secrets.token_hex(8)}"
    try:
        program = render_program(language, code, parsed, marker)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the test cases do not fit their types: {error}") from error
    output = run_program(language, program, timeout_s)
    if output.status in ("unavailable", "timeout", "compile_error"):
        return ExecutionResult(output.status, _shown(output.stderr) or f"no end after {timeout_s:g} s")
    lines = [line.split(" ", 2) for line in output.stdout.splitlines() if line.startswith(f"{marker} ")]
    if not lines and ("SyntaxError" in output.stderr or "IndentationError" in output.stderr):
        return ExecutionResult("compile_error", _shown(output.stderr))
    failures = [rest for _, verdict, rest in lines if verdict != "PASS"]
    raised = [rest for rest in failures if rest.partition(" ")[2].startswith("raised ")]
    if raised:
        return ExecutionResult("runtime_error", f"case {raised[0].removeprefix('0.')}")
    if failures:
        return ExecutionResult("failed", f"case {failures[0].removeprefix('0.')}")
    if output.status != "passed" or len(lines) != len(parsed["cases"]):
        detail = _shown(output.stderr) or f"ended after {len(lines)} of {len(parsed['cases'])} cases"
        return ExecutionResult("runtime_error", detail)
    return ExecutionResult("passed")


def run_many(
    jobs: Sequence[tuple[str, str, Mapping[str, Any] | str]], timeout_s: float = 10.0, workers: int | None = None
) -> list[ExecutionResult]:
    """:func:`run_tests` for many (language, code, tests), ``workers`` at a time (default: one per processor core)."""
    workers = workers or os.cpu_count() or 1
    with ThreadPoolExecutor(max_workers=max(1, min(workers, len(jobs)))) as pool:
        return list(pool.map(lambda job: run_tests(job[0], job[1], job[2], timeout_s), jobs))


def _known(language: str) -> str:
    if language not in _SOURCES:
        raise UserError(
            f"cannot run {language!r}{did_you_mean(language, TASK_LANGUAGES)}; languages that can be run: "
            f"{', '.join(TASK_LANGUAGES)}"
        )
    return language


def _parse_tests(tests: Mapping[str, Any] | str) -> Mapping[str, Any]:
    if isinstance(tests, str):
        try:
            tests = json.loads(tests)
        except ValueError as error:
            raise UserError(f"the test cases are not JSON ({error}); expected an object with a list 'cases'") from error
    needed = ("function", "parameters", "returns", "cases")
    if not isinstance(tests, Mapping) or any(key not in tests for key in needed) or not tests["cases"]:
        raise UserError(f"the test cases must be an object with {', '.join(needed)} and at least one case")
    return tests


def _commands(language: str) -> tuple[list[str], list[str]]:
    """The compiler's command (empty for none) and the program's, run in the folder that holds the source."""
    tools = {tool: str(shutil.which(tool)) for tool in _TOOLS[language]}
    if language == "python":
        return [], [sys.executable, "-I", "-B", "main.py"]
    if language == "javascript":
        return [], [tools["node"], "--max-old-space-size=512", "main.js"]
    if language == "java":
        quick = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto")
        return (
            [
                tools["javac"],
                *(f"-J{flag}" for flag in quick),
                "-proc:none",
                "-nowarn",
                "-encoding",
                "UTF-8",
                "Main.java",
            ],
            [tools["java"], *quick, "-Xmx512m", "-Dstdout.encoding=UTF-8", "-cp", ".", "Main"],
        )
    return [tools["g++"], "-std=c++20", "-O0", "-w", "-o", "main", "main.cpp"], ["./main"]


def _run(command: Sequence[str], folder: str, seconds: float, memory: int) -> _Ended:
    # The JVM and the compilers use several threads, so processor time may exceed wall time.
    cpu = math.ceil(seconds) * 2 + 1
    limits = [str(cpu), str(memory), str(_FILE_BYTES)]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"}
    with open(Path(folder, "stdout"), "w+b") as stdout, open(Path(folder, "stderr"), "w+b") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LIMITER, *limits, *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
        return _Ended(code, _head(stdout), _head(stderr))


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the process and everything that it started, also when it exited before its children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # all gone; macOS: EPERM for a group of zombies
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _head(file: Any) -> str:
    file.seek(0)
    return file.read(_READ_BYTES).decode("utf-8", errors="replace")


def _shown(text: str) -> str:
    """The end of a compiler's or interpreter's message in one line; Python and Java name the error last or first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "rror" in line or "Exception" in line]
    return (errors or lines or [""])[-1 if errors and "Traceback" in text else 0][:_SHOWN_CHARACTERS]
