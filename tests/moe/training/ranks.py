"""Trains tiny models by 1 to 6 gloo processes and prints what came out as JSON: a program for test_distributed.

The processes are forked, so torch is imported once. As under ``torchrun``, the store belongs to their parent.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch._dynamo  # each process would import it at its first step
import torch.distributed as dist

from checkpoints.model_io import load_model, save_model
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.staged_run import StagedRun
from moe.config import ModelConfig
from moe.data.packing import Example, MixedBatches
from moe.errors import UserError
from moe.inference.generation import generate_many
from moe.model import Transformer
from moe.training import distributed, sharding
from moe.training.config import RunConfig
from moe.training.interrupt import Interrupted
from moe.training.samples import Sample, Samples

LANGUAGES = ("python", "cpp")
SHAPE = ModelConfig(vocab_size=97, dim=16, n_layers=2, n_heads=2, n_kv_heads=1, hidden_dim=24, max_seq_len=64)
SHAPES = {
    "delta": replace(
        SHAPE, num_experts=2, expert_form="delta", shared_rank=2, expert_rank=2, attention_experts=("q", "o")
    ),
    "full": replace(SHAPE, num_experts=2, tie_embeddings=True),
    "grown": replace(SHAPE, num_experts=2, hidden_dim=20),  # of three shards two hold an expert each
    "four": replace(SHAPE, num_experts=4),
    "uneven": replace(SHAPE, num_experts=4, hidden_dim=20),  # of three shards of two experts the last holds none
}
EVERY = bool(os.environ.get("EVERY_RANKS"))  # also 3 and 4 of each form
RUNS: dict[str, tuple[int, ...]] = {
    "delta": (1, 2),
    "delta sharded": (2,),
    "full": (1,),
    "full sharded": (2,),
    "full dealt": (2,),
    "grown": (1,),
    "grown dealt": (2,),
    "uneven": (1,),
    "uneven dealt": (6,),
}
if EVERY:
    RUNS |= {"delta": (1, 2, 4), "full": (1, 2, 4), "full sharded": (2, 4), "full dealt": (2, 4)}
    RUNS |= {"grown sharded": (3,), "grown dealt": (2, 4), "four": (1,), "four dealt": (2, 4)}
# Forms on 2, 4 and 1 processes.
RESUMED = {"full": ("full sharded", "full dealt", "full")}
if EVERY:
    RESUMED |= {"delta": ("delta",) * 3, "four": ("four dealt", "four dealt", "four")}
CONFIG = RunConfig(
    languages=LANGUAGES, tokens_per_batch=60, max_tokens=30, branch_steps=1, mix_steps=4, branch_lr=1e-2, mix_lr=2e-2,
    accumulate=2, mix_trains_experts=True, language_loss_weight=0.1, validation_steps=2,
)  # fmt: skip


def examples(language: int, count: int = 24) -> list[Example]:
    """Texts of 8 to 27 tokens: a batch of 60 holds from 2 to 6, so some of four ranks get none."""
    step = 1 if language == 0 else -1
    return [
        Example((90 + language, *[(40 + i + step * j) % 80 for j in range(7 + 5 * i % 21)]), 1 + i % 2, language)
        for i in range(count)
    ]


def train(form: str, folder: Path, stop: int = 0, blow: tuple[int, int, int] | None = None) -> list:
    """Trains branch and mix in ``folder``; after step ``stop`` of mix the last rank gets SIGTERM.

    ``form`` may end in " sharded" or, with experts on ranks of their own, " dealt". ``blow`` sends a signal to a rank
    after a step: (signal, rank, step).
    """
    form, *sharded = form.split()
    config = replace(CONFIG, expert_form="delta" if form == "delta" else "full", sample_steps=1)
    if form == "grown":
        config = replace(config, new_language=LANGUAGES[-1])
    items = {name: examples(i) for i, name in enumerate(LANGUAGES)}
    batches = MixedBatches(items, config.tokens_per_batch, seed=0)
    model = Transformer(SHAPES[form]).reset(0, 0.2)
    if form == "uneven":
        model.double()  # six float32 sums of a gradient near zero differ so much that AdamW's first steps do
    if sharded and distributed.world() > 1:
        config = replace(config, activation_checkpointing=form == "full")
        model = sharding.shard(model, torch.device("cpu"), sharded == ["dealt"])
    if blow:
        stop = blow[2]
    reports = []

    def show(report) -> None:
        reports.append([report.stage, report.step, report.loss, report.balance, report.z, report.gradient_norm,
                        report.tokens, *report.language_losses, *(report.validation or ())])  # fmt: skip
        reports[-1] += [sample.text for sample in report.samples]
        number, rank = blow[:2] if blow else (signal.SIGTERM, distributed.world() - 1)
        if stop and report.stage == "mix" and report.step == stop and distributed.rank() == rank:
            os.kill(os.getpid(), number)

    (started,) = distributed.agree(folder.exists())  # before rank 0 makes it
    directory = RunDirectory.resume(folder) if started else RunDirectory.create(folder, config, [])
    with directory.held():
        stages = StagedRun(directory, config, lambda *_: nullcontext(show), lambda: None)
        sent = stages.train(model, "branch", batches)
        stages.samples = cast(Samples, Greedy()) if distributed.is_main() else None
        stages.train(model, "mix", batches, {name: x[:4] for name, x in items.items()})
    sharding.reshard(model)
    weights = torch.cat([sharding.whole(parameter).detach().flatten() for parameter in model.parameters()])
    written = folder.parent / f"model-{len(list(folder.parent.iterdir()))}"
    sharding.on_main(lambda: save_model(model, None, written))
    if distributed.is_main():
        stored = load_model(written, weights.dtype).model.parameters()
        assert torch.equal(weights, torch.cat([parameter.detach().flatten() for parameter in stored]))
    found = re.findall(r"([a-z -]+) ([\d,]+)(?:[,;] |$)", sent)
    traffic = {what.strip(): int(size.replace(",", "")) for what, size in found}
    return [*reports, ["weights", *weights.tolist()], traffic]


class Greedy:
    """Writes an answer on rank 0 alone."""

    def write(self, model: Transformer) -> tuple[Sample, ...]:
        with torch.no_grad():
            (answer,) = generate_many(model, [[90, 41, 42]], max_new_tokens=3)
        model.train()
        return (Sample("python", "", str(answer.tokens)),)


def one_rank(rank: int, ranks: int, port: int, output: Path, arguments: tuple) -> None:
    torch.set_num_threads(1)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_PORT": str(port)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    result: list | str
    try:
        with distributed.process_group():
            try:
                result = train(*arguments)
            except Interrupted as error:
                result = f"signal {error.number}"
    except UserError as error:
        result = f"{type(error).__name__}: {error}" if distributed.speaks_first() else "silent"
    (output / f"{rank}.json").write_text(json.dumps(result))
    if not isinstance(result, list):
        os._exit(3)


def run(ranks: int, *arguments) -> list:
    """What each rank returned or failed with; None from one that was killed."""
    arguments[1].parent.mkdir(parents=True, exist_ok=True)
    output = arguments[1].parent / f"out-{len(list(arguments[1].parent.iterdir()))}"
    output.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_rank, args=(r, ranks, port, output, arguments)) for r in range(ranks)]
    for process in processes:
        process.start()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False) if ranks > 1 else None
    for process in processes:
        process.join(600)
        process.kill()
    del store
    files = [output / f"{rank}.json" for rank in range(ranks)]
    return [json.loads(file.read_text()) if file.exists() else None for file in files]


def main(folder: Path) -> None:
    found: dict[str, list] = {}
    for form, several in RUNS.items():
        for ranks in several:
            found[f"{form} {ranks}"] = run(ranks, form, folder / f"{form}{ranks}" / "run")
    for form, (two, four, one) in RESUMED.items():
        place = folder / f"{form}-resumed" / "run"
        found[f"{form} resumed"] = [run(2, two, place, 1), run(4, four, place, 3), run(1, one, place)]
    for rank, form in enumerate(("delta", "full dealt")):
        place = folder / f"killed{rank}" / "run"
        found[f"killed {rank}"] = [run(3, form, place, 0, (signal.SIGKILL, rank, 2)), run(1, form, place)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
