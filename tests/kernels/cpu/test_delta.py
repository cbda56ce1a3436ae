"""Delta experts on a CPU against the plain reference: values, every gradient, frozen bases, bit-equality."""

from __future__ import annotations

import pytest
import torch

from kernels import ops, reference
from kernels.types import LowRank
from tests.kernels.random_layers import assert_same, full_weights, low_rank, routing


@pytest.mark.parametrize(("has_shared", "has_experts"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize(("tokens", "top_k", "num_experts"), [(1, 1, 1), (5, 2, 4), (33, 1, 4), (33, 3, 8)])
def test_delta_experts_forward_and_gradients(has_shared, has_experts, tokens, top_k, num_experts):
    torch.manual_seed(2)
    x = torch.randn(tokens, 12, dtype=torch.float64, requires_grad=True)
    w1, w2, w3 = (w[0].detach().requires_grad_() for w in full_weights(1, 12, 20))
    shared = low_rank(3, 12, 20) if has_shared else None
    experts = low_rank(2, 12, 20, num_experts) if has_experts else None
    gates = torch.rand(tokens, top_k, dtype=torch.float64, requires_grad=True)
    ids = routing(tokens, top_k, num_experts, "skew")
    args = (x, w1, w2, w3, shared, experts, gates, ids, 0.7, 1.3)
    inputs = (x, w1, w2, w3, gates, *(shared or ()), *(experts or ()))
    assert_same(ops.delta_experts_forward(*args), reference.delta_experts_forward(*args), inputs)


def test_frozen_weights_get_no_gradient_product(monkeypatch):
    torch.manual_seed(5)
    x = torch.randn(6, 8, requires_grad=True)
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 8, 10, torch.float32))
    experts = low_rank(2, 8, 10, 2, dtype=torch.float32)
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
    zero = LowRank(*(torch.zeros_like(t, dtype=dtype) for t in low_rank(2, 64, 96, 4)))
    mixture = ops.delta_experts_forward(x, w1, w2, w3, None, zero, gates, routing(tokens, top_k, 4))
    assert torch.equal(mixture, dense)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("which", ["both", "shared", "experts"])
@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_decoding_with_deltas_is_the_forward_of_one_token(dtype, which, top_k):
    torch.manual_seed(20)
    x = torch.randn(1, 64).to(dtype)
    w1, w2, w3 = (w[0].detach() for w in full_weights(1, 64, 96, dtype))
    shared, experts = (
        LowRank(*(t.detach().to(dtype) for t in low_rank(6, 64, 96, *lead))) if which in ("both", name) else None
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
