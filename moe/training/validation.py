"""Early stopping: watches the loss of a stage on held-out pairs."""

# G languages

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moe.data.packing import Example
from moe.model import Transformer
from moe.training.config import RunConfig
from moe.training.held_out_loss import held_out_loss
from moe.training.progress import StepReport

STATE = "validation"  # the name of its tensor in a stage's state


class Validation:
    """The best validation loss of a stage so far, and for how many validations it has not fallen.

    Attributes:
        best: mean over languages, in nats per response token; ``best_step`` is where it was.
        fruitless: validations since then.
    """

    def __init__(self, examples: Mapping[str, Sequence[Example]], config: RunConfig):
        self.examples, self.config = examples, config
        self.best, self.best_step, self.fruitless = math.inf, 0, 0

    def due(self, report: StepReport) -> bool:
        """Whether to measure after this step: every ``validation_steps`` and at the end, not where weights stayed."""
        every = self.config.validation_steps
        return not report.skipped and (report.step % every == 0 or report.step == report.steps)

    def measure(self, model: Transformer, step: int) -> tuple[float, ...]:
        """[G] nats per response token of each language, with the model's own routing."""
        found = held_out_loss(model, self.examples, self.config.tokens_per_batch)
        model.train()
        losses = tuple(loss.loss for loss in found.values())
        mean = sum(losses) / len(losses)
        if mean < self.best:
            self.best, self.best_step, self.fruitless = mean, step, 0
        else:
            self.fruitless += 1
        return losses

    @property
    def over(self) -> bool:
        """Whether the stage should stop: ``patience`` validations in a row were no better than the best."""
        return bool(self.config.patience) and self.fruitless >= self.config.patience

    def state(self) -> Tensor:
        """What :meth:`restore` goes on from."""
        return torch.tensor([self.best, self.best_step, self.fruitless], dtype=torch.float64)

    def restore(self, state: Tensor | None) -> None:
        """Goes on from a saved state; None, from a run without validation, leaves it as it is."""
        if state is not None:
            best, step, fruitless = state.tolist()
            self.best, self.best_step, self.fruitless = best, int(step), int(fruitless)
