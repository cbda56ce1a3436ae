"""The CPU half of the benchmark: this package's expert layer against transformers' Mixtral block, same weights.

Decode rotates over several layers' worth of weights, so that it reads them from memory, as a model does, and not from a
cache that one layer would fit. Beside each time stands the roofline of everything built on torch's products: for a
training step the products alone (`kernels.bench.roofline`), for decode the chosen experts' bytes at the machine's
bandwidth.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kernels import ops, reference
from kernels.bench.roofline import interleaved_medians, matrix_products, read_bandwidth
from kernels.bench.shapes import EXPERTS, SMOLLM2_135M, TOP_K

SHAPES = {"SmolLM2-135M": (SMOLLM2_135M.dim, SMOLLM2_135M.hidden_dim), "1024/3584": (1024, 3584)}
TRAIN_TOKENS = (128, 512, 2048)
BASELINES = ("grouped_mm", "eager", "batched_mm")  # transformers' implementations; targets are about the first
CACHE_BYTES = 192 << 20  # decode rotates over at least this much weight, several times a last-level cache
TRAIN_TARGET, DECODE_TARGET = 1.3, 2.0


class MixtralBlocks:
    """``count`` transformers Mixtral blocks, and this package's layer on the same parameters."""

    def __init__(self, width: int, hidden: int, count: int):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        self.config = MixtralConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_local_experts=EXPERTS,
            num_experts_per_tok=TOP_K,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        self.blocks = []
        self.weights = []
        for _ in range(count):
            block = MixtralSparseMoeBlock(self.config)
            for parameter in block.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            gate_up = block.experts.gate_up_proj.detach()  # [E, 2F, D]
            weights = (gate_up[:, :hidden], block.experts.down_proj.detach(), gate_up[:, hidden:])
            self.blocks.append(block)
            self.weights.append([w.clone().requires_grad_() for w in weights])

    def baseline(self, name: str, index: int, x: Tensor) -> Tensor:
        """Block ``index`` by one of transformers' implementations, x [T, D] -> [T, D]."""
        self.config._experts_implementation = name
        return self.blocks[index](x.unsqueeze(0)).squeeze(0)

    def ours(self, index: int, x: Tensor) -> Tensor:
        """The same block by this package's layer."""
        _, gates, ids = self.blocks[index].gate(x)
        w1, w2, w3 = self.weights[index]
        return ops.experts_forward(x, w1, w2, w3, gates, ids)

    def check(self, x: Tensor) -> float:
        """Largest relative difference to float64, over all baselines and ours."""
        _, gates, ids = self.blocks[0].gate(x)
        w1, w2, w3 = (w.double() for w in self.weights[0])
        want = reference.experts_forward(x.double(), w1, w2, w3, gates.double(), ids)
        outputs = [self.ours(0, x), *(self.baseline(name, 0, x) for name in BASELINES)]
        return max(((got - want).abs().max() / want.abs().max()).item() for got in outputs)


def _train_step(forward: Callable[[Tensor], Tensor], x: Tensor, leaves: Sequence[Tensor], grad: Tensor) -> None:
    for leaf in (x, *leaves):
        leaf.grad = None
    forward(x).backward(grad)


def _train_medians(blocks: MixtralBlocks, tokens: int, width: int, hidden: int, repeats: int) -> dict[str, float]:
    x = torch.randn(tokens, width, requires_grad=True)

    def new_routing() -> None:
        # Every round draws new routing, as every layer of every step does: code for new row counts is part of the cost.
        with torch.no_grad():
            x.normal_()

    grad = torch.randn(tokens, width)
    leaves = list(blocks.blocks[0].parameters())
    runs = {"ours": partial(_train_step, partial(blocks.ours, 0), x, blocks.weights[0], grad)}
    for name in BASELINES[:2]:
        runs[name] = partial(_train_step, partial(blocks.baseline, name, 0), x, leaves, grad)
    rows = blocks.blocks[0].gate(x)[2].flatten().bincount().tolist()
    return interleaved_medians({**runs, "roofline": matrix_products(rows, width, hidden)}, repeats, before=new_routing)


def _compared(medians: dict[str, float], roofline: float, target: float) -> dict[str, Any]:
    """What each row of the table says: times, speedup over grouped_mm, both sides' share of the roofline.

    ``max_speedup`` is the baseline's time over the roofline's: an upper bound for anything built on these products.
    """
    ours, baseline = medians["ours"], medians["grouped_mm"]
    return {
        "ms": {k: v * 1e3 for k, v in medians.items() if k != "roofline"},
        "roofline_ms": roofline * 1e3,
        "roofline_share": roofline / ours,
        "baseline_roofline_share": roofline / baseline,
        "speedup": baseline / ours,
        "max_speedup": baseline / roofline,
        "target": target,
    }


def measure_shape(name: str, width: int, hidden: int, repeats: int, bandwidth: float) -> list[dict[str, Any]]:
    """Rows of the result table: forward+backward at each T, then batch-1 decode."""
    rows = []
    blocks = MixtralBlocks(width, hidden, 1)
    error = blocks.check(torch.randn(64, width))
    assert error < 1e-4, f"the blocks disagree with float64 by {error:.1e}"
    for tokens in TRAIN_TOKENS:
        medians = _train_medians(blocks, tokens, width, hidden, repeats)
        rows.append(
            {
                "shape": name,
                "phase": "forward+backward",
                "tokens": tokens,
                **_compared(medians, medians["roofline"], TRAIN_TARGET),
                "gflops": 3 * 2 * 3 * width * hidden * TOP_K * tokens / medians["ours"] / 1e9,
                "max_relative_error": error,
            }
        )
    rows.append(_measure_decode(name, width, hidden, repeats, bandwidth, error))
    return rows


def _measure_decode(name: str, width: int, hidden: int, repeats: int, bandwidth: float, error: float) -> dict[str, Any]:
    layer_bytes = 3 * width * hidden * EXPERTS * 4
    count = max(2, -(-CACHE_BYTES // layer_bytes))
    blocks = MixtralBlocks(width, hidden, count)
    x = torch.randn(1, width)

    @torch.no_grad()
    def layers(forward: Callable[[int, Tensor], Tensor]) -> None:
        for index in range(count):
            forward(index, x)

    runs = {"ours": partial(layers, blocks.ours)}
    runs |= {name: partial(layers, partial(blocks.baseline, name)) for name in BASELINES}
    medians = {k: v / count for k, v in interleaved_medians(runs, max(repeats, 15)).items()}
    read = 3 * width * hidden * TOP_K * 4 + EXPERTS * width * 4  # chosen experts and the router
    return {
        "shape": name,
        "phase": "decode",
        "tokens": 1,
        **_compared(medians, read / bandwidth, DECODE_TARGET),
        "gbytes_per_s": read / medians["ours"] / 1e9,
        "max_relative_error": error,
    }


def run(repeats: int = 9) -> dict[str, Any]:
    """Measures both shapes; needs transformers. The result is what the benchmark writes as JSON."""
    torch.manual_seed(0)
    bandwidth = read_bandwidth()
    rows = []
    for name, (width, hidden) in SHAPES.items():
        rows += measure_shape(name, width, hidden, repeats, bandwidth)
    return {
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "read_gbytes_per_s": bandwidth / 1e9,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [
        f"CPU, {result['threads']} threads, float32, E={EXPERTS}, K={TOP_K}; "
        f"measured read bandwidth {result['read_gbytes_per_s']:.1f} GB/s; times in ms, share = roofline / time",
        f"{'shape':13s} {'phase':17s} {'T':>4s} {'ours':>8s} {'grouped_mm':>10s} {'eager':>8s} {'batched_mm':>10s}"
        f" {'roofline':>8s} {'ours, grouped_mm: share':>24s} {'speedup':>7s} {'max':>7s} {'target':>6s}  speed",
    ]
    for row in result["rows"]:
        ms = row["ms"]
        cells = [f"{ms[name]:.3f}" if name in ms else "-" for name in BASELINES]
        shares = f"{row['roofline_share']:.0%}, {row['baseline_roofline_share']:.0%}"
        speed = f"{row['gbytes_per_s']:.1f} GB/s" if "gbytes_per_s" in row else f"{row['gflops']:.0f} GFLOP/s"
        lines.append(
            f"{row['shape']:13s} {row['phase']:17s} {row['tokens']:4d} {ms['ours']:8.3f} {cells[0]:>10s} {cells[1]:>8s}"
            f" {cells[2]:>10s} {row['roofline_ms']:8.3f} {shares:>24s}"
            f" {row['speedup']:6.2f}x {row['max_speedup']:6.2f}x {row['target']:6.1f}  {speed}"
        )
    return "\n".join(lines)
