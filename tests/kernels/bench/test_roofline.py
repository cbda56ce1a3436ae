"""The roofline of a CPU, and medians of measurements in turns."""

from __future__ import annotations

import torch

from kernels.bench import roofline


def test_the_roofline_is_nine_products_for_each_expert_with_rows(monkeypatch):
    monkeypatch.setattr(roofline, "has_onednn_linear", lambda: False)
    calls = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: calls.append((a.shape[0], a.shape[1], b.shape[1])))
    run = roofline.matrix_products([3, 0, 5], 8, 12)
    calls.clear()
    run()
    assert len(calls) == 18 and sum(a * b * c for a, b, c in calls) == 9 * 8 * (8 * 12)
    assert calls[:3] == [(3, 8, 12), (3, 8, 12), (3, 12, 8)] and calls[6:9] == [(8, 3, 12), (12, 3, 8), (12, 3, 8)]


def test_medians_are_taken_in_turns():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "ab"}
    roofline.interleaved_medians(runs, 2, warmup=1)
    assert calls == ["a", "b"] * 3
    calls.clear()
    roofline.interleaved_medians(runs, 1, warmup=1, before=lambda: calls.append("new"))
    assert calls == ["new", "a", "b"] * 2
