"""sm_86's PTX on a newer card: the driver compiles it for the card at hand, and the result runs.

This executes the code path of an A10G, block shapes, copies and tensor-core instructions of sm_86 included, on any GPU
that is at least that new. Needs ``cuda-bindings``.

Shape legend: R rows sorted by expert, E experts, F hidden width, D model width.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kernels import int4
from kernels.compile_check import compile_variant
from kernels.dispatch import sort_by_expert
from kernels.gpu.launch import row_grid
from kernels.gpu.tile_tables import TABLES
from kernels.gpu.variants import Variant, variants


def _ctype(argument: Any) -> type:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int32


def _check(result: tuple[Any, ...]) -> Any:
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"CUDA driver: {error!r}")
    return values[0] if len(values) == 1 else values


def declared_parameters(ptx: str, name: str) -> int:
    """How many parameters the entry ``name`` of a PTX text declares."""
    return ptx.split(f".entry {name}(", 1)[1].split(")", 1)[0].count(".param")


def load(ptx: str) -> Any:
    """The module of a PTX text; an older driver gets it under older version numbers.

    Triton writes the newest version its assembler knows, which says nothing about the instructions: those for sm_86
    are all in PTX 7.8.
    """
    from cuda.bindings import driver

    texts = [ptx, *(re.sub(r"^\.version \S+", f".version {v}", ptx, flags=re.MULTILINE) for v in ("8.4", "8.0", "7.8"))]
    for text in texts:
        error, module = driver.cuModuleLoadData(text.encode() + b"\0")
        if error != driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
            break
    return _check((error, module))


def run_ptx(ptx: str, name: str, shared: int, grid: tuple[int, ...], warps: int, arguments: list[Any]) -> None:
    """Loads ``ptx`` through the driver's JIT and launches it on torch's current stream, then waits."""
    from cuda.bindings import driver

    module = load(ptx)  # into torch's context, which the arguments' memory has made current
    try:
        function = _check(driver.cuModuleGetFunction(module, name.encode()))
        attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(driver.cuFuncSetAttribute(function, attribute, shared))
        # Triton declares pointers for scratch memory after the kernel's own parameters; no kernel here uses any
        scratch = [ctypes.c_void_p] * (declared_parameters(ptx, name) - len(arguments))
        values = (*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments), *(0 for _ in scratch))
        types = (*(_ctype(a) for a in arguments), *scratch)
        stream = torch.cuda.current_stream().cuda_stream
        x, y, z = (*grid, 1, 1)[:3]
        _check(driver.cuLaunchKernel(function, x, y, z, 32 * warps, 1, 1, shared, stream, (values, types), 0))
        torch.cuda.synchronize()
    finally:
        _check(driver.cuModuleUnload(module))


def _variant(op: str) -> Variant:
    """The largest tile of ``op`` in sm_86's table."""
    return [v for v in variants(TABLES["sm_86"]) if v.op == op][-1]


class Problem(NamedTuple):
    """Tensors by the kernel's argument names, the grid, where the result lies, and what it must be in float64."""

    tensors: dict[str, Any]
    grid: tuple[int, ...]
    result: Tensor
    want: Tensor


def problem(variant: Variant, rows: int, device: str = "cuda") -> Problem:
    """Random inputs for a bf16 or int4 product of ``rows`` routed rows, gathered and with SwiGLU as its flags say."""
    c, tile, op = variant.constants, variant.tile, variant.op
    n, k, experts, splits = c["N"], c["K"], c["E"], c.get("SPLIT_K", 1)
    swiglu, decode = op.endswith("swiglu"), "gemv" in op
    per_token = c["TOPK"] if swiglu else 1
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator)

    ids = torch.randint(0, experts, (rows // per_token, per_token), device=device, generator=generator)
    dispatch = sort_by_expert(ids, experts)
    x = random(rows // per_token, k).bfloat16()
    full = [random(experts, n, k) / k**0.5 for _ in range(1 + swiglu)]
    if op.startswith("w4"):
        packed = [int4.pack(w) for w in full]
        full = [int4.unpack(w) for w in packed]
        weights = {"q_ptr": packed[0].packed, "s_ptr": packed[0].scales}
        weights |= {"q3_ptr": packed[-1].packed, "s3_ptr": packed[-1].scales}
    else:
        full = [w.bfloat16() for w in full]
        weights = {"w_ptr": full[0], "w1_ptr": full[0], "w3_ptr": full[-1]}
    dtype = torch.float32 if variant.types.get("y_ptr") == "*fp32" else torch.bfloat16
    y = torch.full((splits, rows, n), float("nan"), device=device, dtype=dtype)
    h1, h3 = (torch.full((rows, n), float("nan"), device=device, dtype=torch.bfloat16) for _ in range(2))
    tensors = {
        **weights, "x_ptr": x, "y_ptr": y, "a_ptr": y, "h1_ptr": h1, "h3_ptr": h3, "ids_ptr": ids, "slots": rows,
        "order_ptr": dispatch.order, "offsets_ptr": dispatch.offsets, "rows_total": rows, "scale": 1.0,
    }  # fmt: skip
    grid = (-(-n // tile.bn), rows, splits) if decode else (row_grid(rows, n, experts, tile), splits)
    # decode keeps the slots' order; of the others only those that gather read tokens, in the experts' order
    expert = ids.flatten() if decode else ids.flatten()[dispatch.order]
    source = torch.arange(rows, device=device) // per_token
    source = source[dispatch.order] if swiglu and not decode else source
    want = torch.empty(rows, n, device=device, dtype=torch.float64)
    for e in range(experts):
        part = x[source[expert == e]].double()
        value = part @ full[0][e].double().t()
        if swiglu:
            value = torch.nn.functional.silu(value) * (part @ full[1][e].double().t())
        want[expert == e] = value
    return Problem(tensors, grid, y, want)


KERNELS = {"gemm": 512, "swiglu": 512, "w4_gemm": 512, "w4_swiglu": 512, "w4_swap": 32, "w4_swap_swiglu": 32,
           "w4_gemv": 2, "w4_gemv_swiglu": 2}  # fmt: skip


def check_sm86_kernels() -> dict[str, Any]:
    """sm_86's bf16 and int4 products at Mistral-7B's shapes against float64: the largest relative errors."""
    results: dict[str, Any] = {}
    for op, rows in KERNELS.items():
        variant = _variant(op)
        try:
            given = problem(variant, rows)
            _, ptx, shared, name = compile_variant(86, variant)
            arguments = [given.tensors[a] for a in variant.kernel.arg_names if a not in variant.constants]
            run_ptx(ptx, name, shared, given.grid, variant.tile.warps, arguments)
            got = given.result.double().sum(0)
            error = ((got - given.want).abs().max() / given.want.abs().max()).item()
            results[op] = {"tile": list(variant.tile), "max_relative_error": error, "ok": error < 2**-7}
        except Exception as problem_found:
            results[op] = {
                "tile": list(variant.tile),
                "error": f"{type(problem_found).__name__}: {problem_found}",
                "ok": False,
            }
    return results
