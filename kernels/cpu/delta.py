"""The CPU path of delta experts: one dense base, an optional shared low-rank delta, a low-rank delta per expert.

The down projection is linear, so with gates g_j and activations a_j of a token's experts
``sum_j g_j (W2 + B2_j A2_j) a_j = W2 (sum_j g_j a_j) + sum_j B2_j (g_j A2_j a_j)``: base and shared delta run once per
token, whatever K is. With K = 1 the tokens themselves are put in expert order, so no F-wide tensor is ever gathered.

Shape legend: T tokens, K experts per token, R = T*K rows sorted by expert, E experts, D model width, F hidden width,
r rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.decode import chosen_experts, weighted_sum
from kernels.cpu.experts import Window, linear, row_dots, sum_rows, swiglu_backward, token_of_row, windows
from kernels.dispatch import ExpertDispatch, LowRank, sort_by_expert
from kernels.reference import accumulation_dtype


class DeltaGradients(NamedTuple):
    x: Tensor | None
    w1: Tensor | None
    w2: Tensor | None
    w3: Tensor | None
    shared: LowRank | None
    experts: LowRank | None
    gates: Tensor | None


class DeltaNeeds(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    w1: bool
    w2: bool
    w3: bool
    shared: bool
    experts: bool
    gates: bool


def _pair(lr: LowRank, which: int, e: int | None = None) -> tuple[Tensor, Tensor]:
    """``(a, b)`` of weight 1, 2 or 3; of expert e where the tensors are stacked."""
    a, b = lr[2 * which - 2], lr[2 * which - 1]
    return (a, b) if e is None else (a[e], b[e])


def _take(tensor: Tensor, index: Tensor | None) -> Tensor:
    return tensor if index is None else tensor.index_select(0, index)


def _linear(x: Tensor, w: Tensor, shared: LowRank | None, which: int, scale: float) -> Tensor:
    """``x @ (w + scale * b @ a).T`` without building the sum."""
    y = linear(x, w)
    if shared is not None:
        a, b = _pair(shared, which)
        y.addmm_(F.linear(x, a), b.t(), alpha=scale)
    return y


def _linear_dx(dy: Tensor, w: Tensor, shared: LowRank | None, which: int, scale: float) -> Tensor:
    dx = linear(dy, w.t())
    if shared is not None:
        a, b = _pair(shared, which)
        dx.addmm_(dy @ b, a, alpha=scale)
    return dx


def _low_rank_dw(x: Tensor, dy: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Gradients of ``a`` and ``b`` in ``y = scale * (x @ a.T) @ b.T``."""
    return (dy @ b).mul_(scale).t() @ x, dy.t() @ F.linear(x, a).mul_(scale)


def _plan(
    gates: Tensor, expert_ids: Tensor, num_experts: int | None
) -> tuple[ExpertDispatch | None, Tensor | None, list[Window]]:
    """Dispatch, token of each sorted row, the experts' windows; (None, None, []) where there are no experts."""
    if num_experts is None:
        return None, None, []
    dispatch = sort_by_expert(expert_ids, num_experts)
    return dispatch, token_of_row(dispatch, gates.shape[1]), windows(dispatch.offsets, expert_ids.numel())


def _gate_of_row(gates: Tensor, dispatch: ExpertDispatch | None) -> Tensor:
    flat = gates.reshape(-1)
    return _take(flat, None if dispatch is None else dispatch.order).unsqueeze(1)  # [R, 1]


def delta_experts_fwd(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    shared: LowRank | None,
    experts: LowRank | None,
    gates: Tensor,
    expert_ids: Tensor,
    scale: float,
    shared_scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, D] and the pre-activations h1, h3 [R, F] in expert order. Without experts K must be 1."""
    top_k = expert_ids.shape[1]
    dispatch, token, runs = _plan(gates, expert_ids, experts.a1.shape[0] if experts is not None else None)
    xs = _take(x, token)  # [R, D]
    base_in = xs if top_k == 1 else x
    h1 = _linear(base_in, w1, shared, 1, shared_scale)  # [T, F]
    h3 = _linear(base_in, w3, shared, 3, shared_scale)  # [T, F]
    if top_k > 1:
        h1, h3 = h1.index_select(0, token), h3.index_select(0, token)  # [R, F]
    for run in runs:
        for h, which in ((h1, 1), (h3, 3)):
            a, b = _pair(experts, which, run.expert)
            run.rows(h).addmm_(run.only_own(F.linear(run.rows(xs), a)), b.t(), alpha=scale)
    act = F.silu(h1).mul_(h3)  # [R, F]
    gate = _gate_of_row(gates, dispatch)
    lows = [run.only_own(F.linear(run.rows(act), experts.a2[run.expert]).mul_(run.rows(gate))) for run in runs]
    mixed = act.mul_(gate) if top_k == 1 else sum_rows(act, dispatch, top_k, gates)  # [T, F]
    y = _linear(mixed, w2, shared, 2, shared_scale)  # [T, D]
    rows = y if top_k == 1 else y.new_zeros(xs.shape)  # [R, D]
    for low, run in zip(lows, runs):  # low [rows, r]
        run.rows(rows).addmm_(low, experts.b2[run.expert].t(), alpha=scale)
    if top_k > 1:
        y = _add_token_sums(y, rows, dispatch, top_k)
    return _take(y, None if dispatch is None or top_k > 1 else dispatch.inverse), h1, h3


def _add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``y + scale * b @ a @ x`` for vectors x [columns], y [rows]."""
    return torch.addmv(y, b, torch.mv(a, x), alpha=scale)


def delta_experts_decode(
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    shared: LowRank | None,
    experts: LowRank | None,
    gates: Tensor,
    expert_ids: Tensor,
    scale: float,
    shared_scale: float,
) -> Tensor:
    """:func:`delta_experts_fwd` for one token without a gradient: x [1, D] -> [1, D], nothing sorted or gathered."""
    row, gate = x[0], gates.tolist()[0]  # [D]
    h1, h3 = linear(x, w1)[0], linear(x, w3)[0]  # [F]
    if shared is not None:
        h1 = _add_low_rank(h1, row, shared.a1, shared.b1, shared_scale)
        h3 = _add_low_rank(h3, row, shared.a3, shared.b3, shared_scale)
    chosen = chosen_experts(expert_ids, experts.a1.shape[0]) if experts is not None else []
    acts = []
    for e in chosen:
        up = _add_low_rank(h3, row, experts.a3[e], experts.b3[e], scale)
        acts.append(F.silu(_add_low_rank(h1, row, experts.a1[e], experts.b1[e], scale)).mul_(up))
    if not chosen:
        acts.append(F.silu(h1).mul_(h3))
    mixed = weighted_sum(acts, gate, x.dtype)  # [F]
    y = linear(mixed.unsqueeze(0), w2)[0]  # [D]
    if shared is not None:
        y = _add_low_rank(y, mixed, shared.a2, shared.b2, shared_scale)
    for e, act, g in zip(chosen, acts, gate):
        y = _add_low_rank(y, act, experts.a2[e], experts.b2[e], scale * g)
    return y.unsqueeze(0)


def _add_token_sums(y: Tensor, rows: Tensor, dispatch: ExpertDispatch, top_k: int) -> Tensor:
    """``y`` [T, D] plus the sum of each token's ``rows`` [R, D], in float32, one cast."""
    total = y.to(accumulation_dtype(y.dtype), copy=True)
    slots = dispatch.inverse.view(-1, top_k)  # [T, K]
    for j in range(top_k):
        total.add_(rows.index_select(0, slots[:, j]))
    return total.to(y.dtype)


def delta_experts_bwd(
    dout: Tensor,
    x: Tensor,
    w1: Tensor,
    w2: Tensor,
    w3: Tensor,
    shared: LowRank | None,
    experts: LowRank | None,
    gates: Tensor,
    expert_ids: Tensor,
    h1: Tensor,
    h3: Tensor,
    scale: float,
    shared_scale: float,
    needs: DeltaNeeds,
) -> DeltaGradients:
    """Every wanted gradient; products of low rank are recomputed, frozen base weights cost no product."""
    top_k = expert_ids.shape[1]
    dispatch, token, runs = _plan(gates, expert_ids, experts.a1.shape[0] if experts is not None else None)
    xs = _take(x, token)  # [R, D]
    dys = _take(dout, token)  # [R, D]
    token_in, token_dy = (xs, dys) if top_k == 1 else (x, dout)  # [T, D]
    gate = _gate_of_row(gates, dispatch)  # [R, 1]
    silu = F.silu(h1)  # [R, F]
    act = silu * h3  # [R, F]
    dexp = LowRank(*(torch.zeros_like(t) for t in experts)) if experts is not None and needs.experts else None

    dmixed = _linear_dx(token_dy, w2, shared, 2, shared_scale)  # [T, F]
    da = dmixed if top_k == 1 else dmixed.index_select(0, token)  # [R, F]
    for run in runs:
        a2, b2 = _pair(experts, 2, run.expert)
        v = run.only_own((run.rows(dys) @ b2).mul_(scale))  # [rows, r]
        run.rows(da).addmm_(v, a2)
        if dexp is not None:
            g, rows = run.rows(gate), run.rows(act)
            low = run.only_own(F.linear(rows, a2).mul_(g).mul_(scale))  # [rows, r]
            torch.mm(run.rows(dys).t(), low, out=dexp.b2[run.expert])
            torch.mm(v.mul_(g).t(), rows, out=dexp.a2[run.expert])
    dgates = None
    if needs.gates:
        rows = row_dots(da, act, gates.dtype)  # [R]
        dgates = _take(rows, None if dispatch is None else dispatch.inverse).view_as(gates)
    grads2: tuple[Tensor | None, ...] = (None, None, None)
    if needs.w2 or (shared is not None and needs.shared):
        mixed = act.mul_(gate) if top_k == 1 else sum_rows(act, dispatch, top_k, gates)  # [T, F]
        grads2 = _base_dw(mixed, token_dy, shared if needs.shared else None, 2, shared_scale, needs.w2)
    dh1, dh3 = swiglu_backward(da.mul_(gate), h1, h3, silu)  # [R, F]

    dxs = torch.zeros_like(xs) if needs.x and top_k > 1 and runs else None
    later = []
    for run in runs:
        inputs = run.rows(xs)
        for dh, which in ((dh1, 1), (dh3, 3)):
            a, b = _pair(experts, which, run.expert)
            du = run.only_own((run.rows(dh) @ b).mul_(scale))  # [rows, r]
            if dexp is not None:
                da_out, db_out = _pair(dexp, which, run.expert)
                torch.mm(du.t(), inputs, out=da_out)
                torch.mm(run.rows(dh).t(), run.only_own(F.linear(inputs, a).mul_(scale)), out=db_out)
            if dxs is not None:
                run.rows(dxs).addmm_(du, a)
            elif needs.x:
                later.append((run, du, a))
    if top_k > 1:
        dh1, dh3 = sum_rows(dh1, dispatch, top_k), sum_rows(dh3, dispatch, top_k)  # [T, F]
    trained = shared if needs.shared else None
    grads1 = _base_dw(token_in, dh1, trained, 1, shared_scale, needs.w1)
    grads3 = _base_dw(token_in, dh3, trained, 3, shared_scale, needs.w3)
    dx = None
    if needs.x:
        dx = _linear_dx(dh1, w1, shared, 1, shared_scale)  # [T, D]
        dx.add_(_linear_dx(dh3, w3, shared, 3, shared_scale))
        for run, du, a in later:
            run.rows(dx).addmm_(du, a)
        if dxs is not None:
            dx = _add_token_sums(dx, dxs, dispatch, top_k)
        elif dispatch is not None:
            dx = dx.index_select(0, dispatch.inverse)
    dshared = LowRank(*grads1[1:], *grads2[1:], *grads3[1:]) if trained is not None else None
    return DeltaGradients(dx, grads1[0], grads2[0], grads3[0], dshared, dexp, dgates)


def _base_dw(
    x: Tensor, dy: Tensor, shared: LowRank | None, which: int, scale: float, need_weight: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the base weight and of the shared pair that acts beside it, each where wanted."""
    dw = dy.t() @ x if need_weight else None
    if shared is None:
        return dw, None, None
    return dw, *_low_rank_dw(x, dy, *_pair(shared, which), scale)
