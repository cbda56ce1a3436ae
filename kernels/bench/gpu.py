"""The GPU half of the benchmark: correctness first, then medians interleaved with the installed baselines."""

# T tokens, D model dim, F hidden dim, E experts, K top-k

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import int4, ops
from kernels.bench.a10g_estimate import estimated_ms
from kernels.bench.baselines import BASELINES, INT4_BASELINES, MAX_TOKENS, Forward, Layer
from kernels.bench.shapes import EXPERTS, MISTRAL_7B, TOP_K
from kernels.int4 import Int4Weight

SHAPES = {
    "Mistral-7B x 4": (MISTRAL_7B.dim, MISTRAL_7B.hidden_dim, EXPERTS),
    "Mixtral-8x7B": (MISTRAL_7B.dim, MISTRAL_7B.hidden_dim, 8),
}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 4096, 8192)
ROUTINGS = ("uniform", "skewed", "one language")
BOUND_BF16 = 2**-6  # inputs, activations and outputs are rounded to 8 bits; the sums over K average most of it out
GRAPH_TOKENS = 64  # up to here a forward is also timed as a CUDA graph: the host's part is longer than the GPU's
GRAPH_SAFE = ("ours", "grouped_mm", "transformers batched_mm")  # those that never wait for the GPU


class Case(NamedTuple):
    """``phase``: "bf16 forward", "bf16 forward+backward" or "int4 forward"; ``routing``: one of `ROUTINGS`."""

    phase: str
    tokens: int
    routing: str

    def __str__(self) -> str:
        return f"{self.phase} T={self.tokens} {self.routing}"


# what the targets are about
TARGET_CASES = [
    *(Case("int4 forward", tokens, "uniform") for tokens in (1, 8, 4096)),
    Case("bf16 forward", 4096, "uniform"),
    Case("bf16 forward+backward", 4096, "uniform"),
    *(Case("bf16 forward", tokens, "uniform") for tokens in (1, 8, 2048)),
]
PHASES = ("bf16 forward", "int4 forward", "bf16 forward+backward")
OTHER_CASES = [
    *(Case(phase, tokens, "uniform") for phase in PHASES for tokens in TOKENS),
    *(Case(p, t, r) for r in ROUTINGS[1:] for t in (64, 2048, 8192) for p in ("bf16 forward", "bf16 forward+backward")),
]


def route(tokens: int, experts: int, kind: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(gates [T, K], ids [T, K]) of a routing: uniform, 70/10/10/10, or every token to the same two experts."""
    if kind == "one language":
        ids = torch.arange(TOP_K, device="cuda").expand(tokens, TOP_K).contiguous()
    else:
        weight = torch.ones(experts, device="cuda")
        if kind == "skewed":
            weight[0] = 7.0 * (experts - 1) / 3
        ids = torch.multinomial(weight.expand(tokens, experts), TOP_K, generator=generator)
    gates = torch.softmax(torch.randn(tokens, TOP_K, device="cuda", generator=generator), -1)
    return gates, ids


def measure(runs: Mapping[str, Callable[[], Any]], repeats: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, taken in turns, each with a cold L2; at most ``seconds`` in all."""
    flush = torch.zeros(64 << 20, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in runs}
    deadline = time.monotonic() + seconds
    for round_index in range(repeats + 2):
        for name, function in runs.items():
            flush.sum()  # read, not written: dirty lines would be written back inside the timed region
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            if round_index >= 2:
                events[name].append((start, end))
        if round_index >= 4 and time.monotonic() > deadline:
            break
        torch.cuda.synchronize()
    torch.cuda.synchronize()
    return {name: statistics.median(a.elapsed_time(b) for a, b in pairs) for name, pairs in events.items()}


def captured(function: Callable[[], Any]) -> Callable[[], Any] | None:
    """A replay of ``function`` as a CUDA graph, which costs the host nothing; None where it cannot be captured."""
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    except Exception:
        torch.cuda.synchronize()
        return None
    return graph.replay


def roofline() -> dict[str, float]:
    """This card's measured peaks: bytes per second of a read, bf16 FLOP per second of a large dense product."""
    buffer = torch.ones(1 << 28, dtype=torch.float32, device="cuda")
    a, b = (torch.randn(8192, 8192, device="cuda").bfloat16() for _ in range(2))
    ms = measure({"read": buffer.sum, "product": lambda: a @ b}, 10, 10)
    return {"bandwidth": buffer.numel() * 4 / ms["read"] * 1e3, "bf16": 2 * 8192**3 / ms["product"] * 1e3}


def float64_rows(layer: Layer, x: Tensor, rows: Tensor) -> Tensor:
    """The layer's output for some of the tokens in float64, gathered per token (slow, exact)."""
    outputs = []
    for t in rows.tolist():
        total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
        for gate, e in zip(layer.gates[t].double(), layer.ids[t].tolist()):
            v = x[t].double()
            h1, h3 = layer.w1[e].double() @ v, layer.w3[e].double() @ v
            total += gate * (layer.w2[e].double() @ (torch.nn.functional.silu(h1) * h3))
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
        value = torch.randn(*shape, device="cuda", generator=generator, dtype=torch.bfloat16) / shape[-1] ** 0.5
        return value.requires_grad_(grad)

    empty = torch.empty(0, device="cuda")
    w1, w3 = (weight(experts, hidden, width) for _ in range(2))
    return Layer(w1, weight(experts, width, hidden), w3, empty, empty)


def _costs(layer: Layer, tokens: int, bytes_per_weight: float) -> tuple[float, float]:
    """(FLOP, bytes that must be read and written) of a forward."""
    width, hidden = layer.w1.shape[2], layer.w1.shape[1]
    hit = len(set(layer.ids.flatten().tolist()))
    flop = 2 * 3 * width * hidden * tokens * TOP_K
    return flop, 3 * width * hidden * hit * bytes_per_weight + 2 * tokens * width * 2 + 4 * tokens * TOP_K * hidden


def _train(forward: Forward, x: Tensor, grad: Tensor, leaves: Iterable[Tensor]) -> None:
    for leaf in (x, *leaves, *forward.parameters):
        leaf.grad = None
    forward(x).backward(grad)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:90]}"


@dataclass
class LayerBenchmark:
    """One layer, bf16 and int4, against the baselines.

    Attributes:
        layer: weights without a routing.
        packed: the weights in int4.
        peaks: of `roofline`.
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
        gates, ids = route(case.tokens, self.layer.w1.shape[0], case.routing, self.generator)
        layer = self.layer._replace(gates=gates, ids=ids)
        x = torch.randn(case.tokens, layer.w1.shape[2], device="cuda", generator=self.generator).bfloat16()
        backward = case.phase.endswith("backward")
        forwards, errors, skipped = self._candidates(layer, x, case)
        runs: dict[str, Callable[[], Any]]
        if backward:
            x.requires_grad_()
            grad, leaves = torch.randn_like(x), (layer.w1, layer.w2, layer.w3)
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
            eager = measure(runs, self.repeats, self.seconds)
            graphs = {}
            if not backward and case.tokens <= GRAPH_TOKENS:
                graphs = {n: replay for n in GRAPH_SAFE if n in runs and (replay := captured(runs[n]))}
            graph = measure(graphs, self.repeats, self.seconds / 2) if graphs else {}
        flop, moved = _costs(layer, case.tokens, 66 / 128 if case.phase.startswith("int4") else 2)
        flop, moved = (3 * flop, 4 * moved) if backward else (flop, moved)
        ms = {name: min(value, graph.get(name, math.inf)) for name, value in eager.items()}
        share = max(flop / self.peaks["bf16"], moved / self.peaks["bandwidth"]) * 1e3 / ms["ours"]
        return {
            "phase": case.phase, "experts": layer.w1.shape[0], "tokens": case.tokens, "routing": case.routing,
            "ms": ms, "eager_ms": eager, "graph_ms": graph, "errors": errors,
            "correct": errors["ours"] <= BOUND_BF16, "skipped": skipped, "tflops": flop / ms["ours"] / 1e9,
            "gbytes_per_s": moved / ms["ours"] / 1e6, "roofline_share": share,
            "speedup_over_best_baseline": min(best_speedup(eager), best_speedup(graph)),
            "a10g_estimated_ms": estimated_ms(flop, moved, share),
        }  # fmt: skip

    def _candidates(
        self, layer: Layer, x: Tensor, case: Case
    ) -> tuple[dict[str, Forward], dict[str, float], dict[str, str]]:
        """Our layer and the baselines that compute it, everyone's error, and why the others are left out."""
        exact, builds = layer, BASELINES
        w1, w2, w3 = layer.w1, layer.w2, layer.w3
        forwards = {"ours": Forward(lambda x: ops.experts_forward(x, w1, w2, w3, layer.gates, layer.ids))}
        if case.phase.startswith("int4"):
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


def best_speedup(ms: Mapping[str, float]) -> float:
    """The best baseline's time over ours, timed in the same way; infinite where there is none."""
    return min((value for name, value in ms.items() if name != "ours"), default=math.inf) / ms.get("ours", 1.0)


def run(
    deadline: float, quick: bool = False, repeats: int = 15, per_case_seconds: float = 1.5,
    on_row: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:  # fmt: skip
    """All cases that fit before ``deadline`` (`time.monotonic`), those of the targets first; the others are listed.

    A case that fails is listed with its error and costs no other case. ``on_row`` gets the result so far after each.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    peaks = roofline()
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    result = {
        "device": torch.cuda.get_device_name(),
        "arch": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "torch": torch.__version__,
        "peaks": peaks,
        "rows": rows,
        "left_out": left_out,
    }
    for name, (width, hidden, experts) in SHAPES.items():
        if quick and experts != EXPERTS:
            continue
        layer = make_layer(width, hidden, experts, generator, grad=True)
        packed = (int4.pack(layer.w1), int4.pack(layer.w2), int4.pack(layer.w3))
        benchmark = LayerBenchmark(layer, packed, peaks, repeats, per_case_seconds, generator)
        for case in dict.fromkeys(TARGET_CASES if quick else TARGET_CASES + OTHER_CASES):
            if time.monotonic() > deadline:
                left_out.append(f"{name}: {case}")
                continue
            try:
                row = benchmark.measure(case)
            except Exception as error:
                left_out.append(f"{name}: {case}: {_short(error)}")
                print(left_out[-1], flush=True)
                torch.cuda.empty_cache()
                continue
            rows.append({"shape": name, **row})
            print(line(rows[-1]), flush=True)
            on_row(result)
        del layer, packed, benchmark
        torch.cuda.empty_cache()
    return result


def line(row: dict[str, Any]) -> str:
    """One case as text."""
    others = ", ".join(f"{n} {v:.3f}" for n, v in sorted(row["ms"].items(), key=lambda kv: kv[1]) if n != "ours")
    return (
        f"{row['shape']:15s} {row['phase']:22s} T={row['tokens']:<5d} {row['routing']:12s} {row['ms']['ours']:9.4f} ms "
        f"{row['tflops']:7.1f} TFLOP/s {row['gbytes_per_s']:7.0f} GB/s {row['roofline_share']:5.0%} of roofline "
        f"{row['speedup_over_best_baseline']:5.2f}x best baseline, error {row['errors']['ours']:.1e}"
        f"{'' if row['correct'] else ' WRONG'} [{others}] A10G estimated {row['a10g_estimated_ms']:.3f} ms"
    )
