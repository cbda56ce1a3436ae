"""The CPU path of delta experts: one dense base, an optional shared low-rank delta, a low-rank delta per expert.

The down projection is linear, so with gates g_j and activations a_j of a token's experts
``sum_j g_j (W2 + B2_j A2_j) a_j = W2 (sum_j g_j a_j) + sum_j B2_j (g_j A2_j a_j)``: base and shared delta run once per
token, whatever K is. With K = 1 the tokens themselves are sorted by expert, so no tensor of width F is gathered.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K rows sorted by expert, r rank

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.experts import Window, linear, row_dots, sum_rows, swiglu_backward, token_of_row, windows
from kernels.dispatch import sort_by_expert
from kernels.low_rank import Pair, add_delta, add_delta_dx, factors_of, pair_of, weight_gradients
from kernels.packed import Packed, whole
from kernels.types import DeltaWeights, ExpertDispatch, Gradients, LowRank, Needs, Saved, accumulation_dtype

Base = Tensor | Packed


def _take(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(0, index)


def _indices(
    experts: LowRank | None, dispatch: ExpertDispatch, top_k: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Token of each row, order and inverse [R]; all None without experts, where rows are tokens."""
    if experts is None:
        return None, None, None
    return token_of_row(dispatch, top_k), dispatch.order, dispatch.inverse


def _runs(experts: LowRank | None, dispatch: ExpertDispatch, rows: int) -> list[tuple[Window, LowRank]]:
    """The window and the factors of each expert that has rows."""
    if experts is None:
        return []
    return [(run, experts.of_expert(run.expert)) for run in windows(dispatch.offsets, rows)]


def _gate_of_row(gates: Tensor, order: Tensor | None) -> Tensor:
    return _take(gates.reshape(-1), order).unsqueeze(1)  # [R, 1]


def delta_experts_fwd(
    x: Tensor, weights: DeltaWeights[Base], gates: Tensor, expert_ids: Tensor
) -> tuple[Tensor, Saved]:
    """Output [T, D] and what the backward needs. Without experts K must be 1, and the dispatch is empty."""
    w1, w2, w3, shared, experts, scale, shared_scale = weights
    top_k = expert_ids.shape[1]
    if experts is None:
        dispatch = ExpertDispatch(*(expert_ids.new_empty(0) for _ in range(3)))
    else:
        dispatch = sort_by_expert(expert_ids, experts.a1.shape[0])
    token, order, inverse = _indices(experts, dispatch, top_k)
    runs = _runs(experts, dispatch, expert_ids.numel())
    xs = _take(x, token)  # [R, D]
    base_in = xs if top_k == 1 else x
    h1 = add_delta(linear(base_in, w1), base_in, pair_of(shared, 1), shared_scale)  # [T, F]
    h3 = add_delta(linear(base_in, w3), base_in, pair_of(shared, 3), shared_scale)  # [T, F]
    if top_k > 1:
        h1, h3 = _take(h1, token), _take(h3, token)  # [R, F]
    for run, own in runs:
        for h, a, b in ((h1, own.a1, own.b1), (h3, own.a3, own.b3)):
            run.rows(h).addmm_(run.only_own(F.linear(run.rows(xs), a)), b.t(), alpha=scale)
    act = F.silu(h1).mul_(h3)  # [R, F]
    gate = _gate_of_row(gates, order)
    lows = [run.only_own(F.linear(run.rows(act), own.a2).mul_(run.rows(gate))) for run, own in runs]  # [rows, r]
    mixed = act.mul_(gate.to(x.dtype)) if top_k == 1 else sum_rows(act, dispatch, top_k, gates)  # [T, F]
    y = add_delta(linear(mixed, w2), mixed, pair_of(shared, 2), shared_scale)  # [T, D]
    rows = y if top_k == 1 else y.new_zeros(xs.shape)  # [R, D]
    for low, (run, own) in zip(lows, runs):
        run.rows(rows).addmm_(low, own.b2.t(), alpha=scale)
    y = _take(y, inverse) if top_k == 1 else _add_token_sums(y, rows, dispatch, top_k)
    return y, Saved(h1, h3, dispatch)


def _add_token_sums(y: Tensor, rows: Tensor, dispatch: ExpertDispatch, top_k: int) -> Tensor:
    """``y`` [T, D] plus the sum of each token's ``rows`` [R, D], in float32, one cast."""
    total = y.to(accumulation_dtype(y.dtype), copy=True)
    slots = dispatch.inverse.view(-1, top_k)  # [T, K]
    for j in range(top_k):
        total.add_(rows.index_select(0, slots[:, j]))
    return total.to(y.dtype)


def delta_experts_bwd(
    dout: Tensor, x: Tensor, weights: DeltaWeights[Base], gates: Tensor, saved: Saved, needs: Needs
) -> Gradients:
    """Every wanted gradient; low-rank products are recomputed, frozen base weights cost no product."""
    w1, w2, w3, shared, experts, scale, shared_scale = weights
    h1, h3, dispatch = saved
    top_k = gates.shape[1]
    token, order, inverse = _indices(experts, dispatch, top_k)
    runs = _runs(experts, dispatch, gates.numel())
    xs, dys = _take(x, token), _take(dout, token)  # [R, D]
    token_in, token_dy = (xs, dys) if top_k == 1 else (x, dout)  # [T, D]
    gate = _gate_of_row(gates, order)  # [R, 1]
    narrow = gate.to(x.dtype)  # for wide rows, as torch copies both sides of a product of two types
    silu = F.silu(h1)  # [R, F]
    act = silu * h3  # [R, F]
    dexperts = LowRank(*(torch.zeros_like(t) for t in experts)) if experts is not None and needs.experts else None
    trained = shared if needs.shared else None

    dmixed = linear(token_dy, whole(w2, x.dtype).t())  # [T, F]
    dmixed = add_delta_dx(dmixed, token_dy, pair_of(shared, 2), shared_scale)
    da = dmixed if top_k == 1 else _take(dmixed, token)  # [R, F]
    for run, own in runs:
        v = run.only_own((run.rows(dys) @ own.b2).mul_(scale))  # [rows, r]
        run.rows(da).addmm_(v, own.a2)
        if dexperts is not None:
            g, rows, grads = run.rows(gate), run.rows(act), dexperts.of_expert(run.expert)
            low = run.only_own(F.linear(rows, own.a2).mul_(g).mul_(scale))  # [rows, r]
            torch.mm(run.rows(dys).t(), low, out=grads.b2)
            torch.mm(v.mul_(g).t(), rows, out=grads.a2)
    dgates = _take(row_dots(da, act, gates.dtype), inverse).view_as(gates) if needs.gates else None  # [T, K]
    dw2: Tensor | None = None
    dpair2: Pair | None = None
    if needs.w2 or trained is not None:
        mixed = act.mul_(narrow) if top_k == 1 else sum_rows(act, dispatch, top_k, gates)  # [T, F]
        dw2, dpair2 = weight_gradients(mixed, token_dy, pair_of(trained, 2), shared_scale, needs.w2)
    dh1, dh3 = swiglu_backward(da.mul_(narrow), h1, h3, silu)  # [R, F]

    dxs = torch.zeros_like(xs) if needs.x and top_k > 1 and runs else None
    later = []  # with K = 1 the experts' parts of dx are added to the base's, once that is there
    for run, own in runs:
        inputs = run.rows(xs)
        for dh, a, b, which in ((dh1, own.a1, own.b1, 1), (dh3, own.a3, own.b3, 3)):
            du = run.only_own((run.rows(dh) @ b).mul_(scale))  # [rows, r]
            if dexperts is not None:
                da_out, db_out = dexperts.of_expert(run.expert).pair(which)
                torch.mm(du.t(), inputs, out=da_out)
                torch.mm(run.rows(dh).t(), run.only_own(F.linear(inputs, a).mul_(scale)), out=db_out)
            if dxs is not None:
                run.rows(dxs).addmm_(du, a)
            elif needs.x:
                later.append((run, du, a))
    if top_k > 1:
        dh1, dh3 = sum_rows(dh1, dispatch, top_k), sum_rows(dh3, dispatch, top_k)  # [T, F]
    dw1, dpair1 = weight_gradients(token_in, dh1, pair_of(trained, 1), shared_scale, needs.w1)
    dw3, dpair3 = weight_gradients(token_in, dh3, pair_of(trained, 3), shared_scale, needs.w3)
    dx = None
    if needs.x:
        dx = add_delta_dx(linear(dh1, whole(w1, x.dtype).t()), dh1, pair_of(shared, 1), shared_scale)  # [T, D]
        dx.add_(add_delta_dx(linear(dh3, whole(w3, x.dtype).t()), dh3, pair_of(shared, 3), shared_scale))
        for run, du, a in later:
            run.rows(dx).addmm_(du, a)
        dx = _take(dx, inverse) if dxs is None else _add_token_sums(dx, dxs, dispatch, top_k)
    return Gradients(dx, dw1, dw2, dw3, dgates, factors_of(dpair1, dpair2, dpair3), dexperts)
