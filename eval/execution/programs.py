"""Runs generated code against test cases and counts what passes.

Generated code is untrusted. It runs in a process group of its own, in an empty temporary folder, without a shell, with
an almost empty environment and with limits on wall time, processor time, memory and file size; the whole group is
killed when the time is over. **This is no security sandbox**: the code can still read files, open network connections
and use whatever the user who started it may use. Run code from models that you do not trust in a container or a virtual
machine.

pass@k is the unbiased estimator of Chen et al. 2021, "Evaluating Large Language Models Trained on Code".
"""

from __future__ import annotations

import argparse
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
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from moe.data.pairs import read_pairs
from moe.data.synthetic import TASK_LANGUAGES, render_program
from moe.errors import UserError, did_you_mean
from moe.files import write_json_lines

Status = Literal["passed", "failed", "compile_error", "runtime_error", "timeout", "unavailable"]
STATUSES: tuple[Status, ...] = ("passed", "failed", "compile_error", "runtime_error", "timeout", "unavailable")

_MEBIBYTE = 1 << 20
_MEMORY = {"python": 1024 * _MEBIBYTE, "cpp": 1024 * _MEBIBYTE}  # address space; the other two reserve far more
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
    """What became of one piece of code; ``detail`` says which case failed how, or what the compiler said."""

    status: Status
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"


@dataclass(frozen=True)
class ProgramOutput:
    """``status`` is ``passed`` when the program ended by itself with exit code 0, whatever it printed."""

    status: Status
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True)
class _Ended:
    """How one process ended; ``code`` is None when its time was over."""

    code: int | None
    stdout: str
    stderr: str


def missing_tools(language: str) -> tuple[str, ...]:
    """The programs that running ``language`` needs and that are not on the path."""
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
    case raised or the program broke off. Raises ``UserError`` for an unknown language or unusable tests.
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
        return list(pool.map(lambda job: run_tests(*job, timeout_s=timeout_s), jobs))


def pass_rate(results: Sequence[ExecutionResult]) -> float:
    """The share of results that passed, of those whose language could be run; NaN when there are none."""
    counted = [result for result in results if result.status != "unavailable"]
    return sum(result.passed for result in counted) / len(counted) if counted else math.nan


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Probability that at least one of ``k`` of the samples is correct: 1 − C(n − c, k) / C(n, k).

    Raises ``ValueError`` unless 0 ≤ correct ≤ samples and 1 ≤ k ≤ samples.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(f"need 0 <= correct <= samples and 1 <= k <= samples, got {correct=}, {samples=}, {k=}")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def mean_pass_at_k(groups: Sequence[tuple[int, int]], k: int) -> float:
    """The mean of :func:`pass_at_k` over tasks given as (samples, correct); tasks with fewer than k samples raise."""
    return math.fsum(pass_at_k(samples, correct, k) for samples, correct in groups) / len(groups)


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
    """Ends the process and everything that it started, also when it ended before its children."""
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


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Adds the subcommand ``execution`` to ``python -m eval``."""
    parser = subparsers.add_parser(
        "execution",
        help="run code against its test cases",
        description="Runs the code of each pair against the pair's test cases and prints the pass rate per language. "
        "This is no security sandbox: run code from models that you do not trust in a container.",
    )
    parser.add_argument("--pairs", type=Path, required=True, help="pairs with tests, *.jsonl or *.jsonl.gz")
    parser.add_argument("--limit", type=int, default=None, help="how many pairs to run (default: all)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds per program, compiling not counted")
    parser.add_argument("--workers", type=int, default=None, help="programs at a time (default: one per core)")
    parser.add_argument(
        "--k", type=int, nargs="+", default=[1], help="pass@k for these k; rows with one id are samples"
    )
    parser.add_argument("--output", type=Path, default=None, help="write each result to this JSON Lines file")
    return parser


def main(args: argparse.Namespace) -> int:
    """Runs the subcommand; returns the exit code."""
    for flag, value in (("--timeout", args.timeout), ("--workers", args.workers or 1), ("--k", min(args.k))):
        if value <= 0:
            raise UserError(f"{flag} is {value:g}; it must be greater than 0")
    if args.output and args.output.exists():
        raise UserError(f"{args.output}: is there already; name another file for --output")
    pairs = read_pairs(args.pairs, args.limit)
    tested = [pair for pair in pairs if pair.tests]
    if not tested:
        raise UserError(f"{args.pairs}: none of its {len(pairs)} pairs has tests; nothing to run")
    results = run_many([(pair.language, pair.code, pair.tests or "") for pair in tested], args.timeout, args.workers)
    if len(tested) < len(pairs):
        print(f"{len(pairs) - len(tested)} of {len(pairs)} pairs have no tests and were not run")
    columns = [f"pass@{k}" for k in args.k]
    print("  ".join([f"{'language':<12}", *(f"{name:>13}" for name in (*STATUSES, *columns))]))
    for language in dict.fromkeys(pair.language for pair in tested):
        own = [(i, result) for i, (pair, result) in enumerate(zip(tested, results)) if pair.language == language]
        counts = Counter(result.status for _, result in own)
        samples: dict[str, list[bool]] = defaultdict(list)
        for i, result in own:
            if result.status != "unavailable":
                samples[tested[i].id or f"row {i}"].append(result.passed)
        groups = [(len(passed), sum(passed)) for passed in samples.values()]
        least = min((size for size, _ in groups), default=0)
        rates = [f"{mean_pass_at_k(groups, k):.4f}" if k <= least else "too few" for k in args.k]
        cells = [*(str(counts[status]) for status in STATUSES), *rates]
        print("  ".join([f"{language:<12}", *(f"{cell:>13}" for cell in cells)]))
    if args.output:
        rows = ({"id": p.id, "language": p.language, **asdict(result)} for p, result in zip(tested, results))
        write_json_lines(args.output, rows)
    return 0
