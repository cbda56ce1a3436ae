"""The training loop that all stages share."""

# S tokens of a packed row, N scored positions, D model dim, E experts, K top-k, L layers with experts, G languages

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.packed import Int4Weights, PackedWeights
from moe.config import parse_layers
from moe.data.packing import Batch, MixedBatches
from moe.errors import UserError
from moe.hardware import used_memory
from moe.losses import balance_loss, expert_counts, token_losses, z_loss
from moe.model import ModelOutput, Transformer
from moe.training import distributed, sharding
from moe.training.config import RunConfig
from moe.training.optimizer import (
    make_optimizer,
    optimizer_tensors,
    parameter_names,
    restore_optimizer,
    set_learning_rates,
)
from moe.training.policy import AnswerBatch, Policy
from moe.training.progress import StageState, StepReport
from moe.training.stages import Stage, choose_trainable

CHOSEN_MEMORY = 0.9  # decay per step of the expert counts that balance is measured by
LOSS_MEMORY = 0.9  # decay per step of the mean loss that a spike is measured by
LEAST_SPIKE = 1.0  # nats above that mean: a loss near zero may well double


class Diverged(UserError):
    """Too many steps in a row were skipped; ``rates`` are the settings to lower, ``step`` the last good one."""

    def __init__(self, message: str, rates: tuple[str, ...], step: int):
        super().__init__(message)
        self.rates, self.step = rates, step


@dataclass(frozen=True)
class _Share:
    """One batch: what this rank computes of it, and the whole, which is the same without other ranks.

    ``counts`` is False where the batch has too few examples for all ranks and this one computes for no effect.
    """

    batch: Batch
    whole: Batch
    counts: bool

    @classmethod
    def of(cls, batches: MixedBatches, index: int, device: torch.device) -> _Share:
        whole = batches[index].to(device)
        if distributed.world() == 1:
            return cls(whole, whole, True)
        batch, counts = distributed.share_of(batches.group(index))
        return cls(batch.to(device), whole, counts)


class _Sums:
    """Running sums over the micro-batches of one step.

    They stay on the model's device: a micro-batch never makes the host wait, and :meth:`read` waits once a step.
    """

    def __init__(self, languages: int, routers: int, experts: int, device: torch.device):
        self.losses = torch.zeros(languages, dtype=torch.float64, device=device)  # [G]
        self.tokens = torch.zeros(languages, dtype=torch.float64, device=device)  # [G]
        self.balance = torch.zeros((), dtype=torch.float64, device=device)
        self.z = torch.zeros((), dtype=torch.float64, device=device)
        self.routing = torch.zeros(routers, languages, experts, device=device)  # [R, G, E] gate weight

    def read(self, norm: Tensor) -> tuple[list[float], list[float], float, float, float, Tensor]:
        """On the host: losses and tokens per language, balance, z, the gradient's ``norm``, routing [R, G, E].

        All but ``norm`` are summed over all ranks.
        """
        scalars = torch.stack((self.balance, self.z, norm.double() / distributed.world()))
        flat = torch.cat((self.losses, self.tokens, scalars, self.routing.flatten().double()))
        distributed.sum_over_ranks("losses and routing", [flat])
        values = flat.tolist()  # the only place of a step where the host waits for the device
        languages = self.routing.shape[1]
        losses, tokens, rest = values[:languages], values[languages : 2 * languages], values[2 * languages :]
        return losses, tokens, *rest[:3], torch.tensor(rest[3:]).view(self.routing.shape)


def forward_batch(
    model: Transformer, batch: Batch, forced: bool, activation_checkpointing: bool = False
) -> ModelOutput:
    """Runs a packed batch; with ``forced`` every token visits the expert of its language."""
    return model(
        batch.tokens,
        documents=batch.documents,
        forced_experts=batch.languages if forced else None,
        activation_checkpointing=activation_checkpointing,
        logits=False,
    )


def batch_losses(model: Transformer, output: ModelOutput, batch: Batch) -> Tensor:
    """[N] cross-entropy of the learned tokens of a batch."""
    return token_losses(output.hidden[0, batch.positions], model.output_weight, batch.targets)


def training_flops(model: Transformer, trained: Collection[str]) -> float:
    """Operations per token in products with weight matrices: forward, backward, and gradients of what is trained.

    Attention scores are left out, and so are products with experts that a token does not visit.
    """
    config = model.config
    visited = config.num_experts_per_tok / config.num_experts if config.is_moe else 1.0
    total = 0.0
    for name, parameter in model.named_parameters():
        looked_up = name.startswith("tok_embeddings") and not config.tie_embeddings
        if parameter.dim() < 2 or looked_up:
            continue
        share = visited if ".experts." in name or "expert_deltas" in name else 1.0
        total += 2 * (3 if name in trained else 2) * share * parameter.numel()
    packed = (part.shape for part in model.modules() if isinstance(part, PackedWeights | Int4Weights))
    return total + 4.0 * sum(map(math.prod, packed))  # shared by all experts, frozen


class Trainer:
    """Trains one stage of a model, step by step.

    Args:
        model: changed in place.
        stage: what learns and how.
        batches: the data; step ``i`` uses batches ``(skip + i) * accumulate`` and on, also in a resumed run. Or what
            a stage learns from answers by.
        languages: names, in the order of the batches' language indices.
        config: the run's settings.
    """

    def __init__(
        self,
        model: Transformer,
        stage: Stage,
        batches: MixedBatches | Policy,
        languages: Sequence[str],
        config: RunConfig,
    ):
        self.model, self.stage, self.config = model, stage, config
        self.languages = tuple(languages)
        sharding.reshard(model)
        layers = parse_layers(config.moe_layers, model.config.n_layers)
        self.one_expert = bool(config.new_language)  # the last one learns, all else stays as it is to the last bit
        self.parameters = choose_trainable(model, stage.name, config.mix_trains_experts, layers, self.one_expert)
        self.batches = batches
        if isinstance(batches, Policy):
            batches.begin(model, self.parameters)
        # Without a gradient and without weight decay AdamW leaves the other experts as they are.
        kept = self.one_expert or isinstance(batches, Policy)
        self.optimizer = make_optimizer(
            self.parameters, 0.0 if kept else config.weight_decay, stage, config.optimizer_bits, kept
        )
        self.names = parameter_names(self.optimizer, self.parameters)
        self.flops_per_token = training_flops(model, self.parameters)
        self.step = 0
        self.mean_loss = math.nan  # decayed, of the steps that were not skipped
        self.skipped = self.skipped_in_a_row = 0
        experts = model.config.num_experts
        # Decayed counts, by which balance is measured: slots by router and expert [R, E], tokens by language [G].
        self.chosen = torch.zeros(len(model.config.router_places), experts, device=model.device)
        self.seen = torch.zeros(len(self.languages), device=model.device)

    def state(self) -> StageState:
        """A snapshot to continue from (tensors are not copied).

        It is of the last step that was not skipped, whose weights these still are; the skipped ones are tried again.
        """
        tensors = {f"weights/{name}": parameter.detach() for name, parameter in self.parameters.items()}
        tensors |= optimizer_tensors(self.optimizer, self.names)
        tensors |= {"routing/chosen": self.chosen, "routing/seen": self.seen}
        if isinstance(self.batches, Policy):
            tensors |= self.batches.state()
        skipped = float(self.skipped - self.skipped_in_a_row)
        tensors["progress"] = torch.tensor([self.mean_loss, skipped], dtype=torch.float64)
        return StageState(self.stage.name, self.step - self.skipped_in_a_row, tensors)

    @torch.no_grad()
    def restore(self, state: StageState) -> None:
        """Continues from a snapshot of the same stage."""
        if state.stage != self.stage.name:
            raise ValueError(f"the saved state is of stage {state.stage!r}, this is {self.stage.name!r}")
        for name, parameter in self.parameters.items():
            sharding.fill(parameter, state.tensors[f"weights/{name}"])
        self.continue_from(state)
        for name, counts in (("chosen", self.chosen), ("seen", self.seen)):
            counts.copy_(state.tensors[f"routing/{name}"])
        if "progress" in state.tensors:  # states of earlier versions have none
            self.mean_loss, skipped = state.tensors["progress"].tolist()
            self.skipped = int(skipped)
        self.step, self.skipped_in_a_row = state.step, 0
        if isinstance(self.batches, Policy):
            self.batches.restore(state.tensors)

    def continue_from(self, state: StageState) -> None:
        """Takes over the optimizer's averages of the parameters that the stage of ``state`` trained, too."""
        restore_optimizer(self.optimizer, self.names, state.tensors)

    def run(self) -> Iterator[StepReport]:
        """Trains to the stage's last step; yields what each step did. A caller may stop between two steps."""
        self.model.train()
        try:
            while self.step < self.stage.steps:
                yield self.train_step()
        finally:
            self.model.eval()

    def _batches_of_step(self) -> list[_Share]:
        if isinstance(self.batches, Policy):
            return [_Share(batch, batch, True) for batch in self.batches.batches(self.step)]
        first = (self.stage.skip + self.step) * self.config.accumulate
        return [_Share.of(self.batches, first + i, self.model.device) for i in range(self.config.accumulate)]

    def train_step(self) -> StepReport:
        """One optimizer step over ``accumulate`` micro-batches.

        A loss spike, and a loss or gradient that is not finite, change no weight: the step is skipped and counted.

        Raises:
            Diverged: more than ``max_skipped_steps`` steps in a row were skipped.
        """
        started = time.perf_counter()
        set_learning_rates(self.optimizer, self.stage, self.step, self.config.warmup_ratio, self.config.min_lr_ratio)
        before = self.chosen, self.seen
        self.chosen, self.seen = self.chosen * CHOSEN_MEMORY, self.seen * CHOSEN_MEMORY
        shares = self._batches_of_step()
        learned = sum(share.whole.items for share in shares)
        sums = _Sums(len(self.languages), len(self.chosen), self.model.config.num_experts, self.model.device)
        for share in shares:
            self._micro_batch(share, learned, sums)
        for parameter in self.parameters.values() if self.one_expert else ():
            assert parameter.grad is not None
            sharding.zero_first_experts(parameter.grad)
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None and not sharding.is_sharded(p)]
        distributed.sum_over_ranks("gradients", gradients)  # FSDP has summed the others
        norm = sharding.clip_gradients(self.parameters.values(), self.config.max_grad_norm)
        losses, tokens, balance, z, gradient_norm, routing = sums.read(norm)
        loss, table = sum(losses) / sum(tokens), routing.sum(0)  # table [G, E]
        skipped = self._reason_to_skip(loss, gradient_norm)
        if skipped:
            self.chosen, self.seen = before
            self.skipped += 1
            self.skipped_in_a_row += 1
        else:
            self.optimizer.step()
            memory = 0.0 if math.isnan(self.mean_loss) else LOSS_MEMORY
            self.mean_loss = loss if not memory else memory * self.mean_loss + (1 - memory) * loss
            self.skipped_in_a_row = 0
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.skipped_in_a_row > self.config.max_skipped_steps:
            raise self._diverged(skipped)
        return StepReport(
            stage=self.stage.name,
            step=self.step,
            steps=self.stage.steps,
            loss=loss,
            language_losses=tuple(loss / n if n else None for loss, n in zip(losses, tokens, strict=True)),
            balance=balance / len(shares),
            z=z / len(shares),
            learning_rate=self.optimizer.param_groups[0]["lr"],
            gradient_norm=gradient_norm,
            tokens=sum(share.whole.tokens.shape[1] for share in shares),
            seconds=time.perf_counter() - started,
            routing=table / table.sum(-1, keepdim=True) if self._router_decides else None,
            skipped=skipped,
            all_skipped=self.skipped,
            routers=routing if self._router_decides else None,
            flops_per_token=self.flops_per_token,
            memory=used_memory(self.model.device),
            measured=self.batches.measures() if isinstance(self.batches, Policy) else {},
        )

    def _reason_to_skip(self, loss: float, gradient_norm: float) -> str:
        if not math.isfinite(loss):
            return "the loss is not finite"
        if not math.isfinite(gradient_norm):
            return "the gradient is not finite"
        most = max(self.config.spike_factor * self.mean_loss, self.mean_loss + LEAST_SPIKE)
        if self.config.spike_factor and loss > most:  # false in the first step, where the mean is NaN
            return f"the loss is {loss:.2f} after a mean of {self.mean_loss:.2f}"
        return ""

    def _diverged(self, reason: str) -> Diverged:
        rates = {"pretrain": ("pretrain_lr",), "mix": ("mix_lr", "branch_lr")}.get(self.stage.name, ("branch_lr",))
        if isinstance(self.batches, Policy):
            rates = ("policy_lr",)
        if self.stage.name == "mix" and not self.config.mix_trains_experts:
            rates = ("mix_lr",)
        good = self.step - self.skipped_in_a_row
        return Diverged(
            f"{self.skipped_in_a_row} steps in a row were skipped in stage {self.stage.name}, up to step {self.step} "
            f"({reason}); set a lower {' or '.join(rates)} (max_skipped_steps is {self.config.max_skipped_steps})",
            rates,
            good,
        )

    @property
    def _router_decides(self) -> bool:
        return self.model.config.is_moe and not self.stage.forced and not isinstance(self.batches, Policy)

    def _micro_batch(self, share: _Share, learned: int, sums: _Sums) -> None:
        """Adds one batch's share of the step's gradient and its numbers, without a wait for the device.

        Args:
            learned: response tokens of the whole step; each weighs the same, whatever batch it is in.
        """
        batch = share.batch
        if isinstance(self.batches, Policy):
            assert isinstance(batch, AnswerBatch)
            self._answers(self.batches.losses(batch), batch.language, learned, sums)
            return
        output = forward_batch(self.model, batch, self.stage.forced, self.config.activation_checkpointing)
        losses = batch_losses(self.model, output, batch)  # [N]
        loss = losses.sum() / learned
        if self._router_decides:
            loss = loss + self._auxiliary(output, share, sums) / self.config.accumulate
        loss.backward()
        owners = batch.languages[batch.positions]  # [N]
        sums.losses.index_add_(0, owners, losses.detach().double())
        sums.tokens.index_add_(0, owners, torch.ones_like(owners, dtype=torch.float64))

    def _answers(self, losses: Tensor, language: int, learned: int, sums: _Sums) -> None:
        """Adds the gradient of answers in one language to its expert, and to no other."""
        gradients = torch.autograd.grad(losses.sum() / learned, list(self.parameters.values()))
        for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad[language] += gradient[language]
        sums.losses[language] += losses.detach().double().sum()
        sums.tokens[language] += len(losses)

    def _auxiliary(self, output: ModelOutput, share: _Share, sums: _Sums) -> Tensor:
        """Weighted router losses of one batch, averaged over routers: balance, z, and the language cross-entropy.

        With several ranks, this one's part of them.

        The balance loss measures expert fractions over about the last ten steps, not over this batch alone: a batch of
        a few thousand tokens holds few examples, and if it lacks a language, balance within the batch would push other
        languages' tokens to that language's expert.
        """
        experts = self.model.config.num_experts
        places = self.model.config.router_places
        batch, everyone = share.batch, share.whole.languages
        self.seen.index_add_(0, everyone, torch.ones_like(everyone, dtype=self.seen.dtype))
        targets = self.seen / self.seen.sum() if len(self.seen) == experts else None  # expert i is language i
        balances, zs, languages = [], [], []
        decided = output.routing[: len(places)]
        counts = torch.stack([expert_counts(routing.expert_ids, experts) for routing in decided])  # [R, E]
        counts *= share.counts
        distributed.sum_over_ranks("expert counts", [counts])
        self.chosen += counts
        for layer, routing in enumerate(decided):
            assert routing.router_logits is not None, "the router decides"
            fractions = self.chosen[layer] / self.chosen[layer].sum()  # [E]
            balances.append(balance_loss(routing.router_logits, fractions, targets))
            if self.config.language_loss_weight:
                languages.append(F.cross_entropy(routing.router_logits.float(), batch.languages))
            zs.append(z_loss(routing.router_logits))
            slots = batch.languages[:, None] * experts + routing.expert_ids  # [S, K]
            gates = routing.gates.detach().float().flatten() * share.counts
            sums.routing[layer].view(-1).index_add_(0, slots.flatten(), gates)  # [G * E]
        part = share.counts * batch.languages.shape[0] / everyone.shape[0]  # the losses are means over tokens
        balance, z = torch.stack(balances).mean() * part, torch.stack(zs).mean() * part
        sums.balance += balance.detach()
        sums.z += z.detach()
        loss = self.config.balance_loss_weight * balance + self.config.z_loss_weight * z
        return loss + self.config.language_loss_weight * part * torch.stack(languages).mean() if languages else loss
