"""Launches of the small kernels of a step of generation. As in `kernels.gpu.launch`, the host reads no tensor's value."""

# R rows, D model dim, H query heads, G key/value heads, C head dim, E experts, K top-k

from __future__ import annotations

import torch
import triton
from torch import Tensor

from kernels.gpu import decode
from kernels.gpu.launch import launch, pick

MAX_EXPERTS = 64  # of a router whose decision the norm makes, too
MAX_DIM = 16384  # a row is held in the registers of one block


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


def rope_and_store(
    heads: Tensor, positions: Tensor, table: tuple[Tensor, Tensor], cache: Tensor, queries: int
) -> Tensor:
    """Turned queries [R, H, C] in the cache's dtype; turned keys, and values, go to the cache.

    Args:
        heads: [R, (H + 2G) C], queries, keys and values.
        positions: [R] int64, below the length of the table.
        table: cosine and sine [length, C].
        cache: [R or more, 2G, capacity, C] of a layer; a token lies in slot ``position % capacity``.
    """
    rows, (_, groups, slots, size) = len(heads), cache.shape
    q = cache.new_empty(rows, queries, size)
    launch(
        "rope", decode.rope_kernel, (rows, queries + groups), pick("rope", heads, rows),
        heads_ptr=heads, positions_ptr=positions, cos_ptr=table[0], sin_ptr=table[1], q_ptr=q, cache_ptr=cache,
        slots=slots, H=queries, G=groups // 2, C=size, BLOCK=triton.next_power_of_2(size // 2),
    )  # fmt: skip
    return q
