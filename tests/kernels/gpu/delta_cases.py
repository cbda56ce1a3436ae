"""Delta experts' Triton kernels and rotary embeddings in Triton's interpreter; `test_interpreter.py` runs this file."""

from __future__ import annotations

import os

import pytest
import torch

from kernels import ops, reference
from kernels.bench import gpu_checks
from kernels.dispatch import sort_by_expert
from kernels.gpu import launch, tile_tables
from kernels.gpu.launch_delta import low_rank_gradient
from kernels.gpu.tile_tables import Tile
from tests.kernels.random_layers import low_rank, routing

assert os.environ.get("TRITON_INTERPRET") == "1"

BOUND = 1e-6


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return ((got.double() - want.double()).abs().max() / want.double().abs().max().clamp_min(1e-30)).item()


@pytest.mark.parametrize(("rank", "kind"), [(3, "one"), (16, "skewed"), (40, "one"), (40, "uniform")])
@pytest.mark.parametrize("case", ["a of w1 and w3", "b of w1 and w3", "a of w2", "b of w2"])
def test_low_rank_gradient_split_among_programs(case, rank, kind, monkeypatch):
    """Ranks below, at and above a tile's width; more programs than some experts have rows."""
    monkeypatch.setattr(tile_tables, "LOW_RANK_SPLIT_ROWS", 4)
    monkeypatch.setattr(launch, "program_count", lambda x: 40)
    monkeypatch.setattr("kernels.gpu.launch_delta.program_count", lambda x: 40)
    torch.manual_seed(rank)
    dispatch = sort_by_expert(routing(45, 2, 4, kind), 4)
    token, pair = dispatch.order // 2, "w3" in case
    narrow, wide = torch.randn(2, 90, rank), torch.randn(2, 90, 70)
    tokens = torch.randn(45, 70)
    if pair:
        x, dy = (tokens, narrow) if case.startswith("a") else (narrow, wide)
    else:
        x, dy = (wide[0], narrow[0]) if case.startswith("a") else (narrow[0], tokens)
    gathered = {"gather_x": x is tokens, "gather_dy": dy is tokens}
    with launch.recorded() as launches:
        got = low_rank_gradient(x, dy, dispatch, **gathered)
    (made,) = launches
    assert made.grid[1] > 1 and min(made.tile.bn, made.tile.bk) == min(32, max(16, 1 << (rank - 1).bit_length()))
    rows = [t[token] if t is tokens else t for t in (x, dy)]
    parts = [[t[p] if t.dim() == 3 else t for t in rows] for p in range(2 if pair else 1)]
    want = torch.stack([reference.weight_gradient(a.double(), b.double(), dispatch.offsets) for a, b in parts])
    assert got.dtype == torch.float32 and error(got if pair else got[None], want) <= BOUND
    assert torch.equal(got, low_rank_gradient(x, dy, dispatch, **gathered))


def test_low_rank_gradient_of_a_broken_dispatch_is_nan(monkeypatch):
    monkeypatch.setattr(tile_tables, "LOW_RANK_SPLIT_ROWS", 4)
    dispatch = sort_by_expert(routing(45, 2, 4), 4)
    broken = dispatch._replace(offsets=dispatch.offsets - 1)
    assert low_rank_gradient(torch.randn(90, 20), torch.randn(90, 3), broken).isnan().all()


@pytest.mark.parametrize("gather", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_two_products_in_one_launch(gather, transposed):
    torch.manual_seed(2)
    dispatch = sort_by_expert(routing(21, 2, 3), 3)
    x = torch.randn(21, 70) if gather else torch.randn(2, 42, 70)
    w = torch.randn(2, 3, 70, 5) if transposed else torch.randn(2, 3, 5, 70)
    got = launch.grouped_gemm("low_rank_down", x, w, dispatch, gather=gather, transposed=transposed, scale=0.5)
    for p in range(2):
        rows = x.double()[dispatch.order // 2] if gather else x[p].double()
        weight = w[p].double().transpose(1, 2) if transposed else w[p].double()
        assert error(got[p], 0.5 * reference.grouped_linear(rows, weight, dispatch.offsets)) <= BOUND


def test_combine_of_each_part():
    torch.manual_seed(3)
    dispatch = sort_by_expert(routing(9, 3, 4), 4)
    parts = torch.randn(3, 27, 70)
    got = launch.combine(parts, dispatch, 3, torch.float32, each=True)
    assert error(got, parts.double()[:, dispatch.inverse].view(3, 9, 3, 70).sum(2)) <= BOUND


@pytest.mark.parametrize("kind", ["delta experts", "int4 delta experts"])
def test_float32_factors_of_a_bf16_layer(kind):
    """The layer rounds them as a cast before it would; their gradients are float32 and not rounded to bf16."""
    torch.manual_seed(4)
    operation, _, inputs = gpu_checks.problem(gpu_checks.Case(kind, 33, 64, 96), torch.device("cpu"))
    count = len(inputs) - 12
    narrow = [t.clone().requires_grad_() for t in inputs]
    wide = [t.clone().float() if i >= count else t.clone() for i, t in enumerate(inputs)]
    wide = [t.requires_grad_() for t in wide]
    outputs = [operation(*leaves) for leaves in (narrow, wide)]
    assert torch.equal(*outputs)
    grad = torch.randn_like(outputs[0])
    theirs, ours = (torch.autograd.grad(out, leaves, grad) for out, leaves in zip(outputs, (narrow, wide)))
    for i, (a, b, leaf) in enumerate(zip(theirs, ours, wide)):
        assert b.dtype == leaf.dtype and torch.equal(a, b.to(a.dtype))
        if i >= count + 6:  # cuBLAS rounds those of the shared factors
            assert not torch.equal(b, b.bfloat16().float())


@pytest.mark.parametrize(
    ("batch", "heads", "length", "width", "angles"), [(1, 9, 5, 64, 1), (2, 3, 7, 20, 1), (3, 17, 4, 6, 3)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation(batch, heads, length, width, angles, dtype):
    torch.manual_seed(5)
    x = torch.randn(batch, length, heads * width).to(dtype).requires_grad_()
    half = torch.randn(angles, 1, length, width // 2).repeat(1, 1, 1, 2)
    cos, sin = half.cos().to(dtype), half.sin().to(dtype)
    turned = x.view(batch, length, heads, width).transpose(1, 2)
    with launch.recorded() as launches:
        got = ops.rotate(turned, cos, sin)
        grad = torch.randn(got.shape).to(dtype)
        (ours,) = torch.autograd.grad(got, x, grad)
    assert [made.op for made in launches] == ["rotate", "rotate"]
    with torch.no_grad():
        want = ops.rotate(turned, cos, sin)  # torch's
    first, second = turned.double().chunk(2, -1)
    exact = turned.double() * cos.double() + torch.cat((-second, first), -1) * sin.double()
    (theirs,) = torch.autograd.grad(exact, x, grad.double())
    if dtype == torch.bfloat16:
        assert torch.equal(got, want)
    else:
        assert error(got, want) <= BOUND
    assert error(ours, theirs) <= (BOUND if dtype == torch.float32 else 2**-7)


def test_rotations_of_all_lengths_run_the_same_code():
    """Also of gradients whose heads are as far apart as the row is long: code of their own for each would pile up."""
    keys = set()
    for length in (3, 5):
        grad, angles = torch.randn(1, 2, length, 8, requires_grad=True), torch.randn(2, 1, 1, length, 8)
        with launch.recorded() as launches:
            ops.rotate(grad, *angles)
        keys.add(launch.code_key(launches[0])[2:])
    assert len(keys) == 1


def test_rotation_of_a_gradient_whose_values_are_not_neighbors():
    x = torch.randn(1, 2, 3, 8, requires_grad=True)
    half = torch.randn(1, 1, 3, 4).repeat(1, 1, 1, 2)
    out = ops.rotate(x, half.cos(), half.sin())
    grad = torch.randn(1, 2, 8, 3).transpose(2, 3)
    (ours,) = torch.autograd.grad(out, x, grad)
    with torch.no_grad():
        assert error(ours, ops.rotate(grad, half.cos(), -half.sin())) <= BOUND


def test_launches_of_a_delta_layer():
    """What a training step of one layer launches; a change that adds to it should be seen."""
    torch.manual_seed(6)
    shared, factors = low_rank(5, 32, 48, dtype=torch.float32), low_rank(4, 32, 48, 2, dtype=torch.float32)
    base = [torch.randn(shape).bfloat16() for shape in ((48, 32), (32, 48), (48, 32))]
    x, gates = torch.randn(40, 32).bfloat16().requires_grad_(), torch.rand(40, 2, requires_grad=True)
    with torch.autograd.set_multithreading_enabled(False), launch.recorded() as launches:
        out = ops.delta_experts_forward(x, *base, shared, factors, gates, routing(40, 2, 2))
        forward = len(launches)
        out.sum().backward()
    assert (forward, len(launches) - forward) == (7, 13)


def test_a_tile_of_another_table_is_narrowed_too():
    dispatch = sort_by_expert(routing(21, 2, 3), 3)
    with launch.redirected(tiles={"low_rank_down": Tile(32, 128, 256, 4, 1)}), launch.recorded() as launches:
        launch.grouped_gemm("low_rank_down", torch.randn(42, 40), torch.randn(3, 20, 40), dispatch)
    assert launches[0].tile[:3] == (32, 32, 64)
