"""What only a GPU can show about the layers: bf16 against float64, repeatability, no host synchronization, CUDA graphs,
``torch.compile``. Each check yields (name, result); a result's ``ok`` says whether it passed.

On a CPU the checks run for what they can show there: under Triton's interpreter the kernels themselves.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, r rank

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import int4, ops, reference
from kernels.bench.shapes import EXPERTS, MISTRAL_7B, TOP_K
from kernels.int4 import GROUP, Int4Weight
from kernels.types import LowRank

BOUND = 2**-6
RANK = 16
KINDS = ("experts", "int4 experts", "delta experts", "int4 delta experts")

Problem = tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]
Results = Iterator[tuple[str, dict[str, Any]]]


class Case(NamedTuple):
    """A layer of ``KINDS`` and its sizes; ``arch``: whose tiles it runs with, None for the card's own.

    ``empty``: no token chooses the last expert.
    """

    kind: str
    tokens: int
    width: int = 272
    hidden: int = 400
    arch: str | None = None
    empty: bool = False

    def __str__(self) -> str:
        return f"{self.kind} T={self.tokens} {self.width}/{self.hidden}" + (f" {self.arch}" if self.arch else "")


def cases(quick: bool = False) -> list[Case]:
    """Sizes that no tile divides; those that take the production kernels, with odd row counts; Mistral-7B's."""
    small = (64,) if quick else (1, 5, 33, 64, 1000)
    production = [Case(kind, 4093, 1024, 2048, arch, True) for arch in (None, "sm_86") for kind in KINDS]
    if quick:
        return [*production[: len(KINDS)], *(Case(kind, t) for t in (1, *small) for kind in KINDS)]
    large = [Case(kind, 1025, MISTRAL_7B.dim, MISTRAL_7B.hidden_dim) for kind in KINDS]
    return [*production, *(Case(kind, t) for t in small for kind in KINDS), *large]


def problem(case: Case, device: torch.device) -> Problem:
    """(operation, its reference, differentiable inputs) in bf16, gates in float32.

    Int4 layers take the next multiples of 128 for the widths.
    """
    tokens, packs = case.tokens, case.kind.startswith("int4")
    width, hidden = (-(-n // GROUP) * GROUP if packs else n for n in case[2:4])
    shapes = (hidden, width), (width, hidden), (hidden, width)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, device=device) * scale).bfloat16()

    def low_rank(*lead: int) -> LowRank:
        pairs = (((RANK, k), (n, RANK)) for n, k in shapes)
        return LowRank(*(random(*lead, *shape, scale=shape[-1] ** -0.5) for pair in pairs for shape in pair))

    used = EXPERTS - 1 if case.empty else EXPERTS
    ids = torch.rand(tokens, used, device=device).topk(TOP_K, -1).indices
    inputs = [random(tokens, width), torch.rand(tokens, TOP_K, device=device)]

    def full(function: Callable[..., Tensor], fixed: Sequence[Any]) -> Callable[..., Tensor]:
        return lambda x, gates, *weights: function(x, *(fixed or weights), gates, ids)

    def delta(function: Callable[..., Tensor], fixed: Sequence[Any]) -> Callable[..., Tensor]:
        def call(x: Tensor, gates: Tensor, *rest: Tensor) -> Tensor:
            base, factors = (fixed, rest) if fixed else (rest[:3], rest[3:])
            return function(x, *base, LowRank(*factors[:6]), LowRank(*factors[6:]), gates, ids, 0.5, 1.0)

        return call

    weights = [random(EXPERTS, n, k, scale=k**-0.5) for n, k in shapes]
    packed: list[Int4Weight] = []
    exact: list[Tensor] = []
    if "delta" in case.kind:
        weights = [w[0] for w in weights]
    if packs:
        packed = [int4.pack(w) for w in weights]
        exact = [int4.unpack(q, torch.float64).view(w.shape) for q, w in zip(packed, weights)]
        weights = []
    if "delta" in case.kind:
        factors = (*low_rank(), *low_rank(EXPERTS))
        ours, want = delta(ops.delta_experts_forward, packed), delta(reference.delta_experts_forward, exact)
        return ours, want, [*inputs, *weights, *factors]
    return full(ops.experts_forward, packed), full(reference.experts_forward, exact), [*inputs, *weights]


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference over largest value; infinite for NaN."""
    value = ((got.double() - want).abs().max() / want.abs().max().clamp_min(1e-30)).item()
    return value if value == value else float("inf")


def correct(case: Case, device: torch.device) -> dict[str, Any]:
    """bf16 values and gradients against float64 of the same bf16 inputs; twice, which must agree bit by bit."""
    torch.manual_seed(case.tokens)
    operation, exact, inputs = problem(case, device)
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    doubles = [t.detach().double().requires_grad_() for t in inputs]
    launched: list[str] = []
    with _tiles_of(case.arch, launched):
        got = operation(*leaves)
        grad = torch.randn_like(got)
        ours = torch.autograd.grad(got, leaves, grad)
        again = torch.autograd.grad(operation(*leaves), leaves, grad)
    repeatable = all(torch.equal(a, b) for a, b in zip(ours, again))
    del again
    want = exact(*doubles)
    errors = [error(got, want)]
    errors += [error(a, b) for a, b in zip(ours, torch.autograd.grad(want, doubles, grad.double()))]
    return {
        "errors": errors,
        "repeatable": repeatable,
        "launched": sorted(set(launched)),
        "ok": repeatable and max(errors) < 2 * BOUND,
    }


@contextlib.contextmanager
def _tiles_of(arch: str | None, launched: list[str]) -> Iterator[None]:
    """Notes the operations launched inside the block, which run with ``arch``'s tiles.

    Backward runs in this thread: that of a GPU, which autograd would take, knows nothing of either.
    """
    if not ops.custom_ops.HAS_TRITON:
        yield
        return
    from kernels.gpu.launch import recorded, redirected

    with torch.autograd.set_multithreading_enabled(False), redirected(arch=arch), recorded() as launches:
        yield
    launched += [made.op for made in launches]


def no_host_synchronization(
    device: torch.device, width: int = 1024, hidden: int = 2048, counts: Sequence[int] = (64, 1024)
) -> Results:
    """Forward and backward under torch's synchronization error mode; launches of a forward counted."""
    for case in (Case(kind, tokens, width, hidden) for tokens in counts for kind in KINDS):
        operation, _, inputs = problem(case, device)
        leaves = [t.detach().clone().requires_grad_() for t in inputs]
        operation(*leaves).float().sum().backward()  # compiles
        launched: list[str] = []
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            with _tiles_of(None, launched):
                out = operation(*leaves)
            out.backward(torch.ones_like(out))
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        # many rows are gathered first, and their int4 weights decoded: a launch, and three
        few = "delta" in case.kind or len(launched) <= (4 if case.tokens <= 64 else 8 if "int4" in case.kind else 5)
        yield f"no wait: {case}", {"launches": launched, "ok": few}


def cuda_graph(
    device: torch.device, width: int = 1024, hidden: int = 2048, counts: Sequence[int] = (1, 8, 1024)
) -> Results:
    """Captures the layers' forwards and replays them on new inputs."""
    from kernels.bench.timing import captured

    for case in (Case(kind, tokens, width, hidden) for tokens in counts for kind in KINDS):
        operation, _, inputs = problem(case, device)
        static = [t.clone() for t in inputs]
        out = torch.empty_like(static[0])

        def run(operation: Callable[..., Tensor] = operation, out: Tensor = out, static: list[Tensor] = static) -> None:
            out.copy_(operation(*static))

        with torch.no_grad():
            replay = captured(run, device)
            static[0].copy_(torch.randn_like(static[0]))
            if replay is not None:
                replay()
            ok = replay is not None and torch.equal(out, operation(*static))
        yield f"graph: {case}", {"ok": ok}


def full_graph_compile(device: torch.device, backend: str = "inductor", kinds: Sequence[str] = KINDS) -> Results:
    """`torch.compile(fullgraph=True)`."""
    for case in (Case(kind, 64) for kind in kinds):
        operation, _, inputs = problem(case, device)
        compiled = torch.compile(
            lambda *a, operation=operation: operation(*a) * 2, fullgraph=True, backend=backend, dynamic=False
        )
        with torch.no_grad():
            yield f"compile: {case}", {"ok": torch.equal(compiled(*inputs), operation(*inputs) * 2)}


def failed(value: Any) -> bool:
    """Whether any ``ok`` in a nested result is False."""
    if isinstance(value, dict):
        return value.get("ok") is False or value.get("correct") is False or any(map(failed, value.values()))
    return isinstance(value, list) and any(map(failed, value))
