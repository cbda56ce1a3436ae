"""AdamW with parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from moe.errors import UserError
from moe.training import sharding
from moe.training.stages import Stage, is_router

BLOCK = 256  # values of an 8-bit average that share a scale


def require_bitsandbytes() -> None:
    """Raises :class:`UserError` where bitsandbytes with a CPU implementation is not installed."""
    try:
        found = metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        found = ""
    if not found or tuple(map(int, found.split(".")[:2])) < (0, 50):
        raise UserError(
            f"optimizer_bits 8 needs bitsandbytes 0.50 or later, {found or 'none'} is installed; type: pip install "
            "'bitsandbytes>=0.50', or leave optimizer_bits out"
        )


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], weight_decay: float, stage: Stage, bits: int = 32, kept: bool = False
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with weight decay on matrices, none on routers and vectors.

    Each group keeps its peak learning rate under ``"peak"``; :func:`set_learning_rates` scales it. With 8 ``bits`` the
    averages of all but routers are blocks of 8 bits (Dettmers et al., 2022), which bitsandbytes computes. ``kept``:
    experts without a gradient must not change, so no block may be of two experts, whose zeros would not stay zeros;
    matrices that do not end with a block keep 32 bits, and with them all that are no larger.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    routers: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        group = routers if is_router(name) else decayed if parameter.dim() > 1 else plain
        group.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay, "peak": stage.learning_rate},
        {"params": plain, "weight_decay": 0.0, "peak": stage.learning_rate},
        {"params": routers, "weight_decay": 0.0, "peak": stage.router_learning_rate, "router": True},
    ]
    groups = [group for group in groups if group["params"]]
    if bits == 8 and stage.name != "pretrain":  # the tiny base is the same for all
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it takes our kernels for a package of that name
        import bitsandbytes

        torn = [x for x in decayed if kept and x.numel() // len(x) % BLOCK]
        least = max(parameter.numel() + 1 for parameter in (*routers, *plain, *torn, torch.empty(4095)))
        return bitsandbytes.optim.AdamW8bit(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, min_8bit_size=least)
    device = next(iter(parameters.values())).device.type
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-8, fused=device in ("cpu", "cuda"))


def schedule(step: int, steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """Share of the peak in ``step`` (from 0): linear warm-up, then a cosine to ``min_lr_ratio`` at the last step."""
    warm = max(1, round(warmup_ratio * steps))
    if step < warm:
        return (step + 1) / warm
    progress = (step - warm) / max(1, steps - 1 - warm)
    return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rates(
    optimizer: torch.optim.Optimizer, stage: Stage, step: int, warmup_ratio: float, min_lr_ratio: float
) -> None:
    """Sets every group's learning rate for ``step`` of ``stage`` (see :func:`schedule`).

    Routers follow a schedule of the stage's own length. Experts continue the schedule, and AdamW's averages, of the
    stage before.
    """
    own = schedule(step, stage.steps, warmup_ratio, min_lr_ratio)
    whole = schedule(stage.before + step, stage.before + stage.steps + stage.after, warmup_ratio, min_lr_ratio)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * (own if group.get("router") else whole)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimizer's state as named tensors: ``optimizer/NAME/exp_avg`` and so on."""
    tensors = {}
    for name, parameter in _named(optimizer, names):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Inverse of :func:`optimizer_tensors`; whatever else ``tensors`` has is not read."""
    for name, parameter in _named(optimizer, names):
        prefix = f"optimizer/{name}/"
        # The fused optimizer keeps its step counter beside the parameter, too.
        state: dict[str, Any] = {
            key.removeprefix(prefix): sharding.like(tensors[key].clone(), parameter)
            for key in tensors
            if key.startswith(prefix)
        }
        if "state1" in state:
            state["step"] = int(state["step"])  # of bitsandbytes
        if state:
            optimizer.state[parameter] = state


def _named(optimizer: torch.optim.Optimizer, names: list[str]) -> list[tuple[str, nn.Parameter]]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len(parameters) == len(names), "names and parameters of the optimizer differ"
    return list(zip(names, parameters, strict=True))


def parameter_names(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Names of the optimizer's parameters in its own order."""
    by_id = {id(parameter): name for name, parameter in parameters.items()}
    return [by_id[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
