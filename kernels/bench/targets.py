"""What the expert layers should reach, as shares of the card's own measured peaks and against peers of the same run,
and an estimate for an A10G.

Nothing here was measured on an A10G: its published peaks (600 GB/s, 70 bf16 TFLOP/s) are multiplied by the share of the
roofline that the card at hand reached in the same case.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kernels.bench.shapes import MISTRAL_7B, TOP_K

BANDWIDTH, BF16 = 600e9, 70e12
# what one token reads besides experts, in bytes: bf16 attention of a layer, bf16 output projection
KV_DIM = MISTRAL_7B.dim * MISTRAL_7B.n_kv_heads // MISTRAL_7B.n_heads
ATTENTION = 2 * (2 * MISTRAL_7B.dim * MISTRAL_7B.dim + 2 * MISTRAL_7B.dim * KV_DIM)
HEAD = 2 * MISTRAL_7B.vocab_size * MISTRAL_7B.dim

Row = dict[str, Any]


class Target(NamedTuple):
    """``value`` is a key of a benchmark's row; met from ``limit`` on, or up to it where ``smaller``."""

    phase: str
    tokens: int
    value: str
    limit: float
    smaller: bool = False


TARGETS = (
    Target("bf16 forward", 4096, "matmul_share", 0.70),
    Target("bf16 forward+backward", 4096, "matmul_share", 0.60),
    Target("int4 forward", 1, "bandwidth_share", 0.70),
    Target("int4 forward", 8, "bandwidth_share", 0.70),
    Target("int4 forward", 4096, "matmul_share", 0.50),
    Target("delta forward+backward", 4096, "times_dense", 1.25, smaller=True),
    Target("int4 delta forward+backward", 4096, "times_dense", 1.25, smaller=True),
    *(Target("bf16 forward", tokens, "speedup_over_best_baseline", 1.2) for tokens in (1, 8, 64, 512, 4096)),
    Target("bf16 forward+backward", 4096, "speedup_over_best_baseline", 1.2),
)


def estimated_ms(flop: float, moved: float, roofline_share: float) -> float:
    """Milliseconds of a case of so many FLOP and bytes on an A10G that reaches the same share of its roofline."""
    return max(flop / BF16, moved / BANDWIDTH) * 1e3 / roofline_share


def find(rows: list[Row], phase: str, tokens: int) -> Row | None:
    """The case with uniform top-2 routing, if it was measured."""
    wanted = (phase, tokens, TOP_K, "uniform")
    return next((r for r in rows if (r["phase"], r["tokens"], r["top_k"], r["routing"]) == wanted), None)


def verdicts(rows: list[Row]) -> list[dict[str, Any]]:
    """Each target: what was measured and whether it is met; None where the case or its peers are missing."""
    found = []
    for target in TARGETS:
        row = find(rows, target.phase, target.tokens)
        measured = None if row is None else row.get(target.value)
        met = None if measured is None else (measured <= target.limit if target.smaller else measured >= target.limit)
        name = f"{target.phase} T={target.tokens}: {target.value.replace('_', ' ')}"
        sign = "<=" if target.smaller else ">="
        found.append({"target": f"{name} {sign} {target.limit:g}", "measured": measured, "met": met})
    return found


def a10g_decode(rows: list[Row]) -> dict[str, Any] | None:
    """Estimated milliseconds of a layer's int4 experts, and tokens per second of the whole model at batch 1.

    The benchmark's times at T = 1 are those of CUDA graphs: a model that decodes without them is slower.
    """
    row = find(rows, "int4 forward", 1)
    if row is None:
        return None
    share, experts = min(1.0, row["roofline_share"]), row["a10g_estimated_ms"]
    rest = (MISTRAL_7B.n_layers * ATTENTION + HEAD) / (BANDWIDTH * share) * 1e3
    speed = 1e3 / (MISTRAL_7B.n_layers * experts + rest)
    return {"roofline_share": share, "experts_ms": experts, "tokens_per_second": speed}


def text(result: dict[str, Any]) -> str:
    """A benchmark's targets and estimate as lines of Markdown, with the card and its peaks."""
    words = {True: "met", False: "missed", None: "not measured"}
    peaks = result["peaks"]
    lines = [
        f"{result['device']}: {peaks['bf16'] / 1e12:.0f} bf16 TFLOP/s and {peaks['bandwidth'] / 1e9:.0f} GB/s measured",
        "",
        "| target | measured | |",
        "|---|---|---|",
    ]
    for entry in verdicts(result["rows"]):
        measured = "-" if entry["measured"] is None else f"{entry['measured']:.3g}"
        lines.append(f"| {entry['target']} | {measured} | {words[entry['met']]} |")
    found = a10g_decode(result["rows"])
    if found is not None:
        lines += [
            "",
            f"A10G, ESTIMATED from {found['roofline_share']:.0%} of the roofline on this card, kernels in CUDA graphs: "
            f"experts {found['experts_ms']:.3f} ms a layer, whole model {found['tokens_per_second']:.0f} tokens/s at "
            "batch 1",
        ]
    return "\n".join(lines)
