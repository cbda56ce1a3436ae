"""Which row goes to which expert: a stable sort of the routed rows."""

# T tokens, K top-k, R = T*K routed rows, E experts

from __future__ import annotations

import torch
from torch import Tensor

from kernels.types import ExpertDispatch


def sort_by_expert(expert_ids: Tensor, num_experts: int) -> ExpertDispatch:
    """Sorts the T*K slots of ``expert_ids`` [T, K] (or [R]) by expert; stable, no host synchronization on a GPU.

    Raises ValueError for ids that are not integers or, on the CPU, lie outside ``[0, num_experts)``. On a GPU the
    offsets then do not span the rows, and the kernels fill every output with NaN.
    """
    if expert_ids.is_floating_point() or expert_ids.dtype == torch.bool:
        raise ValueError(f"expert_ids: expected an integer tensor, got {expert_ids.dtype}")
    if num_experts < 1:
        raise ValueError(f"num_experts: expected at least 1, got {num_experts}")
    flat = expert_ids.reshape(-1)  # [R]
    keys, order = torch.sort(flat, stable=True)  # [R]
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    bounds = torch.arange(num_experts + 1, device=flat.device, dtype=flat.dtype)
    offsets = torch.searchsorted(keys, bounds, out_int32=True)  # [E + 1]
    if not flat.is_cuda and not torch.compiler.is_compiling() and flat.numel():
        low, high = int(keys[0]), int(keys[-1])
        if low < 0 or high >= num_experts:
            raise ValueError(f"expert_ids: expected values in [0, {num_experts}), found {low if low < 0 else high}")
    return ExpertDispatch(order, inverse, offsets)
