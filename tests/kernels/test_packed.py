"""Packed weights of a CPU: decoding inverts packing, and products are those of the decoded weight."""

from __future__ import annotations

import pytest
import torch

from kernels import int4, ops
from kernels.packed import FEW_ROWS, ROWS_AT_ONCE, Packed, PackedWeights, int8_levels, pack_for_cpu
from kernels.types import LowRank


def weight_of(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / shape[-1] ** 0.5


def packed_of(weight: torch.Tensor, bits: int) -> Packed:
    return pack_for_cpu(int4.pack(weight)) if bits == 4 else Packed(*int8_levels(weight))


@pytest.mark.parametrize(("rows", "columns", "group"), [(64, 128, 128), (160, 64, 64), (48, 96, 32), (1200, 192, 64)])
def test_int4_of_any_group_and_any_number_of_rows(rows, columns, group):
    weight = weight_of(rows, columns)
    stored = int4.pack(weight)
    assert int4.group_of(columns) == group and stored.shape3 == (1, rows, columns)
    packed = pack_for_cpu(stored)
    assert packed.shape == (rows, columns)
    assert torch.equal(packed.decode(torch.float32), int4.unpack(stored)[0])
    assert (packed.decode(torch.float32) - weight).abs().max() < weight.abs().max() / 13


def test_int8_is_close():
    weight = weight_of(40, 33)
    weight[3] = 0
    packed = packed_of(weight, 8)
    assert packed.shape == (40, 33) and not packed.is_int4 and packed.decode()[3].abs().max() == 0
    error = (packed.decode(torch.float32) - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 250).all()
    with pytest.raises(ValueError, match="finite"):
        int8_levels(torch.full((2, 4), float("nan")))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    ("rows", "outputs"), [(1, 96), (3, 96), (FEW_ROWS, 96), (FEW_ROWS + 1, 96), (40, 2 * ROWS_AT_ONCE + 48)]
)
def test_products_are_those_of_the_decoded_weight(bits, rows, outputs, monkeypatch):
    monkeypatch.setattr("kernels.packed.CACHED", 96 * 64)
    packed = packed_of(weight_of(outputs, 64), bits)
    for dtype in (torch.bfloat16, torch.float32):
        x = weight_of(rows, 64, seed=1).to(dtype)
        wanted = x.to(torch.bfloat16).double() @ packed.decode(torch.float64).t()
        found = packed.product(x)
        assert found.dtype == dtype and (found - wanted).abs().max() < 0.01 * wanted.abs().max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("tokens", [1, 5, 30])
def test_layers_of_packed_weights(bits, tokens):
    """Full and delta experts against the same operations with the decoded weights in float32."""
    shapes = ((96, 64), (64, 96), (96, 64))
    w1, w2, w3 = ([weight_of(*s, seed=10 * n + e) for e in range(3)] for n, s in enumerate(shapes))
    modules, dense = [], []
    for stack in (w1, w2, w3):
        parts = [packed_of(w, bits) for w in stack]
        modules.append(PackedWeights(*(torch.stack(list(tensors)) for tensors in zip(*parts))))
        dense.append(torch.stack([part.decode(torch.float32) for part in parts]))
    x = weight_of(tokens, 64, seed=5) * 8
    gates = torch.rand(tokens, 2, generator=torch.Generator().manual_seed(1)).softmax(1)
    ids = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(t))[:2] for t in range(tokens)])
    wanted = ops.experts_forward(x, *dense, gates, ids)
    found = ops.experts_forward(x, *modules, gates, ids)
    assert found.shape == wanted.shape and (found - wanted).abs().max() < 0.03 * wanted.abs().max()

    def factors(*lead: int) -> LowRank:
        shapes = ((4, 64), (96, 4), (4, 96), (64, 4), (4, 64), (96, 4))
        return LowRank(*(weight_of(*lead, *shape, seed=n) for n, shape in enumerate(shapes)))

    for shared, experts in ((factors(), factors(3)), (None, factors(3)), (factors(), None)):
        arguments = (shared, experts, gates, ids, 2.0, 0.5)
        wanted = ops.delta_experts_forward(x, *(w[0] for w in dense), *arguments)
        found = ops.delta_experts_forward(x, *modules, *arguments)
        assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("top_k", [1, 2])
def test_gradients_are_those_on_the_decoded_base(bits, top_k):
    """Deltas, gates and inputs, with a base of which w2 is not packed, too, and where nothing but the input learns."""
    shapes = ((96, 64), (64, 96), (96, 64))
    packed = [packed_of(weight_of(*shape, seed=n), bits) for n, shape in enumerate(shapes)]
    modules: list = [PackedWeights(*(part[None] for part in weight)) for weight in packed]
    dense = [weight.decode(torch.float32) for weight in packed]
    ids = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(t))[:top_k] for t in range(20)])
    sizes = ((4, 64), (96, 4), (4, 96), (64, 4), (4, 64), (96, 4))

    def gradients(base: list, shared: bool, experts: bool) -> list[torch.Tensor]:
        x, gates = weight_of(20, 64, seed=5).requires_grad_(), torch.rand(20, top_k).softmax(1).requires_grad_()
        low, high = (
            [weight_of(*lead, *s, seed=n).requires_grad_() for n, s in enumerate(sizes)] for lead in ((), (3,))
        )
        learned = [x, gates, *(low if shared else []), *(high if experts else [])]
        factors = LowRank(*low) if shared else None, LowRank(*high) if experts else None
        torch.manual_seed(0)
        out = ops.delta_experts_forward(x, *base, *factors, gates, ids if experts else ids * 0, 2.0, 0.5)
        return [out, *torch.autograd.grad(out.square().sum() + out[3].sum(), learned)]

    for base in (modules, [modules[0], dense[1], modules[2]]):
        for shared, experts in ((True, True), (False, True), (True, False), (False, False)):
            torch.manual_seed(1)
            wanted = gradients(dense, shared, experts)
            torch.manual_seed(1)
            found = gradients(base, shared, experts)
            assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(found, wanted, strict=True))
    x = weight_of(20, 64, seed=7).requires_grad_()
    for weight in (modules[0], dense[0]):
        ops.linear(x[None], weight).square().sum().backward()
    assert x.grad is not None
    (once,) = torch.autograd.grad(ops.linear(x, dense[0]).square().sum(), x)
    assert torch.allclose(x.grad, 2 * once, rtol=1e-5, atol=1e-6)
