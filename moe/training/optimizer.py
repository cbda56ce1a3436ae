"""AdamW with parameter groups, Muon beside it for the tiny base, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from moe.training.stages import Stage, is_router


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) for matrices [m, n]: momentum whose singular values are all set to about 1.

    Steps are scaled to the root mean square of AdamW's (Liu et al., 2025), weight decay is decoupled. The same rule as
    ``torch.optim.Muon``, in float32: that one computes in bfloat16, which takes five to fifteen times as long on a CPU
    without bfloat16 products (docs/results/recipe.md).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], weight_decay: float, momentum: float = 0.95):
        super().__init__(parameters, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                average = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(average, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonalize(x: Tensor) -> Tensor:
    """The matrix [m, n] with its singular values between about 0.7 and 1.2, by five Newton-Schulz steps in float32."""
    a, b, c = 3.4445, -4.7750, 2.0315  # of Jordan et al., chosen for a steep slope at 0
    tall = x.shape[0] > x.shape[1]
    y = (x.T if tall else x).float()
    y = y / y.norm().clamp_min(1e-7)
    for _ in range(5):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return (y.T if tall else y).to(x.dtype)


class MuonWithAdamW:
    """Two optimizers of different parameters that share groups and state as if they were one."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW):
        self.parts = (muon, adamw)
        self.param_groups = muon.param_groups + adamw.param_groups
        self.state = muon.state = adamw.state

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


Optimizer = torch.optim.AdamW | MuonWithAdamW


def make_optimizer(parameters: Mapping[str, nn.Parameter], weight_decay: float, stage: Stage) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with weight decay on matrices, none on routers and vectors.

    Where the stage has a learning rate for it, Muon (Jordan et al., 2024) trains the matrices of the layers, and AdamW
    the embeddings, the output projection and the norms. Each group keeps its peak learning rate under ``"peak"``;
    :func:`set_learning_rates` scales it.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    routers: list[nn.Parameter] = []
    hidden: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        group = routers if is_router(name) else decayed if parameter.dim() > 1 else plain
        if stage.muon_learning_rate and group is decayed and name.startswith("layers."):
            group = hidden
        group.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "peak": stage.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": stage.learning_rate},
        {"params": routers, "weight_decay": 0.0, "peak": stage.router_learning_rate, "router": True},
    ]
    device = next(iter(parameters.values())).device.type
    adamw = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=0.0,
        betas=(0.9, 0.95),
        eps=1e-8,
        fused=device in ("cpu", "cuda"),
    )
    if not hidden:
        return adamw
    muon = Muon(hidden, weight_decay)
    muon.param_groups[0]["peak"] = stage.muon_learning_rate
    return MuonWithAdamW(muon, adamw)


def schedule(step: int, steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Share of the peak in ``step`` (from 0): linear warm-up, then a cosine to ``min_lr_ratio`` at the last step."""
    warm = max(1, round(warmup_ratio * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rates(optimizer: Optimizer, stage: Stage, step: int, warmup_ratio: float, min_lr_ratio: float) -> None:
    """Sets every group's learning rate for ``step`` of ``stage`` (see :func:`schedule`).

    Routers follow a schedule of the stage's own length. Experts continue the schedule, and AdamW's averages, of the
    stage before.
    """
    own = schedule(step, stage.steps, warmup_ratio, min_lr_ratio)
    whole = schedule(stage.before + step, stage.before + stage.steps + stage.after, warmup_ratio, min_lr_ratio)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * (own if group.get("router") else whole)


def optimizer_tensors(optimizer: Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``NAME/exp_avg`` and so on."""
    tensors = {}
    for name, parameter in _named(optimizer, names):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def restore_optimizer(optimizer: Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`optimizer_tensors`."""
    for name, parameter in _named(optimizer, names):
        prefix = name + "/"
        state = {key[len(prefix) :]: value.clone() for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            # The fused optimizer keeps its step counter beside the parameter, too.
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}


def _named(optimizer: Optimizer, names: list[str]) -> list[tuple[str, nn.Parameter]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(parameters) == len(names), "names and parameters of the optimizer differ"
    return list(zip(names, parameters, strict=True))


def parameter_names(optimizer: Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the optimizer's parameters in its own order."""
    by_id = {id(parameter): name for name, parameter in parameters.items()}
    return [by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
