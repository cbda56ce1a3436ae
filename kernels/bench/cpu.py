"""The CPU half of the benchmark: this package's expert layer against transformers' Mixtral block, same weights.

Blocks are rotated (several layers' worth of weights) so that decode reads its weights from memory, as a model does, and
not from a cache that one layer would fit. Beside both stands the ceiling for all that is built on torch's products: for
a training step these alone (`kernels.bench.roofline`), for decode the chosen experts' bytes at the machine's bandwidth.

Shape legend: T tokens, D model width, F hidden width, E experts, K experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels import ops, reference
from kernels.bench.roofline import bare_products, interleaved_medians, read_bandwidth

SHAPES = {"SmolLM2-135M": (576, 1536), "1024/3584": (1024, 3584)}
NUM_EXPERTS = 4
TOP_K = 2
TRAIN_TOKENS = (128, 512, 2048)
PEERS = ("grouped_mm", "eager", "batched_mm")
CACHE_BYTES = 192 << 20  # decode rotates over at least this much weight, several times a last-level cache
TRAIN_BAR, DECODE_BAR = 1.3, 2.0


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


def _train_medians(blocks: MixtralBlocks, tokens: int, width: int, hidden: int, repeats: int) -> dict[str, float]:
    x = torch.randn(tokens, width, requires_grad=True)

    def new_routing() -> None:
        # Every round routes anew, as every layer of every step does: what code for new row counts costs is measured.
        with torch.no_grad():
            x.normal_()

    grad = torch.randn(tokens, width)
    leaves = list(blocks.blocks[0].parameters())
    runs = {"ours": lambda: _train_step(lambda: blocks.mine(0, x), x, blocks.ours[0], grad)}
    for peer in PEERS[:2]:
        runs[peer] = lambda peer=peer: _train_step(lambda: blocks.peer(peer, 0, x), x, leaves, grad)
    rows = blocks.blocks[0].gate(x)[2].flatten().bincount().tolist()
    runs["ceiling"] = bare_products(rows, width, hidden)
    return interleaved_medians(runs, repeats, before=new_routing)


def _compared(medians: dict[str, float], ceiling: float, bar: float) -> dict[str, Any]:
    """What each row of the table says: times, ratio to the peer, both sides' share of the ceiling."""
    ours, peer = medians["ours"], medians["grouped_mm"]
    return {
        "ms": {k: v * 1e3 for k, v in medians.items() if k != "ceiling"},
        "ceiling_ms": ceiling * 1e3,
        "share_of_ceiling": ceiling / ours,
        "peer_share_of_ceiling": ceiling / peer,
        "ratio_to_grouped_mm": peer / ours,
        "largest_possible_ratio": peer / ceiling,
        "bar": bar,
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
                **_compared(medians, medians["ceiling"], TRAIN_BAR),
                "gflops": 3 * 2 * 3 * width * hidden * TOP_K * tokens / medians["ours"] / 1e9,
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
        **_compared(medians, read / bandwidth, DECODE_BAR),
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
        f"CPU, {result['threads']} threads, float32, E={NUM_EXPERTS}, K={TOP_K}; "
        f"measured read bandwidth {result['read_gbytes_per_s']:.1f} GB/s; times in ms, share = ceiling / time",
        f"{'shape':13s} {'phase':17s} {'T':>4s} {'ours':>8s} {'grouped_mm':>10s} {'eager':>8s} {'batched_mm':>10s}"
        f" {'ceiling':>8s} {'ours, grouped_mm: share':>24s} {'ratio':>6s} {'at most':>8s} {'bar':>4s}  speed",
    ]
    for row in result["rows"]:
        ms = row["ms"]
        cells = [f"{ms[p]:.3f}" if p in ms else "-" for p in PEERS]
        shares = f"{row['share_of_ceiling']:.0%}, {row['peer_share_of_ceiling']:.0%}"
        speed = f"{row['gbytes_per_s']:.1f} GB/s" if "gbytes_per_s" in row else f"{row['gflops']:.0f} GFLOP/s"
        lines.append(
            f"{row['shape']:13s} {row['phase']:17s} {row['tokens']:4d} {ms['ours']:8.3f} {cells[0]:>10s} {cells[1]:>8s}"
            f" {cells[2]:>10s} {row['ceiling_ms']:8.3f} {shares:>24s}"
            f" {row['ratio_to_grouped_mm']:5.2f}x {row['largest_possible_ratio']:7.2f}x {row['bar']:4.1f}  {speed}"
        )
    return "\n".join(lines)
