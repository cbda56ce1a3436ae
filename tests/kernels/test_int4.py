"""Int4 weights: packing, its error, layers on a CPU, what does not fit."""

from __future__ import annotations

import pytest
import torch

from kernels import int4, ops, reference
from tests.kernels.random_layers import low_rank


def test_int4_packing_is_exact_on_its_own_grid():
    torch.manual_seed(1)
    scales = torch.rand(2, 5, 3).add(0.5).bfloat16().float()
    q = torch.randint(-7, 8, (2, 5, 3, 128)).float()
    q[..., 0] = 7  # the largest magnitude, from which the scale is found again
    weight = (q * scales.unsqueeze(-1)).view(2, 5, 384)
    packed = int4.pack(weight)
    assert packed.shape3 == (2, 5, 384) and packed.packed.nbytes + packed.scales.nbytes == weight.numel() * 66 / 128
    assert torch.equal(int4.unpack(packed), weight)


def test_int4_error_is_at_most_half_a_step():
    torch.manual_seed(2)
    weight = torch.randn(3, 16, 256)
    packed = int4.pack(weight)
    step = packed.scales.float().transpose(1, 2).repeat_interleave(128, 2)
    assert ((int4.unpack(packed) - weight).abs() <= step * 0.53).all()  # the scale itself is rounded to bf16


def test_int4_layers_on_the_cpu():
    torch.manual_seed(3)
    shapes = (2, 256, 128), (2, 128, 256), (2, 256, 128)
    packed = [int4.pack(torch.randn(s) / 9) for s in shapes]
    full = [int4.unpack(w) for w in packed]
    x, gates = torch.randn(5, 128, requires_grad=True), torch.rand(5, 2, requires_grad=True)
    ids = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1]])
    got, want = ops.experts_forward(x, *packed, gates, ids), reference.experts_forward(x, *full, gates, ids)
    torch.testing.assert_close(got, want)
    for a, b in zip(torch.autograd.grad(got.sum(), (x, gates)), torch.autograd.grad(want.sum(), (x, gates))):
        torch.testing.assert_close(a, b)
    base = [int4.pack(w[0]) for w in full]
    factors = low_rank(2, 128, 256, 2)
    x, gates = x.detach().double(), gates.detach().double()
    got = ops.delta_experts_forward(x, *base, None, factors, gates, ids)
    dense = [int4.unpack(w, torch.float64)[0] for w in base]
    want = reference.delta_experts_forward(x, *dense, None, factors, gates, ids)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), factors), torch.autograd.grad(want.sum(), factors))


def test_int4_says_what_does_not_fit():
    with pytest.raises(ValueError, match="divisible by 32, got 100"):
        int4.pack(torch.randn(2, 4, 100))
    with pytest.raises(ValueError, match="finite"):
        int4.pack(torch.full((1, 4, 128), float("nan")))
    packed = int4.pack(torch.randn(2, 128, 128))
    gates, ids = torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.long)
    with pytest.raises(ValueError, match=r"w1.packed: expected uint8 \[2, 2, 128, 64\]"):
        ops.experts_forward(torch.randn(3, 256), packed, packed, packed, gates, ids)
    with pytest.raises(ValueError, match="all dense or all int4"):
        ops.experts_forward(torch.randn(3, 128), packed, torch.randn(2, 128, 128), packed, gates, ids)
    with pytest.raises(ValueError, match="all dense or all int4"):
        ops.delta_experts_forward(torch.randn(3, 128), packed, packed, torch.randn(1), None, None, gates, ids)
