"""Whole layers out of the launches: forward and backward of full, delta and int4 experts.

Every backward recomputes what costs less than keeping it: of tensors of R rows and hidden width only the two
pre-activations are saved. All sums run in a fixed order, so gradients are bitwise repeatable.

Shape legend: T tokens, K experts per token, R = T*K rows sorted by expert, E experts, D model width, F hidden width,
r rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import int4
from kernels.cpu.delta import DeltaGradients, DeltaNeeds
from kernels.dispatch import ExpertDispatch, LowRank
from kernels.gpu import launch as bf16
from kernels.gpu import launch_w4 as w4
from kernels.gpu import tile_tables as tuning
from kernels.int4 import Int4Weight

Weight = Tensor | Int4Weight


class Saved(NamedTuple):
    """What a forward leaves for its backward."""

    h1: Tensor
    h3: Tensor
    dispatch: ExpertDispatch


def experts_forward(
    x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Saved | None]:
    """Four launches: route, up products with SwiGLU, down product, combine. x [T, D] -> [T, D]."""
    top_k, experts, rows = expert_ids.shape[1], w1.shape[0], expert_ids.numel()
    dispatch = bf16.route(expert_ids, experts)
    a, h1, h3 = bf16.swiglu(x, w1, w3, dispatch, rows, top_k=top_k, gather=True, save_h=save)  # [R, F]
    y = bf16.grouped_gemm(a, w2, dispatch, rows)  # [R, D]
    out = bf16.combine(y, dispatch, top_k, x.dtype, gates, num_experts=experts)  # [T, D]
    return out, Saved(h1, h3, dispatch) if save else None


def experts_backward(
    dout: Tensor, x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, saved: Saved,
    needs: tuple[bool, bool, bool, bool, bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of (x, w1, w2, w3, gates), the weights' only where ``needs`` says so."""
    top_k, experts = gates.shape[1], w1.shape[0]
    h1, h3, dispatch = saved
    rows = h1.shape[0]
    dh1, dh3, ga, dgates = bf16.swiglu_backward(
        dout, w2, h1, h3, gates, dispatch, experts=experts, gather=True, write_a=needs[2]
    )  # [R, F]
    dx = None
    if needs[0]:
        dx_rows = bf16.grouped_gemm(dh1, w1, dispatch, rows, transposed=True, x2=dh3, w2=w3)  # [R, D]
        dx = bf16.combine(dx_rows, dispatch, top_k, x.dtype, num_experts=experts)  # [T, D]

    def dw(left: Tensor, right: Tensor, **gather: bool) -> Tensor:
        return bf16.weight_gradient(left, right, dispatch, rows, experts, top_k=top_k, **gather)

    dw1 = dw(x, dh1, gather_x=True) if needs[1] else None
    dw2 = dw(ga, dout, gather_dy=True) if needs[2] else None
    dw3 = dw(x, dh3, gather_x=True) if needs[3] else None
    return dx, dw1, dw2, dw3, dgates if needs[4] else None


# --------------------------------------------------------------------------------------------------- int4 experts


def int4_experts_forward(
    x: Tensor, w1: Int4Weight, w2: Int4Weight, w3: Int4Weight, gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Saved | None]:
    """The layer with int4 weights; few slots decode without any sort (three launches). x [T, D] -> [T, D]."""
    top_k, experts, rows = expert_ids.shape[1], w1.shape3[0], expert_ids.numel()
    if rows <= tuning.W4_GEMV_SLOTS and not save:
        ids = expert_ids.contiguous()
        a = w4.gemv(x, w1, w3, ids, rows_per_x=top_k)[0]  # [R, F]
        y = w4.gemv(a, w2, None, ids, rows_per_x=1)  # [S, R, D]
        return bf16.combine(y, None, top_k, x.dtype, gates), None
    dispatch = bf16.route(expert_ids, experts)
    a, h1, h3 = w4.swiglu(x, w1, w3, dispatch, rows, top_k=top_k, gather=True, save_h=save)  # [R, F]
    y = w4.linear(a, w2, dispatch, rows)  # [R, D] or [S, R, D]
    out = bf16.combine(y, dispatch, top_k, x.dtype, gates, num_experts=experts)  # [T, D]
    return out, Saved(h1, h3, dispatch) if save else None


def int4_experts_backward(
    dout: Tensor, w1: Int4Weight, w2: Int4Weight, w3: Int4Weight, gates: Tensor, saved: Saved, need_x: bool
) -> tuple[Tensor | None, Tensor]:
    """Gradients of x and the gates; the int4 weights are frozen."""
    top_k, experts = gates.shape[1], w1.shape3[0]
    h1, h3, dispatch = saved
    rows = h1.shape[0]
    da = w4.linear_dx(dout, w2, dispatch, rows, top_k=top_k, gather=True)  # [R, F]
    dh1, dh3, _, dgates = bf16.swiglu_backward(
        None, None, h1, h3, gates, dispatch, experts=experts, gather=False, base=da, write_a=False,
        op="elementwise_backward",
    )  # fmt: skip
    if not need_x:
        return None, dgates
    dx_rows = w4.linear_dx(dh1, w1, dispatch, rows, dy2=dh3, w2=w3)  # [R, D]
    return bf16.combine(dx_rows, dispatch, top_k, dout.dtype, num_experts=experts), dgates


# -------------------------------------------------------------------------------------------------- delta experts


def _one_expert(rows: int, device: torch.device) -> ExpertDispatch:
    """A dispatch that sends every row to expert 0: dense int4 products run on the grouped kernels."""
    index = torch.arange(rows, device=device)
    offsets = torch.arange(2, dtype=torch.int32, device=device) * rows
    return ExpertDispatch(index, index, offsets)


def _dense(x: Tensor, w: Weight, pair: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
    """``x @ (w + scale * b @ a).T`` once per token: cuBLAS, or the int4 kernels with the weight as one expert."""
    if isinstance(w, Int4Weight):
        y = w4.linear(x, w, _one_expert(x.shape[0], x.device), x.shape[0])
        y = y.sum(0).to(x.dtype) if y.dim() == 3 else y
    else:
        y = torch.nn.functional.linear(x, w)
    if pair is not None:
        a, b = pair
        y = torch.addmm(y, x @ a.t(), b.t(), alpha=scale)
    return y


def _dense_dx(dy: Tensor, w: Weight, pair: tuple[Tensor, Tensor] | None, scale: float) -> Tensor:
    if isinstance(w, Int4Weight):
        dx = w4.linear_dx(dy, w, _one_expert(dy.shape[0], dy.device), dy.shape[0])
    else:
        dx = dy @ w
    if pair is not None:
        a, b = pair
        dx = torch.addmm(dx, dy @ b, a, alpha=scale)
    return dx


def _dense_dw(
    x: Tensor, dy: Tensor, pair: tuple[Tensor, Tensor] | None, scale: float, need: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dw = dy.t() @ x if need else None
    if pair is None:
        return dw, None, None
    a, b = pair
    return dw, ((dy @ b) * scale).t() @ x, dy.t() @ ((x @ a.t()) * scale)


def _pair(lr: LowRank | None, which: int) -> tuple[Tensor, Tensor] | None:
    return None if lr is None else (lr[2 * which - 2], lr[2 * which - 1])


def delta_forward(
    x: Tensor, w1: Weight, w2: Weight, w3: Weight, shared: LowRank | None, experts: LowRank, gates: Tensor,
    expert_ids: Tensor, scale: float, shared_scale: float, save: bool,
) -> tuple[Tensor, Saved | None]:  # fmt: skip
    """Base and shared products once per token, grouped low-rank products per row. x [T, D] -> [T, D]."""
    top_k, rows, count = expert_ids.shape[1], expert_ids.numel(), experts.a1.shape[0]
    dispatch = bf16.route(expert_ids, count)
    base1 = _dense(x, w1, _pair(shared, 1), shared_scale)  # [T, F]
    base3 = _dense(x, w3, _pair(shared, 3), shared_scale)  # [T, F]

    def down(value: Tensor, a: Tensor, gather: bool) -> Tensor:
        return bf16.grouped_gemm(value, a, dispatch, rows, top_k=top_k, gather=gather, op="low_rank_down")  # [R, r]

    act, h1, h3 = bf16.swiglu(
        down(x, experts.a1, True), experts.b1, experts.b3, dispatch, rows, top_k=top_k, gather=False,
        x2=down(x, experts.a3, True), base=(base1, base3), scale=scale, save_h=save, op="delta_swiglu",
    )  # fmt: skip
    mixed = bf16.combine(act, dispatch, top_k, x.dtype, gates, num_experts=count)  # [T, F]
    y = _dense(mixed, w2, _pair(shared, 2), shared_scale)  # [T, D]
    up = bf16.grouped_gemm(down(act, experts.a2, False), experts.b2, dispatch, rows, op="low_rank_up")  # [R, D]
    out = bf16.combine(up, dispatch, top_k, x.dtype, gates, base=y, scale=scale, num_experts=count)  # [T, D]
    return out, Saved(h1, h3, dispatch) if save else None


def delta_backward(
    dout: Tensor, x: Tensor, w1: Weight, w2: Weight, w3: Weight, shared: LowRank | None, experts: LowRank,
    gates: Tensor, saved: Saved, scale: float, shared_scale: float, needs: DeltaNeeds,
) -> DeltaGradients:  # fmt: skip
    """Every wanted gradient of `delta_forward`; an int4 base has none."""
    top_k, count = gates.shape[1], experts.a1.shape[0]
    h1, h3, dispatch = saved
    rows = h1.shape[0]
    trained = shared if needs.shared else None

    def back(dy: Tensor, b: Tensor, gather: bool = False) -> Tensor:  # dy @ b[e] -> [R, r]
        return bf16.grouped_gemm(
            dy, b, dispatch, rows, top_k=top_k, gather=gather, transposed=True, scale=scale, op="low_rank_down"
        )

    def down(value: Tensor, a: Tensor, gather: bool = False) -> Tensor:  # value @ a[e].T * scale -> [R, r]
        return bf16.grouped_gemm(value, a, dispatch, rows, top_k=top_k, gather=gather, scale=scale, op="low_rank_down")

    def dw(left: Tensor, right: Tensor, **gather: bool) -> Tensor:
        return bf16.weight_gradient(left, right, dispatch, rows, count, top_k=top_k, op="low_rank_gradient", **gather)

    dmixed = _dense_dx(dout, w2, _pair(shared, 2), shared_scale)  # [T, F]
    v = back(dout, experts.b2, gather=True)  # [R, r]
    want_a = needs.experts or needs.w2 or trained is not None
    dh1, dh3, ga, dgates = bf16.swiglu_backward(
        v, experts.a2, h1, h3, gates, dispatch, experts=count, gather=False, base=dmixed, gather_base=True,
        write_a=want_a, op="delta_swiglu_backward",
    )  # fmt: skip
    grads2: tuple[Tensor | None, ...] = (None, None, None)
    if needs.w2 or trained is not None:
        mixed = bf16.combine(ga, dispatch, top_k, x.dtype, num_experts=count)  # [T, F]
        grads2 = _dense_dw(mixed, dout, _pair(trained, 2), shared_scale, needs.w2)
    du1, du3 = back(dh1, experts.b1), back(dh3, experts.b3)  # [R, r]
    dexperts = None
    if needs.experts:
        dexperts = LowRank(
            a1=dw(x, du1, gather_x=True),
            b1=dw(down(x, experts.a1, True), dh1),
            a2=dw(ga, v),
            b2=dw(down(ga, experts.a2), dout, gather_dy=True),
            a3=dw(x, du3, gather_x=True),
            b3=dw(down(x, experts.a3, True), dh3),
        )
    dtoken1 = bf16.combine(dh1, dispatch, top_k, x.dtype, num_experts=count)  # [T, F]
    dtoken3 = bf16.combine(dh3, dispatch, top_k, x.dtype, num_experts=count)  # [T, F]
    grads1 = _dense_dw(x, dtoken1, _pair(trained, 1), shared_scale, needs.w1)
    grads3 = _dense_dw(x, dtoken3, _pair(trained, 3), shared_scale, needs.w3)
    dx = None
    if needs.x:
        base = _dense_dx(dtoken1, w1, _pair(shared, 1), shared_scale)  # [T, D]
        base = base + _dense_dx(dtoken3, w3, _pair(shared, 3), shared_scale)
        low = bf16.grouped_gemm(
            du1, experts.a1, dispatch, rows, transposed=True, x2=du3, w2=experts.a3, op="low_rank_up"
        )  # [R, D]
        dx = bf16.combine(low, dispatch, top_k, x.dtype, base=base, num_experts=count)  # [T, D]
    dshared = LowRank(*grads1[1:], *grads2[1:], *grads3[1:]) if trained is not None else None
    return DeltaGradients(dx, grads1[0], grads2[0], grads3[0], dshared, dexperts, dgates if needs.gates else None)


def dense_weight(w: Weight, dtype: torch.dtype) -> Tensor:
    """The full weight of an int4 one, in plain torch; anything else as it is."""
    return int4.unpack(w, dtype) if isinstance(w, Int4Weight) else w
