"""Baselines compute the layer that they are compared on."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from kernels import reference
from kernels.bench import baselines
from kernels.bench.baselines import (
    BASELINES,
    Layer,
    _liger_function,
    _unsloth_interface,
    expert_loop,
    grouped_nf4,
    unsloth,
)


def test_the_loop_computes_the_layer():
    torch.manual_seed(0)
    weights = torch.randn(3, 12, 8), torch.randn(3, 8, 12), torch.randn(3, 12, 8)
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x = torch.randn(5, 8)
    forward = expert_loop(Layer(*(w.requires_grad_() for w in weights), gates, ids))
    want = reference.experts_forward(x, *weights, gates, ids)
    torch.testing.assert_close(forward(x), want)
    grads = (torch.autograd.grad(y.sum(), weights) for y in (forward(x), want))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "name", ["grouped_mm", "transformers eager", "transformers grouped_mm", "transformers batched_mm"]
)
def test_baselines_that_a_cpu_has_compute_the_layer(name):
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    weights = [torch.randn(s).div(4).bfloat16() for s in ((3, 32, 16), (3, 16, 32), (3, 32, 16))]
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x = torch.randn(5, 16).bfloat16()
    want = reference.experts_forward(x.double(), *(w.double() for w in weights), gates.double(), ids)
    got = BASELINES[name](Layer(*weights, gates, ids))(x)
    assert (got.double() - want).abs().max() < 2**-5 * want.abs().max()


@pytest.mark.parametrize("tokens", [5, 1])
def test_the_nf4_baseline_keeps_the_contract_of_its_library(tokens, monkeypatch):
    """Groups of its calls: none empty, rows sorted by expert or single; `exact` is the layer it computes."""

    def grouped(rows, packed, scales, sizes, experts, gather_div=1):
        rows = rows.repeat_interleave(gather_div, 0)
        assert min(sizes) > 0 and sum(sizes) == len(rows) and len(sizes) == len(experts)
        assert isinstance(experts, torch.Tensor) == (tokens == 1)  # ids on the GPU: one token waits for nothing
        parts = rows.split(sizes)
        return torch.cat([part @ (packed[e] * scales[e]).T for part, e in zip(parts, experts, strict=True)])

    library = types.SimpleNamespace(gemm_4bit_grouped=grouped, dequant_ref=lambda packed, scales, n, k: packed * scales)
    packer = types.SimpleNamespace(quantize_pack_nf4=lambda w: ((w * 4).round(), torch.full_like(w[:, :1], 0.25)))
    monkeypatch.setitem(sys.modules, "nf4_grouped", library)
    monkeypatch.setitem(sys.modules, "nf4_pack_ref", packer)
    monkeypatch.setenv("GNF4_GEMV_BW", "auto")
    torch.manual_seed(0)
    weights = torch.randn(4, 12, 8), torch.randn(4, 8, 12), torch.randn(4, 12, 8)
    ids = torch.tensor([[3, 0], [0, 1], [1, 3], [0, 3], [3, 1]])[:tokens]
    layer = Layer(*weights, torch.rand(tokens, 2), ids)
    forward, x = grouped_nf4(layer), torch.randn(tokens, 8)
    exact = forward.exact
    assert not torch.equal(exact.w1, layer.w1)
    torch.testing.assert_close(
        forward(x), reference.experts_forward(x, exact.w1, exact.w2, exact.w3, layer.gates, layer.ids)
    )


UNSLOTH = """
from dataclasses import dataclass

import pandas
import torch
from unsloth import DEVICE_TYPE
from unsloth.device_type import cuda_visible_capabilities
from unsloth.kernels.utils import torch_gpu_device


def supports_tma():
    return True


@dataclass
class Config:
    BLOCK_SIZE_M: int
    BLOCK_SIZE_N: int
    BLOCK_SIZE_K: int
    num_warps: int
    num_stages: int
    use_tma_load_w: bool = False
    use_tma_load_x: bool = False
    use_tma_load_dy: bool = False


KernelConfigForward = KernelConfigBackward_dX = KernelConfigBackward_dW = Config


def grouped_gemm(
    X, W, m_sizes, topk, gather_indices, permute_x=False, permute_y=False,
    *, kernel_config_fwd, kernel_config_bwd_dX, kernel_config_bwd_dW, is_first_gemm,
):
    assert permute_x == is_first_gemm and permute_y != is_first_gemm
    assert not (permute_x and (kernel_config_fwd.use_tma_load_x or kernel_config_bwd_dW.use_tma_load_x))
    assert not (permute_y and (kernel_config_bwd_dX.use_tma_load_dy or kernel_config_bwd_dW.use_tma_load_dy))
    rows = X[gather_indices // topk] if permute_x else X
    parts = zip(rows.split(m_sizes.tolist()), W, strict=True)
    y = torch.cat([part @ w.T for part, w in parts])
    return torch.zeros_like(y).index_copy(0, gather_indices, y) if permute_y else y
"""


@pytest.fixture
def unsloth_package(tmp_path, monkeypatch):
    """A package `unsloth` in the layout of the real one: its grouped GEMM runs, and its other modules must not."""
    gemm = tmp_path / "unsloth" / "kernels" / "moe" / "grouped_gemm"
    gemm.mkdir(parents=True)
    for name in ("__init__", "device_type", "kernels/__init__", "kernels/utils"):
        (tmp_path / "unsloth" / f"{name}.py").write_text("raise AssertionError('this patches transformers')")
    for folder in (gemm.parent, gemm):
        (folder / "__init__.py").touch()
    (gemm / "interface.py").write_text(UNSLOTH)
    monkeypatch.syspath_prepend(tmp_path)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ("unsloth", "pandas")}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    _unsloth_interface.cache_clear()
    yield
    _unsloth_interface.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "unsloth"]:
        del sys.modules[name]


def test_the_unsloth_baseline_calls_the_gemm_without_running_the_package(unsloth_package):
    torch.manual_seed(0)
    shapes = (3, 12, 8), (3, 8, 12), (3, 12, 8)
    w1, w2, w3 = weights = [torch.randn(s).requires_grad_() for s in shapes]
    gates, ids = torch.rand(5, 2), torch.tensor([[0, 1], [2, 0], [1, 2], [0, 2], [2, 1]])
    x, want_x = (torch.randn(5, 8).requires_grad_() for _ in range(2))
    with torch.no_grad():
        want_x.copy_(x)
    forward = unsloth(Layer(*weights, gates, ids))
    (gate_up,) = forward.parameters
    want, got = reference.experts_forward(want_x, *weights, gates, ids), forward(x)
    torch.testing.assert_close(got, want)
    dx, d13, d2 = torch.autograd.grad(got.square().sum(), (x, gate_up, w2))
    for ours, theirs in zip(
        (dx, *d13.chunk(2, 1), d2), torch.autograd.grad(want.square().sum(), (want_x, w1, w3, w2)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert "unsloth.kernels.moe.grouped_gemm.interface" in sys.modules
    assert "pandas" not in sys.modules or sys.modules["pandas"].__spec__  # no stand-in stays behind


@pytest.mark.parametrize(("name", "package"), [("unsloth", "unsloth"), ("liger", "liger_kernel")])
def test_a_library_that_is_missing_says_so(name, package, monkeypatch):
    monkeypatch.setattr(baselines, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "unsloth":
        monkeypatch.delitem(sys.modules, package)
    layer = Layer(*(torch.randn(2, 4, 4) for _ in range(3)), torch.rand(1, 1), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ImportError, match=package):
        BASELINES[name](layer)


def test_liger_tunes_over_few_tiles(monkeypatch):
    """Its tuners compile 200 tiles: minutes before the first call."""
    config = lambda **tile: types.SimpleNamespace(all_kwargs=lambda: tile)  # noqa: E731
    product = [
        config(BLOCK_N=n, BLOCK_K=k, num_warps=w, num_stages=s)
        for n in (64, 128) for k in (32, 64) for w in (4, 8) for s in (2, 3, 4, 5)
    ]  # fmt: skip
    gradient = [
        config(BLOCK_M=m, BLOCK_N=n, BLOCK_K=k, num_warps=w, num_stages=2)
        for m in (64, 128) for n in (64, 128) for k in (16, 32) for w in (4, 8)
    ]  # fmt: skip
    gather = [config(BLOCK_H=h, BLOCK_K=k, num_warps=w) for h in (64, 512) for k in (1, 2) for w in (4, 8)]
    kernels = types.SimpleNamespace(
        _fused_up_proj_swiglu_kernel=types.SimpleNamespace(configs=product),
        _fused_down_proj_kernel=types.SimpleNamespace(configs=product),
        _moe_bwd_down_proj_kernel=types.SimpleNamespace(configs=product),
        _moe_bwd_dX_expanded_kernel=types.SimpleNamespace(configs=product[:1]),  # one tile already: kept
        _moe_bwd_dW1_kernel=types.SimpleNamespace(configs=gradient),
        _moe_bwd_dW2_kernel=types.SimpleNamespace(configs=gradient),
        _token_gather_weighted_sum_kernel=types.SimpleNamespace(configs=gather),
    )
    function = types.SimpleNamespace(apply=lambda x, *_: x)
    fused = types.SimpleNamespace(LigerFusedMoEFunction=function)
    for name, module in {
        "liger_kernel": types.ModuleType("liger_kernel"),
        "liger_kernel.ops": types.SimpleNamespace(fused_moe_kernels=kernels, fused_moe=fused),
        "liger_kernel.ops.fused_moe": fused,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    _liger_function.cache_clear()
    assert _liger_function() is function
    _liger_function.cache_clear()
    assert sum(len(kernel.configs) for kernel in vars(kernels).values()) <= 12
    assert all(len(kernel.configs) >= 1 for kernel in vars(kernels).values())
