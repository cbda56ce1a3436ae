"""All tiles of all tables compile for sm_86 and sm_90 without a spill, on a machine without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import compile_check
from kernels.gpu import tile_tables

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_tile_compiles_clean_for_both_architectures():
    pytest.importorskip("triton", reason="triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "kernels.compile_check", "--arch", "sm_86", "sm_90", "--json"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    content = json.loads(result.stdout)
    problems = {f"{r['arch']} {r['op']} {r['flags']} {r['tile']}": compile_check.problem(r) for r in content["rows"]}
    assert {k: v for k, v in problems.items() if v} == {} and content["failed"] == 0 and result.returncode == 0
    for arch in ("sm_86", "sm_90"):
        tiles = {(r["op"], tuple(r["tile"])) for r in content["rows"] if r["arch"] == arch}
        rules = {(op, tuple(t)) for op, rules in tile_tables.TABLES[arch].items() for _, t in rules}
        parts = {("combine", tuple(tile_tables.for_float32("combine", 1)))}  # of int4 products with split K
        assert tiles == rules | parts
    assert all(r["shared"] <= 99 * 1024 for r in content["rows"] if r["arch"] == "sm_86")
    assert all(r["descriptor_loads"] for r in content["rows"] if r["op"].startswith("persistent"))


def test_what_makes_a_kernel_unfit():
    row = {"arch": "sm_86", "spills": 0, "stack": 0, "shared": 99 * 1024, "multiplies": True, "tensor_instructions": 4}
    assert compile_check.problem(row) is None
    assert "71 spill" in compile_check.problem(row | {"spills": 71, "stack": 24})
    assert "24 bytes of stack" in compile_check.problem(row | {"stack": 24})
    assert compile_check.problem(row | {"spills": 4, "stack": compile_check.HARMLESS_STACK}) is None
    assert "99 allowed" in compile_check.problem(row | {"shared": 99 * 1024 + 1})
    assert compile_check.problem(row | {"arch": "sm_90", "shared": 99 * 1024 + 1}) is None
    assert "tensor-core" in compile_check.problem(row | {"tensor_instructions": 0})
    assert compile_check.problem(row | {"error": "CompilationError: x"}) == "CompilationError: x"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "tile", "message"),
    [
        ("swiglu", (128, 256, 32, 4, 2), "spill instructions"),
        ("gemm", (128, 256, 64, 8, 4), "KB of shared memory, 99 allowed"),
    ],
)
def test_a_bad_tile_gives_exit_code_1(op, tile, message, monkeypatch, capsys):
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setitem(tile_tables.table_of("sm_86"), op, [(tile_tables.ANY, tile_tables.Tile(*tile))])
    one = next(made for made in compile_check.launches.__wrapped__("sm_86") if made.op == op)
    monkeypatch.setattr(compile_check, "launches", lambda arch: [one])
    assert compile_check.main(["--arch", "sm_86", "--jobs", "1"]) == 1
    printed = capsys.readouterr().out
    assert message in printed and "FAIL" in printed and "\n0 of 1 kernels clean" in printed


def test_resident_blocks():
    assert compile_check.resident_blocks(86, 168, 48 * 1024, 4) == 2  # shared memory binds
    assert compile_check.resident_blocks(86, 255, 1024, 8) == 1  # registers bind
    assert compile_check.resident_blocks(90, 32, 0, 4) == 16  # warps bind


def test_an_unknown_architecture_is_an_error(capsys):
    assert compile_check.main(["--arch", "sm_75"]) == 2
    assert capsys.readouterr().err.strip() == "error: no tile table for sm_75; tables: sm_86, sm_90"


@pytest.mark.slow
def test_what_the_driver_runs_of_sm_86_gets_its_arguments():
    """`kernels.bench.ptx_jit` passes as many arguments as the PTX declares before Triton's two scratch pointers."""
    pytest.importorskip("triton", reason="triton is not installed")
    from kernels.bench import ptx_jit

    for op in ("swiglu", "combine"):
        made = next(made for made in compile_check.launches("sm_86") if made.op == op)
        _, ptx, _, name = compile_check.compile_launch(86, made)
        assert ptx_jit.declared_parameters(ptx, name) - len(ptx_jit.arguments_of(made)) == 2 and ".target sm_86" in ptx
