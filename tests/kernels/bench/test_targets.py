"""Targets and the A10G estimate from rows of the GPU benchmark."""

from __future__ import annotations

from kernels.bench import targets


def row(phase: str, tokens: int, top_k: int = 2, **values):
    return {"phase": phase, "tokens": tokens, "top_k": top_k, "routing": "uniform", **values}


def test_targets_and_estimate():
    rows = [
        row("int4 forward", 1, bandwidth_share=0.71, roofline_share=0.8, a10g_estimated_ms=0.3),
        row("int4 forward", 4096, matmul_share=0.49),
        row("bf16 forward", 1, speedup_over_best_baseline=None),
        row("bf16 forward", 8, top_k=1, speedup_over_best_baseline=9.0),
        row("delta forward+backward", 4096, times_dense=1.2),
    ]
    found = {entry["target"].rsplit(" ", 2)[0]: entry["met"] for entry in targets.verdicts(rows)}
    measured = {name: met for name, met in found.items() if met is not None}
    assert measured == {
        "int4 forward T=1: bandwidth share": True,
        "int4 forward T=4096: matmul share": False,
        "delta forward+backward T=4096: times dense": True,
    }
    estimate = targets.a10g_decode(rows)
    bytes_beside = 32 * 2 * (2 * 4096 * 4096 + 2 * 4096 * 1024) + 2 * 32000 * 4096
    want = 1e3 / (32 * 0.3 + bytes_beside / (600e9 * 0.8) * 1e3)
    assert abs(estimate["tokens_per_second"] - want) < 1e-6
    result = {"device": "card", "peaks": {"bf16": 7e14, "bandwidth": 3e12}, "rows": rows}
    text = targets.text(result)
    assert "card: 700 bf16 TFLOP/s and 3000 GB/s" in text and "ESTIMATED" in text and "CUDA graphs" in text
    assert "ESTIMATED" not in targets.text({**result, "rows": []}) and targets.a10g_decode([]) is None
