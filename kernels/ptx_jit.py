"""sm_86's PTX on a newer card: the driver compiles it for the card at hand, and the result runs.

This executes the code path of an A10G, block shapes, copies and tensor-core instructions of sm_86 included, on any GPU
that is at least that new. Needs ``cuda-bindings``.

Shape legend: R rows sorted by expert, E experts, F hidden width, D model width.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from kernels.compile_check import compile_variant
from kernels.dispatch import sort_by_expert
from kernels.gpu.launch import row_grid
from kernels.gpu.variants import Variant, variants
from kernels.tuning import TABLES


def _ctype(argument: Any) -> type:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int32


def _check(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA driver: {error!r}")
    return values[0] if len(values) == 1 else values


def run_ptx(ptx: str, name: str, shared: int, grid: int, warps: int, arguments: list[Any]) -> None:
    """Loads ``ptx`` through the driver's JIT and launches it on torch's current stream, then waits."""
    from cuda.bindings import driver

    torch.cuda.current_stream()  # torch's context is the one the module is loaded into
    module = _check(driver.cuModuleLoadData(ptx.encode()))
    try:
        function = _check(driver.cuModuleGetFunction(module, name.encode()))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(function, attribute, shared))
        # Triton declares pointers for scratch memory after the kernel's own parameters; no kernel here uses any
        declared = ptx.split(name, 1)[1].split(")", 1)[0].count(".param")
        scratch = [ctypes.c_void_p] * (declared - len(arguments))
        values = (*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments), *(0 for _ in scratch))
        types = (*(_ctype(a) for a in arguments), *scratch)
        stream = torch.cuda.current_stream().cuda_stream
        _check(driver.cuLaunchKernel(function, grid, 1, 1, 32 * warps, 1, 1, shared, stream, (values, types), 0))
        torch.cuda.synchronize()
    finally:
        _check(driver.cuModuleUnload(module))


def _variant(op: str) -> Variant:
    """The largest tile of ``op`` in sm_86's table."""
    return [v for v in variants(TABLES["sm_86"]) if v.op == op][-1]


def check_sm86_down_projection(rows: int = 512) -> dict[str, Any]:
    """sm_86's bf16 down projection and SwiGLU, Mistral-7B shapes, against float64: the largest relative errors."""
    results: dict[str, Any] = {}
    generator = torch.Generator("cuda").manual_seed(0)
    for op in ("gemm", "swiglu"):
        variant = _variant(op)
        c = variant.constants
        n, k, experts = c["N"], c["K"], c["E"]
        top_k = c["TOPK"]
        tokens = rows // top_k if op == "swiglu" else rows
        ids = torch.randint(0, experts, (tokens, top_k if op == "swiglu" else 1), device="cuda", generator=generator)
        dispatch = sort_by_expert(ids, experts)
        x = torch.randn(tokens, k, device="cuda", generator=generator).bfloat16()
        weights = [
            (torch.randn(experts, n, k, device="cuda", generator=generator) / k**0.5).bfloat16()
            for _ in range(2 if op == "swiglu" else 1)
        ]
        y, h1, h3 = (torch.full((rows, n), float("nan"), device="cuda", dtype=torch.bfloat16) for _ in range(3))
        tensors = {
            "x_ptr": x, "w_ptr": weights[0], "w1_ptr": weights[0], "w3_ptr": weights[-1], "y_ptr": y, "a_ptr": y,
            "h1_ptr": h1, "h3_ptr": h3, "order_ptr": dispatch.order, "offsets_ptr": dispatch.offsets,
            "rows_total": rows, "scale": 1.0,
        }  # fmt: skip
        _, ptx, shared, name = compile_variant(86, variant)
        given = [tensors[a] for a in variant.kernel.arg_names if a not in c]
        grid = row_grid(rows, n, experts, variant.tile)
        run_ptx(ptx, name, shared, grid, variant.tile.warps, given)
        source = (dispatch.order // top_k) if op == "swiglu" else torch.arange(rows, device="cuda")
        want = torch.empty(rows, n, device="cuda", dtype=torch.float64)
        bounds = dispatch.offsets.tolist()
        for e in range(experts):
            part = x[source[bounds[e] : bounds[e + 1]]].double()
            value = part @ weights[0][e].double().t()
            if op == "swiglu":
                value = torch.nn.functional.silu(value) * (part @ weights[1][e].double().t())
            want[bounds[e] : bounds[e + 1]] = value
        error = ((y.double() - want).abs().max() / want.abs().max()).item()
        results[op] = {"tile": list(variant.tile), "max_relative_error": error, "ok": error < 2**-7}
    return results
