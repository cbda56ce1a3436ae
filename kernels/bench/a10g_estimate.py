"""From one card's measured share of its roofline to the bars, and to what an A10G would do: labelled as a projection.

Nothing here was measured on an A10G: its published peaks (600 GB/s, 70 bf16 TFLOP/s) are multiplied by the share of the
roofline that the card at hand reached in the same case.
"""

from __future__ import annotations

from typing import Any

LAYERS = 32  # Mistral-7B
# what one token reads besides experts, in bytes: bf16 attention of a layer, bf16 output projection
ATTENTION = 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024)
HEAD = 2 * 32000 * 4096
A10G_BANDWIDTH = 600e9
EXPERTS_MS, TOKENS_PER_SECOND = 0.38, 50.0  # the A10G's bars

Row = dict[str, Any]


def _find(rows: list[Row], phase: str, tokens: int) -> Row | None:
    """The case of the Mistral-7B shape with four experts and uniform routing, if it was measured."""
    wanted = (phase, tokens, 4, "uniform")
    return next((r for r in rows if (r["phase"], r["tokens"], r["experts"], r["routing"]) == wanted), None)


def h200_bars(rows: list[Row]) -> list[dict[str, Any]]:
    """Each bar that is set for an H200: what was measured, and whether it holds; None where the case is missing."""
    bars: list[dict[str, Any]] = []

    def bar(name: str, phase: str, tokens: int, value: Any, limit: float, smaller: bool = False) -> None:
        row = _find(rows, phase, tokens)
        measured = value(row) if row else None
        holds = None if measured is None else bool(measured <= limit if smaller else measured >= limit)
        bars.append({"bar": f"{name} {'<=' if smaller else '>='} {limit:g}", "measured": measured, "holds": holds})

    def ratio(peer: str) -> Any:
        return lambda row: row["ms"][peer] / row["ms"]["ours"] if peer in row["ms"] else None

    bar("int4 forward T=1, ms", "int4 forward", 1, lambda r: r["ms"]["ours"], 0.060, smaller=True)
    bar("int4 forward T=8, ms", "int4 forward", 8, lambda r: r["ms"]["ours"], 0.100, smaller=True)
    bar("int4 forward T=4096, TFLOP/s", "int4 forward", 4096, lambda r: r["tflops"], 400)
    bar("bf16 forward T=4096, TFLOP/s", "bf16 forward", 4096, lambda r: r["tflops"], 550)
    bar("bf16 forward+backward T=4096, TFLOP/s", "bf16 forward+backward", 4096, lambda r: r["tflops"], 450)
    bar("times grouped_mm, bf16 forward T=2048", "bf16 forward", 2048, ratio("transformers grouped_mm"), 1.2)
    bar("times grouped_mm, bf16 forward T=4096", "bf16 forward", 4096, ratio("transformers grouped_mm"), 1.2)
    bar("times batched_mm, bf16 forward T=1", "bf16 forward", 1, ratio("transformers batched_mm"), 3)
    bar("times batched_mm, bf16 forward T=8", "bf16 forward", 8, ratio("transformers batched_mm"), 10)
    return bars


def a10g(rows: list[Row]) -> dict[str, Any] | None:
    """Projected milliseconds of a layer's int4 experts and tokens per second of the whole model at batch 1."""
    row = _find(rows, "int4 forward", 1)
    if row is None:
        return None
    share = min(1.0, row["roofline_share"])
    experts = row["a10g_projected_ms"]
    rest = (LAYERS * ATTENTION + HEAD) / (A10G_BANDWIDTH * share) * 1e3
    speed = 1e3 / (LAYERS * experts + rest)
    return {
        "projected": True,
        "roofline_share": share,
        "experts_ms": experts,
        "experts_hold": experts <= EXPERTS_MS,
        "tokens_per_second": speed,
        "speed_holds": speed >= TOKENS_PER_SECOND,
    }


def text(rows: list[Row]) -> str:
    """Bars and projection as lines of Markdown."""
    verdicts = {True: "holds", False: "does not hold", None: "not measured"}
    lines = ["| bar of an H200 | measured | |", "|---|---|---|"]
    for entry in h200_bars(rows):
        measured = "-" if entry["measured"] is None else f"{entry['measured']:.3g}"
        lines.append(f"| {entry['bar']} | {measured} | {verdicts[entry['holds']]} |")
    found = a10g(rows)
    if found is None:
        return "\n".join([*lines, "", "A10G: no projection, int4 at T=1 was not measured."])
    return "\n".join(
        [
            *lines,
            "",
            f"A10G, PROJECTED from {found['roofline_share']:.0%} of the roofline on this card: experts "
            f"{found['experts_ms']:.3f} ms a layer at batch 1 (bar {EXPERTS_MS}: {verdicts[found['experts_hold']]}), "
            f"whole model {found['tokens_per_second']:.0f} tokens/s (bar {TOKENS_PER_SECOND:.0f}: "
            f"{verdicts[found['speed_holds']]}).",
        ]
    )
