"""The H200's targets against what was measured, and an estimate of an A10G from it.

Nothing here was measured on an A10G: its published peaks (600 GB/s, 70 bf16 TFLOP/s) are multiplied by the share of the
roofline that the card at hand reached in the same case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kernels.bench.shapes import EXPERTS, MISTRAL_7B

BANDWIDTH, BF16 = 600e9, 70e12
# what one token reads besides experts, in bytes: bf16 attention of a layer, bf16 output projection
KV_DIM = MISTRAL_7B.dim * MISTRAL_7B.n_kv_heads // MISTRAL_7B.n_heads
ATTENTION = 2 * (2 * MISTRAL_7B.dim * MISTRAL_7B.dim + 2 * MISTRAL_7B.dim * KV_DIM)
HEAD = 2 * MISTRAL_7B.vocab_size * MISTRAL_7B.dim
EXPERTS_MS, TOKENS_PER_SECOND = 0.38, 50.0  # the A10G's targets

Row = dict[str, Any]


def estimated_ms(flop: float, moved: float, roofline_share: float) -> float:
    """Milliseconds of a case of so many FLOP and bytes on an A10G that reaches the same share of its roofline."""
    return max(flop / BF16, moved / BANDWIDTH) * 1e3 / roofline_share


def _find(rows: list[Row], phase: str, tokens: int) -> Row | None:
    """The case of the Mistral-7B shape with four experts and uniform routing, if it was measured."""
    wanted = (phase, tokens, EXPERTS, "uniform")
    return next((r for r in rows if (r["phase"], r["tokens"], r["experts"], r["routing"]) == wanted), None)


def h200_targets(rows: list[Row]) -> list[dict[str, Any]]:
    """Each target for an H200: what was measured and whether it is met; None where the case is missing."""
    targets: list[dict[str, Any]] = []

    def target(
        name: str, phase: str, tokens: int, value: Callable[[Row], float | None], limit: float, smaller: bool = False
    ) -> None:
        row = _find(rows, phase, tokens)
        measured = value(row) if row else None
        met = None if measured is None else bool(measured <= limit if smaller else measured >= limit)
        targets.append({"target": f"{name} {'<=' if smaller else '>='} {limit:g}", "measured": measured, "met": met})

    def milliseconds(row: Row) -> float:
        return row["ms"]["ours"]

    def tflops(row: Row) -> float:
        return row["tflops"]

    def speedup_over(baseline: str) -> Callable[[Row], float | None]:
        return lambda row: row["ms"][baseline] / row["ms"]["ours"] if baseline in row["ms"] else None

    target("int4 forward T=1, ms", "int4 forward", 1, milliseconds, 0.060, smaller=True)
    target("int4 forward T=8, ms", "int4 forward", 8, milliseconds, 0.100, smaller=True)
    target("int4 forward T=4096, TFLOP/s", "int4 forward", 4096, tflops, 400)
    target("bf16 forward T=4096, TFLOP/s", "bf16 forward", 4096, tflops, 550)
    target("bf16 forward+backward T=4096, TFLOP/s", "bf16 forward+backward", 4096, tflops, 450)
    for tokens in (2048, 4096):
        speedup = speedup_over("transformers grouped_mm")
        target(f"speedup over grouped_mm, bf16 forward T={tokens}", "bf16 forward", tokens, speedup, 1.2)
    for tokens, limit in ((1, 3.0), (8, 10.0)):
        speedup = speedup_over("transformers batched_mm")
        target(f"speedup over batched_mm, bf16 forward T={tokens}", "bf16 forward", tokens, speedup, limit)
    return targets


def a10g(rows: list[Row]) -> dict[str, Any] | None:
    """Estimated milliseconds of a layer's int4 experts and tokens per second of the whole model at batch 1."""
    row = _find(rows, "int4 forward", 1)
    if row is None:
        return None
    share = min(1.0, row["roofline_share"])
    experts = row["a10g_estimated_ms"]
    rest = (MISTRAL_7B.n_layers * ATTENTION + HEAD) / (BANDWIDTH * share) * 1e3
    speed = 1e3 / (MISTRAL_7B.n_layers * experts + rest)
    return {
        "estimated": True,
        "roofline_share": share,
        "experts_ms": experts,
        "experts_met": experts <= EXPERTS_MS,
        "tokens_per_second": speed,
        "speed_met": speed >= TOKENS_PER_SECOND,
    }


def text(rows: list[Row]) -> str:
    """Targets and estimate as lines of Markdown."""
    verdicts = {True: "met", False: "missed", None: "not measured"}
    lines = ["| target of an H200 | measured | |", "|---|---|---|"]
    for entry in h200_targets(rows):
        measured = "-" if entry["measured"] is None else f"{entry['measured']:.3g}"
        lines.append(f"| {entry['target']} | {measured} | {verdicts[entry['met']]} |")
    found = a10g(rows)
    if found is None:
        return "\n".join([*lines, "", "A10G: no estimate, int4 at T=1 was not measured."])
    return "\n".join(
        [
            *lines,
            "",
            f"A10G, ESTIMATED from {found['roofline_share']:.0%} of the roofline on this card: experts "
            f"{found['experts_ms']:.3f} ms a layer at batch 1 (target {EXPERTS_MS}: {verdicts[found['experts_met']]}), "
            f"whole model {found['tokens_per_second']:.0f} tokens/s (target {TOKENS_PER_SECOND:.0f}: "
            f"{verdicts[found['speed_met']]}).",
        ]
    )
