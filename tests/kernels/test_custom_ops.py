"""The custom operators: fake kernels agree with real ones, full-graph tracing, no host reads, no need of Triton."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from kernels import custom_ops, int4, ops, reference
from tests.kernels.random_layers import low_rank

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
    base, shared, factors = (
        [w[0].detach() for w in weights],
        low_rank(2, 8, 12, dtype=torch.float32),
        low_rank(2, 8, 12, 3, dtype=torch.float32),
    )
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
    base, shared, factors = (
        [w[0].detach() for w in weights],
        low_rank(2, 8, 12, dtype=torch.float32),
        low_rank(2, 8, 12, 3, dtype=torch.float32),
    )

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
    factors = low_rank(2, 128, 128, 3, dtype=torch.float32)
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


def test_full_graph_tracing_of_a_few_bfloat16_rows_without_gradients():
    x, weight = torch.randn(4, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    compiled = torch.compile(lambda x: ops.linear(x, weight), fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), ops.linear(x, weight))


def test_the_gpu_path_never_reads_a_tensor_on_the_host():
    for path in sorted((Path(ops.__file__).parent / "gpu").glob("*.py")):
        found = re.findall(r"\.(?:item|tolist|cpu|numpy|nonzero)\(|synchronize\(", path.read_text())
        assert not found, f"{path.name}: {found}"


def test_cpu_path_needs_no_triton():
    source = Path(custom_ops.__file__).read_text() + Path(ops.__file__).read_text()
    top_level = [line for line in source.splitlines() if re.match(r"(import|from) .*(triton|kernels\.gpu)", line)]
    assert top_level == []
