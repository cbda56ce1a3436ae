"""What the parts of the GPU suite found, as one Markdown file, with a projection for an A10G.

A share of the card's measured peaks times an A10G's published ones is a projection, no measurement.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kernels.bench.targets import BANDWIDTH, BF16
from moe.files import replace_file

PAIRS, PASSES, TOKENS_PER_PAIR = 40_000, 3, 200


def write_summary(output: Path) -> str:
    """Writes ``gpu.md`` from what lies in the folder; returns its text."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("*.json"))}
    summary = found.get("summary", {"parts": {}})
    lines = ["# On a GPU", "", ", ".join(f"{key} {value}" for key, value in summary.items() if key != "parts"), ""]
    lines += ["| part | result |", "|---|---|"]
    lines += [f"| {name} | {entry['status']} |" for name, entry in summary["parts"].items()]
    targets = output / "targets.md"
    if targets.is_file():
        lines += ["", "## Expert layers", "", targets.read_text(encoding="utf-8").strip()]
    lines += _training(found.get("training_step", {}))
    lines += _generation(found.get("generation", {}))
    lines += _projection(found)
    text = "\n".join(lines) + "\n"
    replace_file(output / "gpu.md", text.encode())
    return text


def _sides(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: side for name, side in result.items() if isinstance(side, dict) and name != "peaks"}


def _training(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, side in _sides(result).items():
        speed = side.get("mix", {}).get("tokens_per_second")
        if speed is None:
            lines.append(f"| {name} | {side.get('error', '-')} | | | |")
            continue
        share = side["mix"]["tflops"] * 1e12 / result["peaks"]["bf16"]
        memory, error = side.get("peak_reserved_gib"), side.get("planner_error")
        cells = (f"{speed:.0f}", f"{share:.0%}", *("-" if v is None else f"{v:.3g}" for v in (memory, error)))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    head = ["", "## Training step of the 7B shape", "", f"Under {result.get('limit_gib', 0):.1f} GiB, mix stage.", ""]
    head += ["| | tokens/s | share of the matmul rate | GiB | planner's error |", "|---|---|---|---|---|"]
    return head + lines if lines else []


def _generation(result: dict[str, Any]) -> list[str]:
    lines = []
    for name, side in _sides(result).items():
        for count, values in side.items():
            if isinstance(values, dict):
                cells = f"{values['tokens_per_second']:.1f} | {values['ms']:.2f} | {values['bandwidth_share']:.0%}"
                lines.append(f"| {name} | {count} | {cells} |")
        if "error" in side:
            lines.append(f"| {name} | {side['error']} | | | |")
    head = ["", "## Generation of the 7B shape", ""]
    head += ["| | | tokens/s | ms a step | share of the bandwidth |", "|---|---|---|---|---|"]
    return head + lines if lines else []


def projection(found: dict[str, Any]) -> dict[str, float]:
    """An A10G's numbers from the measured shares; those whose part is missing are left out."""
    numbers: dict[str, float] = {}
    decode = found.get("generation", {}).get("int4 experts", {}).get("1 sequences")
    if decode:
        seconds = decode["gbytes"] * 1e9 / (BANDWIDTH * min(1.0, decode["bandwidth_share"]))
        numbers["decode_tokens_per_second"] = 1 / seconds
    training = found.get("training_step", {})
    mix = training.get("bf16", {}).get("mix")
    if mix:
        share = mix["tflops"] * 1e12 / training["peaks"]["bf16"]
        speed = mix["tokens_per_second"] * share * BF16 / (mix["tflops"] * 1e12)
        numbers["training_tokens_per_second"] = speed
        numbers["training_hours"] = PAIRS * PASSES * TOKENS_PER_PAIR / speed / 3600
    return numbers


def _projection(found: dict[str, Any]) -> list[str]:
    numbers = projection(found)
    if not numbers:
        return []
    lines = ["", "## A10G", "", "PROJECTED from the shares of the roofline above (70 bf16 TFLOP/s, 600 GB/s):", ""]
    if "decode_tokens_per_second" in numbers:
        lines.append(f"- decode, one sequence, int4 experts: {numbers['decode_tokens_per_second']:.0f} tokens/s")
    if "training_hours" in numbers:
        speed, hours = numbers["training_tokens_per_second"], numbers["training_hours"]
        data = f"{PAIRS:,} pairs of {TOKENS_PER_PAIR} tokens, {PASSES} passes"
        lines.append(f"- training: {speed:.0f} tokens/s, {hours:.1f} hours for {data}")
    return lines
