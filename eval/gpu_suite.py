"""``python -m eval.gpu_suite``: all GPU checks and benchmarks in one go, inside 9 minutes.

Correctness of every layer against float64, no host synchronization, CUDA-graph capture, sm_86's PTX through the
driver's JIT, the compile check, the benchmark with all baselines, targets and the A10G estimate, a Mistral-7B-shaped
training step under a hard limit of 22 GiB, training on your pairs (``--base``, ``--data``), a tuned table, the GPU
tests. Every part is a process with its own time limit: one that hangs or breaks the GPU costs no other, and what it had
written stays. Results go to one folder. Exit code 1 where a part failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from checkpoints.cli import ArgumentParser, run
from kernels.bench import a10g_estimate, gpu_checks
from kernels.benchmark import cannot_write
from moe.errors import UserError
from moe.files import json_bytes, replace_file

ROOT = Path(__file__).resolve().parent.parent


class Part(NamedTuple):
    """``seconds`` is the part's limit; ``command`` what runs it."""

    name: str
    seconds: float
    command: list[str]


# ------------------------------------------------------------------------- parts that run inside this module


def write(path: Path, value: Any) -> None:
    """JSON, atomically: a part may be killed at any moment."""
    replace_file(path, json_bytes(value))


def benchmark(output: Path, deadline: float) -> Any:
    from kernels.bench import gpu as benchmark_gpu
    from kernels.benchmark import plot

    def keep(result: dict[str, Any]) -> None:
        write(output / "benchmark.json", result)
        lines = [*map(benchmark_gpu.line, result["rows"]), *(f"left out: {entry}" for entry in result["left_out"])]
        (output / "benchmark.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (output / "targets.md").write_text(a10g_estimate.text(result["rows"]) + "\n", encoding="utf-8")

    result = benchmark_gpu.run(deadline, on_row=keep)
    rows = result["rows"]
    result |= {"h200_targets": a10g_estimate.h200_targets(rows), "a10g": a10g_estimate.a10g(rows)}
    keep(result)
    plot(result, output / "benchmark.png")
    return result


def tuned_table(output: Path, deadline: float) -> Any:
    from kernels.bench.tune import tune
    from kernels.gpu.tile_tables import write_table

    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    table, log = tune(deadline)
    write_table(output / f"{arch}.table.json", arch, table)
    return {"measurements": log}


def sm86_through_the_driver(output: Path, deadline: float) -> Any:
    from kernels.bench.ptx_jit import check_sm86_kernels

    return check_sm86_kernels()


def _check(function: Callable[[], Any]) -> Callable[[Path, float], Any]:
    return lambda output, deadline: function()


OWN: dict[str, Callable[[Path, float], Any]] = {
    "correctness": _check(gpu_checks.correctness),
    "no_host_synchronization": _check(gpu_checks.no_host_synchronization),
    "cuda_graph": _check(gpu_checks.cuda_graph),
    "full_graph_compile": _check(gpu_checks.full_graph_compile),
    "sm86_through_the_driver": sm86_through_the_driver,
    "benchmark": benchmark,
    "tuned_table": tuned_table,
}


def run_own(name: str, output: Path, seconds: float) -> int:
    """One of `OWN` in this process; its result goes to NAME.json."""
    try:
        result = OWN[name](output, time.monotonic() + seconds)
    except Exception:
        write(output / f"{name}.error.json", traceback.format_exc())  # beside what the part had written so far
        traceback.print_exc()
        return 1
    write(output / f"{name}.json", result)
    return 1 if gpu_checks.failed(result) else 0


# ------------------------------------------------------------------------------------------------ all parts


def plan(output: Path, base: str | None, data: str | None) -> list[Part]:
    """All parts, the most important first; those of other modules know nothing of this one."""
    python = sys.executable

    def own(name: str, seconds: float) -> Part:
        arguments = ["--part", name, "--output", str(output), "--seconds", str(seconds - 10)]
        return Part(name, seconds, [python, "-m", "eval.gpu_suite", *arguments])

    parts = [
        own("correctness", 90),
        own("no_host_synchronization", 40),
        own("cuda_graph", 40),
        own("sm86_through_the_driver", 50),
        own("benchmark", 140),
        Part("training_step_7b", 70, [python, "-m", "eval.training_step", str(output / "training_step_7b.json")]),
    ]
    if base and data:
        # one pass over 40,000 pairs is about 8 M tokens, 500 batches of 16,384
        sizes = "--tokens-per-batch 16384 --branch-steps 25 --mix-steps 475 --eval-pairs 50 --save-minutes 0.5".split()
        run = ["--runs", str(output), "--name", "smollm2", "--base", base, "--data", data]
        train = [python, "train.py", "--preset", "smollm2-135m", *run, *sizes, "--test-sets", "test"]
        parts.append(Part("smollm2_training", 150, train))
    tests = [python, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/kernels"]
    return [*parts, own("full_graph_compile", 50), own("tuned_table", 50), Part("gpu_tests", 90, tests)]


class Running:
    """A part's process, in its own process group so that a limit ends its children too; output goes to NAME.log."""

    def __init__(self, part: Part, output: Path):
        self.part, self.begin = part, time.monotonic()
        self.log = output / f"{part.name}.log"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(
                part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def finish(self, seconds: float) -> dict[str, Any]:
        """Waits at most ``seconds``, then kills the part."""
        try:
            code = self.process.wait(max(0.0, seconds))
            status = "ok" if code == 0 else f"failed (exit code {code})"
        except subprocess.TimeoutExpired:
            status = f"stopped at its limit of {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        entry = {"status": status, "seconds": round(time.monotonic() - self.begin, 1), "log": self.log.name}
        if status != "ok":
            entry["last_lines"] = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        return entry


def run_parts(parts: Sequence[Part], background: Part, output: Path, deadline: float, summary: dict[str, Any]) -> bool:
    """Runs ``parts`` one after another and ``background`` beside the first of them; true where none failed."""

    def note(name: str, entry: dict[str, Any]) -> None:
        summary["parts"][name] = entry
        write(output / "summary.json", summary)
        print(f"{name}: {entry['status']}" + (f" in {entry['seconds']} s" if "seconds" in entry else ""), flush=True)
        for line in entry.get("last_lines", []):
            print(f"    {line}", flush=True)

    beside: Running | None = Running(background, output)
    try:
        for part in parts:
            if beside is not None and part.name == "benchmark":  # nothing else may run while times are taken
                note(background.name, beside.finish(min(background.seconds, deadline - time.monotonic())))
                beside = None
            left = deadline - time.monotonic()
            if left < 15:
                note(part.name, {"status": "left out: no time"})
                continue
            note(part.name, Running(part, output).finish(min(part.seconds, left)))
    finally:
        if beside is not None:
            note(background.name, beside.finish(min(background.seconds, deadline - time.monotonic())))
    return all(entry["status"] in ("ok", "left out: no time") for entry in summary["parts"].values())


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m eval.gpu_suite", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder for all results")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for everything")
    parser.add_argument("--base", help="SmolLM2-135M's file, to train on the pairs of --data")
    parser.add_argument("--data", help="folder of pairs, to train SmolLM2 on")
    parser.add_argument("--part", choices=sorted(OWN), help="only this part, in this process")
    parser.add_argument("--seconds", type=float, default=120.0, help="time for --part")
    return parser


def suite(arguments: argparse.Namespace) -> int:
    """Runs all parts, or one; the exit code."""
    if not torch.cuda.is_available():
        raise UserError("no GPU that torch can use was found")
    output = arguments.output.resolve()
    problem = cannot_write(output, folder=True)
    if problem:
        raise UserError(f"{problem}; name another one with --output")
    if arguments.part:
        return run_own(arguments.part, output, arguments.seconds)
    deadline = time.monotonic() + 60 * arguments.minutes
    summary: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "arch": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "parts": {},
    }
    jobs = str(max(1, (os.cpu_count() or 2) // 2))
    check = Part("compile_check", 150, [sys.executable, "-m", "kernels.compile_check", "--jobs", jobs])
    base, data = (str(Path(p).resolve()) if p and Path(p).exists() else p for p in (arguments.base, arguments.data))
    good = run_parts(plan(output, base, data), check, output, deadline, summary)
    if (output / "targets.md").exists():
        print((output / "targets.md").read_text(encoding="utf-8"))
    print(f"results are in {output}")
    return 0 if good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the suite; the exit code."""
    return run(make_parser(), suite, argv)


if __name__ == "__main__":
    raise SystemExit(main())
