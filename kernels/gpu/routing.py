"""Sort of the routed rows, their gather, and the weighted sum back to tokens: one launch each, without atomics."""

# T tokens, E experts, K top-k, R = T*K routed rows, H columns

from __future__ import annotations

import triton.language as tl

from kernels.gpu.common import cast, kernel


@kernel
def route_kernel(
    ids_ptr, order_ptr, inverse_ptr, offsets_ptr, rows, E: tl.constexpr, E_PAD: tl.constexpr, BLOCK: tl.constexpr
):
    """Counting sort of ids [R] by expert. Every program counts all ids (they fit L2), then places its own block.

    Rows with an id outside [0, E) come last and belong to no expert: the last offset falls short of R, which turns
    every result into NaN. ``order`` is still a permutation, so that nothing outside a tensor is read.
    """
    pid = tl.program_id(0)
    experts = tl.arange(0, E_PAD)
    total = tl.zeros((E_PAD,), tl.int32)
    before = tl.zeros((E_PAD,), tl.int32)
    for start in range(0, rows, BLOCK):
        slot = start + tl.arange(0, BLOCK)
        ids = tl.load(ids_ptr + slot, mask=slot < rows, other=-1).to(tl.int32)
        ids = tl.where(ids < E, ids, -1)
        count = tl.sum((ids[:, None] == experts[None, :]).to(tl.int32), 0)  # [E_PAD]
        total += count
        before += tl.where(start < pid * BLOCK, count, 0)
    first = tl.cumsum(total, 0) - total  # [E_PAD]
    local = tl.arange(0, BLOCK)
    slot = pid * BLOCK + local
    ids = tl.load(ids_ptr + slot, mask=slot < rows, other=-1).to(tl.int32)
    valid = (ids >= 0) & (ids < E)
    chosen = ((ids[:, None] == experts[None, :]) & valid[:, None]).to(tl.int32)  # [BLOCK, E_PAD]
    rank = tl.cumsum(chosen, 0) - 1
    position = tl.sum(chosen * (first[None, :] + before[None, :] + rank), 1)  # [BLOCK]
    invalid_rank = pid * BLOCK - tl.sum(before, 0) + local - tl.cumsum(valid.to(tl.int32), 0)
    position = tl.where(valid, position, tl.sum(total, 0) + invalid_rank)
    tl.store(order_ptr + position, slot.to(tl.int64), mask=slot < rows)
    tl.store(inverse_ptr + slot, position.to(tl.int64), mask=slot < rows)
    if pid == 0:
        tl.store(offsets_ptr + experts, first, mask=experts < E)
        tl.store(offsets_ptr + E + experts, tl.sum(total, 0), mask=experts == 0)


@kernel
def gather_kernel(x_ptr, order_ptr, out_ptr, H, TOPK: tl.constexpr, BH: tl.constexpr):
    """``out[i] = x[order[i] // TOPK]``: every row's token, for kernels that read neighbors."""
    i = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BH + tl.arange(0, BH)
    token = tl.load(order_ptr + i) // TOPK
    value = tl.load(x_ptr + token * H + columns, mask=columns < H)
    tl.store(out_ptr + i * H + columns, value, mask=columns < H)


@kernel
def combine_kernel(
    y_ptr, gates_ptr, base_ptr, out_ptr, inverse_ptr, offsets_ptr, tokens, H, scale,
    TOPK: tl.constexpr, E: tl.constexpr, SPLIT_K: tl.constexpr,
    HAS_GATES: tl.constexpr, HAS_BASE: tl.constexpr, BH: tl.constexpr,
):  # fmt: skip
    """``out[t] = base[t] + scale * sum_j gates[t, j] * sum_s y[s, row(t, j)]`` in float32, one cast.

    Part p of the grid's third axis does so for ``y[p]`` and ``out[p]``.
    """
    part = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0)
    columns = tl.program_id(1) * BH + tl.arange(0, BH)
    mask = columns < H
    rows = tokens * TOPK
    y_ptr += part * SPLIT_K * rows * H
    out_ptr += part * tokens * H
    acc = tl.zeros((BH,), tl.float32)
    for j in tl.static_range(TOPK):
        slot = t * TOPK + j
        row = tl.load(inverse_ptr + slot).to(tl.int64)
        value = tl.zeros((BH,), tl.float32)
        for s in tl.static_range(SPLIT_K):
            at = (row + s * rows.to(tl.int64)) * H
            value += tl.load(y_ptr + at + columns, mask=mask, other=0.0).to(tl.float32)
        if HAS_GATES:
            value = value * tl.load(gates_ptr + slot).to(tl.float32)
        acc += value
    acc = acc * scale
    if HAS_BASE:
        acc += tl.load(base_ptr + t.to(tl.int64) * H + columns, mask=mask, other=0.0).to(tl.float32)
    whole = (tl.load(offsets_ptr) == 0) & (tl.load(offsets_ptr + E) == rows)
    acc += tl.where(whole, 0.0, float("nan"))
    tl.store(out_ptr + t.to(tl.int64) * H + columns, cast(acc, out_ptr.dtype.element_ty), mask=mask)


@kernel
def gate_gradient_kernel(
    partial_ptr, inverse_ptr, out_ptr, rows, TILES: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums the column tiles' partial products [R, TILES] of each row, in a fixed order, to the slot's place."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = slot < rows
    row = tl.load(inverse_ptr + slot, mask=mask, other=0).to(tl.int64)
    tiles = tl.arange(0, PAD)
    values = tl.load(
        partial_ptr + row[:, None] * TILES + tiles[None, :], mask=mask[:, None] & (tiles < TILES)[None, :], other=0.0
    )
    tl.store(out_ptr + slot, tl.sum(values, 1), mask=mask)
