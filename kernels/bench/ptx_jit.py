"""sm_86's kernels on a newer card: the driver compiles their PTX for the card at hand, and the layers run on it.

This executes the code of an A10G, its tiles, copies and tensor-core instructions included, on any GPU that is at least
that new. Needs ``cuda-bindings``.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

import torch
from torch import Tensor

from kernels.bench.gpu_checks import BOUND, KINDS, Case, Results, error, problem
from kernels.bench.shapes import MISTRAL_7B
from kernels.compile_check import compile_launch
from kernels.gpu.launch import Launch, redirected


def _ctype(argument: Any) -> type:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_int32


def _check(result: tuple[Any, ...]) -> Any:
    code, *values = result
    if int(code) != 0:
        raise RuntimeError(f"CUDA driver: {code!r}")
    return values[0] if len(values) == 1 else values


def declared_parameters(ptx: str, name: str) -> int:
    """How many parameters the entry ``name`` of a PTX text declares."""
    return ptx.split(f".entry {name}(", 1)[1].split(")", 1)[0].count(".param")


def arguments_of(made: Launch) -> list[Any]:
    """The arguments that the compiled kernel takes, in its order."""
    given = [(parameter, made.arguments[parameter.name]) for parameter in made.kernel.params]
    return [value for parameter, value in given if not parameter.is_constexpr and value is not None]


def load(ptx: str) -> Any:
    """The module of a PTX text; an older driver gets it under older version numbers.

    Triton writes the newest version its assembler knows, which says nothing about the instructions: those for sm_86
    are all in PTX 7.8.
    """
    from cuda.bindings import driver

    texts = [ptx, *(re.sub(r"^\.version \S+", f".version {v}", ptx, flags=re.MULTILINE) for v in ("8.4", "8.0", "7.8"))]
    for text in texts:
        code, module = driver.cuModuleLoadData(text.encode() + b"\0")
        if code != driver.CUresult.CUDA_ERROR_UNSUPPORTED_PTX_VERSION:
            break
    return _check((code, module))


def run_as_sm86(made: Launch) -> None:
    """Compiles a launch for sm_86, loads its PTX through the driver's JIT, runs it on torch's stream and waits."""
    from cuda.bindings import driver

    _, ptx, shared, name = compile_launch(86, made)
    arguments = arguments_of(made)
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
        x, y, z = (*made.grid, 1, 1)[:3]
        threads = 32 * made.tile.warps
        _check(driver.cuLaunchKernel(function, x, y, z, threads, 1, 1, shared, stream, (values, types), 0))
        torch.cuda.synchronize()
    finally:
        _check(driver.cuModuleUnload(module))


def check_sm86_kernels(device: torch.device) -> Results:
    """Forwards of all layers on sm_86's kernels against float64, at Mistral-7B's shape: the largest relative errors.

    The numbers of tokens take the int4 kernels for one token, for few and for many rows per expert.
    """
    for case in (Case(kind, t, MISTRAL_7B.dim, MISTRAL_7B.hidden_dim) for t in (1, 16, 512) for kind in KINDS):
        try:
            operation, exact, inputs = problem(case, device)
            with torch.no_grad():
                want = exact(*(t.double() for t in inputs))
                with redirected(run_as_sm86, "sm_86"):
                    found = error(operation(*inputs), want)
            yield str(case), {"max_relative_error": found, "ok": found < 2 * BOUND}
        except Exception as problem_met:
            yield str(case), {"error": f"{type(problem_met).__name__}: {problem_met}", "ok": False}
