"""Full experts on a CPU against the plain reference: values, every gradient, windows, bit-equality."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from kernels import ops, reference
from kernels.cpu import decode as cpu_decode
from kernels.cpu import experts as cpu
from kernels.types import LowRank
from tests.kernels.random_layers import assert_same, full_weights, low_rank, routing


def test_windows_hold_their_rows_and_repeat_their_sizes():
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(300):
        counts = torch.randint(0, 600, (4,), generator=generator)
        offsets = F.pad(counts.cumsum(0), (1, 0)).int()
        rows = int(offsets[-1])
        found = cpu.windows(offsets, rows)
        runs = [(e, *offsets[e : e + 2].tolist()) for e in range(4) if counts[e]]
        assert [(w.expert, w.start, w.end) for w in found] == runs
        for w in found:
            assert 0 <= w.first <= w.start < w.end <= w.last <= rows
            size = w.end - w.start
            assert w.last - w.first <= size + max(7, size // 16)
            product = torch.arange(w.first, w.last)
            assert w.own(product).tolist() == list(range(w.start, w.end))
            kept = w.only_own(product + 1)
            assert kept.count_nonzero() == size and w.own(kept).tolist() == list(range(w.start + 1, w.end + 1))
            sizes.add(w.last - w.first)
    assert len(sizes) <= 60  # some 1,100 runs of 600 lengths


def test_windows_of_a_few_rows_at_a_time_cover_each_row_once():
    offsets = torch.tensor([0, 5, 5, 47, 60])
    found = cpu.windows(offsets, 60, 16)
    assert [(w.expert, w.start, w.end) for w in found] == [
        (0, 0, 5), (2, 5, 21), (2, 21, 37), (2, 37, 47), (3, 47, 60)
    ]  # fmt: skip
    assert all(0 <= w.first <= w.start < w.end <= w.last <= 60 for w in found)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 0.02)])
@torch.no_grad()
def test_experts_that_keep_nothing_compute_the_same(monkeypatch, dtype, bound):
    monkeypatch.setattr(cpu, "ROWS_AT_ONCE", 16)
    torch.manual_seed(0)
    x, weights, ids = torch.randn(90, 16, dtype=dtype), full_weights(3, 16, 24, dtype), routing(90, 2, 3)
    gates = torch.full((90, 2), 0.5, dtype=torch.promote_types(dtype, torch.float32))
    kept, saved = cpu.experts_fwd(x, *weights, gates, ids)
    found, nothing = cpu.experts_fwd(x, *weights, gates, ids, save=False)
    assert len(saved.h1) == 180 and not len(nothing.h1)
    assert (found - kept).abs().max() <= bound * kept.abs().max()


@pytest.mark.parametrize("width", [64, 576, 4096])
def test_a_few_rows_in_bfloat16(width):
    """The product is dense, whatever its order inside, and with AMX each row has the bits that it has alone."""
    w, x = torch.randn(96, width).bfloat16(), torch.randn(cpu.FEW_ROWS + 1, width).bfloat16()
    wanted = x.double() @ w.double().t()
    for rows in (1, 2, 3, 16, cpu.FEW_ROWS, cpu.FEW_ROWS + 1):
        found = cpu.linear(x[:rows], w)
        assert found.is_contiguous() and (found - wanted[:rows]).abs().max() < 0.01 * wanted.abs().max()
        if cpu_decode.HAS_AMX and rows <= cpu.FEW_ROWS:
            for row in range(rows):
                pair = torch.cat((x[row : row + 1], x[:1]))
                assert torch.equal(found[row], cpu.linear(pair, w)[0])


def test_rows_of_other_experts_have_no_part_in_a_window():
    torch.manual_seed(3)
    ids = torch.tensor([0] * 9 + [1] * 23)[:, None]
    gates = torch.ones(32, 1)
    weights = full_weights(2, 16, 24, torch.float32)
    deltas = low_rank(2, 16, 24, 2, dtype=torch.float32)
    results = []
    for spoilt in (False, True):
        x = torch.linspace(-1, 1, 512).view(32, 16).clone()
        if spoilt:
            x[9:] = 1e6  # in the window of expert 0
        x.requires_grad_()
        full = ops.experts_forward(x, *weights, gates, ids)
        delta = ops.delta_experts_forward(x, *(w[0] for w in weights), None, deltas, gates, ids)
        inputs = (x, *weights, *deltas)
        grads = torch.autograd.grad((full[:9].sum(), delta[:9].sum()), inputs)
        results.append([full[:9], delta[:9], grads[0][:9], *(g[0] for g in grads[1:])])
    for clean, other in zip(*results, strict=True):
        assert clean.isfinite().all() and torch.equal(clean, other)


@pytest.mark.parametrize("kind", ["uniform", "skew", "one"])
@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [(1, 1, 1), (5, 2, 4), (33, 1, 4), (33, 3, 8)])
def test_experts_forward_and_gradients(kind, tokens, top_k, num_experts):
    torch.manual_seed(1)
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    weights = full_weights(num_experts, 12, 20)
    gates = torch.rand(tokens, top_k, dtype=torch.float64, requires_grad=True)
    ids = routing(tokens, top_k, num_experts, kind)
    assert_same(
        ops.experts_forward(x, *weights, gates, ids),
        reference.experts_forward(x, *weights, gates, ids),
        (x, *weights, gates),
    )
    with torch.no_grad():
        torch.testing.assert_close(
            ops.experts_forward(x, *weights, gates, ids), reference.experts_forward(x, *weights, gates, ids)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_identical_experts_equal_the_dense_network(dtype):
    torch.manual_seed(6)
    x = torch.randn(17, 64).to(dtype)
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 64, 96, dtype))
    dense = reference.swiglu_ffn(x, w1, w2, w3)
    gates = torch.softmax(torch.randn(17, 2), -1)
    ids = routing(17, 2, 4)
    stacked = [w.expand(4, *w.shape).contiguous() for w in (w1, w2, w3)]
    mixture = reference.experts_forward(x, *stacked, gates, ids)
    if dtype == torch.bfloat16:
        assert torch.equal(mixture, dense)
    torch.testing.assert_close(ops.experts_forward(x, *stacked, gates, ids), dense)
    zero = LowRank(*(torch.zeros_like(t, dtype=dtype) for t in low_rank(2, 64, 96, 4)))
    torch.testing.assert_close(ops.delta_experts_forward(x, w1, w2, w3, None, zero, gates, ids), dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 9])
def test_copies_give_the_bits_of_the_dense_network_in_decode_too(dtype, tokens):
    torch.manual_seed(18)
    x = torch.randn(tokens, 64).to(dtype)
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 64, 96, dtype))
    stacked = [w.expand(4, *w.shape).contiguous() for w in (w1, w2, w3)]
    gates, ids = torch.tensor([[0.75, 0.25]]).expand(tokens, 2), routing(tokens, 2, 4)
    if dtype == torch.float32:
        dense = ops.linear(torch.nn.functional.silu(ops.linear(x, w1)) * ops.linear(x, w3), w2)
        assert torch.equal(ops.experts_forward(x, *stacked, gates, ids), dense)
    else:
        dense = reference.swiglu_ffn(x, w1, w2, w3)
        torch.testing.assert_close(ops.experts_forward(x, *stacked, gates, ids), dense)


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 40])
@pytest.mark.parametrize("width", [48, 1024])
def test_every_processor_has_a_right_product(monkeypatch, avx512, rows, width):
    """What is fast differs between processors, so each way is tried here on whatever this one is."""
    monkeypatch.setattr(cpu, "has_avx512", lambda: avx512)
    monkeypatch.setattr(cpu_decode, "has_avx512", lambda: avx512)
    torch.manual_seed(21)
    x, w = torch.randn(rows, width), torch.randn(64, width)
    for weight in (w, w.t().contiguous().t()):
        torch.testing.assert_close(cpu.linear(x, weight).double(), x.double() @ w.double().t(), rtol=1e-4, atol=1e-4)


def test_bf16_stays_close_to_float64():
    torch.manual_seed(7)
    x = torch.randn(33, 64)
    weights = [w.detach() for w in full_weights(4, 64, 96, torch.float32)]
    gates, ids = torch.softmax(torch.randn(33, 2), -1), routing(33, 2, 4)
    want = reference.experts_forward(x.double(), *(w.double() for w in weights), gates.double(), ids)
    got = ops.experts_forward(x.bfloat16(), *(w.bfloat16() for w in weights), gates, ids)
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).abs().max() < 0.02 * want.abs().max()
