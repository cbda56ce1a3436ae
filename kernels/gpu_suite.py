"""``python -m kernels.gpu_suite``: everything that a machine with a GPU should run, in one go, inside 9 minutes.

Correctness of every layer against float64, bitwise repeatability, no host synchronisation, CUDA-graph capture, sm_86's
PTX through the driver's JIT, the compile check, the benchmark, a tuned table. Each step may fail without stopping the
others; results go to one folder. Exit code 1 where a step failed, 2 without a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
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


def sm86_through_the_driver() -> dict[str, Any]:
    from kernels.ptx_jit import check_sm86_down_projection

    return check_sm86_down_projection()


def compile_check() -> dict[str, Any]:
    import os

    from kernels import compile_check as check
    from kernels import tuning

    rows = check.check(list(tuning.TABLES), min(8, os.cpu_count() or 1))
    bad = [f"{r['arch']} {r['op']} {r['tile']}: {check.problem(r)}" for r in rows if check.problem(r)]
    return {"rows": rows, "table": check.table(rows), "summary": {"ok": not bad, "problems": bad}}


def _failed(value: Any) -> bool:
    """Whether any ``ok`` in a nested result is False."""
    if isinstance(value, dict):
        return value.get("ok") is False or value.get("correct") is False or any(map(_failed, value.values()))
    return isinstance(value, list) and any(map(_failed, value))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gpu_suite", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="folder for all results")
    parser.add_argument("--minutes", type=float, default=8.5, help="time for everything")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: no GPU that torch can use was found", file=sys.stderr)
        return 2
    start = time.monotonic()
    deadline = start + 60 * args.minutes
    args.output.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "arch": "sm_{}{}".format(*torch.cuda.get_device_capability()),
        "torch": torch.__version__,
    }

    def step(name: str, function: Callable[[], Any]) -> Any:
        begin = time.monotonic()
        try:
            result = function()
            status = "failed" if _failed(result) else "ok"
        except Exception:
            result, status = {"error": traceback.format_exc()}, "failed"
            print(result["error"], file=sys.stderr)
        (args.output / f"{name}.json").write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
        summary[name] = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
        print(f"{name}: {status} in {summary[name]['seconds']} s", flush=True)
        (args.output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        return result

    def benchmark() -> Any:
        from kernels import benchmark_gpu
        from kernels.benchmark import plot

        result = benchmark_gpu.run(deadline - 60)
        (args.output / "benchmark.txt").write_text("\n".join(map(benchmark_gpu.line, result["rows"])) + "\n")
        plot(result, args.output / "benchmark.png")
        return result

    def tune() -> Any:
        from kernels.tune import tune as search
        from kernels.tuning import write_table

        table, log = search(deadline)
        write_table(args.output / f"{summary['arch']}.table.json", summary["arch"], table)
        return {"measurements": log}

    for function in (correctness, no_host_synchronisation, cuda_graph, sm86_through_the_driver):
        step(function.__name__, function)
    step("benchmark", benchmark)
    step("tuned_table", tune)
    if time.monotonic() < deadline - 30:
        step("full_graph_compile", full_graph_compile)
    if time.monotonic() < deadline - 60:
        rows = step("compile_check", compile_check)
        (args.output / "compile_check.txt").write_text(str(rows.get("table", "")) + "\n", encoding="utf-8")
    return 1 if any(isinstance(v, dict) and v["status"] == "failed" for v in summary.values()) else 0


if __name__ == "__main__":
    raise SystemExit(main())
