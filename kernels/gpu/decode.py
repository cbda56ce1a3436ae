"""What surrounds the large products of a step of generation, one token a row: few kernels, as each takes 2 us to start.

Each rounds where the model's own operations round, so that a step chooses the same experts and tokens.
"""

# R rows, D model dim, H query heads, G key/value heads, C head dim, E experts, K top-k

from __future__ import annotations

import triton
import triton.language as tl

from kernels.gpu.common import cast, kernel


@triton.jit
def _gate_rows(gate_ptr, first, D: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr, E_STEP: tl.constexpr):
    """Weights [E_STEP, BLOCK] of experts from ``first`` on."""
    experts, columns = first + tl.arange(0, E_STEP)[:, None], tl.arange(0, BLOCK)[None, :]
    return tl.load(gate_ptr + experts * D + columns, mask=(experts < E) & (columns < D), other=0.0)


@triton.jit
def _decide(
    x, weight, gate_ptr, bias_ptr, logits_ptr, gates_ptr, ids_ptr, row,
    D: tl.constexpr, E: tl.constexpr, TOPK: tl.constexpr, BLOCK: tl.constexpr, E_PAD: tl.constexpr,
    E_STEP: tl.constexpr,
):  # fmt: skip
    """Experts and gates of a token x [BLOCK] with the first weights of the gate, as `moe.router.select_top_k` chooses them; of equal ones the first."""
    experts = tl.arange(0, E_PAD)
    logits = tl.zeros((E_PAD,), tl.float32)
    for first in range(0, E, E_STEP):
        found = tl.sum(weight.to(tl.float32) * x[None, :], 1)  # [E_STEP]
        some = first + tl.arange(0, E_STEP)
        logits += tl.sum(tl.where(experts[:, None] == some[None, :], found[None, :], 0.0), 1)
        weight = _gate_rows(gate_ptr, first + E_STEP, D, E, BLOCK, E_STEP)
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
        gate = _gate_rows(gate_ptr, 0, D, E, BLOCK, E_STEP)
    if y_ptr is not None:
        total = cast(x + tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32), dtype)
        tl.store(x_ptr + at, total, mask=mask)
        x = total.to(tl.float32)
    normed = cast(x * tl.rsqrt(tl.sum(x * x, 0) / D + eps), dtype)
    out = cast(normed.to(tl.float32) * weight, dtype)
    tl.store(out_ptr + at, out, mask=mask)
    if gate_ptr is not None:
        _decide(
            out.to(tl.float32), gate, gate_ptr, bias_ptr, logits_ptr, gates_ptr, ids_ptr, row, D, E, TOPK, BLOCK,
            E_PAD, E_STEP,
        )  # fmt: skip


@kernel
def rope_kernel(
    heads_ptr, positions_ptr, cos_ptr, sin_ptr, q_ptr, cache_ptr, slots,
    H: tl.constexpr, G: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Turns the queries and keys of heads [R, H + 2G, C]; queries go to q [R, H, C], keys and values to the cache."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns, half = tl.arange(0, BLOCK), C // 2
    mask = columns < half
    dtype = heads_ptr.dtype.element_ty
    start = heads_ptr + (row * (H + 2 * G) + head) * C
    first = tl.load(start + columns, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(start + half + columns, mask=mask, other=0.0).to(tl.float32)
    position = tl.load(positions_ptr + row)
    if head < H + G:
        cos = tl.load(cos_ptr + position * C + columns, mask=mask, other=0.0).to(tl.float32)  # its halves are equal
        sin = tl.load(sin_ptr + position * C + columns, mask=mask, other=0.0).to(tl.float32)
        low = cast(first * cos, dtype).to(tl.float32) - cast(second * sin, dtype).to(tl.float32)
        high = cast(second * cos, dtype).to(tl.float32) + cast(first * sin, dtype).to(tl.float32)
        first, second = cast(low, dtype).to(tl.float32), cast(high, dtype).to(tl.float32)
    kept = q_ptr.dtype.element_ty
    if head < H:
        target = q_ptr + (row * H + head) * C
    else:
        target = cache_ptr + ((row * 2 * G + head - H) * slots + position % slots) * C
    tl.store(target + columns, cast(first, kept), mask=mask)
    tl.store(target + half + columns, cast(second, kept), mask=mask)
