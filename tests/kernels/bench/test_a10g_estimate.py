"""Targets and the A10G estimate from rows of the GPU benchmark."""

from __future__ import annotations

from kernels.bench import a10g_estimate


def row(phase: str, tokens: int, ms: float, **others):
    baselines = others.pop("baselines", {})
    return {
        "phase": phase, "tokens": tokens, "experts": 4, "routing": "uniform", "ms": {"ours": ms, **baselines},
        "tflops": 0.0, "roofline_share": 0.8, "a10g_estimated_ms": 0.3, **others,
    }  # fmt: skip


def test_targets_and_estimate():
    rows = [
        row("int4 forward", 1, 0.05),
        row("int4 forward", 4096, 7.0, tflops=410.0),
        row("bf16 forward", 1, 0.1, baselines={"transformers batched_mm": 0.2}),
    ]
    targets = a10g_estimate.h200_targets(rows)
    assert [target["met"] for target in targets].count(None) == 6, targets
    assert targets[0]["met"] and targets[2]["met"]
    assert targets[7]["met"] is False  # twice as fast, three times was asked
    found = a10g_estimate.a10g(rows)
    bytes_beside = 32 * 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024) + 2 * 32000 * 4096
    want = 1e3 / (32 * 0.3 + bytes_beside / (600e9 * 0.8) * 1e3)
    assert abs(found["tokens_per_second"] - want) < 1e-6 and found["estimated"]
    text = a10g_estimate.text(rows)
    assert "ESTIMATED" in text and "not measured" in text
    assert "no estimate" in a10g_estimate.text([])
