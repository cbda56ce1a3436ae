"""Every Triton kernel in Triton's interpreter against the float64 reference; `test_interpreter.py` runs this file.

The interpreter must be chosen (TRITON_INTERPRET=1) before triton is imported, hence a process of its own. Errors are
largest difference over largest reference value: 1e-6 where all values are float32.
"""

from __future__ import annotations

import contextlib
import os
import re

import pytest
import torch
import triton
import triton.language as tl

from kernels import int4, ops, reference
from kernels.dispatch import sort_by_expert
from kernels.gpu import common, launch, launch_gradient, launch_w4, layers, tile_tables
from kernels.gpu.tile_tables import Tile
from kernels.types import LowRank, Needs, Saved
from tests.kernels.random_layers import low_rank

assert os.environ.get("TRITON_INTERPRET") == "1"

BOUND = 1e-6
SMALL = Tile(16, 16, 16, 4, 1, group_m=2)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30)).item()


def ids_of(kind: str, tokens: int, top_k: int, experts: int) -> torch.Tensor:
    if kind == "one-hot":
        return torch.full((tokens, top_k), experts - 1)
    weight = torch.tensor([9.0, 1, 1, 0.2, 0.1, 0.1, 0.1, 0.1])[:experts] if kind == "skewed" else torch.ones(experts)
    ids = (torch.rand(tokens, experts) * weight).topk(top_k, -1).indices
    return ids * 0 + ids.clamp(max=max(0, experts - 3)) if kind == "empty" else ids  # the last two experts get nothing


def compare(function, reference_function, leaves: list[torch.Tensor], repeated: bool) -> None:
    """Values and all gradients of ``function(*leaves)`` against the reference in float64; bitwise the same again."""
    doubles = [t.detach().double().requires_grad_() for t in leaves]
    got, want = function(*leaves), reference_function(*doubles)
    assert error(got, want) <= BOUND
    grad = torch.randn(want.shape)
    ours = torch.autograd.grad(got, leaves, grad)
    for a, b in zip(ours, torch.autograd.grad(want, doubles, grad.double())):
        assert error(a, b) <= BOUND
    if repeated:
        assert all(map(torch.equal, ours, torch.autograd.grad(function(*leaves), leaves, grad)))


CASES = [
    # tokens, experts, top_k, routing, width, hidden
    (1, 1, 1, "uniform", 16, 16),
    (1, 8, 3, "uniform", 40, 72),
    (5, 4, 2, "one-hot", 33, 70),
    (33, 4, 2, "skewed", 80, 112),
    (33, 8, 3, "empty", 24, 48),
    (64, 4, 1, "uniform", 64, 130),
    (64, 2, 2, "uniform", 17, 40),
    (33, 3, 1, "empty", 48, 20),
    (5, 5, 3, "empty", 20, 36),
    (64, 6, 3, "one-hot", 32, 24),
    (33, 7, 2, "uniform", 19, 33),
    (1, 4, 2, "one-hot", 18, 50),
]


@pytest.mark.parametrize(("tokens", "experts", "top_k", "kind", "width", "hidden"), CASES)
def test_experts(tokens, experts, top_k, kind, width, hidden):
    torch.manual_seed(tokens + experts)
    x = torch.randn(width, tokens).t().requires_grad_()  # not contiguous
    w1, w3 = (torch.randn(experts, hidden, width).div(width**0.5).requires_grad_() for _ in range(2))
    w2 = torch.randn(experts, hidden, width).div(hidden**0.5).transpose(1, 2).requires_grad_()  # not contiguous
    gates, ids = torch.rand(tokens, top_k, requires_grad=True), ids_of(kind, tokens, top_k, experts)
    with launch.recorded() as launches, torch.no_grad():
        ops.experts_forward(x, w1, w2, w3, gates, ids)
    assert len(launches) <= 4
    leaves = [x, w1, w2, w3, gates]
    repeated = kind == "skewed"
    compare(lambda *a: ops.experts_forward(*a, ids), lambda *a: reference.experts_forward(*a, ids), leaves, repeated)


@pytest.mark.parametrize(("tokens", "experts", "top_k", "kind", "width", "hidden"), [CASES[i] for i in (1, 2, 5, 7)])
def test_delta_experts(tokens, experts, top_k, kind, width, hidden):
    torch.manual_seed(tokens + experts)
    base = [torch.randn(shape).div(6).requires_grad_() for shape in ((hidden, width), (width, hidden), (hidden, width))]
    shared, factors = (low_rank(5, width, hidden, *lead, dtype=torch.float32) for lead in ((), (experts,)))
    x, gates = torch.randn(tokens, width, requires_grad=True), torch.rand(tokens, top_k, requires_grad=True)
    ids = ids_of(kind, tokens, top_k, experts)

    def run(function):
        def call(x, w1, w2, w3, gates, *f):
            return function(x, w1, w2, w3, LowRank(*f[:6]), LowRank(*f[6:]), gates, ids, 0.7, 1.3)

        return call

    leaves = [x, *base, gates, *shared, *factors]
    compare(run(ops.delta_experts_forward), run(reference.delta_experts_forward), leaves, tokens == 33)


class HostWork(torch.utils._python_dispatch.TorchDispatchMode):
    """What torch does besides Triton's launches: names of waits for a value, and of operations that are kernels."""

    FREE = re.compile(r"aten::(empty|new_empty|view|_unsafe_view|as_strided|alias|detach|select|slice|unsqueeze|t|"
                      r"transpose|expand|split|unbind|lift_fresh|_to_copy|clone)")  # fmt: skip
    WAITS = re.compile(r"aten::(_local_scalar_dense|nonzero|equal|is_nonzero|masked_select|unique)")

    def __init__(self):
        super().__init__()
        self.waits, self.kernels = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        (self.waits if self.WAITS.match(name) else self.kernels).append(name)
        if self.FREE.match(name):
            self.kernels.pop()
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def host_work():
    """(what torch did, operations launched) of the block, where no kernel runs: the host's part alone."""
    launched: list[str] = []
    with torch.no_grad(), HostWork() as work, launch.redirected(lambda made: launched.append(made.op)):
        yield work, launched


@pytest.mark.parametrize("form", ["full", "int4", "int4 swapped"])
def test_a_forward_is_four_launches_and_no_wait(form):
    tokens = 24 if form == "int4 swapped" else 80
    shapes = (2, 256, 128), (2, 128, 256), (2, 256, 128)
    weights = [torch.randn(shape) for shape in shapes]
    packed = [int4.pack(w) for w in weights]
    x, gates, ids = torch.randn(tokens, 128), torch.rand(tokens, 2), ids_of("uniform", tokens, 2, 2)
    with host_work() as (work, launched):
        if form == "full":
            layers.experts_forward(x, *weights, gates, ids, False)
        else:
            layers.int4_experts_forward(x, *packed, gates, ids, False)
    assert work.waits == [] and work.kernels == []
    assert len(launched) == 4, launched


def test_backwards_never_wait():
    weights = [torch.randn(2, 48, 32), torch.randn(2, 32, 48), torch.randn(2, 48, 32)]
    x, gates, ids = torch.randn(40, 32), torch.rand(40, 2), ids_of("uniform", 40, 2, 2)
    saved = Saved(torch.randn(80, 48), torch.randn(80, 48), sort_by_expert(ids, 2))
    with host_work() as (work, launched):
        layers.experts_backward(x, x, *weights, gates, saved, Needs(*[True] * 5))
    assert work.waits == [] and work.kernels == []
    assert len(launched) == 7, launched  # SwiGLU, gates, dX and its combine, three weights


@pytest.mark.parametrize(
    ("tokens", "top_k", "experts", "kind"),
    [(2, 2, 3, "uniform"), (1, 1, 1, "uniform"), (17, 2, 2, "uniform"), (33, 1, 4, "one-hot"), (5, 3, 5, "empty")],
)
def test_int4_experts(tokens, top_k, experts, kind):
    torch.manual_seed(tokens)
    width, hidden = 128, 256
    shapes = (experts, hidden, width), (experts, width, hidden), (experts, hidden, width)
    packed = [int4.pack(torch.randn(shape) / 9) for shape in shapes]
    full = [int4.unpack(w, torch.float64) for w in packed]
    x, gates = torch.randn(tokens, width, requires_grad=True), torch.rand(tokens, top_k, requires_grad=True)
    ids = ids_of(kind, tokens, top_k, experts)
    want = reference.experts_forward(x.double(), *full, gates.double(), ids)
    with torch.no_grad(), launch.recorded() as launches:
        assert error(ops.experts_forward(x, *packed, gates, ids), want) <= BOUND
    assert len(launches) <= 4
    compare(
        lambda x, gates: ops.experts_forward(x, *packed, gates, ids),
        lambda x, gates: reference.experts_forward(x, *full, gates, ids),
        [x, gates],
        repeated=tokens == 2,
    )


# rows per expert that take the int4 kernels for few rows, for many, and dequantized weights; and what each may err:
# in the second the scaled weight is rounded to bf16, half a unit in the eighth bit
INT4_PATHS = pytest.mark.parametrize(
    ("tokens", "tile", "bound"),
    [
        (21, {"w4_swap": Tile(8, 32, 128, 4, 1, 8, 2), "w4_swap_swiglu": Tile(8, 32, 128, 4, 1)}, BOUND),
        (70, {"w4_gemm": Tile(16, 64, 128, 4, 1), "w4_swiglu": Tile(16, 32, 128, 4, 1)}, 2**-8),
        (520, {"gemm": Tile(64, 64, 64, 4, 1), "swiglu": Tile(64, 64, 64, 4, 1)}, BOUND),
    ],
    ids=["swapped", "scaled", "dequantized"],
)


@INT4_PATHS
@pytest.mark.parametrize("save", [True, False])
def test_int4_swiglu(tokens, tile, bound, save):
    torch.manual_seed(8)
    x, w1, w3 = torch.randn(tokens, 256), int4.pack(torch.randn(2, 100, 256)), int4.pack(torch.randn(2, 100, 256))
    dispatch = sort_by_expert(ids_of("skewed", tokens, 2, 2), 2)
    with launch.redirected(tiles=tile), launch.recorded() as launches:
        a, h1, h3 = launch_w4.swiglu(x, w1, w3, dispatch, save)
    assert launches[-1].op in tile
    rows = x.double()[dispatch.order // 2]
    want1, want3 = (reference.grouped_linear(rows, int4.unpack(w, torch.float64), dispatch.offsets) for w in (w1, w3))
    assert error(a, torch.nn.functional.silu(want1) * want3) <= bound
    if save:
        assert error(h1, want1) <= bound and error(h3, want3) <= bound
    else:
        assert h1 is None and h3 is None


@INT4_PATHS
@pytest.mark.parametrize("columns", [128, 100])
def test_int4_products(tokens, tile, bound, columns):
    torch.manual_seed(1)
    x, w = torch.randn(2 * tokens, 384), int4.pack(torch.randn(2, columns, 384))
    dispatch = sort_by_expert(ids_of("skewed", tokens, 2, 2), 2)
    with launch.redirected(tiles=tile), launch.recorded() as launches:
        got = launch_w4.linear(x, w, dispatch)
    assert launches[-1].op in tile and (got.dim() == 3) == (tokens == 21)
    want = reference.grouped_linear(x.double(), int4.unpack(w, torch.float64), dispatch.offsets)
    assert error(got.sum(0) if got.dim() == 3 else got, want) <= bound


@pytest.mark.parametrize("gather", [{}, {"gather_x": True}, {"gather_dy": True}])
def test_weight_gradient_with_every_flag(gather):
    torch.manual_seed(9)
    dispatch = sort_by_expert(ids_of("empty", 33, 2, 4), 4)
    x = torch.randn(33 if gather.get("gather_x") else 66, 24)
    dy = torch.randn(33 if gather.get("gather_dy") else 66, 20)
    token = dispatch.order // 2
    rows = [t.double()[token] if t.shape[0] == 33 else t.double() for t in (x, dy)]
    with launch.redirected(tiles={"weight_gradient": SMALL}):
        got = launch_gradient.weight_gradient(x, dy, dispatch, **gather)
    assert error(got, reference.weight_gradient(*rows, dispatch.offsets)) <= BOUND
    assert not got[2:].any()  # experts without rows


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("has_gates", [True, False])
def test_combine_with_every_flag(splits, has_base, has_gates):
    torch.manual_seed(10)
    dispatch = sort_by_expert(ids_of("skewed", 9, 3, 4), 4)
    parts, gates, base = torch.randn(splits, 27, 70), torch.rand(9, 3), torch.randn(9, 70)
    slots = parts.double().sum(0)[dispatch.inverse]
    weighted = slots.view(9, 3, 70) * (gates.double().unsqueeze(-1) if has_gates else 1)
    want = 0.5 * weighted.sum(1) + (base.double() if has_base else 0)
    given = gates if has_gates else None, base if has_base else None
    assert error(launch.combine(parts, dispatch, 3, torch.float32, *given, 0.5), want) <= BOUND


def test_int4_base_with_deltas():
    torch.manual_seed(0)
    packed = [int4.pack(torch.randn(shape) / 9) for shape in ((128, 128), (128, 128), (128, 128))]
    full = [int4.unpack(w, torch.float64)[0] for w in packed]
    factors, ids = low_rank(4, 128, 128, 2, dtype=torch.float32), ids_of("uniform", 5, 1, 2)
    x, gates = torch.randn(5, 128, requires_grad=True), torch.ones(5, 1)
    compare(
        lambda x, *f: ops.delta_experts_forward(x, *packed, None, LowRank(*f), gates, ids),
        lambda x, *f: reference.delta_experts_forward(x, *full, None, LowRank(*f), gates.double(), ids),
        [x, *factors],
        repeated=True,
    )


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("decoded_once", [False, True])
def test_int4_gradient_of_the_input(gather, decoded_once, monkeypatch):
    torch.manual_seed(3)
    if decoded_once:
        monkeypatch.setattr(tile_tables, "W4_DEQUANTIZE_ROWS", 20)
    w, v = int4.pack(torch.randn(2, 100, 256)), int4.pack(torch.randn(2, 100, 256))
    dispatch = sort_by_expert(ids_of("uniform", 21, 2, 2), 2)
    full = [int4.unpack(t, torch.float64).transpose(1, 2) for t in (w, v)]
    with launch.redirected(tiles={"w4_dx": Tile(16, 32, 128, 4, 1)}), launch.recorded() as launches:
        if gather:
            dy = torch.randn(21, 100)
            got = launch_w4.linear_dx(dy, w, dispatch, gather=True)
            want = reference.grouped_linear(dy.double()[dispatch.order // 2], full[0], dispatch.offsets)
        else:
            dy, dz = torch.randn(42, 100), torch.randn(42, 100)
            got = launch_w4.linear_dx(dy, w, dispatch, dy2=dz, w2=v)
            want = sum(reference.grouped_linear(d.double(), f, dispatch.offsets) for d, f in zip((dy, dz), full))
    assert launches[-1].op == ("gemm_dx" if decoded_once else "w4_dx")
    assert error(got, want) <= BOUND


def test_dequantize():
    w = int4.pack(torch.randn(2, 100, 256))
    assert torch.equal(launch_w4.dequantize(w, torch.float32), int4.unpack(w, torch.float32))
    assert torch.equal(launch_w4.dequantize(w, torch.bfloat16), int4.unpack(w, torch.float32).bfloat16())


@pytest.mark.parametrize("broken", [[0, 5, 5, 20], [1, 5, 5, 21], [0, 9, 5, 21]])
def test_broken_offsets_give_nan_and_never_a_number(broken):
    x, w = torch.randn(21, 24), torch.randn(3, 24, 24)
    offsets = torch.tensor(broken, dtype=torch.int32)
    dispatch = sort_by_expert(torch.zeros(21, 1, dtype=torch.long), 3)._replace(offsets=offsets)
    assert launch.grouped_gemm("gemm", x, w, dispatch).isnan().all()
    y, x, w = torch.zeros(21, 48), x[:, :16].contiguous(), w[:, :, :16].repeat(1, 2, 1)
    with launch.redirected(tiles={"persistent_gemm": SMALL}):
        launch.persistent_gemm("persistent_gemm", x, w, None, dispatch, y)
    assert y.isnan().all()


def test_expert_id_out_of_range_gives_nan():
    weights = [torch.randn(2, 16, 16) for _ in range(3)]
    ids = torch.tensor([[0], [2], [1]])
    assert ops.experts_forward(torch.randn(3, 16), *weights, torch.ones(3, 1), ids).isnan().all()


@pytest.mark.parametrize("rows", [7, 1100])  # more than one block of the counting sort
@pytest.mark.parametrize("experts", [1, 3, 4])
def test_the_sort_is_stable_and_a_permutation_whatever_the_ids(rows, experts):
    torch.manual_seed(rows)
    good = torch.randint(0, experts, (rows, 1))
    for got, want in zip(launch.route(good, experts), sort_by_expert(good, experts)):
        assert torch.equal(got, want)
    ids = torch.randint(-2, experts + 3, (rows, 1))
    order, inverse, offsets = launch.route(ids, experts)
    assert torch.equal(order.sort().values, torch.arange(rows)) and torch.equal(order[inverse], torch.arange(rows))
    flat = ids.flatten()
    known = int(((flat >= 0) & (flat < experts)).sum())
    assert int(offsets[-1]) == known < rows and flat[order[:known]].diff().ge(0).all()


@triton.jit
def _traps(a_ptr, b_ptr, i_ptr, dot_ptr, cast_ptr, int_ptr):
    r = tl.arange(0, 16)
    at = r[:, None] * 16 + r[None, :]
    a, b = tl.load(a_ptr + at), tl.load(b_ptr + at)
    tl.store(dot_ptr + at, common.dot(a, b, tl.zeros((16, 16), tl.float32)))
    tl.store(cast_ptr + at, common.cast(tl.load(int_ptr + at), tl.bfloat16))
    tl.store(
        i_ptr + at, common.from_int((tl.load(i_ptr + at) * 0 + r[:, None] - 8).to(tl.int8), tl.bfloat16).to(tl.int32)
    )


def test_bf16_is_right_in_the_interpreter():
    torch.manual_seed(7)
    a, b = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    product, values = torch.zeros(16, 16), torch.randn(16, 16) * 3
    rounded, integers = torch.zeros(16, 16, dtype=torch.bfloat16), torch.zeros(16, 16, dtype=torch.int32)
    _traps[(1,)](a, b, integers, product, rounded, values)
    assert error(product, a.double() @ b.double()) <= BOUND
    assert torch.equal(rounded, values.bfloat16())
    assert torch.equal(integers, (torch.arange(16) - 8).to(torch.int32)[:, None].expand(16, 16))
