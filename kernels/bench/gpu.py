"""The GPU half of the benchmark: correctness first, then medians interleaved with the peers this machine has.

Shape legend: T tokens, K experts per token, E experts, D model width, F hidden width.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kernels import int4, ops
from kernels.bench.baselines import INT4_PEERS, MOST_TOKENS, PEERS, Forward, Layer

SHAPES = {"Mistral-7B x 4": (4096, 14336, 4), "Mixtral-8x7B": (4096, 14336, 8)}
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048, 4096, 8192)
ROUTINGS = ("uniform", "skewed", "one language")
TOP_K = 2
BOUND_BF16 = 2**-6  # inputs, activations and outputs are rounded to 8 bits; the sums over K average most of it out
GRAPH_TOKENS = 64  # up to here a forward is also timed as a CUDA graph: the host's part is longer than the GPU's
GRAPH_SAFE = ("ours", "grouped_mm", "transformers batched_mm")  # those that never wait for the GPU
A10G = {"bandwidth": 600e9, "bf16": 70e12}  # published peaks, for the projection; no A10G was measured


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


def measure(runs: dict[str, Callable[[], Any]], repeats: int, seconds: float) -> dict[str, float]:
    """Median milliseconds of each function, taken in turns, each with a cold L2; at most ``seconds`` in all."""
    flush = torch.empty(256 << 20, dtype=torch.int8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in runs}
    deadline = time.monotonic() + seconds
    for round_index in range(repeats + 2):
        for name, function in runs.items():
            flush.zero_()
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
    """A replay of ``function`` as a CUDA graph, which costs the host nothing; None where it can not be captured."""
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
    """This card's own ceilings: bytes per second of a read, bf16 FLOP per second of a large dense product."""
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
    return Layer(
        weight(experts, hidden, width), weight(experts, width, hidden), weight(experts, hidden, width), empty, empty
    )


def ours(layer: Layer) -> Forward:
    return lambda x: ops.experts_forward(x, layer.w1, layer.w2, layer.w3, layer.gates, layer.ids)


def ours_int4(packed: tuple[int4.Int4Weight, ...], layer: Layer) -> Forward:
    return lambda x: ops.experts_forward(x, *packed, layer.gates, layer.ids)


def _costs(layer: Layer, tokens: int, bytes_per_weight: float) -> tuple[float, float]:
    """(FLOP, bytes that must be read and written) of a forward."""
    width, hidden = layer.w1.shape[2], layer.w1.shape[1]
    hit = len(set(layer.ids.flatten().tolist()))
    flop = 2 * 3 * width * hidden * tokens * TOP_K
    return flop, 3 * width * hidden * hit * bytes_per_weight + 2 * tokens * width * 2 + 4 * tokens * TOP_K * hidden


def _train(forward: Forward, x: Tensor, grad: Tensor, leaves: Iterable[Tensor]) -> None:
    for leaf in (x, *leaves, *getattr(forward, "leaves", ())):
        leaf.grad = None
    forward(x).backward(grad)


def case(
    layer: Layer, tokens: int, kind: str, phase: str, peaks: dict[str, float], packed: tuple[int4.Int4Weight, ...],
    repeats: int, seconds: float, generator: torch.Generator,
) -> dict[str, Any]:  # fmt: skip
    """One line of the table: ``phase`` is "bf16 forward", "bf16 forward+backward" or "int4 forward"."""
    gates, ids = route(tokens, layer.w1.shape[0], kind, generator)
    layer = layer._replace(gates=gates, ids=ids)
    x = torch.randn(tokens, layer.w1.shape[2], device="cuda", generator=generator).bfloat16()
    quantised = phase.startswith("int4")
    if quantised:
        full = [int4.unpack(w, torch.float32) for w in packed]
        exact = layer._replace(w1=full[0], w2=full[1], w3=full[2])
    else:
        exact = layer
    mine = ours_int4(packed, layer) if quantised else ours(layer)
    candidates = {"ours": mine}
    skipped = {}
    for name, build in (INT4_PEERS if quantised else PEERS).items():
        if tokens > MOST_TOKENS.get(name, tokens):
            continue
        try:
            candidates[name] = build(layer)
        except Exception as error:
            skipped[name] = f"{type(error).__name__}: {str(error)[:90]}"
    errors = {}
    for name, forward in list(candidates.items()):
        try:
            with torch.no_grad():
                errors[name] = output_error(forward, getattr(forward, "exact", exact), x)
        except Exception as error:
            errors[name] = math.inf
            skipped[name] = f"{type(error).__name__}: {str(error)[:90]}"
        if name != "ours" and not errors[name] <= 4 * BOUND_BF16:
            skipped.setdefault(name, f"wrong by {errors[name]:.1e}")
            del candidates[name]
        if hasattr(forward, "exact"):
            del forward.exact  # as large as the layer in float32; not needed any more
    backward = phase.endswith("backward")
    if backward:
        x.requires_grad_()
        grad = torch.randn_like(x)
        leaves = (layer.w1, layer.w2, layer.w3)
        runs = {
            n: (lambda f=f: _train(f, x, grad, leaves)) for n, f in candidates.items() if n != "transformers batched_mm"
        }
    else:
        runs = {n: (lambda f=f: f(x)) for n, f in candidates.items()}
    del exact
    with torch.set_grad_enabled(backward):
        for name in [name for name in runs if name != "ours"]:
            try:
                runs[name]()
            except Exception as error:
                skipped[name] = f"{type(error).__name__}: {str(error)[:90]}"
                del runs[name]
        eager = measure(runs, repeats, seconds)
        graphs = {}
        if not backward and tokens <= GRAPH_TOKENS:
            graphs = {n: replay for n in GRAPH_SAFE if n in runs and (replay := captured(runs[n]))}
        graph = measure(graphs, repeats, seconds / 2) if graphs else {}
    ms = {name: min(value, graph.get(name, math.inf)) for name, value in eager.items()}
    flop, moved = _costs(layer, tokens, 66 / 128 if quantised else 2)
    flop, moved = (3 * flop, 4 * moved) if backward else (flop, moved)
    floor = max(flop / peaks["bf16"], moved / peaks["bandwidth"]) * 1e3
    best = min((v for n, v in ms.items() if n != "ours"), default=math.nan)
    return {
        "phase": phase, "experts": layer.w1.shape[0], "tokens": tokens, "routing": kind, "ms": ms,
        "eager_ms": eager, "graph_ms": graph, "errors": errors,
        "correct": errors["ours"] <= BOUND_BF16, "skipped": skipped, "tflops": flop / ms["ours"] / 1e9,
        "gbytes_per_s": moved / ms["ours"] / 1e6, "roofline_share": floor / ms["ours"],
        "ratio_to_best_peer": best / ms["ours"],
        "a10g_projected_ms": max(flop / A10G["bf16"], moved / A10G["bandwidth"]) * 1e3 / (floor / ms["ours"]),
    }  # fmt: skip


def run(
    deadline: float, quick: bool = False, repeats: int = 15, per_case_seconds: float = 1.5,
    on_row: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:  # fmt: skip
    """All cases that fit before ``deadline`` (`time.monotonic`), the bars' cases first; what did not fit is listed.

    A case that fails is listed with its error and costs no other case. ``on_row`` gets the result so far after each.
    """
    generator = torch.Generator("cuda").manual_seed(0)
    peaks = roofline()
    order = [
        ("int4 forward", 1, "uniform"), ("int4 forward", 8, "uniform"), ("int4 forward", 4096, "uniform"),
        ("bf16 forward", 4096, "uniform"), ("bf16 forward+backward", 4096, "uniform"), ("bf16 forward", 1, "uniform"),
        ("bf16 forward", 8, "uniform"), ("bf16 forward", 2048, "uniform"),
    ]  # fmt: skip
    if not quick:
        order += [(p, t, "uniform") for p in ("bf16 forward", "int4 forward", "bf16 forward+backward") for t in TOKENS]
        order += [
            (p, t, r) for r in ROUTINGS[1:] for t in (64, 2048, 8192) for p in ("bf16 forward", "bf16 forward+backward")
        ]
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
        if quick and experts != 4:
            continue
        layer = make_layer(width, hidden, experts, generator, grad=True)
        packed = tuple(int4.pack(w) for w in (layer.w1, layer.w2, layer.w3))
        for phase, tokens, kind in dict.fromkeys(order):
            if time.monotonic() > deadline:
                left_out.append(f"{name}: {phase} T={tokens} {kind}")
                continue
            try:
                row = case(layer, tokens, kind, phase, peaks, packed, repeats, per_case_seconds, generator)
            except Exception as error:
                left_out.append(f"{name}: {phase} T={tokens} {kind}: {type(error).__name__}: {str(error)[:120]}")
                print(left_out[-1], flush=True)
                torch.cuda.empty_cache()
                continue
            rows.append({"shape": name, **row})
            print(line(rows[-1]), flush=True)
            on_row(result)
        del layer, packed
        torch.cuda.empty_cache()
    return result


def line(row: dict[str, Any]) -> str:
    """One case as text."""
    peers = ", ".join(f"{n} {v:.3f}" for n, v in sorted(row["ms"].items(), key=lambda kv: kv[1]) if n != "ours")
    return (
        f"{row['shape']:15s} {row['phase']:22s} T={row['tokens']:<5d} {row['routing']:12s} {row['ms']['ours']:9.4f} ms "
        f"{row['tflops']:7.1f} TFLOP/s {row['gbytes_per_s']:7.0f} GB/s {row['roofline_share']:5.0%} of roofline "
        f"{row['ratio_to_best_peer']:5.2f}x best peer, error {row['errors']['ours']:.1e}"
        f"{'' if row['correct'] else ' WRONG'} [{peers}] A10G projected {row['a10g_projected_ms']:.3f} ms"
    )
