"""``python -m tests.long_run [--steps 20000]``: a long stage of a toy mixture, and the memory that stays resident.

It is trained as train.py trains: states and metrics are written on the way, and held-out loss is measured.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console

from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.staged_run import StagedRun
from eval.random_models import random_model
from eval.reporting.display import TrainingMonitor
from moe.config import ModelConfig
from moe.data.packing import Example, MixedBatches
from moe.hardware import used_memory
from moe.training.config import RunConfig
from moe.training.progress import StepReport

LANGUAGES = ("python", "cpp")
SHAPE = ModelConfig(
    vocab_size=64, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, hidden_dim=32, max_seq_len=64, num_experts=2,
    num_experts_per_tok=1, expert_form="delta", shared_rank=2, expert_rank=2, expert_languages=LANGUAGES,
)  # fmt: skip


def toy_examples(count: int, seed: int) -> dict[str, list[Example]]:
    """Examples of 4 to 32 tokens."""
    draw = random.Random(seed)

    def example(language: int) -> Example:
        return Example(tuple(draw.choices(range(64), k=draw.randint(4, 32))), 2, language)

    return {name: [example(i) for _ in range(count)] for i, name in enumerate(LANGUAGES)}


def memory_over_steps(steps: int, interval: int, place: Path) -> list[tuple[int, float]]:
    """Resident MiB after every ``interval`` steps; prints each."""
    found: list[tuple[int, float]] = []
    config = RunConfig(
        languages=LANGUAGES, tokens_per_batch=64, max_tokens=32, mix_steps=steps, branch_steps=0, num_experts_per_tok=1,
        validation_steps=max(1, interval // 2), save_minutes=0.25,
    )  # fmt: skip
    directory = RunDirectory.create(place / "run", config, [])

    class Measured(TrainingMonitor):
        def note(self, report: StepReport) -> None:
            super().note(report)
            if report.step % interval == 0:
                found.append((report.step, used_memory(torch.device("cpu")) / 2**20))
                print(f"step {report.step:,}: {found[-1][1]:,.1f} MiB, loss {report.loss:.3f}", flush=True)

    with open(os.devnull, "w") as nothing:
        monitor = Measured(Console(file=nothing), directory.path, LANGUAGES)
        model = random_model(SHAPE, torch.device("cpu"), torch.float32)
        run = StagedRun(directory, config, monitor, lambda: None)
        run.train(model, "mix", MixedBatches(toy_examples(100, 0), 64, seed=0), toy_examples(4, 1))
        monitor.close()
    return found


def main() -> int:
    """Trains, prints memory, and says how much it grew behind the first tenth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = memory_over_steps(arguments.steps, max(1, arguments.steps // 20), Path(place))
    settled = [memory for step, memory in found if step >= arguments.steps / 10]
    print(f"from a tenth of the steps to the end: {settled[-1] - settled[0]:+.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
