"""The CPU path against the plain reference: values, every gradient, frozen weights, bit-equality, bad input."""

from __future__ import annotations

import types

import pytest
import torch
import torch.nn.functional as F

from kernels import custom_ops, int4, ops, reference
from kernels.cpu import decode as cpu_decode
from kernels.cpu import experts as cpu
from kernels.dispatch import sort_by_expert
from kernels.types import LowRank


def routing(tokens: int, top_k: int, num_experts: int, kind: str = "uniform") -> torch.Tensor:
    if kind == "one":
        return torch.full((tokens, top_k), num_experts - 1)
    weight = torch.ones(num_experts) if kind == "uniform" else torch.tensor([8.0, 1, 1, 0.2, 0.1, 0.1, 0.1, 0.1])
    score = torch.rand(tokens, num_experts) * weight[:num_experts]
    return score.topk(top_k, -1).indices


def full_weights(num_experts: int, width: int, hidden: int, dtype=torch.float64) -> list[torch.Tensor]:
    shapes = (num_experts, hidden, width), (num_experts, width, hidden), (num_experts, hidden, width)
    return [(torch.randn(s, dtype=torch.float64) / s[-1] ** 0.5).to(dtype).requires_grad_() for s in shapes]


def low_rank(rank: int, width: int, hidden: int, lead: tuple[int, ...] = (), dtype=torch.float64) -> LowRank:
    shapes = (rank, width), (hidden, rank), (rank, hidden), (width, rank), (rank, width), (hidden, rank)
    return LowRank(*((torch.randn(*lead, *s, dtype=dtype) * 0.3).requires_grad_() for s in shapes))


def assert_same(got, want, inputs, tol=1e-12):
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=tol, rtol=tol)
    grad = torch.randn_like(want)
    ours = torch.autograd.grad(got, inputs, grad, allow_unused=True)
    theirs = torch.autograd.grad(want, inputs, grad, allow_unused=True)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(
            a if a is not None else torch.tensor(0.0), b if b is not None else torch.tensor(0.0), atol=tol, rtol=tol
        )


@pytest.mark.parametrize("num_experts", [1, 4, 8])
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_sort_by_expert_is_a_stable_sort(num_experts, tokens):
    torch.manual_seed(0)
    ids = routing(tokens, min(2, num_experts), num_experts)
    flat = ids.reshape(-1)
    order, inverse, offsets = sort_by_expert(ids, num_experts)
    assert order.dtype == inverse.dtype == torch.int64 and offsets.dtype == torch.int32
    assert order.tolist() == sorted(range(flat.numel()), key=lambda i: flat[i].item())
    assert order[inverse].tolist() == list(range(flat.numel()))
    counts = [(flat == e).sum().item() for e in range(num_experts)]
    assert (offsets[1:] - offsets[:-1]).tolist() == counts and offsets[0] == 0


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


def test_rows_of_other_experts_have_no_part_in_a_window():
    torch.manual_seed(3)
    ids = torch.tensor([0] * 9 + [1] * 23)[:, None]
    gates = torch.ones(32, 1)
    weights = full_weights(2, 16, 24, torch.float32)
    deltas = low_rank(2, 16, 24, (2,), torch.float32)
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


@pytest.mark.parametrize(("has_shared", "has_experts"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [(1, 1, 1), (5, 2, 4), (33, 1, 4), (33, 3, 8)])
def test_delta_experts_forward_and_gradients(has_shared, has_experts, tokens, top_k, num_experts):
    torch.manual_seed(2)
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    w1, w2, w3 = (w[0].detach().requires_grad_() for w in full_weights(1, 12, 20))
    shared = low_rank(3, 12, 20) if has_shared else None
    experts = low_rank(2, 12, 20, (num_experts,)) if has_experts else None
    gates = torch.rand(tokens, top_k, dtype=torch.float64, requires_grad=True)
    ids = routing(tokens, top_k, num_experts, "skew")
    args = (x, w1, w2, w3, shared, experts, gates, ids, 0.7, 1.3)
    inputs = (x, w1, w2, w3, gates, *(shared or ()), *(experts or ()))
    assert_same(ops.delta_experts_forward(*args), reference.delta_experts_forward(*args), inputs)


def test_gradcheck():
    torch.manual_seed(4)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    ids = routing(5, 2, 3)
    assert torch.autograd.gradcheck(lambda *a: ops.experts_forward(*a, ids), (x, *full_weights(3, 4, 6), gates))
    base = [w[0].detach().requires_grad_() for w in full_weights(1, 4, 6)]
    shared, experts = low_rank(2, 4, 6), low_rank(2, 4, 6, (3,))

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


def test_frozen_weights_get_no_gradient_product(monkeypatch):
    torch.manual_seed(5)
    x = torch.randn(6, 8, requires_grad=True)
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 8, 10, torch.float32))
    experts = low_rank(2, 8, 10, (2,), torch.float32)
    gates, ids = torch.ones(6, 1), torch.tensor([[0], [1], [0], [1], [1], [1]])
    out = ops.delta_experts_forward(x, w1, w2, w3, None, experts, gates, ids)
    seen = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and "mm" in func.__name__:
                seen.append(tuple(result.shape))
            return result

    with Spy():
        out.sum().backward()
    assert (10, 8) not in seen and (8, 10) not in seen  # the shapes only a base gradient could have
    assert experts.a1.grad is not None and x.grad is not None


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
    zero = LowRank(*(torch.zeros_like(t, dtype=dtype) for t in low_rank(2, 64, 96, (4,))))
    torch.testing.assert_close(ops.delta_experts_forward(x, w1, w2, w3, None, zero, gates, ids), dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 70])
def test_untrained_deltas_give_the_bits_of_the_dense_network(dtype, top_k, tokens):
    """Equal activations, weighted by gates that add up to 1, are that activation again to the last bit."""
    torch.manual_seed(16)
    x = torch.randn(tokens, 64).to(dtype) * 50
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 64, 96, dtype))
    dense = ops.linear(torch.nn.functional.silu(ops.linear(x, w1)) * ops.linear(x, w3), w2)
    shares = torch.softmax(torch.randn(tokens, top_k) * 3, -1)[:, 1:]
    gates = torch.cat((1 - shares.sum(-1, keepdim=True), shares), -1)
    zero = LowRank(*(torch.zeros_like(t, dtype=dtype) for t in low_rank(2, 64, 96, (4,))))
    mixture = ops.delta_experts_forward(x, w1, w2, w3, None, zero, gates, routing(tokens, top_k, 4))
    assert torch.equal(mixture, dense)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [64, 66, 63])
def test_matvec(dtype, columns):
    torch.manual_seed(19)
    x, w = torch.randn(1, 48).to(dtype), torch.randn(columns, 48).to(dtype)
    tight = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for row in (x, torch.stack((x[0], x[0]), 1).t()[:1]):  # the second with strides of its own
        for weight in (w, w.t().contiguous().t(), torch.cat((w, w), 1)[:, :48]):
            torch.testing.assert_close(cpu_decode.matvec(row, weight), torch.nn.functional.linear(x, w), **tight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["both", "shared", "experts"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_decoding_with_deltas_is_the_forward_of_one_token(dtype, which, top_k):
    torch.manual_seed(20)
    x = torch.randn(1, 64).to(dtype)
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 64, 96, dtype))
    shared, experts = (
        LowRank(*(t.detach().to(dtype) for t in low_rank(6, 64, 96, lead))) if which in ("both", name) else None
        for name, lead in (("shared", ()), ("experts", (4,)))
    )
    gates, ids = torch.softmax(torch.randn(1, top_k), -1), routing(1, top_k, 4)
    plan = (shared, experts, gates, ids, 0.5, 2.0)
    want = reference.delta_experts_forward(x.double(), w1.double(), w2.double(), w3.double(), *plan)
    got = ops.delta_experts_forward(x, w1, w2, w3, *plan)
    assert got.shape == want.shape and got.dtype == dtype
    tol = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-7}[dtype]  # gates are float32 here and there
    assert (got.double() - want).abs().max() < tol * want.abs().max()
    if which != "shared":
        with pytest.raises(ValueError, match=r"expected values in \[0, 4\), found 4"):
            ops.delta_experts_forward(x, w1, w2, w3, shared, experts, gates, ids * 0 + 4)


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


@pytest.mark.parametrize("shape", [(1, 12), (7, 12), (2, 5, 12)])
def test_linear_and_its_gradients(shape):
    torch.manual_seed(17)
    x, weight = torch.randn(shape, requires_grad=True), torch.randn(9, 12, requires_grad=True)
    assert_same(ops.linear(x, weight), torch.nn.functional.linear(x, weight), (x, weight), tol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ops.linear(x, weight), torch.nn.functional.linear(x, weight))


def test_bf16_stays_close_to_float64():
    torch.manual_seed(7)
    x = torch.randn(33, 64)
    weights = [w.detach() for w in full_weights(4, 64, 96, torch.float32)]
    gates, ids = torch.softmax(torch.randn(33, 2), -1), routing(33, 2, 4)
    want = reference.experts_forward(x.double(), *(w.double() for w in weights), gates.double(), ids)
    got = ops.experts_forward(x.bfloat16(), *(w.bfloat16() for w in weights), gates, ids)
    assert got.dtype == torch.bfloat16
    assert (got.double() - want).abs().max() < 0.02 * want.abs().max()


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


def test_bad_input_is_told_in_one_line():
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
