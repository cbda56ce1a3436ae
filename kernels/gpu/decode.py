"""What surrounds the large products of a step of generation, one token a row: few kernels, as each takes 2 us to start.

Each rounds where the model's own operations round, so that a step chooses the same experts and tokens.
"""

# R rows, D model dim, H query heads, G key/value heads, C head dim, E experts, K top-k

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.common import cast, dot, kernel


@triton.jit
def _weights(w_ptr, first, N: tl.constexpr, D: tl.constexpr, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """Rows [COUNT, BLOCK] from ``first`` on of a matrix [N, D]."""
    rows, columns = first + tl.arange(0, COUNT)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.load(w_ptr + rows * D + columns, mask=(rows < N) & (columns < D), other=0.0)


@triton.jit
def _normed(x, weight, eps, dtype: tl.constexpr, D: tl.constexpr):
    """RMS norm of x in ``dtype``, rounded before the weight and after it."""
    normed = cast(x * tl.rsqrt(tl.sum(x * x, 0) / D + eps), dtype)
    return cast(normed.to(tl.float32) * weight, dtype)


@triton.jit
def _decide(
    x, weight, gate_ptr, bias_ptr, logits_ptr, gates_ptr, ids_ptr, row,
    D: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr, BLOCK: tl.constexpr, E_PAD: tl.constexpr,
    E_STEP: tl.constexpr,
):  # fmt: skip
    """Experts and gates of a token x [BLOCK] as `moe.router.select_top_k` has them; of equal experts the first.

    ``weight``: rows of the gate of the first experts.
    """
    experts = tl.arange(0, E_PAD)
    logits = tl.zeros((E_PAD,), tl.float32)
    for first in range(0, E, E_STEP):
        found = tl.sum(weight.to(tl.float32) * x[None, :], 1)  # [E_STEP]
        some = first + tl.arange(0, E_STEP)
        logits += tl.sum(tl.where(experts[:, None] == some[None, :], found[None, :], 0.0), 1)
        weight = _weights(gate_ptr, first + E_STEP, E, D, E_STEP, BLOCK)
    real = experts < E
    dtype = gate_ptr.dtype.element_ty
    logits = cast(logits, dtype)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + row * E + experts, mask=real, other=0.0).to(tl.float32)
        logits = cast(logits.to(tl.float32) + cast(bias, dtype).to(tl.float32), dtype)
    tl.store(logits_ptr + row * E + experts, logits, mask=real)
    wide = tl.where(real, logits.to(tl.float32), -float("inf"))
    likely = tl.exp(wide - tl.max(wide, 0))
    likely = likely / tl.sum(likely, 0)
    left = tl.where(real, tl.where(likely == likely, likely, 2.0), -1.0)  # NaN comes first, as in torch
    rank = tl.full((E_PAD,), TOPK, tl.int32)
    for place in tl.static_range(TOPK):
        best = tl.min(tl.where(left == tl.max(left, 0), experts, E_PAD), 0)
        rank = tl.where(experts == best, place, rank)
        left = tl.where(experts == best, -1.0, left)
    chosen = rank < TOPK
    gates = likely / tl.sum(tl.where(chosen, likely, 0.0), 0)
    rest = tl.sum(tl.where(chosen & (rank > 0), gates, 0.0), 0)
    tl.store(gates_ptr + row * TOPK + rank, tl.where(rank == 0, 1.0 - rest, gates), mask=chosen)
    tl.store(ids_ptr + row * TOPK + rank, experts.to(tl.int64), mask=chosen)


@kernel
def norm_kernel(
    x_ptr, y_ptr, weight_ptr, out_ptr, gate_ptr, bias_ptr, logits_ptr, gates_ptr, ids_ptr, eps,
    D: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr, BLOCK: tl.constexpr, E_PAD: tl.constexpr,
    E_STEP: tl.constexpr,
):  # fmt: skip
    """``x += y`` (if given), ``out = rms_norm(x) * weight``, and the router's decision by out (if there is a gate)."""
    row, columns = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    mask, at = columns < D, row * D + columns
    dtype = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    gate = None
    if gate_ptr is not None:  # loads that wait for nothing come first
        gate = _weights(gate_ptr, 0, E, D, E_STEP, BLOCK)
    if y_ptr is not None:
        total = cast(x + tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32), dtype)
        tl.store(x_ptr + at, total, mask=mask)
        x = total.to(tl.float32)
    out = _normed(x, weight, eps, dtype, D)
    tl.store(out_ptr + at, out, mask=mask)
    if gate_ptr is not None:
        _decide(
            out.to(tl.float32), gate, gate_ptr, bias_ptr, logits_ptr, gates_ptr, ids_ptr, row, D, E, TOPK, BLOCK,
            E_PAD, E_STEP,
        )  # fmt: skip


@kernel
def gemv_kernel(
    x_ptr, y_ptr, norm_ptr, w_ptr, bias_ptr, sum_ptr, out_ptr, eps,
    N: tl.constexpr, D: tl.constexpr, BN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``out = w @ rms_norm(x + y) + bias`` of one token, w [N, D]; without y or norm those parts fall away.

    The first program keeps ``x + y``. All weights of a program are on their way before it knows what to multiply.
    """
    first, columns = tl.program_id(0) * BN, tl.arange(0, BLOCK)
    mask = columns < D
    dtype = x_ptr.dtype.element_ty
    w = _weights(w_ptr, first, N, D, BN, BLOCK)
    x = tl.load(x_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    if y_ptr is not None:
        total = cast(x + tl.load(y_ptr + columns, mask=mask, other=0.0).to(tl.float32), dtype)
        if first == 0:
            tl.store(sum_ptr + columns, total, mask=mask)
        x = total.to(tl.float32)
    if norm_ptr is not None:
        weight = tl.load(norm_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        x = _normed(x, weight, eps, dtype, D).to(tl.float32)
    found = tl.sum(w.to(tl.float32) * x[None, :], 1)
    rows = first + tl.arange(0, BN)
    if bias_ptr is not None:
        found += tl.load(bias_ptr + rows, mask=rows < N, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, cast(found, dtype), mask=rows < N)


@triton.jit
def _turned(start, columns, cos, sin, mask, C: tl.constexpr):
    """Rotary embedding of what lies at ``start`` + columns [..., C], rounded after each operation, in float32."""
    dtype = start.dtype.element_ty
    lower = columns < C // 2
    x = tl.load(start + columns, mask=mask, other=0.0).to(tl.float32)
    other = tl.load(start + tl.where(lower, columns + C // 2, columns - C // 2), mask=mask, other=0.0).to(tl.float32)
    turned = cast(x * cos, dtype).to(tl.float32) + cast(tl.where(lower, -other, other) * sin, dtype).to(tl.float32)
    return cast(turned, dtype).to(tl.float32)


@kernel
def attend_kernel(
    heads_ptr, positions_ptr, cos_ptr, sin_ptr, cache_ptr, out_ptr, max_ptr, sum_ptr, tokens, slots, scale,
    H: tl.constexpr, G: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr, SPLITS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Rotary embeddings, the new key and value into the cache, and attention of a group's queries to a share of it.

    A token lies in slot ``position % slots``. The new one comes from heads [R, H + 2G, C]; no program reads its slot.
    With more than one split ``out`` [SPLITS, R, H, C] is unnormalized, and max and sum [SPLITS, R, H] are kept.
    """
    row, group, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    share: tl.constexpr = H // G
    members, columns, local = tl.arange(0, BM), tl.arange(0, BC), tl.arange(0, BN)
    inner = columns < C
    kept = cache_ptr.dtype.element_ty
    position = tl.load(positions_ptr + row)
    cos = tl.load(cos_ptr + position * C + columns, mask=inner, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + position * C + columns, mask=inner, other=0.0).to(tl.float32)
    start = heads_ptr + row * (H + 2 * G) * C
    mask = (members < share)[:, None] & inner[None, :]
    at = (group * share + members) * C
    q = _turned(start + at[:, None], columns[None, :], cos[None, :], sin[None, :], mask, C)  # [BM, BC]
    q = cast(q, kept)
    keys = cache_ptr + (row * 2 * G + group) * slots * C
    values = keys + G * slots.to(tl.int64) * C
    best = tl.full((BM,), -1e30, tl.float32)  # of no key; -inf less -inf would be NaN
    total = tl.zeros((BM,), tl.float32)
    acc = tl.zeros((BM, BC), tl.float32)
    if split == 0:
        key = cast(_turned(start + (H + group) * C, columns, cos, sin, inner, C), kept)
        value = cast(tl.load(start + (H + G + group) * C + columns, mask=inner, other=0.0).to(tl.float32), kept)
        slot = position % slots
        tl.store(keys + slot * C + columns, key, mask=inner)
        tl.store(values + slot * C + columns, value, mask=inner)
        best = tl.sum(q.to(tl.float32) * key.to(tl.float32)[None, :], 1) * scale
        total += 1.0
        acc += value.to(tl.float32)[None, :]
    position = position.to(tl.int32)
    filled = tl.minimum(position, slots)
    part = (filled + BN * SPLITS - 1) // (BN * SPLITS) * BN
    for first in range(split * part, tl.minimum((split + 1) * part, filled), BN):
        slot = first + local
        age = (position + slots - slot) % slots  # what an older token left; the new one's slot has none
        seen = (slot < filled) & (age > 0)
        if WINDOW is not None:
            seen = seen & (age < WINDOW)
        old = slot[:, None] * C + columns[None, :]
        read = seen[:, None] & inner[None, :]
        scores = dot(q, tl.trans(tl.load(keys + old, mask=read, other=0.0)), tl.zeros((BM, BN), tl.float32)) * scale
        scores = tl.where(seen[None, :], scores, -float("inf"))
        higher = tl.maximum(best, tl.max(scores, 1))
        weights, shrink = tl.exp(scores - higher[:, None]), tl.exp(best - higher)
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(values + old, mask=read, other=0.0)
        acc = dot(cast(weights, kept), value, acc * shrink[:, None])
        best = higher
    target = (split * tokens + row) * H + group * share + members  # [BM]
    if SPLITS == 1:
        acc = acc / total[:, None]
    else:
        tl.store(max_ptr + target, best, mask=members < share)
        tl.store(sum_ptr + target, total, mask=members < share)
    tl.store(out_ptr + target[:, None] * C + columns[None, :], cast(acc, out_ptr.dtype.element_ty), mask=mask)


@kernel
def join_kernel(
    parts_ptr, max_ptr, sum_ptr, out_ptr, rows, C: tl.constexpr, SPLITS: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """One softmax out of those over shares of the keys: parts [SPLITS, rows, C], max and sum [SPLITS, rows]."""
    row, columns, splits = tl.program_id(0).to(tl.int64), tl.arange(0, BC), tl.arange(0, SPLITS)
    best = tl.load(max_ptr + splits * rows + row)
    weights = tl.exp(best - tl.max(best, 0))  # [SPLITS]
    total = tl.sum(weights * tl.load(sum_ptr + splits * rows + row), 0)
    at = ((splits * rows + row) * C)[:, None] + columns[None, :]
    parts = tl.load(parts_ptr + at, mask=(columns < C)[None, :], other=0.0)
    out = tl.sum(parts * weights[:, None], 0) / total
    tl.store(out_ptr + row * C + columns, cast(out, out_ptr.dtype.element_ty), mask=columns < C)
