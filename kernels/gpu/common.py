"""What the kernels share: products and casts that are also right in Triton's interpreter, and the lookup of row tiles.

The interpreter (TRITON_INTERPRET=1, Triton 3.6 to 3.9) is wrong on bfloat16 in three ways: ``tl.dot`` multiplies the
raw bits, casts from integers copy the bits, and casts from float32 truncate instead of rounding. Only `dot`, `from_int`
and `cast` know about it. On a GPU they are the plain Triton operations.

Rows are sorted by expert; ``offsets`` [E + 1] says where each expert's rows start. No kernel needs other metadata,
padding or a value read by the host: every program finds its expert and tile by scanning the offsets, and the grid is
an upper bound, ``(ceil(R / BM) + E - 1) * column tiles``, whose surplus programs exit at once.
"""

from __future__ import annotations

import functools
import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET", "0") == "1")

# Row counts change with every batch and routing: a variant for 1 and one for multiples of 16 would compile in mid-run.
COUNTS = ("rows_total", "rows", "tokens", "slots")
kernel = functools.partial(triton.jit, do_not_specialize=COUNTS)


@triton.jit
def dot(a, b, acc):
    """``acc + a @ b`` in float32; float32 operands are multiplied exactly (no TF32)."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def cast(x, dtype: tl.constexpr):
    """Float32 to ``dtype``, rounding to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)  # adding could turn a NaN into a number
        return rounded.to(tl.bfloat16)
    else:
        return x.to(dtype)


@triton.jit
def from_int(x, dtype: tl.constexpr):
    """Small integers to a floating dtype, exactly."""
    if INTERPRETED:
        return x.to(tl.float32).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def locate(pid, offsets_ptr, rows_total, column_tiles, E: tl.constexpr, BM: tl.constexpr, GROUP_M: tl.constexpr):
    """Program -> (expert or -1, first row of its tile, end of the expert's rows, column tile, poison).

    ``poison`` is 0, or NaN where the offsets do not rise from 0 to ``rows_total``: then all rows count as expert 0's
    and every output becomes NaN, so that a broken dispatch cannot pass for a result.
    Inside an expert, GROUP_M row tiles share one sweep over the column tiles, which keeps the weights in L2.
    """
    base = 0
    expert = -1
    row_start = 0
    row_end = 0
    local = 0
    row_tiles = 0
    previous = tl.load(offsets_ptr)
    broken = previous != 0
    for i in tl.static_range(E):
        following = tl.load(offsets_ptr + i + 1)
        broken = broken | (following < previous)
        tiles = (tl.maximum(following - previous, 0) + BM - 1) // BM
        count = tiles * column_tiles
        hit = (pid >= base) & (pid < base + count)
        expert = tl.where(hit, i, expert)
        row_start = tl.where(hit, previous, row_start)
        row_end = tl.where(hit, following, row_end)
        local = tl.where(hit, pid - base, local)
        row_tiles = tl.where(hit, tiles, row_tiles)
        base += count
        previous = following
    broken = broken | (previous != rows_total)
    if broken:
        all_tiles = (rows_total + BM - 1) // BM
        expert = tl.where(pid < all_tiles * column_tiles, 0, -1)
        row_start = 0
        row_end = rows_total
        local = pid
        row_tiles = all_tiles
    poison = tl.where(broken, float("nan"), 0.0)
    row_tiles = tl.maximum(row_tiles, 1)
    width = GROUP_M * column_tiles
    group = local // width
    first = group * GROUP_M
    size = tl.maximum(tl.minimum(row_tiles - first, GROUP_M), 1)
    row_tile = first + ((local % width) % size)
    column_tile = (local % width) // size
    return expert, row_start + row_tile * BM, row_end, column_tile, poison


@triton.jit
def rows_of(order_ptr, first, end, TOPK: tl.constexpr, GATHER: tl.constexpr, BM: tl.constexpr):
    """Rows of a tile: (rows [BM], which of them exist, their rows of x: with GATHER the tokens ``order[row] // TOPK``).

    Called after surplus programs have left: computed before that branch, the rows cost large tiles 80 registers.
    """
    rows = first + tl.arange(0, BM)
    row_mask = rows < end
    source = rows
    if GATHER:
        source = tl.load(order_ptr + rows, mask=row_mask, other=0).to(tl.int32) // TOPK
    return rows, row_mask, source


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))
