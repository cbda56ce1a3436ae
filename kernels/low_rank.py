"""A low-rank delta beside a dense product: what delta experts do once per token, on a CPU and on a GPU alike.

The dense product itself is the device's own; these functions add the delta's part to its result, in place.
"""

# M rows, D inputs, N outputs, r rank

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.types import LowRank

Pair = tuple[Tensor, Tensor]  # a [r, D], b [N, r] of a delta ``scale * b @ a``


def pair_of(factors: LowRank | None, which: int) -> Pair | None:
    """``(a, b)`` of w1, w2 or w3; None without factors."""
    return None if factors is None else factors.pair(which)


def factors_of(*pairs: Pair | None) -> LowRank | None:
    """The factors made of the pairs of w1, w2 and w3; None where these are None."""
    factors = [factor for pair in pairs if pair is not None for factor in pair]
    return LowRank(*factors) if factors else None


def add_delta(y: Tensor, x: Tensor, pair: Pair | None, scale: float) -> Tensor:
    """``y += scale * x @ a.T @ b.T`` for x [M, D], y [M, N]; without a pair y as it is."""
    if pair is not None:
        a, b = pair
        y.addmm_(F.linear(x, a), b.t(), alpha=scale)
    return y


def add_delta_dx(dx: Tensor, dy: Tensor, pair: Pair | None, scale: float, dy_b: Tensor | None = None) -> Tensor:
    """``dx += scale * dy @ b @ a``, the gradient of `add_delta`'s x; ``dy_b``: dy @ b where it is known."""
    if pair is not None:
        a, b = pair
        dx.addmm_(dy @ b if dy_b is None else dy_b, a, alpha=scale)
    return dx


def weight_gradients(
    x: Tensor, dy: Tensor, pair: Pair | None, scale: float, need_weight: bool, dy_b: Tensor | None = None
) -> tuple[Tensor | None, Pair | None]:
    """Gradient of the dense weight [N, D] where wanted, and those of the pair where there is one; ``dy_b``: dy @ b."""
    dw = dy.t() @ x if need_weight else None
    if pair is None:
        return dw, None
    a, b = pair
    dy_b = (dy @ b).mul_(scale) if dy_b is None else dy_b * scale
    return dw, (dy_b.t() @ x, dy.t() @ F.linear(x, a).mul_(scale))
