"""The CPU half of the benchmark: this package's expert layer against transformers' Mixtral block, same weights.

Blocks are rotated (several layers' worth of weights) so that decode reads its weights from memory, as a model does, and
not from a cache that one layer would fit.

Shape legend: T tokens, D model width, F hidden width, E experts, K experts per token.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import ops, reference

SHAPES = {"SmolLM2-135M": (576, 1536), "1024/3584": (1024, 3584)}
NUM_EXPERTS = 4
TOP_K = 2
TRAIN_TOKENS = (128, 512, 2048)
PEERS = ("grouped_mm", "eager", "batched_mm")
CACHE_BYTES = 192 << 20  # decode rotates over at least this much weight, several times a last-level cache
TRAIN_BAR, DECODE_BAR = 1.3, 2.0


def interleaved_medians(runs: dict[str, Callable[[], Any]], repeats: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each function, measured in turns so that a busy moment hits everyone alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_index in range(repeats + warmup):
        for name, function in runs.items():
            start = time.perf_counter()
            function()
            if round_index >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def read_bandwidth(megabytes: int = 256, repeats: int = 7) -> float:
    """Bytes per second of reading a buffer far larger than any cache, by summing it."""
    buffer = torch.ones(megabytes << 18)
    return buffer.numel() * 4 / interleaved_medians({"sum": buffer.sum}, repeats)["sum"]


class MixtralBlocks:
    """``count`` transformers Mixtral blocks, and this package's layer on the same parameters."""

    def __init__(self, width: int, hidden: int, count: int):
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

        self.config = MixtralConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_local_experts=NUM_EXPERTS,
            num_experts_per_tok=TOP_K,
            num_attention_heads=8,
            num_key_value_heads=8,
        )
        self.blocks = []
        self.ours = []
        for _ in range(count):
            block = MixtralSparseMoeBlock(self.config)
            for parameter in block.parameters():
                torch.nn.init.normal_(parameter, std=0.02)
            gate_up = block.experts.gate_up_proj.detach()  # [E, 2F, D]
            weights = (gate_up[:, :hidden], block.experts.down_proj.detach(), gate_up[:, hidden:])
            self.blocks.append(block)
            self.ours.append([w.clone().requires_grad_() for w in weights])

    def peer(self, name: str, index: int, x: Tensor) -> Tensor:
        self.config._experts_implementation = name
        return self.blocks[index](x.unsqueeze(0)).squeeze(0)

    def mine(self, index: int, x: Tensor) -> Tensor:
        _, gates, ids = self.blocks[index].gate(x)
        return ops.experts_forward(x, *self.ours[index], gates, ids)

    def check(self, x: Tensor) -> float:
        """Largest relative difference to float64, over all peers and ours."""
        _, gates, ids = self.blocks[0].gate(x)
        want = reference.experts_forward(x.double(), *(w.double() for w in self.ours[0]), gates.double(), ids)
        worst = 0.0
        for name in (*PEERS, "ours"):
            got = self.mine(0, x) if name == "ours" else self.peer(name, 0, x)
            worst = max(worst, ((got - want).abs().max() / want.abs().max()).item())
        return worst


def _train_step(forward: Callable[[], Tensor], x: Tensor, leaves: list[Tensor], grad: Tensor) -> None:
    for leaf in (x, *leaves):
        leaf.grad = None
    forward().backward(grad)


def _train_medians(blocks: MixtralBlocks, tokens: int, width: int, repeats: int) -> dict[str, float]:
    x = torch.randn(tokens, width, requires_grad=True)
    grad = torch.randn(tokens, width)
    leaves = list(blocks.blocks[0].parameters())
    runs = {"ours": lambda: _train_step(lambda: blocks.mine(0, x), x, blocks.ours[0], grad)}
    for peer in PEERS[:2]:
        runs[peer] = lambda peer=peer: _train_step(lambda: blocks.peer(peer, 0, x), x, leaves, grad)
    return interleaved_medians(runs, repeats)


def measure_shape(name: str, width: int, hidden: int, repeats: int, bandwidth: float) -> list[dict[str, Any]]:
    """Rows of the result table: forward+backward at each T, then batch-1 decode."""
    rows = []
    blocks = MixtralBlocks(width, hidden, 1)
    error = blocks.check(torch.randn(64, width))
    assert error < 1e-4, f"the blocks disagree with float64 by {error:.1e}"
    for tokens in TRAIN_TOKENS:
        medians = _train_medians(blocks, tokens, width, repeats)
        rows.append(
            {
                "shape": name,
                "phase": "forward+backward",
                "tokens": tokens,
                "ms": {k: v * 1e3 for k, v in medians.items()},
                "gflops": 3 * 2 * 3 * width * hidden * TOP_K * tokens / medians["ours"] / 1e9,
                "ratio_to_grouped_mm": medians["grouped_mm"] / medians["ours"],
                "bar": TRAIN_BAR,
                "max_relative_error": error,
            }
        )
    rows.append(_measure_decode(name, width, hidden, repeats, bandwidth, error))
    return rows


def _measure_decode(name: str, width: int, hidden: int, repeats: int, bandwidth: float, error: float) -> dict[str, Any]:
    layer_bytes = 3 * width * hidden * NUM_EXPERTS * 4
    count = max(2, -(-CACHE_BYTES // layer_bytes))
    blocks = MixtralBlocks(width, hidden, count)
    x = torch.randn(1, width)

    def layers(step: Callable[[int], Tensor]) -> None:
        with torch.no_grad():
            for index in range(count):
                step(index)

    runs = {"ours": lambda: layers(lambda i: blocks.mine(i, x))}
    for peer in PEERS:
        runs[peer] = lambda peer=peer: layers(lambda i: blocks.peer(peer, i, x))
    medians = {k: v / count for k, v in interleaved_medians(runs, max(repeats, 15)).items()}
    read = 3 * width * hidden * TOP_K * 4 + NUM_EXPERTS * width * 4  # chosen experts and the router
    return {
        "shape": name,
        "phase": "decode",
        "tokens": 1,
        "ms": {k: v * 1e3 for k, v in medians.items()},
        "gbytes_per_s": read / medians["ours"] / 1e9,
        "bandwidth_share": read / medians["ours"] / bandwidth,
        "peer_bandwidth_share": read / medians["grouped_mm"] / bandwidth,
        "ratio_to_grouped_mm": medians["grouped_mm"] / medians["ours"],
        "bar": DECODE_BAR,
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
        f"CPU, {result['threads']} threads, float32, E={NUM_EXPERTS}, K={TOP_K}; "
        f"measured read bandwidth {result['read_gbytes_per_s']:.1f} GB/s",
        f"{'shape':14s} {'phase':17s} {'T':>5s} {'ours ms':>9s} {'grouped_mm':>11s} {'eager':>9s} {'batched_mm':>11s}"
        f" {'ratio':>6s} {'bar':>4s}  note",
    ]
    for row in result["rows"]:
        ms = row["ms"]
        cells = [f"{ms[p]:.3f}" if p in ms else "-" for p in PEERS]
        note = (
            f"{row['gbytes_per_s']:.1f} GB/s = {row['bandwidth_share']:.0%} of bandwidth "
            f"(grouped_mm {row['peer_bandwidth_share']:.0%})"
            if "bandwidth_share" in row
            else f"{row['gflops']:.0f} GFLOP/s"
        )
        lines.append(
            f"{row['shape']:14s} {row['phase']:17s} {row['tokens']:5d} {ms['ours']:9.3f} {cells[0]:>11s} {cells[1]:>9s}"
            f" {cells[2]:>11s} {row['ratio_to_grouped_mm']:5.2f}x {row['bar']:4.1f}  {note}"
        )
    return "\n".join(lines)
