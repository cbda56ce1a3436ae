"""``python -m eval.gpu_suite``: all GPU checks and measurements, the most valuable first, in under 8 minutes.

Every part is a process with its own time limit: one that hangs or breaks the GPU costs no other, and what it had
written stays. ``--quick`` takes the essence of what matters most in about 90 seconds; ``--smoke`` runs everything in
toy sizes on the CPU, to see that nothing is missing. Results go to one folder, those of quick and smoke runs to folders
inside it. Exit code 1 where a part failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tarfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import ArgumentParser, run
from checkpoints.storage.files import sha256_file
from eval.gpu_parts import OWN, run_own
from eval.gpu_results import write_summary
from eval.processes import Part, Running
from kernels.bench.timing import describe
from kernels.benchmark import cannot_write
from moe.errors import UserError
from moe.files import json_bytes, replace_file

# name -> seconds it may take, seconds of its quick form (0: has none); in the order of their value
LIMITS = {
    "correctness": (55, 32),
    "graphs": (40, 0),
    "benchmark": (80, 18),
    "training_step": (60, 35),
    "generation": (60, 25),
    "sm86_through_the_driver": (35, 0),
    "gpu_tests": (75, 0),
    "tiles": (30, 0),
    "smollm2": (40, 0),
}


def part_of(name: str, arguments: argparse.Namespace, output: Path, seconds: float) -> Part:
    """The process of a part."""
    python, flags = sys.executable, [f"--{mode}" for mode in ("smoke", "quick") if getattr(arguments, mode)]
    if name == "training_step":
        return Part(name, seconds, [python, "-m", "eval.training_step", str(output / f"{name}.json"), *flags])
    if name == "generation":
        return Part(name, seconds, [python, "-m", "eval.generation_speed", str(output / f"{name}.json"), *flags])
    if name == "gpu_tests":
        files = ("tests/kernels", "tests/moe/test_model.py", "tests/moe/test_graphs.py")
        parallel = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []  # they wait for compilers
        tests = ["-q", "-m", "gpu", *parallel, "-p", "no:cacheprovider", *files]
        return Part(name, seconds, [python, "-m", "pytest", *tests])
    given = [f"--{key}={getattr(arguments, key)}" for key in ("base", "data") if getattr(arguments, key)]
    own = ["--part", name, "--output", str(output), "--seconds", str(seconds - 8)]
    return Part(name, seconds, [python, "-m", "eval.gpu_suite", *own, *flags, *given])


def chosen(arguments: argparse.Namespace, done: set[str]) -> list[tuple[str, float]]:
    """Names and limits of the parts to run; one chosen by ``--only`` may take all the time."""
    if arguments.only:
        return [(name, 60 * arguments.minutes) for name in arguments.only]
    found: list[tuple[str, float]] = []
    for name, (seconds, quick) in LIMITS.items():
        limit = quick if arguments.quick else seconds
        needs_pairs = name == "smollm2" and not arguments.smoke and not (arguments.base and arguments.data)
        if limit and name not in done and not needs_pairs:
            found.append((name, 600 if arguments.smoke else limit))
    return found


def run_parts(parts: Sequence[Part], output: Path, deadline: float, summary: dict[str, Any], archive: Path) -> bool:
    """Runs the parts one after another and notes each at once; true where none failed."""
    for part in parts:
        left = deadline - time.monotonic()
        if left < 15:
            entry: dict[str, Any] = {"status": "left out: no time"}
        else:
            entry = Running(part, output).finish(min(part.seconds, left))
        summary["parts"][part.name] = entry
        replace_file(output / "summary.json", json_bytes(summary))
        print(
            f"{part.name}: {entry['status']}" + (f" in {entry['seconds']} s" if "seconds" in entry else ""), flush=True
        )
        for line in entry.get("last_lines", []):
            print(f"    {line}", flush=True)
        pack_results(output, archive)
    return all(summary["parts"][part.name]["status"].startswith(("ok", "left out")) for part in parts)


def pack_results(output: Path, archive: Path) -> None:
    """All results in one file, which is easier to take from a remote machine; without the weights of training runs."""
    beside = archive.with_name(archive.name + ".new")
    with tarfile.open(beside, "w:gz") as packed:
        for path in sorted(output.rglob("*")):
            if (
                path.is_file()
                and path.suffix not in (".safetensors", ".gguf", ".whl")
                and path not in (archive, beside)
            ):
                packed.add(path, path.relative_to(output))
    beside.replace(archive)


def join_parts(parts: Sequence[Path], output: Path) -> Path:
    """Joins the pieces that ``split`` made of a file, and verifies them by the ``FILE.sha256`` beside the first one.

    Raises :class:`UserError` where the checksum is missing or another.
    """
    for part in parts:
        if not part.is_file():
            raise UserError(f"{part}: no such file; --base-parts takes the pieces of one file, in order")
    whole = parts[0].with_suffix("")
    note = whole.with_name(whole.name + ".sha256")
    if not note.is_file():
        raise UserError(
            f"{note} is missing: write it with `sha256sum {whole.name} > {note.name}` where the file is whole"
        )
    words = note.read_text(encoding="utf-8").split()
    joined = output / whole.name
    if not joined.is_file():
        content = b"".join(part.read_bytes() for part in parts)
        replace_file(joined, content)
    found = sha256_file(joined)
    if not words or found != words[0]:
        joined.unlink()
        raise UserError(f"{joined.name}: the {len(parts)} pieces have sha256 {found[:12]}…, {note.name} says otherwise")
    return joined


def make_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m eval.gpu_suite", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder for all results")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="all results in one file (default: in the folder)")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything")
    parser.add_argument("--quick", action="store_true", help="the essence of what matters most, in about 90 seconds")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU: whether everything runs at all")
    parser.add_argument("--resume", action="store_true", help="leave out the parts that passed before")
    parser.add_argument(
        "--only", nargs="+", choices=list(LIMITS), metavar="PART", help="only these parts, with all the time"
    )
    parser.add_argument("--base", metavar="FILE", help="SmolLM2-135M's file, to train on the pairs of --data")
    parser.add_argument(
        "--base-parts", nargs="+", type=Path, metavar="PIECE", help="the pieces of --base, verified by FILE.sha256"
    )
    parser.add_argument("--data", metavar="DIR", help="folder of pairs, to train SmolLM2 on")
    parser.add_argument("--part", choices=list(OWN), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=120.0, help=argparse.SUPPRESS)
    return parser


def suite(arguments: argparse.Namespace) -> int:
    """Runs all parts, or one; the exit code."""
    if not arguments.smoke and not torch.cuda.is_available():
        raise UserError("no GPU that torch can use was found; --smoke tries everything on the CPU")
    device = torch.device("cpu") if arguments.smoke else torch.device("cuda", 0)
    if arguments.part:
        return run_own(arguments.part, arguments, device)
    output = arguments.output.resolve()
    modes = [mode for mode in ("smoke", "quick") if getattr(arguments, mode)]
    output = output.joinpath(*modes)
    problem = cannot_write(output, folder=True)
    if problem:
        raise UserError(f"{problem}; name another one with --output")
    archive = (arguments.archive or output / "results.tar.gz").resolve()
    problem = cannot_write(archive, folder=False)
    if problem:
        raise UserError(f"{problem}; name another one with --archive")
    if arguments.base_parts:
        arguments.base = str(join_parts(arguments.base_parts, output))
    for name in ("base", "data"):
        value = getattr(arguments, name)
        if value and not Path(value).exists() and value != "smollm2":
            raise UserError(f"--{name}: {value} does not exist")
    if "smollm2" in (arguments.only or ()) and not (arguments.smoke or (arguments.base and arguments.data)):
        raise UserError("smollm2 trains on pairs: add --base FILE (or --base-parts) and --data DIR")
    deadline = time.monotonic() + 60 * (90 if arguments.smoke else arguments.minutes)
    summary: dict[str, Any] = {**describe(device), "parts": {}}
    if (arguments.resume or arguments.only) and (output / "summary.json").is_file():
        summary["parts"] = json.loads((output / "summary.json").read_text(encoding="utf-8"))["parts"]
    done = {name for name, entry in summary["parts"].items() if arguments.resume and entry["status"] == "ok"}
    parts = [part_of(name, arguments, output, seconds) for name, seconds in chosen(arguments, done)]
    good = run_parts(parts, output, deadline, summary, archive)
    print(write_summary(output))
    pack_results(output, archive)
    print(f"results are in {output}, all together in {archive}")
    return 0 if good else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs the suite; the exit code."""
    return run(make_parser(), suite, argv)


if __name__ == "__main__":
    raise SystemExit(main())
