"""By what compiled code is found again: exactly what Triton compiles anew for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from kernels.gpu.launch import Launch, code_key
from kernels.gpu.tile_tables import Tile

KERNEL = SimpleNamespace(arg_names=["x_ptr", "h_ptr", "rows_total", "scale", "H", "FLAG"])
BUFFER = torch.zeros(64)


TILE = Tile(16, 16, 16, 4, 1)


def key(tile: Tile = TILE, kernel: Any = KERNEL, **changes: Any) -> tuple[Any, ...]:
    arguments = {"x_ptr": BUFFER, "h_ptr": None, "rows_total": 7, "scale": 1.0, "H": 48, "FLAG": False, **changes}
    return code_key(Launch("op", kernel, (1,), tile, arguments))


def test_counts_scales_and_other_memory_take_the_same_code():
    assert key() == key(rows_total=16) == key(rows_total=1) == key(scale=0.5) == key(x_ptr=torch.zeros(8))
    assert key(x_ptr=BUFFER[4:]) == key()  # still a multiple of 16 bytes


@pytest.mark.parametrize(
    "changes",
    [
        {"x_ptr": BUFFER[1:]},
        {"x_ptr": BUFFER.bfloat16()},
        {"h_ptr": BUFFER},
        {"rows_total": 2**31},
        {"H": 49},
        {"FLAG": True},
        {"tile": Tile(16, 16, 16, 8, 1)},
        {"kernel": SimpleNamespace(arg_names=KERNEL.arg_names)},
    ],
)
def test_what_triton_compiles_anew_for_takes_other_code(changes):
    assert key(**changes) != key()
