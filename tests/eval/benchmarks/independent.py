"""Runs a benchmark's programs in the plainest way: one file, the language's own command, its exit code.

It shares nothing with ``eval.execution``, whose verdicts it checks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from eval.benchmarks.problems import Problem


def passes(problem: Problem, code: str, seconds: float = 10.0, modules: str = "", flags: tuple[str, ...] = ()) -> bool:
    """Whether ``code`` (with the prompt that it completes) passes the problem's tests.

    modules: a ``node_modules`` folder. flags: for the linker.
    """
    program = "\n".join((problem.setup, code, problem.tests))
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NODE_PATH": modules}

        def ends_well(command: list[str], limit: float = seconds) -> bool:
            try:
                done = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, timeout=limit, stdin=subprocess.DEVNULL
                )
            except subprocess.TimeoutExpired:
                return False
            # console.assert only prints when it fails
            return done.returncode == 0 and not (command[0] == "node" and b"Assertion failed" in done.stderr)

        name = {"python": "main.py", "java": "Main.java", "javascript": "main.js", "cpp": "main.cpp"}[problem.language]
        Path(folder, name).write_text(program, encoding="utf-8")
        match problem.language:
            case "python":
                return ends_well([sys.executable, name])
            case "javascript":
                return ends_well(["node", name])
            case "java":
                return ends_well(["javac", name], 120) and ends_well(["java", "-ea", "Main"])
        build = ["g++", "-std=c++20", "-O0", name, "-o", "main", *flags]
        return ends_well(build, 120) and ends_well(["./main"])
