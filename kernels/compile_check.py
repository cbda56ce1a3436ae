"""``python -m kernels.compile_check --arch sm_86 sm_90``: compiles every tile of every table, without a GPU.

Prints registers, spills, stack, shared memory and resident blocks per multiprocessor of each kernel, read from the
machine code. Exit code 1 where any kernel spills or uses stack, needs more shared memory than the architecture has
(99 KB on sm_86), or holds no tensor-core instruction where it multiplies matrices.
"""

from __future__ import annotations

import argparse
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
from typing import Any

from kernels.gpu import tile_tables as tuning

# per multiprocessor: shared memory KiB, warps, blocks; and the largest shared memory of one block in bytes
LIMITS = {86: (100, 48, 16, 99 * 1024), 90: (228, 64, 32, 227 * 1024)}
_TENSOR = re.compile(r"\b(HMMA|HGMMA)\b|\b(HMMA|HGMMA)\.")


def resident_blocks(arch: int, registers: int, shared: int, warps: int) -> int:
    """Blocks of a kernel that fit one multiprocessor at once (64 Ki registers, allocated by 256 a warp)."""
    shared_kib, max_warps, max_blocks, _ = LIMITS[arch]
    by_registers = 65536 // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = shared_kib * 1024 // (shared + 1024)
    return min(by_registers, by_shared, max_warps // warps, max_blocks)


def _signature(
    kernel: Any, constants: dict[str, Any], types: dict[str, str]
) -> tuple[dict[str, str], dict[str, Any], dict]:
    signature, constexprs, attrs = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            constexprs[name] = constants[name]
        elif name.endswith("_ptr"):
            stem = name.removesuffix("_ptr")
            if name in types:
                signature[name] = types[name]
            elif stem in ("order", "inverse", "ids"):
                signature[name] = "*i64"
            elif stem == "offsets":
                signature[name] = "*i32"
            elif stem in ("gates", "partial") or (stem == "out" and "partial_ptr" in kernel.arg_names):
                signature[name] = "*fp32"
            elif re.fullmatch(r"q\d?", stem):
                signature[name] = "*u8"
            else:
                signature[name] = "*bf16"
            attrs[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
    return signature, constexprs, attrs


def compile_variant(arch: int, variant: Any) -> tuple[bytes, str, int, str]:
    """(cubin, ptx, shared bytes, kernel name) of one variant for ``sm_<arch>``."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constexprs, attrs = _signature(variant.kernel, variant.constants, variant.types)
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    options = {"num_warps": variant.tile.warps, "num_stages": variant.tile.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    return compiled.asm["cubin"], compiled.asm["ptx"], compiled.metadata.shared, compiled.metadata.name


def _disassembler() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump")


def measure(arch: int, index: int) -> dict[str, Any]:
    """Compiles variant ``index`` of the architecture's table and reads the result's resource usage."""
    from kernels.gpu.variants import variants

    variant = list(variants(tuning.TABLES[f"sm_{arch}"]))[index]
    start = time.perf_counter()
    row: dict[str, Any] = {"arch": f"sm_{arch}", "op": variant.op, "flags": variant.label, "tile": list(variant.tile)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["TRITON_CACHE_DIR"] = folder  # nothing from an earlier run may pass for this one
            cubin, _, shared, _ = compile_variant(arch, variant)
            path = Path(folder) / "kernel.cubin"
            path.write_bytes(cubin)
            usage = subprocess.run(
                [_disassembler(), "-res-usage", path], capture_output=True, text=True, check=True
            ).stdout
            code = subprocess.run([_disassembler(), "-sass", path], capture_output=True, text=True, check=True).stdout
    except Exception as error:  # one broken kernel must not hide the others
        return {**row, "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"}
    registers = int(re.search(r"REG:(\d+)", usage)[1])
    row |= {
        "registers": registers,
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "shared": shared,
        "blocks_per_sm": resident_blocks(arch, registers, shared, variant.tile.warps),
        "tensor_instructions": len(_TENSOR.findall(code)),
        "descriptor_loads": len(re.findall(r"\bUTMALDG\b", code)),
        "multiplies": "gemv" not in variant.op
        and variant.op not in ("combine", "route", "elementwise_backward", "w4_dequantise"),
        "seconds": round(time.perf_counter() - start, 2),
    }
    return row


def problem(row: dict[str, Any]) -> str | None:
    """What makes this kernel unfit, or None."""
    if "error" in row:
        return row["error"]
    limit = LIMITS[tuning.parse_arch(row["arch"])][3]
    if row["spills"] or row["stack"]:
        return f"{row['spills']} spill instructions, {row['stack']} bytes of stack"
    if row["shared"] > limit:
        return f"{row['shared'] / 1024:.1f} KB of shared memory, {limit // 1024} allowed"
    if row["multiplies"] and not row["tensor_instructions"]:
        return "no tensor-core instruction"
    return None


def check(arches: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """All rows, compiled in ``jobs`` processes."""
    from kernels.gpu.variants import variants

    work = [
        (number, index)
        for number in map(tuning.parse_arch, arches)
        for index, _ in enumerate(variants(tuning.TABLES[f"sm_{number}"]))
    ]
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork" if sys.platform == "linux" else "spawn")) as pool:
        return list(pool.map(measure, *zip(*work), chunksize=1))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'arch':6s} {'operation':22s} {'flags':18s} {'tile':16s} {'w/s':>4s} {'reg':>4s} {'spill':>5s} {'stack':>5s}"
        f" {'KB':>6s} {'blocks':>6s} {'mma':>4s}  verdict"
    ]
    for row in rows:
        tile = tuning.Tile(*row["tile"])
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
    parser = argparse.ArgumentParser(prog="python -m kernels.compile_check", description=__doc__)
    parser.add_argument("--arch", nargs="+", default=list(tuning.TABLES), help="architectures to compile for")
    parser.add_argument("--json", action="store_true", help="print rows as JSON instead of a table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes to compile in")
    args = parser.parse_args(argv)
    for arch in args.arch:
        if arch not in tuning.TABLES:
            print(f"error: no tile table for {arch}; tables: {', '.join(tuning.TABLES)}", file=sys.stderr)
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
