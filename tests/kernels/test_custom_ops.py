"""The custom operators: fake kernels agree with real ones, full-graph tracing, int4 on the CPU, no host reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from kernels import custom_ops, int4, ops, reference
from kernels.types import LowRank

TESTS = ("test_schema", "test_faketensor")


def problem(tokens=6, width=8, hidden=12, experts=3, top_k=2):
    torch.manual_seed(0)
    x = torch.randn(tokens, width, requires_grad=True)
    weights = [
        (torch.randn(shape) / 3).requires_grad_()
        for shape in ((experts, hidden, width), (experts, width, hidden), (experts, hidden, width))
    ]
    gates = torch.rand(tokens, top_k, requires_grad=True)
    return x, weights, gates, torch.rand(tokens, experts).topk(top_k, -1).indices


def low_rank(rank: int, width: int, hidden: int, *lead: int) -> LowRank:
    shapes = (rank, width), (hidden, rank), (rank, hidden), (width, rank), (rank, width), (hidden, rank)
    return LowRank(*((torch.randn(*lead, *shape) * 0.3).requires_grad_() for shape in shapes))


def test_fake_kernels_agree_with_real_ones():
    x, weights, gates, ids = problem()
    dense = (None, None, None)
    torch.library.opcheck(custom_ops.experts, (x, *weights, *dense, gates, ids, True), test_utils=TESTS)
    saved = custom_ops.experts(x, *weights, *dense, gates, ids, True)[1:]
    for needs in ([True] * 5, [True, False, False, False, True]):
        torch.library.opcheck(
            custom_ops.experts_backward,
            (
                x.detach(),
                x.detach(),
                *(w.detach() for w in weights),
                *dense,
                gates.detach(),
                *(s.detach() for s in saved),
                needs,
            ),
            test_utils=TESTS,
        )
    base, shared, factors = [w[0].detach() for w in weights], low_rank(2, 8, 12), low_rank(2, 8, 12, 3)
    for pairs in ((list(shared), list(factors)), ([], list(factors))):
        torch.library.opcheck(custom_ops.delta_experts, (x, base, *pairs, gates, ids, 0.5, 2.0, True), test_utils=TESTS)
    alone = (gates[:, :1], ids[:, :1])  # without factors of experts
    torch.library.opcheck(
        custom_ops.delta_experts, (x, base, list(shared), [], *alone, 0.5, 2.0, True), test_utils=TESTS
    )
    wide = torch.randn(6, 128)
    packed, scales = zip(*(int4.pack(torch.randn(3, 128, 128)) for _ in range(3)))
    torch.library.opcheck(custom_ops.experts, (wide, *packed, *scales, gates, ids, True), test_utils=TESTS)


def test_full_graph_tracing_gives_the_same_values_and_gradients():
    x, weights, gates, ids = problem()
    base, shared, factors = [w[0].detach() for w in weights], low_rank(2, 8, 12), low_rank(2, 8, 12, 3)

    def layer(x, gates):
        y = ops.experts_forward(x, *weights, gates, ids)
        return ops.delta_experts_forward(y, *base, shared, factors, gates, ids, 0.5, 2.0).sin()

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [x, gates, *weights, *shared, *factors]
    want, got = layer(x, gates), compiled(x, gates)
    torch.testing.assert_close(got, want)
    ours = torch.autograd.grad(got.sum(), leaves)
    for a, b in zip(ours, torch.autograd.grad(want.sum(), leaves)):
        torch.testing.assert_close(a, b)


def test_full_graph_tracing_of_every_other_operation():
    x, weights, gates, ids = problem()
    packed = [int4.pack(torch.randn(3, 128, 128) / 11) for _ in range(3)]
    wide = torch.randn(6, 128, requires_grad=True)
    factors = low_rank(2, 128, 128, 3)
    base = [int4.pack(torch.randn(128, 128) / 11) for _ in range(3)]
    cases = {
        "linear": (lambda x: ops.linear(x, weights[0][0]), x),
        "int4": (lambda x: ops.experts_forward(x, *packed, gates, ids), wide),
        "int4 with deltas": (lambda x: ops.delta_experts_forward(x, *base, None, factors, gates, ids), wide),
    }
    for name, (layer, leaf) in cases.items():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        want, got = layer(leaf), compiled(leaf)
        torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}")
        ours, theirs = torch.autograd.grad(got.sum(), leaf), torch.autograd.grad(want.sum(), leaf)
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_full_graph_tracing_of_one_token_without_gradients():
    x, weights, gates, ids = problem(tokens=1)
    compiled = torch.compile(
        lambda x: ops.experts_forward(x, *weights, gates, ids), fullgraph=True, backend="aot_eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), reference.experts_forward(x, *weights, gates, ids))


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
    factors = LowRank(*(t.detach().double().requires_grad_() for t in low_rank(2, 128, 256, 2)))
    x, gates = x.detach().double(), gates.detach().double()
    got = ops.delta_experts_forward(x, *base, None, factors, gates, ids)
    dense = [int4.unpack(w, torch.float64)[0] for w in base]
    want = reference.delta_experts_forward(x, *dense, None, factors, gates, ids)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), factors), torch.autograd.grad(want.sum(), factors))


def test_int4_says_what_does_not_fit():
    with pytest.raises(ValueError, match="divisible by 128, got 100"):
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


def test_the_gpu_path_never_reads_a_tensor_on_the_host():
    for path in sorted((Path(ops.__file__).parent / "gpu").glob("*.py")):
        found = re.findall(r"\.(?:item|tolist|cpu|numpy|nonzero)\(|synchronize\(", path.read_text())
        assert not found, f"{path.name}: {found}"


def test_cpu_path_needs_no_triton():
    source = Path(custom_ops.__file__).read_text() + Path(ops.__file__).read_text()
    top_level = [line for line in source.splitlines() if re.match(r"(import|from) .*(triton|kernels\.gpu)", line)]
    assert top_level == []
