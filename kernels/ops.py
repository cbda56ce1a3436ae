"""The operations of this package; the rest of the project calls these and nothing else.

On the CPU they run `kernels.cpu`; shapes, dtypes and devices are checked here, once, with one-line errors.

Shape legend: T tokens, K experts per token, R routed rows sorted by expert, E experts, D model width, F hidden width,
r rank.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels import cpu, cpu_delta
from kernels.dispatch import ExpertDispatch, LowRank, sort_by_expert

__all__ = ["ExpertDispatch", "LowRank", "delta_experts_forward", "experts_forward", "grouped_linear", "sort_by_expert"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    _check(tuple(tensor.shape) == expected, f"{name}: expected shape {list(expected)}, got {list(tensor.shape)}")


def _same_kind(x: Tensor, **others: Tensor) -> None:
    _check(x.is_floating_point(), f"x: expected a floating dtype, got {x.dtype}")
    for name, tensor in others.items():
        _check(tensor.dtype == x.dtype, f"{name}: expected {x.dtype} as x has, got {tensor.dtype}")
        _check(tensor.device == x.device, f"{name}: expected device {x.device} as x has, got {tensor.device}")


def _routing(x: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
    """Checks gates and ids against x [T, D]; returns the gates in float32 (float64 with a float64 x)."""
    _check(expert_ids.dim() == 2, f"expert_ids: expected shape [T, K], got {list(expert_ids.shape)}")
    _shape("expert_ids", expert_ids, (x.shape[0], expert_ids.shape[1]))
    _shape("gates", gates, tuple(expert_ids.shape))
    _check(gates.is_floating_point(), f"gates: expected a floating dtype, got {gates.dtype}")
    return gates.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants matrix products to see them."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype != torch.float64 else t for t in tensors)


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, offsets):
        ctx.save_for_backward(x, weight, offsets)
        return cpu.grouped_linear_fwd(x, weight, offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, offsets = ctx.saved_tensors
        dx = cpu.grouped_linear_dx(dy, weight, offsets) if ctx.needs_input_grad[0] else None
        dw = cpu.grouped_linear_dw(x, dy, offsets) if ctx.needs_input_grad[1] else None
        return dx, dw, None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, w2, w3, gates, expert_ids):
        out, h1, h3, dispatch = cpu.experts_fwd(x, w1, w2, w3, gates, expert_ids)
        ctx.save_for_backward(x, w1, w2, w3, gates, h1, h3, *dispatch)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, w1, w2, w3, gates, h1, h3, *dispatch = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        return *cpu.experts_bwd(dout, x, w1, w2, w3, gates, h1, h3, ExpertDispatch(*dispatch), needs), None


class _DeltaExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, w2, w3, gates, expert_ids, scale, shared_scale, has_shared, has_experts, *factors):
        shared = LowRank(*factors[:6]) if has_shared else None
        experts = LowRank(*factors[-6:]) if has_experts else None
        out, h1, h3 = cpu_delta.delta_experts_fwd(
            x, w1, w2, w3, shared, experts, gates, expert_ids, scale, shared_scale
        )
        ctx.save_for_backward(x, w1, w2, w3, gates, expert_ids, h1, h3, *factors)
        ctx.config = (scale, shared_scale, has_shared, has_experts)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, dout):
        x, w1, w2, w3, gates, expert_ids, h1, h3, *factors = ctx.saved_tensors
        scale, shared_scale, has_shared, has_experts = ctx.config
        shared = LowRank(*factors[:6]) if has_shared else None
        experts = LowRank(*factors[-6:]) if has_experts else None
        need = ctx.needs_input_grad
        needs = cpu_delta.DeltaNeeds(
            *need[:4], has_shared and any(need[10:16]), has_experts and any(need[-6:]), need[4]
        )
        grads = cpu_delta.delta_experts_bwd(
            dout, x, w1, w2, w3, shared, experts, gates, expert_ids, h1, h3, scale, shared_scale, needs
        )
        per_factor = []
        for present, given in ((has_shared, grads.shared), (has_experts, grads.experts)):
            if present:
                per_factor += list(given) if given is not None else [None] * 6
        return grads.x, grads.w1, grads.w2, grads.w3, grads.gates, None, None, None, None, None, *per_factor


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``y[i] = weight[e] @ x[i]`` for the expert e with ``offsets[e] <= i < offsets[e + 1]``.

    x [R, D] sorted by expert, weight [E, N, D], offsets [E + 1] int32 -> [R, N]. Differentiable in x and weight.
    Raises ValueError for shapes or dtypes that do not fit and for offsets that do not run from 0 to R.
    """
    _check(x.dim() == 2, f"x: expected shape [R, D], got {list(x.shape)}")
    _check(weight.dim() == 3, f"weight: expected shape [E, N, {x.shape[1]}], got {list(weight.shape)}")
    _shape("weight", weight, (weight.shape[0], weight.shape[1], x.shape[1]))
    _shape("offsets", offsets, (weight.shape[0] + 1,))
    x, weight = _autocast(x, weight)
    _same_kind(x, weight=weight)
    return _GroupedLinear.apply(x, weight, offsets)


def experts_forward(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
    """Mixture of SwiGLU experts, ``sum_j gates[t, j] * w2[e] @ (silu(w1[e] @ x[t]) * (w3[e] @ x[t]))``.

    x [T, D]; w1, w3 [E, F, D]; w2 [E, D, F]; gates [T, K] float32; expert_ids [T, K] integers -> [T, D] in x's dtype.
    The gates multiply the experts' outputs in float32 and the sum is cast once. Weights that do not require a gradient
    cost no gradient product. Raises ValueError for shapes, dtypes or ids that do not fit.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    _check(w1.dim() == 3, f"w1: expected shape [E, F, {x.shape[1]}], got {list(w1.shape)}")
    num_experts, hidden = w1.shape[:2]
    _shape("w1", w1, (num_experts, hidden, x.shape[1]))
    _shape("w3", w3, (num_experts, hidden, x.shape[1]))
    _shape("w2", w2, (num_experts, x.shape[1], hidden))
    gates = _routing(x, gates, expert_ids)
    x, w1, w2, w3 = _autocast(x, w1, w2, w3)
    _same_kind(x, w1=w1, w2=w2, w3=w3)
    if x.shape[0] == 1 and not (torch.is_grad_enabled() and any(t.requires_grad for t in (x, w1, w2, w3, gates))):
        return cpu.experts_decode(x, w1, w2, w3, gates, expert_ids)
    return _Experts.apply(x, w1, w2, w3, gates, expert_ids)


def _check_low_rank(name: str, lr: LowRank, width: int, hidden: int, lead: tuple[int, ...]) -> None:
    rank = lr.a1.shape[-2]
    for field, tensor, tail in (
        ("a1", lr.a1, (rank, width)),
        ("b1", lr.b1, (hidden, rank)),
        ("a2", lr.a2, (rank, hidden)),
        ("b2", lr.b2, (width, rank)),
        ("a3", lr.a3, (rank, width)),
        ("b3", lr.b3, (hidden, rank)),
    ):
        _shape(f"{name}.{field}", tensor, (*lead, *tail))


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
    """Experts ``W + shared_scale * B0 A0 + scale * B_e A_e`` that share one dense base; base products once per token.

    x [T, D]; w1, w3 [F, D]; w2 [D, F]; ``shared``: factors a1 [r, D], b1 [F, r], a2 [r, F], b2 [D, r], a3, b3, or None;
    ``experts``: the same with a leading E, or None; gates [T, K] float32; expert_ids [T, K] integers -> [T, D].
    A base that does not require a gradient costs no gradient product. Raises ValueError for what does not fit.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    _check(w1.dim() == 2, f"w1: expected shape [F, {x.shape[1]}], got {list(w1.shape)}")
    width, hidden = x.shape[1], w1.shape[0]
    _shape("w1", w1, (hidden, width))
    _shape("w3", w3, (hidden, width))
    _shape("w2", w2, (width, hidden))
    if shared is not None:
        _check_low_rank("shared", shared, width, hidden, ())
    if experts is not None:
        _check_low_rank("experts", experts, width, hidden, (experts.a1.shape[0],))
    gates = _routing(x, gates, expert_ids)
    if experts is None and expert_ids.shape[1] != 1:  # all choices are the same network: one choice, the gates' sum
        gates, expert_ids = gates.sum(1, keepdim=True), expert_ids[:, :1]
    factors = (*(shared or ()), *(experts or ()))
    x, w1, w2, w3, *factors = _autocast(x, w1, w2, w3, *factors)
    _same_kind(x, w1=w1, w2=w2, w3=w3, **{f"low-rank factor {i}": t for i, t in enumerate(factors)})
    return _DeltaExperts.apply(
        x, w1, w2, w3, gates, expert_ids, scale, shared_scale, shared is not None, experts is not None, *factors
    )
