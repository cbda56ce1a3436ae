"""The GPU half of the benchmark: correctness first, then medians interleaved with the installed baselines."""

# T tokens, D model dim, F hidden dim, E experts, K top-k

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import int4, ops
from kernels.bench.baselines import BASELINES, INT4_BASELINES, MAX_TOKENS, Forward, Layer
from kernels.bench.shapes import EXPERTS, MISTRAL_7B, RANK, TOP_K
from kernels.bench.targets import estimated_ms
from kernels.bench.timing import captured, describe, measure, peaks
from kernels.int4 import Int4Weight
from kernels.types import LowRank

TOKENS = (4096, 1, 8, 64, 512)
ROUTINGS = ("uniform", "skewed", "one language")
BOUND_BF16 = 2**-6  # inputs, activations and outputs are rounded to 8 bits; the sums over K average most of it out
# Up to so many tokens a forward that never waits for the GPU is also timed as a CUDA graph: the host's part of a call
# is longer than the GPU's.
GRAPH_TOKENS = {"ours": 512, "grouped_mm": 512, "transformers batched_mm": 64, "unsloth": 64, "grouped nf4": 1}


class Case(NamedTuple):
    """``phase``: one of `PHASES`; ``routing``: one of `ROUTINGS`; ``top_k`` experts a token."""

    phase: str
    tokens: int
    routing: str = "uniform"
    top_k: int = TOP_K

    def __str__(self) -> str:
        return f"{self.phase} T={self.tokens} top-{self.top_k} {self.routing}"


FULL = ("int4 forward", "bf16 forward", "bf16 forward+backward")
DELTA = ("delta forward+backward", "int4 delta forward+backward")  # beside a dense layer with frozen weights
PHASES = FULL + DELTA
QUICK_CASES = [Case("int4 forward", 1), Case("bf16 forward", 4096)]
TARGET_CASES = [  # what the targets are about
    *(Case("int4 forward", tokens) for tokens in (1, 8, 4096)),
    *(Case(phase, 4096) for phase in PHASES[1:]),
]
CASES = [
    *TARGET_CASES,
    *(Case(phase, tokens, top_k=top_k) for top_k in (2, 1) for tokens in TOKENS for phase in FULL),
    *(Case(phase, 4096, routing) for routing in ROUTINGS[1:] for phase in FULL),
]


def route(case: Case, experts: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(gates [T, K], ids [T, K]) of a routing: uniform, 70/10/10/10, or every token to the same experts."""
    tokens, top_k, device = case.tokens, case.top_k, generator.device
    if case.routing == "one language":
        ids = torch.arange(top_k, device=device).expand(tokens, top_k).contiguous()
    else:
        weight = torch.ones(experts, device=device)
        if case.routing == "skewed":
            weight[0] = 7.0 * (experts - 1) / 3
        ids = torch.multinomial(weight.expand(tokens, experts), top_k, generator=generator)
    gates = torch.softmax(torch.randn(tokens, top_k, device=device, generator=generator), -1)
    return gates, ids


def float64_rows(layer: Layer, x: Tensor, rows: Tensor) -> Tensor:
    """The layer's output for some of the tokens in float64, gathered per token (slow, exact)."""
    outputs = []
    for t in rows.tolist():
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for gate, e in zip(layer.gates[t].double(), layer.ids[t].tolist()):
            v = x[t].double()
            h1, h3 = layer.w1[e].double() @ v, layer.w3[e].double() @ v
            total += gate * (layer.w2[e].double() @ (F.silu(h1) * h3))
        outputs.append(total)
    return torch.stack(outputs)


def poison(like: Tensor) -> None:
    """Fills memory that the allocator is likely to hand out next with NaN, so that an unwritten output shows."""
    torch.full((like.numel() * 4,), float("nan"), dtype=like.dtype, device=like.device)


def output_error(forward: Forward, layer: Layer, x: Tensor) -> float:
    """Largest error over largest value, on up to eight tokens, with the output's memory poisoned before."""
    rows = torch.linspace(0, x.shape[0] - 1, min(8, x.shape[0]), device=x.device).long()
    want = float64_rows(layer, x, rows)
    poison(x)
    got = forward(x)
    if not bool(torch.isfinite(got).all()):
        return math.inf
    return ((got[rows].double() - want).abs().max() / want.abs().max()).item()


def make_layer(width: int, hidden: int, experts: int, generator: torch.Generator, grad: bool = False) -> Layer:
    def weight(*shape: int) -> Tensor:
        value = torch.randn(*shape, device=generator.device, generator=generator, dtype=torch.bfloat16)
        return (value / shape[-1] ** 0.5).requires_grad_(grad)

    empty = torch.empty(0, device=generator.device)
    w1, w3 = (weight(experts, hidden, width) for _ in range(2))
    return Layer(w1, weight(experts, width, hidden), w3, empty, empty)


def _costs(layer: Layer, tokens: int, phase: str) -> tuple[float, float]:
    """(FLOP, bytes that must be read and written) of a phase; a delta's low-rank products are not counted."""
    _, hidden, width = layer.w1.shape
    bytes_per_weight = 66 / 128 if phase.startswith("int4") else 2
    if phase in DELTA:  # one dense layer's outputs and the gradient of its input
        return 2 * 2 * 3 * width * hidden * tokens, 2 * 3 * width * hidden * bytes_per_weight + 8 * tokens * width * 2
    hit = len(set(layer.ids.flatten().tolist()))
    rows = layer.ids.numel()
    flop = 2 * 3 * width * hidden * rows
    moved = 3 * width * hidden * hit * bytes_per_weight + 2 * tokens * width * 2 + 4 * rows * hidden
    return (3 * flop, 4 * moved) if phase.endswith("backward") else (flop, moved)


def _train(forward: Forward, x: Tensor, grad: Tensor, leaves: Iterable[Tensor]) -> None:
    for leaf in (x, *leaves, *forward.parameters):
        leaf.grad = None
    forward(x).backward(grad)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:90]}"


@dataclass
class LayerBenchmark:
    """One layer, bf16 and int4, full and as deltas on a dense base, against the baselines.

    Attributes:
        layer: weights without a routing.
        packed: the weights in int4.
        peaks: of `timing.peaks`.
        repeats, seconds: rounds of each measurement, and the time at which it ends before.
    """

    layer: Layer
    packed: tuple[Int4Weight, Int4Weight, Int4Weight]
    peaks: dict[str, float]
    repeats: int
    seconds: float
    generator: torch.Generator

    def measure(self, case: Case) -> dict[str, Any]:
        """One row of the result."""
        device = self.generator.device
        gates, ids = route(case, self.layer.w1.shape[0], self.generator)
        layer = self.layer._replace(gates=gates, ids=ids)
        x = torch.randn(case.tokens, layer.w1.shape[2], device=device, generator=self.generator).bfloat16()
        backward = case.phase.endswith("backward")
        forwards, errors, skipped = self._candidates(layer, x, case)
        runs: dict[str, Callable[[], Any]]
        if backward:
            x.requires_grad_()
            grad, leaves = torch.randn_like(x), () if case.phase in DELTA else (layer.w1, layer.w2, layer.w3)
            forwards.pop("transformers batched_mm", None)
            runs = {name: partial(_train, forward, x, grad, leaves) for name, forward in forwards.items()}
        else:
            runs = {name: partial(forward, x) for name, forward in forwards.items()}
        with torch.set_grad_enabled(backward):
            for name in [name for name in runs if name != "ours"]:
                try:
                    runs[name]()
                except Exception as error:
                    skipped[name] = _short(error)
                    del runs[name]
            eager = measure(runs, self.repeats, self.seconds, device)
            graphs = {}
            if not backward:
                safe = (n for n in runs if case.tokens <= GRAPH_TOKENS.get(n, 0))
                graphs = {n: replay for n in safe if (replay := captured(runs[n], device)) is not None}
            graph = measure(graphs, self.repeats, self.seconds / 2, device) if graphs else {}
        flop, moved = _costs(layer, case.tokens, case.phase)
        ms = {name: min(value, graph.get(name, math.inf)) for name, value in eager.items()}
        share = max(flop / self.peaks["bf16"], moved / self.peaks["bandwidth"]) * 1e3 / ms["ours"]
        row = {
            **case._asdict(), "experts": layer.w1.shape[0], "ms": ms, "eager_ms": eager, "graph_ms": graph,
            "errors": errors, "correct": errors["ours"] <= BOUND_BF16, "skipped": skipped,
            "tflops": flop / ms["ours"] / 1e9, "gbytes_per_s": moved / ms["ours"] / 1e6, "roofline_share": share,
            "matmul_share": flop / self.peaks["bf16"] * 1e3 / ms["ours"],
            "bandwidth_share": moved / self.peaks["bandwidth"] * 1e3 / ms["ours"],
            "a10g_estimated_ms": estimated_ms(flop, moved, share),
        }  # fmt: skip
        if case.phase in DELTA:
            return {**row, "times_dense": ms["ours"] / ms["dense"]}
        speedup = min(best_speedup(eager), best_speedup(graph))
        return {**row, "speedup_over_best_baseline": speedup if speedup < math.inf else None}

    def _candidates(
        self, layer: Layer, x: Tensor, case: Case
    ) -> tuple[dict[str, Forward], dict[str, float], dict[str, str]]:
        """Our layer and the baselines that compute it, everyone's error, and why the others are left out."""
        exact, builds = layer, BASELINES
        w1, w2, w3 = layer.w1, layer.w2, layer.w3
        forwards = {"ours": Forward(lambda x: ops.experts_forward(x, w1, w2, w3, layer.gates, layer.ids))}
        if case.phase in DELTA:
            ours, exact, dense = self._delta(layer, case)
            builds, forwards = {"dense": lambda layer: dense}, {"ours": ours}
        elif case.phase.startswith("int4"):
            builds, (q1, q2, q3) = INT4_BASELINES, self.packed
            forwards = {"ours": Forward(lambda x: ops.experts_forward(x, q1, q2, q3, layer.gates, layer.ids))}
            exact = layer._replace(w1=int4.unpack(q1), w2=int4.unpack(q2), w3=int4.unpack(q3))
        errors: dict[str, float] = {}
        skipped: dict[str, str] = {}
        with torch.no_grad():
            errors["ours"] = output_error(forwards["ours"], exact, x)
            for name, build in builds.items():
                if case.tokens > MAX_TOKENS.get(name, case.tokens):
                    continue
                try:
                    with torch.enable_grad():
                        forward = build(layer)
                    errors[name] = output_error(forward, forward.exact or exact, x)
                except Exception as error:
                    skipped[name] = _short(error)
                    continue
                forward.exact = None  # not needed any more
                if errors[name] <= 4 * BOUND_BF16:
                    forwards[name] = forward
                else:
                    skipped[name] = f"wrong by {errors[name]:.1e}"
        return forwards, errors, skipped

    def _delta(self, layer: Layer, case: Case) -> tuple[Forward, Layer, Forward]:
        """Trained deltas on the first expert as a frozen base, the layer that they make, and the dense base alone."""

        def low_rank(rank: int, *lead: int) -> LowRank:
            made = (((rank, k), (n, rank)) for n, k in (w.shape[1:] for w in (layer.w1, layer.w2, layer.w3)))
            draw = partial(torch.randn, device=self.generator.device, generator=self.generator)
            shapes = (shape for pair in made for shape in pair)
            return LowRank(*((draw(*lead, *s) / s[-1] ** 0.5).bfloat16().requires_grad_() for s in shapes))

        w1, w2, w3 = dense = tuple(w[0].detach() for w in (layer.w1, layer.w2, layer.w3))
        base: Sequence[Any] = dense
        if case.phase.startswith("int4"):
            base = [Int4Weight(w.packed[:1], w.scales[:1]) for w in self.packed]
        shared, experts = low_rank(3 * RANK // 4), low_rank(RANK // 4, layer.w1.shape[0])
        frozen = [int4.unpack(w)[0] if isinstance(w, Int4Weight) else w.float() for w in base]
        with torch.no_grad():
            w1s, w2s, w3s = (
                w + 0.5 * (shared[2 * i + 1].float() @ shared[2 * i].float()
                           + experts[2 * i + 1].float() @ experts[2 * i].float())
                for i, w in enumerate(frozen)
            )  # fmt: skip

        def forward(x: Tensor) -> Tensor:
            routed = layer.gates, layer.ids
            return ops.delta_experts_forward(x, base[0], base[1], base[2], shared, experts, *routed, 0.5, 0.5)

        alone = layer._replace(w1=w1[None], w2=w2[None], w3=w3[None], gates=layer.gates.sum(1, keepdim=True))
        alone = alone._replace(ids=torch.zeros_like(layer.ids[:, :1]))
        plain = Forward(lambda x: F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2), exact=alone)
        return Forward(forward, [*shared, *experts]), layer._replace(w1=w1s, w2=w2s, w3=w3s), plain


def best_speedup(ms: Mapping[str, float]) -> float:
    """The best baseline's time over ours, timed in the same way; infinite where there is none."""
    return min((value for name, value in ms.items() if name != "ours"), default=math.inf) / ms.get("ours", 1.0)


def run(
    deadline: float, device: torch.device, cases: Iterable[Case] = CASES, width: int = MISTRAL_7B.dim,
    hidden: int = MISTRAL_7B.hidden_dim, repeats: int = 15, per_case_seconds: float = 1.0,
    on_row: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:  # fmt: skip
    """The cases that fit before ``deadline`` (`time.monotonic`), in their order; the others are listed.

    A case that fails is listed with its error and costs no other case. ``on_row`` gets the result so far after each.
    """
    generator = torch.Generator(device).manual_seed(0)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    failures: list[str] = []
    result = {**describe(device), "peaks": peaks(device), "rows": rows, "left_out": left_out, "failures": failures}
    layer = make_layer(width, hidden, EXPERTS, generator, grad=True)
    packed = (int4.pack(layer.w1), int4.pack(layer.w2), int4.pack(layer.w3))
    benchmark = LayerBenchmark(layer, packed, result["peaks"], repeats, per_case_seconds, generator)
    for case in dict.fromkeys(cases):
        if time.monotonic() > deadline:
            left_out.append(str(case))
            continue
        try:
            row = benchmark.measure(case)
        except Exception as error:
            failures.append(f"{case}: {_short(error)}")
            print(failures[-1], flush=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        rows.append(row)
        print(line(row), flush=True)
        on_row(result)
    on_row(result)
    return result


def line(row: dict[str, Any]) -> str:
    """One case as text."""
    others = ", ".join(f"{n} {v:.3f}" for n, v in sorted(row["ms"].items(), key=lambda kv: kv[1]) if n != "ours")
    if "times_dense" in row:
        beside = f"{row['times_dense']:.2f}x dense"
    else:
        beside = f"{row['speedup_over_best_baseline'] or math.nan:.2f}x best baseline"
    return (
        f"{row['phase']:27s} T={row['tokens']:<5d} top-{row['top_k']} {row['routing']:12s} {row['ms']['ours']:9.4f} ms "
        f"{row['tflops']:7.1f} TFLOP/s {row['gbytes_per_s']:7.0f} GB/s {row['roofline_share']:5.0%} of roofline, "
        f"{beside}, error {row['errors']['ours']:.1e}{'' if row['correct'] else ' WRONG'} [{others}]"
    )
