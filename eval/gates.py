"""``python -m eval.gates RUN ...``: other gates in the recipe of finished runs, and what they change in held-out loss.

Each gate takes the place of the softmax over the chosen experts. The mixture of each run is trained anew with it, from
the run's base, data and seed; its losses go to ``losses/gate-NAME-SPLIT.jsonl`` of the run, which a later call reads.
None of these gates is in the product; docs/results/options.md has what they gained.
"""

# T tokens, E experts, K top-k

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from checkpoints.cli import ArgumentParser, run
from checkpoints.model_io import load_model
from checkpoints.progress import make_console, say
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.models import make_mixture
from checkpoints.runs.preflight import run_data
from eval.bootstrap import Measured, Sample, bootstrap
from eval.compare import RESAMPLES, measure
from eval.cost import model_cost
from eval.evaluate import save_losses
from eval.reporting.record import RunRecord
from moe.config import ModelConfig
from moe.data.packing import Batch, MixedBatches, encode_pairs
from moe.data.sources import sample_all
from moe.errors import UserError
from moe.files import read_json_lines
from moe.losses import expert_counts
from moe.model import ModelOutput, Transformer
from moe.router import select_top_k
from moe.training.config import TINY, RunConfig
from moe.training.held_out_loss import held_out_loss
from moe.training.router_start import fit_router
from moe.training.stages import make_stage
from moe.training.trainer import Trainer

BIAS_RATE = 1e-3  # per step, as in DeepSeek-V3
UNSURE = 0.5  # nats of entropy above which a token visits one expert more
Choose = Callable[[Tensor, int], tuple[Tensor, Tensor]]  # router logits [T, E] and K -> gates and ids [T, K]


def sigmoid(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sigmoids of the chosen logits, normalized to sum to 1 (DeepSeek-V3)."""
    scores, ids = logits.float().sigmoid().topk(k, -1)
    return scores / scores.sum(-1, keepdim=True), ids


def noisy(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """In training the logits with normal noise of deviation 1/E (Riquelme et al., 2021)."""
    noise = torch.randn_like(logits) / logits.shape[-1] if torch.is_grad_enabled() else 0.0
    return select_top_k(logits + noise, k)


def expert_choice(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """In training each expert takes its best ``T K / E`` tokens (Zhou et al., 2022); whom none takes goes to its best.

    Which tokens an expert takes depends on the batch, so inference is plain top-k.
    """
    if not torch.is_grad_enabled():
        return select_top_k(logits, k)
    shares = logits.float().softmax(-1)  # [T, E]
    experts = shares.shape[1]
    taken = torch.zeros_like(shares).scatter(0, shares.topk(math.ceil(len(shares) * k / experts), 0).indices, 1.0)
    best = torch.zeros_like(shares).scatter(1, shares.argmax(-1, keepdim=True), 1.0)
    shares = shares * torch.where(taken.any(-1, keepdim=True), taken, best)
    return shares / shares.sum(-1, keepdim=True), torch.arange(experts).expand(len(shares), experts)


def entropy(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """One expert more for a token whose router is unsure: the entropy over the experts is above :data:`UNSURE`."""
    if k == logits.shape[1]:
        return select_top_k(logits, k)
    gates, ids = select_top_k(logits, k + 1)
    shares = logits.float().softmax(-1)
    unsure = torch.special.entr(shares).sum(-1, keepdim=True) > UNSURE
    fewer = torch.cat((select_top_k(logits, k)[0], torch.zeros_like(gates[:, :1])), -1)
    return torch.where(unsure, gates, fewer), ids


class Biased:
    """Load balancing without a loss (Wang et al., 2024): a bias that decides, and does not weigh.

    After each batch it rises for experts with less than an equal share and falls for the others. One router alone.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None

    def __call__(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        shares = logits.float().softmax(-1)
        bias = torch.zeros_like(shares[0]) if self.bias is None else self.bias  # [E]
        ids = (shares + bias).topk(k, -1).indices
        if torch.is_grad_enabled():
            counts = expert_counts(ids, len(bias))
            self.bias = bias + BIAS_RATE * (counts.mean() - counts).sign()
        gates = shares.gather(1, ids)
        return gates / gates.sum(-1, keepdim=True), ids


@dataclass(frozen=True)
class Gate:
    """What makes the function that chooses, and what it changes in the run's settings; ``trains``: not in use alone."""

    make: Callable[[], Choose]
    settings: Mapping[str, Any] = field(default_factory=dict)
    trains: bool = True


UNBALANCED = {"balance_loss_weight": 0.0}
GATES = {
    "bias": Gate(Biased, {**UNBALANCED, "router_layers": "first"}),
    "expert-choice": Gate(lambda: expert_choice, UNBALANCED),
    "noisy": Gate(lambda: noisy),
    "top-2": Gate(lambda: select_top_k, {"num_experts_per_tok": 2}),
    "sigmoid-top-2": Gate(lambda: sigmoid, {"num_experts_per_tok": 2}),  # of one expert the gate is 1 either way
    "sequence": Gate(lambda: select_top_k, {"router_context": "mean"}),
    "each-layer": Gate(lambda: select_top_k, {"router_layers": "each"}),
    "entropy": Gate(lambda: entropy, trains=False),
}


def trained(path: Path, config: RunConfig, gate: Gate, choose: Choose) -> Transformer:
    """The run's mixture, trained anew with a gate; for one that changes inference alone, as the run left it."""
    if not gate.trains:
        return load_model(path / "model").model
    torch.manual_seed(config.seed)
    base = load_model(path / "base" if config.base == TINY else config.base)
    base.model.requires_grad_(False)
    assert base.tokenizer is not None, "a run's base has one"
    template, data = base.template, run_data(config).train
    examples = encode_pairs(
        data, base.tokenizer, template, config.max_tokens, config.unnamed_share, config.seed
    ).examples
    batches = MixedBatches(examples, config.tokens_per_batch, config.seed)
    model = make_mixture(base.model, config)
    fit_router(model, batches, config.accumulate * (config.branch_steps + config.mix_steps), config)
    before: Trainer | None = None
    with mock.patch("moe.experts.select_top_k", choose):
        for name in ("branch", "mix"):
            trainer = Trainer(model, make_stage(name, config), batches, config.languages, config)
            if before is not None:
                trainer.continue_from(before.state())
            for _ in trainer.run():
                pass
            before = trainer
    return model.requires_grad_(False)


def measure_gate(path: Path, name: str, split: str) -> tuple[float, float]:
    """Writes the losses of one gate in one run; returns experts that a token visited, and operations per token."""
    config = replace(RunDirectory.resume(path).config, **GATES[name].settings)
    choose = GATES[name].make()
    model = trained(path, config, GATES[name], choose)
    loaded = load_model(path / "model")
    assert loaded.tokenizer is not None, "a run's model has one"
    chosen = sample_all(run_data(config).held_out[split], config.loss_pairs, config.seed)
    encoded = encode_pairs(chosen, loaded.tokenizer, loaded.template, model.config.max_seq_len)
    visits: list[float] = []

    def count(batch: Batch, output: ModelOutput) -> None:
        visits.extend((output.routing[0].gates > 0).sum(-1)[batch.positions].tolist())

    with mock.patch("moe.experts.select_top_k", choose):
        losses = held_out_loss(model, encoded.examples, config.tokens_per_batch, count)
    save_losses(chosen, encoded, losses, losses_path(path, name, split))
    mean = sum(visits) / len(visits)
    return mean, flops(model.config, mean)


def flops(config: ModelConfig, visits: float) -> float:
    """Operations of a forward pass per token that visits so many experts on average."""
    few, more = (
        model_cost(replace(config, num_experts_per_tok=k)).flops_per_token
        for k in (math.floor(visits), math.ceil(visits))
    )
    return few + (more - few) * (visits - math.floor(visits))


def losses_path(path: Path, name: str, split: str) -> Path:
    """Where the losses of a gate lie in a run."""
    return path / "losses" / f"gate-{name}-{split}.jsonl"


def measured(path: Path, name: str, split: str) -> Measured:
    """The losses of a gate by language, as :func:`eval.compare.measure` gives those of the run's own."""
    rows = [row for _, row in read_json_lines(losses_path(path, name, split), "a loss")]
    found = {}
    for language in dict.fromkeys(row["language"] for row in rows):
        own = [row for row in rows if row["language"] == language]
        numbers = np.array([[row["nats"], row["tokens"]] for row in own])
        found[language] = Sample(tuple((row["id"], 1) for row in own), numbers)
    return found


def main(arguments: argparse.Namespace) -> int:
    """Trains what is missing and prints a row for each gate."""
    console, split = make_console(), arguments.split
    runs = [RunRecord(path) for path in arguments.runs]
    for record in runs:
        if split not in record.splits or "mixture" not in record.models:
            raise UserError(f"{record.path} has no mixture that is scored on {split!r}; give finished runs of train.py")
        if any(record.config.get(name) for name in ("new_language", "preferences", "learn_from_tests")):
            raise UserError(f"{record.path} trained another run's mixture further; give a run that made its own")
    for name in arguments.gates:
        for record in runs:
            if not losses_path(record.path, name, split).exists():
                visits, operations = measure_gate(record.path, name, split)
                say(console, f"{record.name}, {name}: {visits:.2f} experts, {operations / 1e6:.2f} MFLOP per token")
        pairs = [(measured(r.path, name, split), measure(r, "mixture", split)["loss"]) for r in runs]
        found = bootstrap("loss", pairs, runs[0].languages, RESAMPLES, seed=0)["mean"]
        star = "*" if found.low > 0 or found.high < 0 else ""
        say(console, f"{name}: loss {found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]{star}")
    return 0


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m eval.gates", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="finished runs that differ in their seed")
    parser.add_argument("--gates", nargs="+", choices=GATES, default=list(GATES), help="which (default: all)")
    parser.add_argument("--split", default="test", help="the held-out pairs (default: test)")
    return parser


if __name__ == "__main__":
    raise SystemExit(run(build_parser(), main))
