"""Whole layers out of the launches: forward and backward of full and delta experts, dense or int4.

A backward recomputes what costs less than keeping it: of the tensors of shape [R, F] only the two pre-activations are
saved. All sums run in a fixed order, so gradients are bitwise repeatable.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K rows sorted by expert, r rank

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.gpu import launch as bf16
from kernels.gpu import launch_w4 as w4
from kernels.gpu import tile_tables
from kernels.gpu.launch_delta import delta_swiglu, low_rank_gradient
from kernels.gpu.launch_gradient import weight_gradient
from kernels.int4 import Int4Weight
from kernels.low_rank import Pair, add_delta, add_delta_dx, factors_of, pair_of, weight_gradients
from kernels.types import DeltaWeights, ExpertDispatch, Gradients, LowRank, Needs, Saved

AnyDelta = DeltaWeights[Tensor] | DeltaWeights[Int4Weight]


def experts_forward(
    x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Saved | None]:
    """Four launches, many rows on sm_90 five: route, up products, down product, combine. x [T, D] -> [T, D]."""
    top_k = expert_ids.shape[1]
    dispatch = bf16.route(expert_ids, w1.shape[0])
    a, h1, h3 = bf16.swiglu(x, w1, w3, dispatch, save)  # [R, F]
    y = bf16.grouped_gemm("gemm", a, w2, dispatch)  # [R, D]
    return bf16.combine(y, dispatch, top_k, x.dtype, gates), _saved(h1, h3, dispatch)


def _saved(h1: Tensor | None, h3: Tensor | None, dispatch: ExpertDispatch) -> Saved | None:
    return None if h1 is None or h3 is None else Saved(h1, h3, dispatch)


def experts_backward(
    dout: Tensor, x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, saved: Saved, needs: Needs
) -> Gradients:
    """Every wanted gradient of `experts_forward`."""
    h1, h3, dispatch = saved
    dtype, tokens = x.dtype, not bf16.takes_descriptors(x, w1, dispatch)  # whether kernels read rows at their token
    if not tokens:  # or from a copy in their order, which several need
        x, dout = bf16.gather_rows(x, dispatch), bf16.gather_rows(dout, dispatch)
    if bf16.splits_backward(dout, dispatch):
        da = bf16.grouped_gemm("gemm_dx", dout, w2, dispatch, gather=tokens, transposed=True)  # [R, F]
        dh, dgates = bf16.swiglu_backward(
            "elementwise_backward", None, None, h1, h3, gates, dispatch, base=da, write_a=needs.w2
        )
    else:
        dh, dgates = bf16.swiglu_backward("swiglu_backward", dout, w2, h1, h3, gates, dispatch, write_a=needs.w2)
    dh1, dh3, *ga = dh  # [R, F]
    dx = None
    if needs.x:
        dx_rows = bf16.grouped_gemm("gemm_dx", dh1, w1, dispatch, transposed=True, x2=dh3, w2=w3)  # [R, D]
        dx = bf16.combine(dx_rows, dispatch, gates.shape[1], dtype)  # [T, D]
    return Gradients(
        x=dx,
        w1=weight_gradient(x, dh1, dispatch, gather_x=tokens) if needs.w1 else None,
        w2=weight_gradient(ga[0], dout, dispatch, gather_dy=tokens) if needs.w2 else None,
        w3=weight_gradient(x, dh3, dispatch, gather_x=tokens) if needs.w3 else None,
        gates=dgates if needs.gates else None,
    )


# --------------------------------------------------------------------------------------------------- int4 experts


def int4_experts_forward(
    x: Tensor, w1: Int4Weight, w2: Int4Weight, w3: Int4Weight, gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Saved | None]:
    """`experts_forward` with int4 weights. x [T, D] -> [T, D]."""
    top_k = expert_ids.shape[1]
    dispatch = bf16.route(expert_ids, w1.shape3[0])
    a, h1, h3 = w4.swiglu(x, w1, w3, dispatch, save)  # [R, F]
    y = w4.linear(a, w2, dispatch)  # [R, D] or [S, R, D]
    return bf16.combine(y, dispatch, top_k, x.dtype, gates), _saved(h1, h3, dispatch)


def int4_experts_backward(
    dout: Tensor, w1: Int4Weight, w2: Int4Weight, w3: Int4Weight, gates: Tensor, saved: Saved, needs: Needs
) -> Gradients:
    """Gradients of x and the gates; the int4 weights are frozen."""
    h1, h3, dispatch = saved
    da = w4.linear_dx(dout, w2, dispatch, gather=True)  # [R, F]
    (dh1, dh3), dgates = bf16.swiglu_backward(
        "elementwise_backward", None, None, h1, h3, gates, dispatch, base=da, write_a=False
    )  # [R, F]
    dx = None
    if needs.x:
        dx_rows = w4.linear_dx(dh1, w1, dispatch, dy2=dh3, w2=w3)  # [R, D]
        dx = bf16.combine(dx_rows, dispatch, gates.shape[1], dout.dtype)  # [T, D]
    return Gradients(dx, None, None, None, dgates if needs.gates else None)


# -------------------------------------------------------------------------------------------------- delta experts


def _one_expert(rows: int, device: torch.device) -> ExpertDispatch:
    """A dispatch that sends every row to expert 0: dense int4 products run on the grouped kernels."""
    index = torch.arange(rows, device=device)
    offsets = torch.arange(2, dtype=torch.int32, device=device) * rows
    return ExpertDispatch(index, index, offsets)


def _decoded(w: Tensor | Int4Weight, x: Tensor) -> Tensor | Int4Weight:
    """For many rows x an int4 weight is decoded whole: it costs one pass, and cuBLAS is faster by more."""
    if isinstance(w, Int4Weight) and x.shape[0] > tile_tables.W4_DEQUANTIZE_ROWS:
        return w4.dequantize(w, x.dtype)[0]
    return w


def _base(x: Tensor, w: Tensor | Int4Weight, pair: Pair | None, scale: float) -> Tensor:
    """``x @ (w + scale * b @ a).T`` once per token: cuBLAS, or the int4 kernels with the weight as one expert."""
    w = _decoded(w, x)
    if isinstance(w, Int4Weight):
        y = w4.linear(x, w, _one_expert(x.shape[0], x.device))
        y = y.sum(0).to(x.dtype) if y.dim() == 3 else y
    else:
        y = F.linear(x, w)
    return add_delta(y, x, pair, scale)


def _base_dx(dy: Tensor, w: Tensor | Int4Weight, pair: Pair | None, scale: float, dy_b: Tensor | None) -> Tensor:
    """The gradient of `_base`'s x; ``dy_b`` is dy @ b."""
    w = _decoded(w, dy)
    dx = w4.linear_dx(dy, w, _one_expert(dy.shape[0], dy.device)) if isinstance(w, Int4Weight) else dy @ w
    return add_delta_dx(dx, dy, pair, scale, dy_b)


def _narrow_factors(weights: AnyDelta, dtype: torch.dtype) -> tuple[LowRank | None, LowRank, Tensor, Tensor]:
    """Shared and experts' factors in ``dtype``, in one copy; of the latter a1, a3 [2, E, r, D] and b1, b3 stacked."""
    assert weights.experts is not None
    a, b = (t.new_empty(2, *t.shape, dtype=dtype) for t in weights.experts.pair(1))
    a2, b2 = (torch.empty_like(t, dtype=dtype) for t in weights.experts.pair(2))
    experts = LowRank(a[0], b[0], a2, b2, a[1], b[1])
    shared = weights.shared and LowRank(*(torch.empty_like(t, dtype=dtype) for t in weights.shared))
    torch._foreach_copy_([*experts, *(shared or ())], [*weights.experts, *(weights.shared or ())])
    return shared, experts, a, b


def delta_forward(
    x: Tensor, weights: AnyDelta, gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Saved | None]:
    """Base and shared products once per token, grouped low-rank products per row. x [T, D] -> [T, D].

    The factors may be wider than x; products take them in its dtype.
    """
    w1, w2, w3, shared, experts, scale, shared_scale = weights
    assert experts is not None
    a: Tensor | None = None
    if experts.a1.dtype != x.dtype:
        shared, experts, a, _ = _narrow_factors(weights, x.dtype)
    top_k = expert_ids.shape[1]
    dispatch = bf16.route(expert_ids, experts.a1.shape[0])
    base = (_base(x, w1, pair_of(shared, 1), shared_scale), _base(x, w3, pair_of(shared, 3), shared_scale))  # [T, F]
    if a is None:  # narrow factors lie apart, and for few tokens another launch costs less than copying them
        low1, low3 = (bf16.grouped_gemm("low_rank_down", x, w, dispatch, gather=True) for w in (experts.a1, experts.a3))
    else:
        low1, low3 = bf16.grouped_gemm("low_rank_down", x, a, dispatch, gather=True)  # [R, r]
    act, h1, h3 = delta_swiglu(low1, low3, experts.b1, experts.b3, base, dispatch, scale, save)  # [R, F]
    mixed = bf16.combine(act, dispatch, top_k, x.dtype, gates)  # [T, F]
    y = _base(mixed, w2, pair_of(shared, 2), shared_scale)  # [T, D]
    low2 = bf16.grouped_gemm("low_rank_down", act, experts.a2, dispatch)  # [R, r]
    up = bf16.grouped_gemm("low_rank_up", low2, experts.b2, dispatch)  # [R, D]
    out = bf16.combine(up, dispatch, top_k, x.dtype, gates, base=y, scale=scale)  # [T, D]
    return out, _saved(h1, h3, dispatch)


def delta_backward(dout: Tensor, x: Tensor, weights: AnyDelta, gates: Tensor, saved: Saved, needs: Needs) -> Gradients:
    """Every wanted gradient of `delta_forward`; an int4 base has none. Those of experts' factors are float32."""
    w1, w2, w3, _, _, scale, shared_scale = weights
    shared, experts, a, b = _narrow_factors(weights, x.dtype)
    h1, h3, dispatch = saved
    top_k = gates.shape[1]
    trained = shared if needs.shared else None

    def down(value: Tensor, w: Tensor, gather: bool = False, transposed: bool = False) -> Tensor:
        """scale * value @ w[e].T, or scale * value @ w[e] if transposed -> [R, r], of two w's [2, R, r]."""
        return bf16.grouped_gemm(
            "low_rank_down", value, w, dispatch, gather=gather, transposed=transposed, scale=scale
        )  # fmt: skip

    def times_b(dy: Tensor, which: int) -> Tensor | None:
        """dy @ b of the shared pair, which two gradients need -> [T, r]."""
        return None if shared is None else dy @ shared.pair(which)[1]

    low2 = times_b(dout, 2)
    dmixed = _base_dx(dout, w2, pair_of(shared, 2), shared_scale, low2)  # [T, F]
    v = down(dout, experts.b2, gather=True, transposed=True)  # [R, r]
    dh, dgates = bf16.swiglu_backward(
        "delta_swiglu_backward", v, experts.a2, h1, h3, gates, dispatch, base=dmixed,
        write_a=needs.experts or needs.w2 or trained is not None,
    )  # fmt: skip
    du = down(dh[:2], b, transposed=True)  # [2, R, r]
    dexperts = None
    if needs.experts:
        da1, da3 = low_rank_gradient(x, du, dispatch, gather_x=True)
        db1, db3 = low_rank_gradient(down(x, a, gather=True), dh[:2], dispatch)
        da2 = low_rank_gradient(dh[2], v, dispatch)
        db2 = low_rank_gradient(down(dh[2], experts.a2), dout, dispatch, gather_dy=True)
        dexperts = LowRank(da1, db1, da2, db2, da3, db3)
    of_tokens = needs.w2 or trained is not None
    token1, token3, *mixed = bf16.combine(dh if of_tokens else dh[:2], dispatch, top_k, x.dtype, each=True)  # [T, F]
    dw2: Tensor | None = None
    dpair2: Pair | None = None
    if of_tokens:
        dw2, dpair2 = weight_gradients(mixed[0], dout, pair_of(trained, 2), shared_scale, needs.w2, low2)
    low1, low3 = times_b(token1, 1), times_b(token3, 3)
    dw1, dpair1 = weight_gradients(x, token1, pair_of(trained, 1), shared_scale, needs.w1, low1)
    dw3, dpair3 = weight_gradients(x, token3, pair_of(trained, 3), shared_scale, needs.w3, low3)
    dx = None
    if needs.x:
        base = _base_dx(token1, w1, pair_of(shared, 1), shared_scale, low1)  # [T, D]
        base += _base_dx(token3, w3, pair_of(shared, 3), shared_scale, low3)
        low = bf16.grouped_gemm("low_rank_up", du[0], a[0], dispatch, transposed=True, x2=du[1], w2=a[1])  # [R, D]
        dx = bf16.combine(low, dispatch, top_k, x.dtype, base=base)  # [T, D]
    dshared = factors_of(dpair1, dpair2, dpair3)
    return Gradients(dx, dw1, dw2, dw3, dgates if needs.gates else None, dshared, dexperts)
