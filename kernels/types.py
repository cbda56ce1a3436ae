"""The tuples that the operations share: sorted rows, weights of delta experts, wanted gradients and those computed."""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K routed rows, r rank

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from kernels.int4 import Int4Weight
from kernels.packed import Packed

Weight = TypeVar("Weight", Tensor, Int4Weight, Tensor | Packed)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over ``dtype``: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class ExpertDispatch(NamedTuple):
    """Rows sorted by expert.

    ``order`` [R] int64: sorted position -> flat slot ``t * K + j`` (stable); ``inverse`` [R] int64: flat slot -> sorted
    position; ``offsets`` [E + 1] int32: rows ``offsets[e]:offsets[e + 1]`` belong to expert e.
    """

    order: Tensor
    inverse: Tensor
    offsets: Tensor


class LowRank(NamedTuple):
    """Low-rank factors of one SwiGLU feed-forward, or of E of them (then every tensor has a leading E).

    ``a1`` [r, D], ``b1`` [F, r] belong to w1 (SwiGLU gate projection); ``a2`` [r, F], ``b2`` [D, r] to w2 (down
    projection); ``a3`` [r, D], ``b3`` [F, r] to w3 (up projection). The delta of a weight is ``scale * b @ a`` (LoRA,
    arXiv:2106.09685).
    """

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    a3: Tensor
    b3: Tensor

    def of_expert(self, e: int) -> LowRank:
        """The factors of expert e, as views."""
        return LowRank(*(factor[e] for factor in self))

    def to(self, dtype: torch.dtype) -> LowRank:
        """The factors in ``dtype``."""
        return LowRank(*(factor.to(dtype) for factor in self))

    def pair(self, which: int) -> tuple[Tensor, Tensor]:
        """``(a, b)`` of w1, w2 or w3."""
        return self[2 * which - 2], self[2 * which - 1]


class DeltaWeights(NamedTuple, Generic[Weight]):
    """Experts ``W + shared_scale * B A (shared) + scale * B_e A_e`` on one base: w1, w3 [F, D], w2 [D, F].

    The base is dense, packed for a CPU, or int4 (then w1, w3 stand for [1, F, D] and w2 for [1, D, F]). Without
    ``experts`` there is one network for all tokens.
    """

    w1: Weight
    w2: Weight
    w3: Weight
    shared: LowRank | None
    experts: LowRank | None
    scale: float
    shared_scale: float


class Saved(NamedTuple):
    """What a forward keeps for its backward: pre-activations h1, h3 [R, F] in expert order, and the dispatch."""

    h1: Tensor
    h3: Tensor
    dispatch: ExpertDispatch


class Needs(NamedTuple):
    """Which gradients are wanted; ``shared`` and ``experts`` are those of delta experts."""

    x: bool
    w1: bool
    w2: bool
    w3: bool
    gates: bool
    shared: bool = False
    experts: bool = False


class Gradients(NamedTuple):
    """Gradients by the names of `Needs`; None where unwanted."""

    x: Tensor | None
    w1: Tensor | None
    w2: Tensor | None
    w3: Tensor | None
    gates: Tensor | None
    shared: LowRank | None = None
    experts: LowRank | None = None
