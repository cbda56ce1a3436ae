"""What all operations share: gradients by finite differences, autocast, empty batches, one-line errors."""

from __future__ import annotations

import types

import pytest
import torch

from kernels import custom_ops, int4, ops, reference
from kernels.types import LowRank
from tests.kernels.random_layers import assert_same, full_weights, low_rank, routing


def test_gradcheck():
    torch.manual_seed(4)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    ids = routing(5, 2, 3)
    assert torch.autograd.gradcheck(lambda *a: ops.experts_forward(*a, ids), (x, *full_weights(3, 4, 6), gates))
    base = [w[0].detach().requires_grad_() for w in full_weights(1, 4, 6)]
    shared, experts = low_rank(2, 4, 6), low_rank(2, 4, 6, 3)

    def delta(x, w1, w2, w3, gates, *f):
        return ops.delta_experts_forward(x, w1, w2, w3, LowRank(*f[:6]), LowRank(*f[6:]), gates, ids, 0.5, 2.0)

    assert torch.autograd.gradcheck(delta, (x, *base, gates, *shared, *experts))


def test_gradcheck_of_the_other_operations():
    torch.manual_seed(20)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ops.linear, (x, weight))
    assert torch.autograd.gradcheck(custom_ops.linear, (x, weight))
    packed = [int4.pack(torch.randn(2, 128, 128) / 11) for _ in range(3)]
    wide = torch.randn(2, 128, dtype=torch.float64, requires_grad=True)
    gates, ids = torch.rand(2, 2, dtype=torch.float64, requires_grad=True), torch.tensor([[0, 1], [1, 0]])
    assert torch.autograd.gradcheck(lambda x, g: ops.experts_forward(x, *packed, g, ids), (wide, gates))
    full = [int4.unpack(w, torch.float64) for w in packed]
    torch.testing.assert_close(
        ops.experts_forward(wide, *packed, gates, ids), reference.experts_forward(wide, *full, gates, ids)
    )


@pytest.mark.parametrize("shape", [(1, 12), (7, 12), (2, 5, 12)])
def test_linear_and_its_gradients(shape):
    torch.manual_seed(17)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(9, 12, requires_grad=True)
    assert_same(ops.linear(x, weight), torch.nn.functional.linear(x, weight), (x, weight), tol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ops.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_autocast_matches_explicit_bf16():
    torch.manual_seed(8)
    x = torch.randn(9, 16)
    weights = full_weights(2, 16, 24, torch.float32)
    gates, ids = torch.rand(9, 1), routing(9, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.experts_forward(x, *weights, gates, ids)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ops.experts_forward(x.bfloat16(), *(w.bfloat16() for w in weights), gates, ids))
    out.float().sum().backward()
    assert weights[0].grad.dtype == torch.float32


def test_no_tokens_give_no_rows():
    w1, w2, w3 = full_weights(2, 4, 6, torch.float32)
    x, gates, ids = torch.randn(0, 4, requires_grad=True), torch.ones(0, 2), torch.zeros(0, 2, dtype=torch.long)
    out = ops.experts_forward(x, w1, w2, w3, gates, ids)
    assert out.shape == (0, 4)
    out.sum().backward()
    assert x.grad.shape == (0, 4) and not w1.grad.any() and w2.grad.shape == w2.shape


def test_int4_on_a_gpu_wants_bf16(monkeypatch):
    monkeypatch.setattr(custom_ops, "uses_triton", lambda x: True)
    wrong = types.SimpleNamespace(is_cuda=True, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"x: int4 weights on a GPU need torch.bfloat16, got torch.float16"):
        ops._check_int4_input(wrong)
    ops._check_int4_input(types.SimpleNamespace(is_cuda=True, dtype=torch.bfloat16))


def test_bad_input_is_a_one_line_error():
    x, gates, ids = torch.randn(3, 4), torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.long)
    w1, w2, w3 = (w.detach() for w in full_weights(2, 4, 6, torch.float32))
    with pytest.raises(ValueError, match=r"w2: expected shape \[2, 4, 6\]"):
        ops.experts_forward(x, w1, w1, w3, gates, ids)
    with pytest.raises(ValueError, match=r"w1: expected torch.float32 as x has"):
        ops.experts_forward(x, w1.double(), w2, w3, gates, ids)
    with pytest.raises(ValueError, match=r"expected values in \[0, 2\), found 2"):
        ops.experts_forward(x, w1, w2, w3, gates, ids + 2)
    with pytest.raises(ValueError, match=r"expected values in \[0, 2\), found -1"):
        ops.experts_forward(x[:1], w1, w2, w3, gates[:1], ids[:1] - 1)
    with pytest.raises(ValueError, match="expected an integer tensor"):
        ops.experts_forward(x, w1, w2, w3, gates, ids.float())
    for rows in (1, 3):  # one token goes another way
        with pytest.raises(ValueError, match=r"expected an integer tensor, got torch\.bool"):
            ops.experts_forward(x[:rows], w1, w2, w3, gates[:rows], ids[:rows].bool())
    with pytest.raises(ValueError, match=r"at least one expert per token"):
        ops.experts_forward(x, w1, w2, w3, gates[:, :0], ids[:, :0])
    with pytest.raises(ValueError, match=r"gates: expected shape \[3, 1\]"):
        ops.experts_forward(x, w1, w2, w3, gates[:2], ids)
    bad = low_rank(2, 4, 6)._replace(b2=torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"shared.b2: expected shape \[4, 2\]"):
        ops.delta_experts_forward(x, w1[0], w2[0], w3[0], bad, None, gates, ids)
