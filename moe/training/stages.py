"""The stages of training: which weights learn, and with which routing.

``pretrain``: all weights (of the tiny base only). ``adapter``: the shared delta of a dense model, or the feed-forwards
of one without. ``branch``: the
experts, each token forced to the expert of its language, all languages in one run. ``mix``: the router and, unless
they are frozen, the experts, with learned top-k routing. ``preferences`` and ``tests``: the experts of a finished
mixture, each from answers in its language, as it is used.

Presets keep the branch stage short. Experts trained under forced routing for long (Branch-Train-MiX, Sukhbaatar et al.,
2024) do not transfer to learned routing: a token-level router sends a quarter of the tokens to another language's
expert, and the second choice takes part of every gate. At equal total steps, each step moved from branch to mix lowers
the held-out loss (RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import nn

from moe.model import Transformer
from moe.training.config import RunConfig

STAGES = ("pretrain", "adapter", "branch", "mix", "preferences", "tests")


@dataclass(frozen=True)
class Stage:
    """Settings of one stage.

    Attributes:
        name: one of :data:`STAGES`.
        steps: optimizer steps.
        learning_rate: peak.
        router_learning_rate: peak of the routers.
        forced: route each token to the expert of its language with gate 1.
        skip: steps whose batches an earlier stage used, so that no stage repeats another's data.
        before, after: steps of other stages that share one learning-rate schedule of the experts with this one.
        continues: the stage whose optimizer averages this one starts with; "" for none.
    """

    name: str
    steps: int
    learning_rate: float
    router_learning_rate: float
    forced: bool = False
    skip: int = 0
    before: int = 0
    after: int = 0
    continues: str = ""


def make_stage(name: str, config: RunConfig) -> Stage:
    """The stage ``name`` with the run's settings.

    The baseline gets the steps of branch and mix together. Experts trained in both follow one cosine over both, as the
    baseline does: two would warm up twice and spend many steps near the minimum.
    """
    branch, mix = config.branch_steps, config.mix_steps
    match name:
        case "pretrain":
            return Stage(name, config.pretrain_steps, config.pretrain_lr, config.pretrain_lr)
        case "adapter":
            return Stage(name, branch + mix, config.branch_lr, config.branch_lr)
        case "branch":
            after = mix if config.mix_trains_experts else 0
            return Stage(name, branch, config.branch_lr, config.branch_lr, forced=True, after=after)
        case "mix":
            return Stage(name, mix, config.branch_lr, config.mix_lr, skip=branch, before=branch, continues="branch")
        case "preferences" | "tests":
            return Stage(name, config.policy_steps, config.policy_lr, config.policy_lr)
    raise ValueError(f"unknown stage {name!r}, expected one of {', '.join(STAGES)}")


def is_expert(name: str) -> bool:
    """Whether a parameter belongs to the experts: a delta, or a full expert's matrix."""
    return is_delta(name) or ".experts." in name


def is_delta(name: str) -> bool:
    """Whether a parameter belongs to a low-rank delta, that of one expert or the shared one."""
    return "_delta" in name


def is_router(name: str) -> bool:
    """Whether a parameter belongs to a router."""
    return name.endswith("feed_forward.gate.weight")


def choose_trainable(
    model: Transformer,
    stage: str,
    mix_trains_experts: bool = False,
    moe_layers: Collection[int] | None = None,
    one_expert: bool = False,
) -> dict[str, nn.Parameter]:
    """Freezes all but the parameters that ``stage`` trains; returns those by name.

    ``moe_layers`` limits which feed-forwards of a dense model are trained as the baseline of full experts. With
    ``one_expert`` neither routers nor the shared delta learn (the trainer holds the other experts).
    """
    dense = not (model.config.is_moe or model.config.is_delta)

    def learns(name: str) -> bool:
        if stage == "pretrain":
            return True
        if stage == "adapter" and dense:
            return ".feed_forward." in name and (moe_layers is None or int(name.split(".")[1]) in moe_layers)
        if one_expert or stage in ("preferences", "tests"):
            return is_expert(name) and ".shared_delta." not in name
        if stage == "mix":
            return is_router(name) or (mix_trains_experts and is_expert(name))
        return is_expert(name)

    chosen = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(name))
        if parameter.requires_grad:
            chosen[name] = parameter
    if not chosen:
        raise ValueError(f"the {stage} stage has nothing to train in this model")
    return chosen
