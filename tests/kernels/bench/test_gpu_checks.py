"""The checks of the layers: all of them on a GPU, correctness on a CPU too."""

from __future__ import annotations

import pytest
import torch

from kernels import ops
from kernels.bench import gpu_checks
from kernels.bench.gpu_checks import Case
from kernels.gpu import tile_tables

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", gpu_checks.KINDS)
@pytest.mark.parametrize("tokens", [1, 6])
def test_correctness_on_a_cpu(kind, tokens):
    result = gpu_checks.correct(Case(kind, tokens, 40, 72, empty=True), CPU)
    assert result["ok"] and len(result["errors"]) == {"experts": 6, "int4 experts": 3}.get(
        kind, 18 - 3 * ("int4" in kind)
    )


def test_a_wrong_layer_is_seen(monkeypatch):
    right = ops.experts_forward
    monkeypatch.setattr(ops, "experts_forward", lambda x, *rest: right(x * 1.1, *rest))
    assert not gpu_checks.correct(Case("experts", 6, 40, 72), CPU)["ok"]


def test_the_cases_hold_what_runs_in_production():
    """Rows that take the persistent kernels and weights that are decoded once, divisible and odd sizes, both tables."""
    cases = gpu_checks.cases()
    assert {case.arch for case in cases} == {None, "sm_86"}
    many = [case for case in cases if case.tokens * 2 // 4 > tile_tables.W4_DEQUANTIZE_ROWS]
    for kind in gpu_checks.KINDS:
        own = [case for case in many if case.kind == kind and case.width % 256 == case.hidden % 256 == 0]
        assert own and all(case.tokens % 2 for case in own) and any(case.empty for case in own)
        assert any(case.kind == kind and case.hidden % 64 for case in cases)
        assert kind in {case.kind for case in gpu_checks.cases(quick=True) if case in many}


def test_an_expert_without_rows_has_none():
    _, _, (x, *_) = gpu_checks.problem(Case("experts", 50, 16, 16, empty=True), CPU)
    assert x.shape == (50, 16)
    with_rows = gpu_checks.correct(Case("experts", 50, 16, 16, empty=True), CPU)
    assert with_rows["ok"]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", gpu_checks.KINDS)
@pytest.mark.parametrize("tokens", [1, 33, 1000])
def test_layers_on_the_gpu(kind, tokens):
    result = gpu_checks.correct(Case(kind, tokens), torch.device("cuda", 0))
    assert result["ok"] and result["launched"], result


@pytest.mark.gpu
@pytest.mark.parametrize("check", [gpu_checks.no_host_synchronization, gpu_checks.cuda_graph])
def test_checks_on_the_gpu(check):
    results = dict(check(torch.device("cuda", 0), 256, 256))
    assert results and not gpu_checks.failed(results), results
