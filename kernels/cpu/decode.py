"""The CPU path of decoding: one token, no gradient. Reading the weights is the work, operator calls are the overhead.

Nothing is sorted or gathered, and few operators are called: a call takes as long as reading some tens of kilobytes.
"""

# D model dim, F hidden dim, E experts, K top-k, P blocks of a matrix's rows

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.packed import Packed, PackedWeights
from kernels.types import accumulation_dtype


def _is_intel() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return any(line.startswith("vendor_id") and "GenuineIntel" in line for line in file)
    except OSError:
        return False


# Whether MKL has its own code for this processor; on others its products with one row are slow. A constant, as
# torch.compile cannot trace the reading of a file.
IS_INTEL = _is_intel()
# Whether it multiplies bfloat16 tiles, by a private probe, the same in torch 2.11 to 2.13; a constant for that, too.
HAS_AMX = bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())


@functools.cache
def has_avx512() -> bool:
    return "AVX512" in torch.backends.cpu.get_cpu_capability()


def row_blocks(w: Tensor) -> int:
    """The number of equal row blocks in which `matvec` multiplies w [..., N, D]; 0 where it has no fast way."""
    rows = w.shape[-2]
    dense = w.stride(-1) == 1 and w.stride(-2) == w.shape[-1]
    return 0 if rows % 2 or not dense else 8 if rows % 8 == 0 else 2


def _times_row(blocks: Tensor, row: Tensor) -> Tensor:
    """blocks [P, n, D] of a matrix's rows, each times ``row`` (D values without gaps) -> P * n products, dense.

    The batch is spread over the threads. What reads the matrix at the memory's speed depends on the processor: in
    float32 with AVX-512, and for narrow matrices, the row as a column with a stride of D, which torch takes for a
    transposed row: three times as fast as other columns and as a plain matrix-vector product. With AVX2 alone and in
    other dtypes it is the row on the left.
    """
    parts, _, width = blocks.shape
    if row.dtype == torch.float32 and (width < 1024 or has_avx512()):
        return torch.bmm(blocks, row.as_strided((parts, width, 1), (0, 1, width)))  # [P, n, 1]
    return torch.bmm(row.as_strided((parts, 1, width), (0, width, 1)), blocks.transpose(1, 2))  # [P, 1, n]


def matvec(x: Tensor, w: Tensor | Packed) -> Tensor:
    """``x @ w.T`` for one row x [1, D], w [N, D].

    In 16 bits torch's matrix-vector product reads a matrix up to twice as fast as its matrix products do, in float32
    on Intel processors MKL's matrix product up to four times as fast as the blocks of rows that suit others.
    """
    if isinstance(w, Packed):
        return w.product(x)
    if x.dtype.itemsize == 2 and w.stride(-1) == 1:
        return torch.mv(w, x[0]).view(1, -1)
    if IS_INTEL:
        return F.linear(x, w)
    parts = row_blocks(w)
    if not parts:
        return F.linear(x, w)
    return _times_row(w.view(parts, -1, w.shape[1]), x.contiguous()).view(1, -1)  # [1, N]


def chosen_experts(expert_ids: Tensor, num_experts: int) -> list[int]:
    """The ids [1, K] as numbers; ValueError for an id outside [0, E)."""
    chosen = expert_ids.tolist()[0]
    for e in chosen:
        if not 0 <= e < num_experts:
            raise ValueError(f"expert_ids: expected values in [0, {num_experts}), found {e}")
    return chosen


def weighted_sum(values: Iterable[Tensor], gates: list[float], dtype: torch.dtype) -> Tensor:
    """``sum_j gates[j] * values[j]`` in float32 (float64 for float64), as in `kernels.cpu.experts.sum_rows`: where all
    values are equal and the gates sum to 1, the result is that value to the last bit."""
    acc = accumulation_dtype(dtype)
    first, *others = (v.to(acc) for v in values)
    total = first * sum(gates)
    for value, gate in zip(others, gates[1:]):
        total.add_(value - first, alpha=gate)
    return total.to(dtype)


def experts_decode(
    x: Tensor,
    w1: Tensor | PackedWeights,
    w2: Tensor | PackedWeights,
    w3: Tensor | PackedWeights,
    gates: Tensor,
    expert_ids: Tensor,
) -> Tensor:
    """`kernels.cpu.experts.experts_fwd` for one token: x [1, D] -> [1, D]."""
    return mix_experts(x, w1, w2, w3, gates.tolist()[0], chosen_experts(expert_ids, w1.shape[0]))


def mix_experts(x: Tensor, w1: Any, w2: Any, w3: Any, gates: list[float], expert_ids: list[int]) -> Tensor:
    """`experts_decode` with gates and ids as numbers, and weights that have one matrix at each number."""
    outputs = []
    for e in expert_ids:
        act = F.silu(matvec(x, w1[e])).mul_(matvec(x, w3[e]))  # [1, F]
        outputs.append(matvec(act, w2[e]))  # [1, D]
    return weighted_sum(outputs, gates, x.dtype)
