"""Launches of the small kernels of a step of generation. None reads a value on the host."""

# R rows, D model dim, H query heads, G key/value heads, C head dim, E experts, K top-k

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from kernels.gpu import decode
from kernels.gpu.launch import launch, pick

MAX_EXPERTS = 64  # of a router whose decision the norm makes, too
MAX_DIM = 8192  # a row is held in the registers of one block
SPLIT_KEYS, MOST_SPLITS = 256, 16  # attention to so many keys a program; more programs share them, and one joins them
MAX_QUERIES = 4096  # numbers of the queries that share keys: heads and head dim, rounded up to powers of two
TILE_BYTES = 16384  # of keys, and of values, in shared memory
MOST_PROGRAMS = 512  # about four for each multiprocessor of a large card


def fits(dim: int, queries: int, groups: int, size: int, experts: int) -> bool:
    """Whether the kernels have room for a model's dim, query and key/value heads, head dim and experts."""
    return dim <= MAX_DIM and experts <= MAX_EXPERTS and _queries(queries, groups) * _width(size) <= MAX_QUERIES


def _queries(queries: int, groups: int) -> int:
    """Rows of a product for the queries that share keys."""
    return max(16, triton.next_power_of_2(queries // groups))


def _width(size: int) -> int:
    """Columns for a head."""
    return max(16, triton.next_power_of_2(size))


def add_norm(
    x: Tensor, y: Tensor | None, weight: Tensor, eps: float, gate: Tensor | None = None, bias: Tensor | None = None,
    top_k: int = 0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:  # fmt: skip
    """Adds y to x [R, D] in place -> RMS norm of x [R, D] times the weight [D], and the decision of a router by it.

    With a ``gate`` [E, D] the second is logits [R, E] (``bias`` [R, E] included), gates [R, K] and expert ids [R, K].
    """
    rows, width = x.shape
    out, decision = torch.empty_like(x), None
    experts = 0 if gate is None else gate.shape[0]
    if gate is not None:
        gates = torch.empty(rows, top_k, dtype=torch.float32, device=x.device)
        decision = gate.new_empty(rows, experts), gates, torch.empty_like(gates, dtype=torch.int64)
    logits, gates_out, ids = decision or (None, None, None)
    tile, block, padded = pick("add_norm", x, rows), triton.next_power_of_2(width), triton.next_power_of_2(experts)
    launch(
        "add_norm", decode.norm_kernel, (rows,), tile,
        x_ptr=x, y_ptr=y, weight_ptr=weight, out_ptr=out, gate_ptr=gate, bias_ptr=bias, logits_ptr=logits,
        gates_ptr=gates_out, ids_ptr=ids, eps=float(eps), D=width, E=experts, TOPK=top_k, BLOCK=block, E_PAD=padded,
        E_STEP=min(padded, max(1, tile.bn // block)),
    )  # fmt: skip
    return out, decision


def linear(
    x: Tensor, y: Tensor | None, norm: Tensor | None, eps: float, w: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(x + y, its product with w [N, D], plus bias [N]) of x [R, D]; the product is of the RMS norm with ``norm`` [D].

    One row takes one kernel, which leaves x as it is; more rows change x in place.
    """
    if len(x) > 1 or x.shape[1] > MAX_DIM:
        return x, F.linear(x if norm is None else add_norm(x, y, norm, eps)[0], w, bias)
    out, total = x.new_empty(1, w.shape[0]), x if y is None else torch.empty_like(x)
    columns, width = w.shape
    tile, block = pick("gemv", x, 1), triton.next_power_of_2(width)
    count = max(1, min(tile.bn, tile.bk // block))
    launch(
        "gemv", decode.gemv_kernel, (-(-columns // count),), tile,
        x_ptr=x, y_ptr=y, norm_ptr=norm, w_ptr=w, bias_ptr=bias, sum_ptr=total, out_ptr=out, eps=float(eps),
        N=columns, D=width, BN=count, BLOCK=block,
    )  # fmt: skip
    return total, out


def attend(
    heads: Tensor, positions: Tensor, table: tuple[Tensor, Tensor], cache: Tensor, queries: int, window: int | None,
    longest: int,
) -> Tensor:  # fmt: skip
    """Attention of one new token a row -> [R, H C]; its turned key, and its value, go to the cache.

    Args:
        heads: [R, (H + 2G) C], queries, keys and values, not yet turned.
        positions: [R] int64, below the length of the table.
        table: cosine and sine [length, C].
        cache: [R or more, 2G, capacity, C] of a layer; a token lies in slot ``position % capacity``.
        window: a query sees itself and the ``window - 1`` tokens before it.
        longest: no position is larger; the work depends on the positions themselves.
    """
    rows, (_, groups, slots, size) = len(heads), cache.shape
    groups //= 2
    tile = pick("attend", heads, rows)
    splits = min(min(longest, slots) // SPLIT_KEYS, MOST_PROGRAMS // (rows * groups), MOST_SPLITS)
    splits = 1 << max(splits, 1).bit_length() - 1
    out = heads.new_empty(rows, queries * size)
    parts, best, total = out, None, None
    if splits > 1:
        parts = heads.new_empty(splits, rows, queries * size, dtype=torch.float32)
        best, total = parts.new_empty(2, splits, rows, queries)
    block = _width(size)
    keys_at_once = min(tile.bn, max(16, TILE_BYTES // (block * cache.element_size())))
    launch(
        "attend", decode.attend_kernel, (rows, groups, splits), tile,
        heads_ptr=heads, positions_ptr=positions, cos_ptr=table[0], sin_ptr=table[1], cache_ptr=cache, out_ptr=parts,
        max_ptr=best, sum_ptr=total, tokens=rows, slots=slots, scale=size**-0.5, H=queries, G=groups, C=size,
        WINDOW=window, SPLITS=splits, BM=_queries(queries, groups), BN=keys_at_once,
        BC=block,
    )  # fmt: skip
    if splits > 1:
        launch(
            "attend_join", decode.join_kernel, (rows * queries,), pick("attend_join", heads, rows),
            parts_ptr=parts, max_ptr=best, sum_ptr=total, out_ptr=out, rows=rows * queries, C=size, SPLITS=splits,
            BC=block,
        )  # fmt: skip
    return out
