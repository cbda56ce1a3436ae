"""Every operation of this package in plain torch: the definition of correct.

Nothing here is fast, and no product code imports it. Any floating dtype works; in float64 it gives the values that the
tests and benchmarks compare with.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K routed rows, N output columns, r rank

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.types import LowRank, accumulation_dtype


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``y[i] = weight[e] @ x[i]`` for ``offsets[e] <= i < offsets[e + 1]``: x [R, D], weight [E, N, D] -> [R, N]."""
    bounds = offsets.tolist()
    parts = [F.linear(x[bounds[e] : bounds[e + 1]], weight[e]) for e in range(weight.shape[0])]
    return torch.cat(parts)  # [R, N]


def weight_gradient(x: Tensor, dy: Tensor, offsets: Tensor) -> Tensor:
    """Gradient of `grouped_linear`'s weight: ``sum_i dy[i] outer x[i]`` over each expert's rows, [E, N, D]."""
    bounds = offsets.tolist()
    return torch.stack([dy[a:b].t() @ x[a:b] for a, b in itertools.pairwise(bounds)])  # [E, N, D]


def swiglu_ffn(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
    """Dense feed-forward of Mistral: ``w2 @ (silu(w1 @ x) * (w3 @ x))`` for x [T, D], w1, w3 [F, D], w2 [D, F]."""
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)  # [T, D]


def combine(expert_outputs: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
    """Weighted sum of the outputs of all experts [E, T, D] under gates [T, K]: in float32, one cast at the end."""
    acc = accumulation_dtype(expert_outputs.dtype)
    total = torch.zeros_like(expert_outputs[0], dtype=acc)  # [T, D]
    token = torch.arange(expert_ids.shape[0], device=expert_ids.device)
    for j in range(expert_ids.shape[1]):
        chosen = expert_outputs[expert_ids[:, j], token]  # [T, D]
        total = total + gates[:, j : j + 1].to(acc) * chosen.to(acc)
    return total.to(expert_outputs.dtype)


def experts_forward(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
    """Mixture of SwiGLU experts: x [T, D], w1, w3 [E, F, D], w2 [E, D, F], gates, expert_ids [T, K] -> [T, D]."""
    outputs = [swiglu_ffn(x, w1[e], w2[e], w3[e]) for e in range(w1.shape[0])]
    return combine(torch.stack(outputs), gates, expert_ids)  # [T, D]


def delta_experts_forward(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    shared: LowRank | None,
    experts: LowRank | None,
    gates: Tensor,
    expert_ids: Tensor,
    scale: float = 1.0,
    shared_scale: float = 1.0,
) -> Tensor:
    """Experts ``W + shared_scale * B0 @ A0 + scale * B_e @ A_e`` on one base: the unfactorized definition.

    x [T, D], w1, w3 [F, D], w2 [D, F]; every product is built as a full matrix, every expert runs on every token.
    """
    num_experts = experts.a1.shape[0] if experts is not None else 1
    outputs = []
    for e in range(num_experts):
        full = []
        for base, index in ((w1, 0), (w2, 2), (w3, 4)):
            weight = base
            if shared is not None:
                weight = weight + shared_scale * (shared[index + 1] @ shared[index])
            if experts is not None:
                weight = weight + scale * (experts[index + 1][e] @ experts[index][e])
            full.append(weight)
        outputs.append(swiglu_ffn(x, *full))
    ids = expert_ids if experts is not None else torch.zeros_like(expert_ids)
    return combine(torch.stack(outputs), gates, ids)  # [T, D]
