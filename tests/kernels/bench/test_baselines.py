"""Baselines compute the layer that they are compared on."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from kernels import reference
from kernels.bench.baselines import BASELINES, Layer, expert_loop, grouped_nf4


def test_the_loop_computes_the_layer():
    torch.manual_seed(0)
    weights = torch.randn(3, 12, 8), torch.randn(3, 8, 12), torch.randn(3, 12, 8)
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x = torch.randn(5, 8)
    forward = expert_loop(Layer(*(w.requires_grad_() for w in weights), gates, ids))
    want = reference.experts_forward(x, *weights, gates, ids)
    torch.testing.assert_close(forward(x), want)
    grads = (torch.autograd.grad(y.sum(), weights) for y in (forward(x), want))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "name", ["grouped_mm", "transformers eager", "transformers grouped_mm", "transformers batched_mm"]
)
def test_baselines_that_a_cpu_has_compute_the_layer(name):
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    weights = [torch.randn(s).div(4).bfloat16() for s in ((3, 32, 16), (3, 16, 32), (3, 32, 16))]
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x = torch.randn(5, 16).bfloat16()
    want = reference.experts_forward(x.double(), *(w.double() for w in weights), gates.double(), ids)
    got = BASELINES[name](Layer(*weights, gates, ids))(x)
    assert (got.double() - want).abs().max() < 2**-5 * want.abs().max()


def test_the_nf4_baseline_keeps_the_contract_of_its_library(monkeypatch):
    """Groups of its calls: host lists, none empty, rows sorted by expert; `exact` is the layer it computes."""

    def grouped(rows, packed, scales, sizes, experts):
        assert min(sizes) > 0 and sum(sizes) == len(rows) and len(sizes) == len(experts)
        parts = rows.split(sizes)
        return torch.cat([part @ (packed[e] * scales[e]).T for part, e in zip(parts, experts, strict=True)])

    library = types.SimpleNamespace(gemm_4bit_grouped=grouped, dequant_ref=lambda packed, scales, n, k: packed * scales)
    packer = types.SimpleNamespace(quantize_pack_nf4=lambda w: ((w * 4).round(), torch.full_like(w[:, :1], 0.25)))
    monkeypatch.setitem(sys.modules, "nf4_grouped", library)
    monkeypatch.setitem(sys.modules, "nf4_pack_ref", packer)
    torch.manual_seed(0)
    weights = torch.randn(4, 12, 8), torch.randn(4, 8, 12), torch.randn(4, 12, 8)
    layer = Layer(*weights, torch.rand(5, 2), torch.tensor([[0, 1], [3, 0], [1, 3], [0, 3], [3, 1]]))
    forward, x = grouped_nf4(layer), torch.randn(5, 8)
    exact = forward.exact
    assert not torch.equal(exact.w1, layer.w1)
    torch.testing.assert_close(
        forward(x), reference.experts_forward(x, exact.w1, exact.w2, exact.w3, layer.gates, layer.ids)
    )
