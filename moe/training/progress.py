"""What a stage of training reports of each step, and what it continues from."""

# R routers, E experts, G languages

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from moe.training.samples import Sample


@dataclass(frozen=True)
class StepReport:
    """Measurements of one optimizer step.

    Attributes:
        stage, step, steps: where training is; steps count from 1.
        loss: mean cross-entropy in nats per learned token; ``language_losses`` per language (None: no token of it).
        balance, z: auxiliary losses, unweighted, mean over layers; 0 where no router is trained.
        learning_rate: of the first parameter group; ``gradient_norm`` before clipping.
        tokens: tokens processed, prompts included; ``seconds`` they took.
        routing: [G, E] float32 share of each language's gate weight that went to each expert, all layers together, NaN
            for a language without tokens in this step; None without a router.
        skipped: why no weight was changed in this step; "" otherwise. ``all_skipped`` counts such steps of the stage.
        validation: loss of held-out pairs by language after this step, where it was measured.
        routers: [R, G, E] float32 gate weight that each language gave to each expert, by router; None without one.
        flops_per_token: operations in matrix products with weights, forward and backward; what activation
            checkpointing computes again does not count.
        memory: bytes in use: allocated at most on a GPU, resident on a CPU.
        samples: answers of the model after this step, where some were written.
        measured: what a stage that learns from answers measured, by name.
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
    skipped: str = ""
    all_skipped: int = 0
    validation: tuple[float, ...] | None = None
    routers: Tensor | None = None
    flops_per_token: float = 0.0
    memory: int = 0
    samples: tuple[Sample, ...] = ()
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass
class StageState:
    """What a stage needs to continue after an interruption: weights, optimizer state, steps done."""

    stage: str
    step: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
