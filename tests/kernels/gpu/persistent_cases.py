"""The persistent kernels of sm_90 in Triton's interpreter; `test_interpreter.py` runs this file."""

from __future__ import annotations

import pytest
import torch

from kernels import reference
from kernels.bench import gpu_checks
from kernels.dispatch import sort_by_expert
from kernels.gpu import launch, launch_gradient, tile_tables
from tests.kernels.gpu.interpreter_cases import BOUND, SMALL, error, ids_of

PERSISTENT = {f"persistent_{op}": SMALL for op in ("gemm", "gemm_dx", "swiglu", "weight_gradient")}


@pytest.mark.parametrize("form", ["plain", "transposed", "swiglu", "swiglu with h"])
def test_persistent_kernel(form):
    torch.manual_seed(5)
    dispatch = sort_by_expert(ids_of("empty", 33, 1, 4), 4)
    x, w, w3 = torch.randn(33, 32), torch.randn(4, 48, 32) / 6, torch.randn(4, 48, 32) / 6
    y, h1, h3 = (torch.full((33, 48), 7.0) for _ in range(3))
    saved = (h1, h3) if form == "swiglu with h" else (None, None)
    second = w3 if form.startswith("swiglu") else None
    given = w.transpose(1, 2).contiguous() if form == "transposed" else w
    with launch.redirected(tiles=PERSISTENT):
        launch.persistent_gemm("persistent_gemm", x, given, second, dispatch, y, *saved, form == "transposed")
    want = reference.grouped_linear(x.double(), w.double(), dispatch.offsets)
    assert error(h1, want) <= BOUND if form == "swiglu with h" else bool((h1 == 7).all())
    if second is not None:
        want = torch.nn.functional.silu(want) * reference.grouped_linear(x.double(), w3.double(), dispatch.offsets)
    assert error(y, want) <= BOUND


def test_persistent_weight_gradient():
    """Experts with whole steps, with a rest, with less than a step, and without rows; offsets that fall short."""
    torch.manual_seed(6)
    ids = torch.tensor([0] * 32 + [1] * 23 + [2] * 5)[torch.randperm(60)].unsqueeze(1)
    dispatch = sort_by_expert(ids, 4)
    x, dy = torch.randn(60, 32), torch.randn(60, 48)
    with launch.redirected(tiles=PERSISTENT):
        got = launch_gradient.persistent_weight_gradient(x, dy, torch.full((4, 48, 32), 7.0), dispatch)
        broken = dispatch._replace(offsets=torch.tensor([0, 32, 55, 60, 59], dtype=torch.int32))
        assert launch_gradient.persistent_weight_gradient(x, dy, torch.zeros(4, 48, 32), broken).isnan().all()
    assert error(got, reference.weight_gradient(x.double(), dy.double(), dispatch.offsets)) <= BOUND
    assert not got[3].any()


@pytest.mark.parametrize("width", [24, 2100])
def test_gather_rows(width):
    dispatch = sort_by_expert(ids_of("skewed", 9, 2, 4), 4)
    x = torch.randn(9, width)
    with launch.redirected(arch="sm_90"):
        assert torch.equal(launch.gather_rows(x.bfloat16(), dispatch), x.bfloat16()[dispatch.order // 2])


def test_when_the_persistent_kernels_are_taken():
    """On sm_90, in bf16, from some rows per expert, where every tile divides the weight and addresses suit TMA."""
    few, many = (sort_by_expert(torch.zeros(n, 1, dtype=torch.long), 1) for n in (255, 256))
    assert tile_tables.PERSISTENT_ROWS == 256
    rules = [rule for op in PERSISTENT for rule in tile_tables.TABLES["sm_90"][op]]
    assert not any(tile_tables.PERSISTENT_WIDTH % n for _, tile in rules for n in (tile.bn, tile.bk))

    def ops_of(dispatch, width=256, columns=512, dtype=torch.bfloat16, arch="sm_90", shift=0):
        launched: list[str] = []
        x = torch.zeros(dispatch.order.numel() * width + shift, dtype=dtype)[shift:].view(-1, width)
        w = torch.zeros(1, columns, width, dtype=dtype)
        with launch.redirected(lambda made: launched.append(made.op), arch):
            launch.grouped_gemm("gemm", x, w, dispatch)
            launch.swiglu(x, w, w, dispatch, True)
            launch_gradient.weight_gradient(x, x, dispatch, gather_x=True)
        return launched

    fast = ["persistent_gemm", "gather", "persistent_swiglu", "gather", "persistent_weight_gradient"]
    assert ops_of(many) == fast
    plain = ["gemm", "swiglu", "weight_gradient"]
    assert ops_of(few) == ops_of(many, dtype=torch.float32) == ops_of(many, arch="sm_86") == plain
    assert ops_of(many, width=128) == ops_of(many, shift=1) == plain
    assert ops_of(many, columns=384)[:2] == plain[:2]


def test_production_kernels_of_sm_90_in_a_whole_layer(monkeypatch):
    """Tiles of sm_90 at sizes they divide, odd rows, an expert without any: what large batches take on an H100."""
    for name in ("PERSISTENT_ROWS", "SPLIT_BACKWARD_ROWS"):
        monkeypatch.setattr(tile_tables, name, 4)
    monkeypatch.setattr(tile_tables, "W4_DEQUANTIZE_ROWS", 3)
    for kind in ("experts", "int4 experts"):
        result = gpu_checks.correct(gpu_checks.Case(kind, 9, 256, 256, "sm_90", empty=True), torch.device("cpu"))
        assert result["ok"], result
        taken = {"persistent_swiglu", "persistent_gemm", "persistent_gemm_dx", "elementwise_backward", "gather"}
        taken |= set() if kind.startswith("int4") else {"persistent_weight_gradient"}
        assert taken < set(result["launched"]) and "swiglu_backward" not in result["launched"]
