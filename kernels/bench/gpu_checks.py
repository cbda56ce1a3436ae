"""What only a GPU can show about the layers: bf16 against float64, repeatability, no host synchronization, CUDA graphs,
``torch.compile``. Each check returns nested results whose ``ok`` say whether it passed.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, r rank

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import int4, ops, reference
from kernels.bench.shapes import EXPERTS, TOP_K
from kernels.int4 import GROUP, Int4Weight
from kernels.types import LowRank

BOUND = 2**-6
RANK = 16

Problem = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]


def problems(tokens: int, width: int = 272, hidden: int = 400, device: str = "cuda") -> dict[str, Problem]:
    """name -> (operation, its reference, differentiable inputs) in bf16, gates in float32.

    No tile divides the default widths; int4 layers take the next multiples of 128.
    """

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=device) * scale).bfloat16()

    def low_rank(width: int, hidden: int, *lead: int) -> LowRank:
        pairs = (((RANK, k), (n, RANK)) for n, k in shapes(width, hidden))
        return LowRank(*(random(*lead, *shape, scale=shape[-1] ** -0.5) for pair in pairs for shape in pair))

    def full(function: Callable[..., Tensor], *fixed: Tensor | Int4Weight) -> Callable[..., Tensor]:
        return lambda x, gates, *weights: function(x, *(fixed or weights), gates, ids)

    def delta(function: Callable[..., Tensor], *fixed: Tensor | Int4Weight) -> Callable[..., Tensor]:
        def call(x: Tensor, gates: Tensor, *rest: Tensor) -> Tensor:
            base, factors = (fixed, rest) if fixed else (rest[:3], rest[3:])
            return function(x, *base, LowRank(*factors[:6]), LowRank(*factors[6:]), gates, ids, 0.5, 1.0)

        return call

    ids = torch.rand(tokens, EXPERTS, device=device).topk(TOP_K, -1).indices
    gates = torch.rand(tokens, TOP_K, device=device)
    x, weights = random(tokens, width), [random(EXPERTS, n, k, scale=k**-0.5) for n, k in shapes(width, hidden)]
    factors = *low_rank(width, hidden), *low_rank(width, hidden, EXPERTS)
    wide, high = (-(-n // GROUP) * GROUP for n in (width, hidden))
    wide_x, wide_factors = random(tokens, wide), (*low_rank(wide, high), *low_rank(wide, high, EXPERTS))
    packed = [int4.pack(random(EXPERTS, n, k, scale=k**-0.5)) for n, k in shapes(wide, high)]
    exact = [int4.unpack(w, torch.float64) for w in packed]
    base = [Int4Weight(w.packed[:1], w.scales[:1]) for w in packed]
    return {
        "experts": (full(ops.experts_forward), full(reference.experts_forward), [x, gates, *weights]),
        "int4 experts": (
            full(ops.experts_forward, *packed),
            full(reference.experts_forward, *exact),
            [wide_x, gates],
        ),
        "delta experts": (
            delta(ops.delta_experts_forward),
            delta(reference.delta_experts_forward),
            [x, gates, *(w[0].clone() for w in weights), *factors],
        ),
        "int4 delta experts": (
            delta(ops.delta_experts_forward, *base),
            delta(reference.delta_experts_forward, *(w[0] for w in exact)),
            [wide_x, gates, *wide_factors],
        ),
    }


def shapes(width: int, hidden: int) -> tuple[tuple[int, int], ...]:
    """Rows and columns of w1, w2 and w3."""
    return (hidden, width), (width, hidden), (hidden, width)


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference over largest value; infinite for NaN."""
    value = ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    return value if value == value else float("inf")


def correctness(token_counts: Sequence[int] = (1, 5, 33, 64, 1000), device: str = "cuda") -> dict[str, Any]:
    """bf16 values and gradients against float64 of the same bf16 inputs; twice, which must agree bit by bit."""
    results = {}
    for tokens in token_counts:
        for name, (operation, exact, inputs) in problems(tokens, device=device).items():
            leaves = [t.detach().clone().requires_grad_() for t in inputs]
            doubles = [t.detach().double().requires_grad_() for t in inputs]
            got, want = operation(*leaves), exact(*doubles)
            grad = torch.randn_like(want)
            ours = torch.autograd.grad(got, leaves, grad.to(got.dtype))
            again = torch.autograd.grad(operation(*leaves), leaves, grad.to(got.dtype))
            errors = [error(got, want)]
            errors += [error(a, b) for a, b in zip(ours, torch.autograd.grad(want, doubles, grad))]
            repeatable = all(torch.equal(a, b) for a, b in zip(ours, again))
            results[f"{name} T={tokens}"] = {
                "errors": errors,
                "repeatable": repeatable,
                "ok": repeatable and max(errors) < 2 * BOUND,
            }
    return results


def no_host_synchronization() -> dict[str, Any]:
    """Forward and backward under torch's synchronization error mode; launches of a forward counted."""
    from kernels.gpu.launch import recorded

    results = {}
    for name, (operation, _, inputs) in problems(64).items():
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        operation(*leaves).float().sum().backward()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            with recorded() as launches:
                out = operation(*leaves)
            out.backward(torch.ones_like(out))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results[name] = {"launches": [made.op for made in launches], "ok": "delta" in name or len(launches) <= 4}
    return results


def cuda_graph() -> dict[str, Any]:
    """Captures the layers' forwards and replays them on new inputs."""
    results = {}
    for name, (operation, _, inputs) in problems(8).items():
        static = [t.clone() for t in inputs]
        with torch.no_grad():
            operation(*static)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                out = operation(*static)
            static[0].copy_(torch.randn_like(static[0]))
            graph.replay()
            results[name] = {"ok": torch.equal(out, operation(*static))}
    return results


def full_graph_compile() -> dict[str, Any]:
    """`torch.compile(fullgraph=True)` with the inductor."""
    results = {}
    for name, (operation, _, inputs) in problems(64).items():
        compiled = torch.compile(lambda *a, operation=operation: operation(*a) * 2, fullgraph=True)
        with torch.no_grad():
            results[name] = {"ok": torch.equal(compiled(*inputs), operation(*inputs) * 2)}
    return results


def failed(value: Any) -> bool:
    """Whether any ``ok`` in a nested result is False."""
    if isinstance(value, dict):
        return value.get("ok") is False or value.get("correct") is False or any(map(failed, value.values()))
    return isinstance(value, list) and any(map(failed, value))
