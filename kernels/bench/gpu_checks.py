"""What only a GPU can show about the layers: bf16 against float64, repeatability, no host synchronisation, CUDA graphs,
``torch.compile``. Each function returns nested results whose ``ok`` say whether it held.

Shape legend: T tokens, K experts per token, E experts, D model width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import int4, ops, reference
from kernels.dispatch import LowRank

BOUND = 2**-6


def _random(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def _low_rank(rank: int, width: int, hidden: int, *lead: int) -> LowRank:
    shapes = (rank, width), (hidden, rank), (rank, hidden), (width, rank), (rank, width), (hidden, rank)
    return LowRank(*(_random(*lead, *shape, scale=shape[-1] ** -0.5) for shape in shapes))


def _problems(tokens: int) -> dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]]:
    """name -> (operation, its reference, differentiable inputs); widths that no tile divides included."""
    experts, top_k, width, hidden, rank = 4, 2, 272, 400, 16
    ids = torch.rand(tokens, experts, device="cuda").topk(top_k, -1).indices
    weights = [
        _random(*shape, scale=shape[-1] ** -0.5)
        for shape in ((experts, hidden, width), (experts, width, hidden), (experts, hidden, width))
    ]
    x, gates = _random(tokens, width), torch.rand(tokens, top_k, device="cuda")
    base = [w[0].clone() for w in weights]
    shared, factors = _low_rank(rank, width, hidden), _low_rank(rank, width, hidden, experts)

    def delta(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(x: Tensor, gates: Tensor, *rest: Tensor) -> Tensor:
            return function(x, *rest[:3], LowRank(*rest[3:9]), LowRank(*rest[9:]), gates, ids, 0.5, 1.0)

        return call

    def full(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, gates, *w: function(x, *w, gates, ids)

    wide, high = 256, 384
    packed = [
        int4.pack(torch.randn(shape, device="cuda") / shape[-1] ** 0.5)
        for shape in ((experts, high, wide), (experts, wide, high), (experts, high, wide))
    ]
    exact = [int4.unpack(w, torch.float64) for w in packed]
    return {
        "experts": (full(ops.experts_forward), full(reference.experts_forward), [x, gates, *weights]),
        "delta experts": (
            delta(ops.delta_experts_forward),
            delta(reference.delta_experts_forward),
            [x, gates, *base, *shared, *factors],
        ),
        "int4 experts": (
            lambda x, gates: ops.int4_experts_forward(x, *packed, gates, ids),
            lambda x, gates: reference.experts_forward(x, *exact, gates, ids),
            [_random(tokens, wide), gates],
        ),
    }


def correctness() -> dict[str, Any]:
    """bf16 values and gradients against float64 of the same bf16 inputs; twice, which must agree bit by bit."""
    results = {}
    for tokens in (1, 5, 33, 64, 1000):
        for name, (operation, exact, inputs) in _problems(tokens).items():
            leaves = [t.detach().clone().requires_grad_() for t in inputs]
            doubles = [t.detach().double().requires_grad_() for t in inputs]
            got, want = operation(*leaves), exact(*doubles)
            grad = torch.randn_like(want)
            ours = torch.autograd.grad(got, leaves, grad.to(got.dtype))
            again = torch.autograd.grad(operation(*leaves), leaves, grad.to(got.dtype))
            errors = [_error(got, want)]
            errors += [_error(a, b) for a, b in zip(ours, torch.autograd.grad(want, doubles, grad))]
            repeatable = all(torch.equal(a, b) for a, b in zip(ours, again))
            results[f"{name} T={tokens}"] = {
                "errors": errors,
                "repeatable": repeatable,
                "ok": repeatable and max(errors) < 2 * BOUND,
            }
    return results


def _error(got: Tensor, want: Tensor) -> float:
    value = ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    return value if value == value else float("inf")


def no_host_synchronisation() -> dict[str, Any]:
    """Forward and backward under torch's synchronisation error mode; launches of a forward counted."""
    from kernels.gpu.launch import record_launches

    results = {}
    for name, (operation, _, inputs) in _problems(64).items():
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        operation(*leaves).float().sum().backward()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            with record_launches() as launches:
                out = operation(*leaves)
            out.backward(torch.ones_like(out))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        results[name] = {"launches": list(launches), "ok": "delta" in name or len(launches) <= 4}
    return results


def cuda_graph() -> dict[str, Any]:
    """Captures the layers' forwards and replays them on new inputs."""
    results = {}
    for name, (operation, _, inputs) in _problems(8).items():
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
    for name, (operation, _, inputs) in _problems(64).items():
        compiled = torch.compile(lambda *a, operation=operation: operation(*a) * 2, fullgraph=True)
        with torch.no_grad():
            results[name] = {"ok": torch.equal(compiled(*inputs), operation(*inputs) * 2)}
    return results


def failed(value: Any) -> bool:
    """Whether any ``ok`` in a nested result is False."""
    if isinstance(value, dict):
        return value.get("ok") is False or value.get("correct") is False or any(map(failed, value.values()))
    return isinstance(value, list) and any(map(failed, value))
