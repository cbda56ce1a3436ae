"""Benchmark of upcycling at full width: time, CPU time and peak memory, with ``cp`` and ``mergekit-moe`` as baselines.

    python -m checkpoints.benchmark WORKDIR [--layers 8] [--mergekit PYTHON]

Makes a random Mistral-7B-shaped checkpoint in bfloat16 (8 layers of full width: 2 billion parameters, 4 GB), upcycles
it to four full experts in a separate process, copies the result with ``cp``, and, where the Python of an environment
with mergekit is given, runs ``mergekit-moe`` on the same input. WORKDIR has to be on the disk to measure and needs
about 3.5 times the result's size (everything is removed at the end, unless ``--keep`` is given).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.cli import ArgumentParser, run
from checkpoints.formats.config_json import to_config_json
from checkpoints.formats.names import expected_tensors, to_huggingface
from checkpoints.storage.files import directory_bytes, format_bytes, require_free_space
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import Output, write_model_directory
from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.errors import UserError

LANGUAGES = ("python", "java", "javascript", "cpp")


@dataclass(frozen=True)
class Measured:
    """Cost of one process: wall-clock seconds, CPU seconds (user and system), peak resident bytes, bytes of output."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    output_bytes: int

    def row(self) -> str:
        """A line of the table."""
        speed = self.output_bytes / self.seconds / 1e6
        return (
            f"{self.name:<24} {self.seconds:8.1f} {self.cpu_seconds:8.1f} {self.peak_bytes / 1e6:9.0f} "
            f"{self.output_bytes / 1e9:8.2f} {speed:8.0f}"
        )


# A process starts with the peak memory of the one it was forked from, so the job's parent has to be a small one.
_CHILD = """
import json, os, sys
child = os.fork()
if child == 0:
    os.dup2(2, 1)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""
HEADER = f"{'job':<24} {'seconds':>8} {'cpu s':>8} {'peak MB':>9} {'GB out':>8} {'MB/s':>8}"


def mistral_shape(layers: int, divide: int = 1) -> ModelConfig:
    """Mistral-7B's sizes with fewer layers; ``divide`` makes everything narrower (for a quick try)."""
    sizes = {name: max(1, size // divide) for name, size in MISTRAL_7B._asdict().items()}
    head_dim = MISTRAL_7B.dim // MISTRAL_7B.n_heads
    return ModelConfig(**sizes | {"n_layers": layers, "head_dim": head_dim, "rope_theta": 1e6})


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> StoredTensor:
    """Random bf16 numbers smaller than 2, made from random bits (drawing normal numbers would take minutes)."""

    def read() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        bits = torch.empty(shape, dtype=torch.int16).random_(-(1 << 15), (1 << 15) - 1, generator=generator)
        return (bits & ~0x4000).view(torch.bfloat16)

    return StoredTensor(name, torch.bfloat16, shape, read)


def make_input(directory: Path, config: ModelConfig) -> None:
    """Writes the random checkpoint, in shards of 2 GiB."""
    tensors = [
        random_tensor(to_huggingface(name), shape, seed) for seed, (name, shape) in enumerate(expected_tensors(config))
    ]
    documents = {
        "config.json": to_config_json(config, "bfloat16", {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<0>"},
    }
    files = {"tokenizer.json": placeholder_tokenizer().encode()}
    write_model_directory(directory, Output(tensors, documents, files, max_shard_bytes=2 << 30))


def placeholder_tokenizer() -> str:
    """A tokenizer.json of 256 tokens, which mergekit-moe requires."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({f"<{index}>": index for index in range(256)}, unk_token="<0>")).to_str()


def measure(name: str, command: Sequence[str], output: Path, log: Path) -> Measured:
    """Runs a command, flushes the disk, and reads the system's resource counts.

    Raises:
        UserError: the command failed; the log has its output.
    """
    subprocess.run(["sync"], check=True)
    start = time.perf_counter()
    with open(log, "wb") as file:
        helper = [sys.executable, "-S", "-c", _CHILD, *command]
        report = subprocess.run(helper, stdout=subprocess.PIPE, stderr=file, check=True).stdout
    subprocess.run(["sync"], check=True)
    seconds = time.perf_counter() - start
    status, cpu_seconds, peak = json.loads(report)
    if status:
        raise UserError(f"{name} failed with exit code {status}; see {log}")
    return Measured(name, seconds, cpu_seconds, peak * 1024, directory_bytes(output))


def mergekit_config(source: Path) -> str:
    """The YAML of the same job for mergekit-moe: four copies and random gates."""
    experts = [{"source_model": str(source), "positive_prompts": [name]} for name in LANGUAGES]
    settings = {"base_model": str(source), "gate_mode": "random", "dtype": "bfloat16", "experts": experts}
    return json.dumps(settings, indent=2)  # JSON is YAML


def benchmark(workdir: Path, config: ModelConfig, mergekit: str | None) -> list[Measured]:
    """Runs all jobs one after another and returns the cost of each."""
    source, ours = workdir / "dense", workdir / "ours"
    if not source.exists():
        print("making the input ...", flush=True)
        make_input(source, config)
    print(f"input: {format_bytes(directory_bytes(source))}", flush=True)
    results = []

    def note(result: Measured) -> None:
        results.append(result)
        print(result.row(), flush=True)

    print(HEADER)
    command = [
        sys.executable,
        "-m",
        "checkpoints",
        "upcycle",
        str(source),
        str(ours),
        "--expert-form",
        "full",
        "--no-proof",
    ]
    note(measure("checkpoints upcycle", command, ours, workdir / "ours.log"))
    copied = workdir / "copied"
    note(measure("cp of the same bytes", ["cp", "-r", str(ours), str(copied)], copied, workdir / "cp.log"))
    shutil.rmtree(copied)
    note(
        measure(
            "checkpoints verify",
            [sys.executable, "-m", "checkpoints", "verify", str(ours)],
            ours,
            workdir / "verify.log",
        )
    )
    if mergekit is not None:
        (workdir / "mergekit.yml").write_text(mergekit_config(source))
        theirs = workdir / "theirs"
        command = [mergekit, "-m", "mergekit.scripts.moe", str(workdir / "mergekit.yml"), str(theirs)]
        command += ["--lazy-unpickle", "--no-copy-tokenizer", "--i-understand-this-is-not-useful-without-training"]
        note(measure("mergekit-moe", command, theirs, workdir / "mergekit.log"))
    return results


def summary(results: Sequence[Measured], config: ModelConfig) -> list[str]:
    """The results against their targets."""
    by_name = {result.name: result for result in results}
    ours, cp = by_name["checkpoints upcycle"], by_name["cp of the same bytes"]
    largest = max(2 * shape[0] * shape[-1] for _, shape in expected_tensors(config) if len(shape) == 2)
    lines = [
        f"throughput {cp.seconds / ours.seconds:.0%} of cp (target 80%)",
        f"peak memory {ours.peak_bytes / 1e6:.0f} MB; target largest tensor + 300 MB = {largest / 1e6 + 300:.0f} MB",
    ]
    if theirs := by_name.get("mergekit-moe"):
        lines.append(
            f"mergekit-moe took {theirs.seconds / ours.seconds:.1f} times the time, "
            f"{theirs.cpu_seconds / ours.cpu_seconds:.1f} times the CPU and "
            f"{theirs.peak_bytes / ours.peak_bytes:.1f} times the memory"
        )
    return lines


def build_parser() -> ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="python -m checkpoints.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("workdir", type=Path, help="a new directory on the disk to measure")
    parser.add_argument("--layers", type=int, default=8, help="layers of Mistral-7B's width; 8 make 2 B parameters")
    parser.add_argument("--divide", type=int, default=1, help="make everything this many times narrower (a quick try)")
    parser.add_argument("--mergekit", metavar="PYTHON", help="Python of an environment with mergekit, to compare with")
    parser.add_argument("--keep", action="store_true", help="leave inputs, outputs and logs in WORKDIR")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Runs the benchmark and removes what it wrote."""
    config = mistral_shape(arguments.layers, arguments.divide)
    dense = sum(2 * torch.Size(shape).numel() for _, shape in expected_tensors(config))
    require_free_space(arguments.workdir, 12 * dense)
    existed = arguments.workdir.exists()
    arguments.workdir.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    results = benchmark(arguments.workdir, config, arguments.mergekit)
    print("\n".join(summary(results, config)))
    print(f"{os.cpu_count()} cores, load {load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end")
    if not arguments.keep and not existed:
        shutil.rmtree(arguments.workdir)
    return 0


if __name__ == "__main__":
    sys.exit(run(build_parser(), main))
