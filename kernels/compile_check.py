"""``python -m kernels.compile_check --arch sm_86 sm_90``: compiles every tile of every table, without a GPU.

The layers run on tensors without data, for every number of rows that changes a tile, and each distinct launch is
compiled: what is checked is what production launches. Prints each kernel's registers, stack and spills, as its machine
code says, its shared memory, tensor-core instructions, and resident blocks per multiprocessor. Exit code 1 where a
kernel spills more than a few bytes, needs more shared memory than the architecture has (99 KB on sm_86), or multiplies
matrices without a tensor-core instruction.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K routed rows, r rank

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from kernels.bench.shapes import EXPERTS, MISTRAL_7B, RANK, TOP_K
from kernels.gpu import tile_tables
from kernels.int4 import GROUP, Int4Weight
from kernels.types import DeltaWeights, LowRank, Needs
from kernels.version import __version__

if TYPE_CHECKING:
    from kernels.gpu.launch import Launch

# per multiprocessor: shared memory KiB, warps, blocks; and the largest shared memory of one block in bytes
LIMITS = {86: (100, 48, 16, 99 * 1024), 90: (228, 64, 32, 227 * 1024)}
TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8"}
HEAD_DIM = 128  # of attention in Mistral-7B
HARMLESS_STACK = 16  # bytes; the large SwiGLU tile that keeps h is the fastest with so many (docs/results/gpu.md)
WITHOUT_PRODUCTS = (
    "route", "gather", "combine", "gate_gradient", "elementwise_backward", "w4_dequantize", "add_norm", "attend_join",
    "gemv", "rotate",
)  # fmt: skip


@functools.cache
def launches(arch: str) -> list[Launch]:
    """Every distinct launch of the layers at Mistral-7B's shape on ``arch``."""
    from kernels.gpu.launch import redirected

    found: dict[Any, Launch] = {}

    def keep(made: Launch) -> None:
        signature, constants, _ = _signature(made)
        key = (made.op, made.tile, made.kernel.__name__, tuple(signature.items()), tuple(constants.items()))
        found.setdefault(key, made)

    limits = {limit for rules in tile_tables.table_of(arch).values() for limit, _ in rules if limit < tile_tables.ANY}
    limits |= {1, tile_tables.W4_SWAP_ROWS, tile_tables.W4_DEQUANTIZE_ROWS}
    limits |= {tile_tables.SPLIT_BACKWARD_ROWS - 1, tile_tables.PERSISTENT_ROWS - 1}
    with redirected(keep, arch), torch.device("meta"), torch.no_grad():
        for rows_per_expert in sorted({n for limit in limits for n in (limit, limit + 1)}):
            _run_layers(max(1, rows_per_expert * EXPERTS // TOP_K))
        _run_decode()
    return list(found.values())


def _run_layers(tokens: int) -> None:
    """Forward and backward of every layer on ``tokens`` tokens, with frozen and with trained weights."""
    from kernels.gpu import layers, rope

    width, hidden = MISTRAL_7B.dim, MISTRAL_7B.hidden_dim
    shapes = (hidden, width), (width, hidden), (hidden, width)

    def values(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.bfloat16)

    def packed(experts: int, columns: int, inner: int) -> Int4Weight:
        groups = (experts, inner // GROUP, columns)
        return Int4Weight(torch.empty(*groups, GROUP // 2, dtype=torch.uint8), values(*groups))

    x, ids, gates = values(tokens, width), torch.empty(tokens, TOP_K, dtype=torch.int64), torch.empty(tokens, TOP_K)
    heads = values(1, tokens, 1, HEAD_DIM).transpose(1, 2)
    rope.rotate(heads, heads, heads, 1.0)
    frozen = Needs(x=True, w1=False, w2=False, w3=False, gates=True)
    w1, w2, w3 = (values(EXPERTS, *shape) for shape in shapes)
    layers.experts_forward(x, w1, w2, w3, gates, ids, False)
    saved = layers.experts_forward(x, w1, w2, w3, gates, ids, True)[1]
    assert saved is not None
    for needs in (frozen, frozen._replace(w1=True, w2=True, w3=True)):
        layers.experts_backward(x, x, w1, w2, w3, gates, saved, needs)
    q1, q2, q3 = (packed(EXPERTS, *shape) for shape in shapes)
    layers.int4_experts_forward(x, q1, q2, q3, gates, ids, False)
    saved = layers.int4_experts_forward(x, q1, q2, q3, gates, ids, True)[1]
    assert saved is not None
    layers.int4_experts_backward(x, q1, q2, q3, gates, saved, frozen)
    factors = LowRank(*(values(EXPERTS, *pair) for n, k in shapes for pair in ((RANK, k), (n, RANK))))
    dense = DeltaWeights(w1[0], w2[0], w3[0], None, factors, 1.0, 1.0)
    q1, q2, q3 = (packed(1, *shape) for shape in shapes)
    for weights in (dense, DeltaWeights(q1, q2, q3, None, factors, 1.0, 1.0)):
        layers.delta_forward(x, weights, gates, ids, False)
        saved = layers.delta_forward(x, weights, gates, ids, True)[1]
        assert saved is not None
        for needs in (frozen, frozen._replace(experts=True)):
            layers.delta_backward(x, x, weights, gates, saved, needs)


def _run_decode() -> None:
    """The small kernels of a step of generation, with routers of few experts and of many."""
    from kernels.gpu import launch_decode

    width, size, queries, groups = MISTRAL_7B.dim, 128, 32, 8
    x, weight = torch.empty(2, width, dtype=torch.bfloat16), torch.empty(width, dtype=torch.bfloat16)
    for y in (None, x):
        launch_decode.add_norm(x, y, weight, 1e-5)
        launch_decode.linear(x[:1], y if y is None else y[:1], weight, 1e-5, torch.empty(256, width, dtype=x.dtype))
    launch_decode.linear(x[:1], None, None, 1e-5, torch.empty(256, width, dtype=x.dtype), weight)
    for experts, dtype in ((EXPERTS, torch.float32), (launch_decode.MAX_EXPERTS, torch.bfloat16)):
        for bias in (None, torch.empty(2, experts)):
            launch_decode.add_norm(x, x, weight, 1e-5, torch.empty(experts, width, dtype=dtype), bias, TOP_K)
    heads = torch.empty(2, (queries + 2 * groups) * size, dtype=torch.bfloat16)
    angles, positions = torch.empty(256, size, dtype=torch.bfloat16), torch.empty(2, dtype=torch.int64)
    for window, longest in ((None, 256), (128, 256), (None, 4096)):
        cache = torch.empty(2, 2 * groups, longest, size, dtype=torch.bfloat16)
        launch_decode.attend(heads, positions, (angles, angles), cache, queries, window, longest)


def resident_blocks(arch: int, registers: int, shared: int, warps: int) -> int:
    """Blocks of a kernel that fit one multiprocessor at once (64 Ki registers, allocated by 256 a warp)."""
    shared_kib, max_warps, max_blocks, _ = LIMITS[arch]
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = shared_kib * 1024 // (shared + 1024)
    return min(by_registers, by_shared, max_warps // warps, max_blocks)


def _signature(made: Launch) -> tuple[dict[str, str], dict[str, Any], dict[tuple[int], Any]]:
    """Types, constants and attributes of a launch's arguments, as Triton's compiler takes them."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(made.kernel.params):
        name, value = parameter.name, made.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    return signature, constants, attributes


def compile_launch(arch: int, made: Launch) -> tuple[bytes, str, int, str]:
    """(cubin, ptx, shared bytes, kernel name) of a launch for ``sm_<arch>``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = _signature(made)
    source = ASTSource(fn=made.kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": made.tile.warps, "num_stages": made.tile.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared, compiled.metadata.name


def _disassembled(cubin: Path, option: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([tool, option, cubin], capture_output=True, text=True, check=True).stdout


def measure(arch: str, index: int) -> dict[str, Any]:
    """`resources` of launch ``index`` of the architecture, compiled anew."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder  # nothing from an earlier run may pass for this one
        return resources(arch, launches(arch)[index])


def resources(arch: str, made: Launch) -> dict[str, Any]:
    """Compiles a launch for an architecture and reads the result's resource usage."""
    number = tile_tables.parse_arch(arch)
    start = time.perf_counter()
    flags = ", ".join(name.lower() for name, value in made.arguments.items() if value is True)
    row: dict[str, Any] = {"arch": arch, "op": made.op, "flags": flags, "tile": list(made.tile)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            cubin, ptx, shared, _ = compile_launch(number, made)
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            usage = _disassembled(path, "-res-usage")
            registers, stack = (int(count) for count in re.findall(r"\b(?:REG|STACK):(\d+)", usage)[:2])
            # a spill lies on the stack; to list the instructions takes as long as to compile them
            spills = len(re.findall(r"\b(?:STL|LDL)\b", _disassembled(path, "-sass"))) if stack else 0
    except Exception as error:  # one broken kernel must not hide the others
        return {**row, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    row |= {
        "registers": registers,
        "stack": stack,
        "spills": spills,
        "shared": shared,
        "blocks_per_sm": resident_blocks(number, registers, shared, made.tile.warps),
        "tensor_instructions": len(re.findall(r"\bmma\.sync|\bwgmma\.mma_async", ptx)),
        "descriptor_loads": ptx.count("cp.async.bulk.tensor"),
        "multiplies": made.op not in WITHOUT_PRODUCTS,
        "seconds": round(time.perf_counter() - start, 2),
    }
    return row


def problem(row: dict[str, Any]) -> str | None:
    """What makes this kernel unfit, or None."""
    if "error" in row:
        return row["error"]
    limit = LIMITS[tile_tables.parse_arch(row["arch"])][3]
    if row["stack"] > HARMLESS_STACK:
        return f"{row['spills']} spill instructions, {row['stack']} bytes of stack"
    if row["shared"] > limit:
        return f"{row['shared'] / 1024:.1f} KB of shared memory, {limit // 1024} allowed"
    if row["multiplies"] and not row["tensor_instructions"]:
        return "no tensor-core instruction"
    return None


def check(arches: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """All rows, compiled in ``jobs`` processes."""
    work = [(arch, index) for arch in arches for index, _ in enumerate(launches(arch))]
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork" if sys.platform == "linux" else "spawn")) as pool:
        return list(pool.map(measure, *zip(*work), chunksize=1))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'arch':6s} {'operation':22s} {'flags':18s} {'tile':16s} {'w/s':>4s} {'reg':>4s} {'spill':>5s} {'stack':>5s}"
        f" {'KB':>6s} {'blocks':>6s} {'mma':>4s}  verdict"
    ]
    for row in rows:
        tile = tile_tables.Tile(*row["tile"])
        head = (
            f"{row['arch']:6s} {row['op']:22s} {row['flags']:18s} {f'{tile.bm}x{tile.bn}x{tile.bk}':16s} "
            f"{tile.warps}/{tile.stages:<2d}"
        )
        verdict = problem(row)
        if "error" in row:
            lines.append(f"{head} {'':36s}  FAIL: {verdict}")
            continue
        lines.append(
            f"{head} {row['registers']:4d} {row['spills']:5d} {row['stack']:5d} {row['shared'] / 1024:6.1f} "
            f"{row['blocks_per_sm']:6d} {row['tensor_instructions']:4d}  {'FAIL: ' + verdict if verdict else 'ok'}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and compiles; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_check", description=__doc__)
    parser.add_argument("--version", action="version", version=f"language-experts {__version__}")
    parser.add_argument("--arch", nargs="+", default=list(tile_tables.TABLES), help="architectures to compile for")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to compile in")
    args = parser.parse_args(argv)
    for arch in args.arch:
        if arch not in tile_tables.TABLES:
            print(f"error: no tile table for {arch}; tables: {', '.join(tile_tables.TABLES)}", file=sys.stderr)
            return 2
    try:
        import triton  # noqa: F401
    except ImportError:
        print("error: triton is not installed; pip install triton", file=sys.stderr)
        return 2
    if os.environ.pop("TRITON_INTERPRET", "0") == "1":
        print("error: TRITON_INTERPRET=1 is set; unset it to compile", file=sys.stderr)
        return 2
    rows = check(args.arch, max(1, args.jobs))
    failed = [row for row in rows if problem(row)]
    if args.json:
        print(json.dumps({"rows": rows, "failed": len(failed)}, indent=1))
    else:
        print(table(rows))
        print(f"{len(rows) - len(failed)} of {len(rows)} kernels clean")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
