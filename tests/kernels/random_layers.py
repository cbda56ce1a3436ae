"""Random layers for the tests of this folder."""

from __future__ import annotations

import torch

from kernels.types import LowRank


def routing(tokens: int, top_k: int, num_experts: int, kind: str = "uniform") -> torch.Tensor:
    """Ids [T, K]: uniform, skewed to the first expert, or all of the last one."""
    if kind == "one":
        return torch.full((tokens, top_k), num_experts - 1)
    weight = torch.ones(num_experts) if kind == "uniform" else torch.tensor([8.0, 1, 1, 0.2, 0.1, 0.1, 0.1, 0.1])
    score = torch.rand(tokens, num_experts) * weight[:num_experts]
    return score.topk(top_k, -1).indices


def full_weights(num_experts: int, width: int, hidden: int, dtype=torch.float64) -> list[torch.Tensor]:
    """w1 [E, F, D], w2 [E, D, F], w3 [E, F, D], with gradients."""
    shapes = (num_experts, hidden, width), (num_experts, width, hidden), (num_experts, hidden, width)
    return [(torch.randn(s, dtype=torch.float64) / s[-1] ** 0.5).to(dtype).requires_grad_() for s in shapes]


def low_rank(rank: int, width: int, hidden: int, *lead: int, dtype=torch.float64) -> LowRank:
    """Factors of one feed-forward, or with ``lead`` E of them, with gradients."""
    shapes = (rank, width), (hidden, rank), (rank, hidden), (width, rank), (rank, width), (hidden, rank)
    return LowRank(*((torch.randn(*lead, *s, dtype=dtype) * 0.3).requires_grad_() for s in shapes))


def assert_same(got, want, inputs, tol=1e-12):
    """Equal values and equal gradients of ``inputs``."""
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=tol, rtol=tol)
    grad = torch.randn_like(want)
    ours = torch.autograd.grad(got, inputs, grad, allow_unused=True)
    theirs = torch.autograd.grad(want, inputs, grad, allow_unused=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(
            a if a is not None else torch.tensor(0.0), b if b is not None else torch.tensor(0.0), atol=tol, rtol=tol
        )
