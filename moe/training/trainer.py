"""The training loop that all stages share."""

# S tokens of a packed row, N scored positions, D model dim, E experts, K top-k, L layers with experts, G languages

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from moe.data.packing import Batch, MixedBatches
from moe.errors import UserError
from moe.losses import balance_loss, expert_counts, token_losses, z_loss
from moe.model import ModelOutput, Transformer
from moe.training.config import RunConfig
from moe.training.optimizer import (
    make_optimizer,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
    set_learning_rates,
)
from moe.training.stages import Stage, choose_trainable

CHOSEN_MEMORY = 0.9  # what one step leaves of the counts that balance is measured by


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step did.

    Attributes:
        stage, step, steps: where training is; steps count from 1.
        loss: mean cross-entropy in nats per learned token; ``language_losses`` the same per language (None: none seen).
        balance, z: mean over layers of the auxiliary losses, unweighted; 0 where no router learns.
        learning_rate: of this step's first parameter group; ``gradient_norm`` before clipping.
        tokens: tokens processed, prompts included; ``seconds`` they took.
        routing: [G, E] float32 share of each language's gate weight that went to each expert, all layers together, NaN
            for a language without tokens in this step; None without a router.
    """

    stage: str
    step: int
    steps: int
    loss: float
    language_losses: tuple[float | None, ...]
    balance: float
    z: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    routing: Tensor | None


@dataclass
class StageState:
    """What a stage needs to go on after an interruption: weights, optimizer, steps done."""

    stage: str
    step: int
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class _Sums:
    """Running sums over the batches of one step."""

    losses: Tensor  # [G] float64
    tokens: Tensor  # [G] float64
    balance: float = 0.0
    z: float = 0.0
    routing: Tensor | None = None  # [G, E]


def forward_batch(model: Transformer, batch: Batch, forced: bool, recompute: bool = False) -> ModelOutput:
    """Runs a packed batch; with ``forced`` every token visits the expert of its language."""
    return model(
        batch.tokens,
        documents=batch.documents,
        forced_experts=batch.languages if forced else None,
        recompute=recompute,
        logits=False,
    )


def batch_losses(model: Transformer, output: ModelOutput, batch: Batch) -> Tensor:
    """[N] cross-entropy of the learned tokens of a batch."""
    return token_losses(output.hidden[0, batch.positions], model.output_weight, batch.targets)


class Trainer:
    """Trains one stage of a model, step by step.

    Args:
        model: changed in place.
        stage: what learns and how.
        batches: the data; step ``i`` uses batches ``(skip + i) * accumulate`` and on, also in a resumed run.
        languages: names, in the order of the batches' language indices.
        config: the run's settings.
    """

    def __init__(
        self, model: Transformer, stage: Stage, batches: MixedBatches, languages: Sequence[str], config: RunConfig
    ):
        self.model, self.stage, self.batches, self.config = model, stage, batches, config
        self.languages = tuple(languages)
        self.parameters = choose_trainable(model, stage.name, config.mix_trains_experts)
        self.optimizer = make_optimizer(self.parameters, config.weight_decay, stage)
        self.names = parameter_names(self.optimizer, self.parameters)
        self.step = 0
        sizes = model.config
        layers = len(sizes.sparse_layers)
        self.chosen = torch.zeros(layers, sizes.num_experts, device=model.device)  # slots of late, [L, E]

    def state(self) -> StageState:
        """A snapshot to continue from (tensors are not copied)."""
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        optimizer = optimizer_tensors(self.optimizer, self.names)
        tensors |= {f"optimizer/{name}": tensor for name, tensor in optimizer.items()}
        tensors["routing/chosen"] = self.chosen
        return StageState(self.stage.name, self.step, tensors)

    @torch.no_grad()
    def restore(self, state: StageState) -> None:
        """Continues from a snapshot of the same stage."""
        if state.stage != self.stage.name:
            raise ValueError(f"the saved state is of stage {state.stage!r}, this is {self.stage.name!r}")
        for name, parameter in self.parameters.items():
            parameter.copy_(state.tensors[f"weights/{name}"])
        prefix = "optimizer/"
        tensors = {k[len(prefix) :]: v for k, v in state.tensors.items() if k.startswith(prefix)}
        restore_optimizer(self.optimizer, self.names, tensors)
        self.chosen.copy_(state.tensors.get("routing/chosen", torch.zeros_like(self.chosen)))
        self.step = state.step

    def run(self, on_step: Callable[[StepReport], None] | None = None) -> None:
        """Trains to the stage's last step."""
        self.model.train()
        while self.step < self.stage.steps:
            report = self.train_step()
            if on_step is not None:
                on_step(report)
        self.model.eval()

    def _batches_of_step(self) -> list[Batch]:
        first = (self.stage.skip + self.step) * self.config.accumulate
        return [self.batches[first + i].to(self.model.device) for i in range(self.config.accumulate)]

    def train_step(self) -> StepReport:
        """One optimizer step over ``accumulate`` batches."""
        started = time.perf_counter()
        set_learning_rates(self.optimizer, self.stage, self.step, self.config.warmup, self.config.min_lr)
        self.chosen *= CHOSEN_MEMORY
        batches = self._batches_of_step()
        learned = sum(batch.targets.shape[0] for batch in batches)
        count = len(self.languages)
        sums = _Sums(torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64))
        for batch in batches:
            output = forward_batch(self.model, batch, self.stage.forced, self.config.recompute)
            losses = batch_losses(self.model, output, batch)  # [N]
            loss = losses.sum() / learned + self._auxiliary(output, batch, sums) / len(batches)
            loss.backward()
            owners = batch.languages[batch.positions].cpu()
            sums.losses.index_add_(0, owners, losses.detach().double().cpu())
            sums.tokens += torch.bincount(owners, minlength=count)
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), self.config.clip or float("inf"))
        if not torch.isfinite(norm):
            rates = {"pretrain": "pretrain_lr", "mix": "mix_lr or branch_lr"}.get(self.stage.name, "branch_lr")
            raise UserError(
                f"the gradient is not finite in step {self.step + 1} of stage {self.stage.name}; set a lower {rates}"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        per_language = tuple((loss / n).item() if n else None for loss, n in zip(sums.losses, sums.tokens, strict=True))
        return StepReport(
            stage=self.stage.name,
            step=self.step,
            steps=self.stage.steps,
            loss=(sums.losses.sum() / sums.tokens.sum()).item(),
            language_losses=per_language,
            balance=sums.balance / len(batches),
            z=sums.z / len(batches),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gradient_norm=norm.item(),
            tokens=sum(batch.tokens.shape[1] for batch in batches),
            seconds=time.perf_counter() - started,
            routing=None if sums.routing is None else sums.routing / sums.routing.sum(-1, keepdim=True),
        )

    def _auxiliary(self, output: ModelOutput, batch: Batch, sums: _Sums) -> Tensor | float:
        """Weighted balance and z-loss of one batch, averaged over layers; 0 where the router does not decide.

        The balance loss' expert fractions are those of the last ten steps or so, not of this batch alone: a batch of a
        few thousand tokens holds few examples, and where it lacks a language, balance within it would push the others'
        tokens to that language's expert.
        """
        routed = [routing for routing in output.routing if routing.router_logits is not None]
        if not routed:
            return 0.0
        experts, count = self.model.config.num_experts, len(self.languages)
        balances, zs = [], []
        table = torch.zeros(count, experts)
        for layer, routing in enumerate(routed):
            counts = expert_counts(routing.expert_ids, experts)  # [E]
            self.chosen[layer] += counts
            fractions = self.chosen[layer] / self.chosen[layer].sum()
            balances.append(balance_loss(routing.router_logits, fractions))
            zs.append(z_loss(routing.router_logits))
            slots = batch.languages[:, None] * experts + routing.expert_ids  # [S, K]
            gates = routing.gates.detach().float().flatten()
            table += torch.bincount(slots.flatten(), gates, minlength=count * experts).view(count, experts).cpu()
        sums.routing = table if sums.routing is None else sums.routing + table
        balance, z = torch.stack(balances).mean(), torch.stack(zs).mean()
        sums.balance += balance.item()
        sums.z += z.item()
        return self.config.balance_loss_weight * balance + self.config.z_loss_weight * z
