"""Decoding one token with few calls: matrices that multiply the same vector are one matrix, and so one product."""

# M rows, N outputs, D model dim, F hidden dim, E experts, K top-k, r and s ranks of an expert's and the shared delta

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.decode import weighted_sum
from kernels.cpu.experts import linear
from kernels.packed import Packed, PackedWeights
from kernels.types import LowRank, accumulation_dtype


def join(weights: Sequence[Tensor]) -> Tensor:
    """The rows of weights [..., K] as one matrix; the weights become views of it, so nothing is kept twice."""
    width, place = weights[0].shape[-1], weights[0].data_ptr()
    adjacent = True
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        adjacent &= same and weight.is_contiguous() and weight.data_ptr() == place
        place += weight.nbytes
    if adjacent:
        rows = sum(weight.numel() for weight in weights) // width
        return weights[0].detach().as_strided((rows, width), (width, 1))
    whole = torch.cat([weight.detach().reshape(-1, width) for weight in weights])
    for weight, part in zip(weights, whole.split([weight.numel() // width for weight in weights])):
        weight.data = part.view(weight.shape)
    return whole


class Stacked:
    """Weights [..., N_i, K], one below the other. Neighbors that are dense are joined, and so are int8 ones."""

    def __init__(self, *weights: Tensor | PackedWeights):
        self.parts: list[Tensor | Packed] = []
        for kind, run in itertools.groupby(weights, _kind):
            parts: list[Any] = list(run)
            if kind == "dense":
                self.parts.append(join(parts))
            elif kind == "int8":
                levels = join([part.levels for part in parts])
                self.parts.append(Packed(levels, torch.cat([part.scales[0] for part in parts])))
            else:
                self.parts += [part[0] for part in parts]

    def product(self, x: Tensor) -> Tensor:
        """x [M, K] -> [M, N], N the sum of all N_i."""
        if len(self.parts) == 1:
            return linear(x, self.parts[0])
        return torch.cat([linear(x, part) for part in self.parts], 1)


def _kind(weight: Tensor | PackedWeights) -> str:
    return "dense" if isinstance(weight, Tensor) else "int4" if weight[0].is_int4 else "int8"


class DeltaDecoder:
    """`kernels.cpu.delta.delta_experts_fwd` for one token, with every A beside the base matrix of the same input.

    With one expert a token the A of w2 stand beside w2; with more each expert's activation has a product of its own.
    """

    def __init__(
        self,
        base: Sequence[Tensor | PackedWeights],
        shared: LowRank | None,
        experts: LowRank | None,
        scale: float,
        top_k: int,
    ):
        w1, w2, w3 = base
        self.width, self.hidden = w2.shape[-2], w1.shape[-2]
        self.shared, self.experts, self.scale = shared, experts, scale
        self.single = top_k == 1 or experts is None
        lows = [part for pair in (shared, experts) if pair is not None for part in (pair.a1, pair.a3)]
        self.up = Stacked(w1, w3, *lows)
        self.down = Stacked(w2, *(pair.a2 for pair in (shared, experts if self.single else None) if pair is not None))
        self.b: list[tuple[Tensor, ...]] = []  # b1, b2, b3 of each expert, transposed
        if experts is not None:
            self.b = [(b1.t(), b2.t(), b3.t()) for b1, b2, b3 in zip(experts.b1, experts.b2, experts.b3)]

    def __call__(self, x: Tensor, gates: list[float], expert_ids: list[int]) -> Tensor:
        """x [1, D] -> [1, D]; gates and ids of the token's K choices. Rounds as `delta_experts_fwd` rounds any row."""
        scale, hidden = self.scale, self.hidden
        h = self.up.product(x)  # [1, 2F + 2s + 2E r]
        gate, value, rest = h[:, :hidden], h[:, hidden : 2 * hidden], 2 * hidden
        if self.shared is not None:
            rank = self.shared.a1.shape[0]
            gate.addmm_(h[:, rest : rest + rank], self.shared.b1.t(), alpha=scale)
            value.addmm_(h[:, rest + rank : rest + 2 * rank], self.shared.b3.t(), alpha=scale)
            rest += 2 * rank
        acts = []
        if self.experts is None:
            acts.append(F.silu(gate).mul_(value))
        else:
            lows = h[:, rest:].view(2, len(self.b), 1, -1)  # [2, E, 1, r]
            for e in expert_ids:
                b1, _, b3 = self.b[e]
                own_value = torch.addmm(value, lows[1, e], b3, alpha=scale)
                acts.append(F.silu(torch.addmm(gate, lows[0, e], b1, alpha=scale)).mul_(own_value))  # [1, F]
        mixed = acts[0] if self.single else weighted_sum(acts, gates, x.dtype)
        out = self.down.product(mixed)  # [1, D + s, and E r with one expert a token]
        y, rest = out[:, : self.width], self.width
        if self.shared is not None:
            rank = self.shared.a1.shape[0]
            y.addmm_(out[:, rest : rest + rank], self.shared.b2.t(), alpha=scale)
            rest += rank
        if self.experts is None:
            return y
        if self.single:
            own = out[:, rest:].view(len(self.b), 1, -1)[expert_ids[0]]
            return y.addmm_(own, self.b[expert_ids[0]][1], alpha=scale * gates[0])
        total = y.to(accumulation_dtype(y.dtype), copy=True)
        for e, act, g in zip(expert_ids, acts, gates):
            low = F.linear(act, self.experts.a2[e]).mul_(g)
            total.add_(torch.zeros_like(y).addmm_(low, self.b[e][1], alpha=scale))
        return total.to(y.dtype)
