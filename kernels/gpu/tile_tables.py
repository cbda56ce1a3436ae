"""Which tile a kernel runs with: checked-in tables by architecture, never a search in production.

A table maps an operation to rules ``(rows per expert up to, Tile)``; `select` takes the first rule that fits. sm_90's
were measured on an H200 (docs/results/gpu.md). sm_86's are derived: the fastest of that search which compile for sm_86
without a spill in 99 KB of shared memory and leave a multiprocessor eight warps. No card of it has run them. Large
products, which an H200 runs by other kernels, and the small kernels have no such times.
``python -m kernels.benchmark --tune FILE`` measures candidates on the card at hand and writes a table, which `select`
uses where the environment has ``KERNELS_TUNING_TABLE=FILE``.
"""

from __future__ import annotations

import functools
import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

ANY = 1 << 30  # the last rule of an operation


class Tile(NamedTuple):
    """``bm`` rows x ``bn`` columns, ``bk`` inner; weight gradients: ``bm`` is the step over rows, bn x bk the tile.

    Of a rotation ``bm`` is the heads.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    group_m: int = 8
    split_k: int = 1


Table = dict[str, list[tuple[int, Tile]]]

_SM_86: Table = {
    "gemm": [(16, Tile(16, 32, 128, 4, 4)), (64, Tile(64, 64, 64, 4, 4)), (ANY, Tile(64, 128, 64, 4, 3))],
    "gemm_dx": [(16, Tile(16, 64, 128, 4, 3)), (ANY, Tile(128, 128, 64, 8, 3))],
    "swiglu": [(16, Tile(16, 64, 256, 8, 2)), (48, Tile(32, 64, 128, 8, 3)), (ANY, Tile(64, 64, 64, 4, 3))],
    "swiglu_backward": [(16, Tile(16, 64, 64, 4, 3)), (ANY, Tile(64, 64, 64, 8, 3))],
    "weight_gradient": [(ANY, Tile(128, 128, 128, 8, 3))],
    "low_rank_down": [(ANY, Tile(128, 64, 64, 8, 4))],
    "low_rank_up": [(ANY, Tile(64, 128, 64, 8, 2))],
    "low_rank_gradient": [(ANY, Tile(64, 64, 64, 4, 4))],
    "delta_swiglu": [(ANY, Tile(32, 64, 64, 4, 2))],
    "delta_swiglu_backward": [(ANY, Tile(16, 128, 64, 8, 2))],
    "elementwise_backward": [(ANY, Tile(8, 256, 64, 4, 1))],
    "w4_gemm": [(ANY, Tile(64, 64, 128, 4, 3))],
    "w4_swiglu": [(ANY, Tile(128, 64, 128, 8, 2))],
    "w4_swap": [
        (1, Tile(8, 128, 128, 4, 4, 8, 14)),
        (8, Tile(8, 128, 128, 4, 4, 8, 8)),
        (16, Tile(16, 64, 128, 4, 4, 8, 4)),
        (ANY, Tile(32, 64, 128, 4, 3, 8, 4)),
    ],
    "w4_swap_swiglu": [
        (1, Tile(8, 128, 128, 8, 4)),
        (8, Tile(8, 64, 128, 4, 4)),
        (16, Tile(16, 64, 128, 4, 4)),
        (ANY, Tile(32, 64, 128, 4, 3)),
    ],
    "w4_dx": [(ANY, Tile(64, 64, 128, 4, 3))],
    "w4_dequantize": [(ANY, Tile(1, 16, 128, 4, 1))],
    "add_norm": [(ANY, Tile(1, 16384, 1, 16, 1))],  # bn: values of the router's gate at once
    "gemv": [(ANY, Tile(1, 4, 16384, 4, 1))],  # bk: weights of a block at most
    "attend": [(ANY, Tile(1, 64, 1, 4, 3))],
    "attend_join": [(ANY, Tile(1, 1, 1, 2, 1))],
    "combine": [(ANY, Tile(1, 512, 1, 4, 1))],  # wider, sums of split products spill under Triton 3.6
    "route": [(ANY, Tile(512, 1, 1, 4, 1))],
    "gate_gradient": [(ANY, Tile(64, 1, 1, 4, 1))],
    "rotate": [(ANY, Tile(16, 1, 1, 4, 1))],
}

_SM_90: Table = {
    **_SM_86,
    "gemm": [(16, Tile(16, 32, 128, 4, 4)), (64, Tile(64, 64, 64, 4, 4)), (ANY, Tile(128, 128, 64, 8, 4))],
    "gemm_dx": [(16, Tile(16, 64, 128, 4, 3)), (ANY, Tile(128, 256, 64, 8, 3))],
    "swiglu": [(16, Tile(16, 32, 256, 4, 3)), (64, Tile(64, 64, 64, 4, 4)), (ANY, Tile(128, 128, 64, 8, 3))],
    "weight_gradient": [(ANY, Tile(64, 128, 128, 8, 3))],
    "gather": [(ANY, Tile(1, 2048, 1, 4, 1))],  # for the persistent kernels
    "low_rank_down": [(ANY, Tile(32, 64, 256, 4, 3))],
    "combine": [(ANY, Tile(1, 2048, 1, 4, 1))],
    "persistent_gemm": [(512, Tile(128, 128, 64, 8, 4)), (ANY, Tile(128, 256, 64, 8, 3, 16))],
    "persistent_gemm_dx": [(ANY, Tile(128, 256, 64, 8, 3))],
    "persistent_swiglu": [(512, Tile(128, 128, 64, 8, 3)), (ANY, Tile(128, 128, 64, 8, 3, 16))],
    "persistent_weight_gradient": [(ANY, Tile(64, 128, 256, 8, 4))],
}

TABLES: dict[str, Table] = {"sm_86": _SM_86, "sm_90": _SM_90}

W4_SWAP_ROWS = 32  # up to so many rows per expert tokens are the narrow operand of an int4 product (swap-AB)
W4_DEQUANTIZE_ROWS = 256  # above, one pass of dequantization costs less than decoding inside the product
SPLIT_BACKWARD_ROWS = 128  # from so many rows per expert on cards with persistent kernels split SwiGLU's backward
LOW_RANK_SPLIT_ROWS = 256  # rows per expert for each program that shares in the gradient of a low-rank factor
PERSISTENT_ROWS = 256  # from so many rows per expert on the persistent kernels run, where the table has them
PERSISTENT_WIDTH = 256  # they take matrices of multiples of this: every tile of theirs divides it


def parse_arch(arch: str) -> int:
    """``"sm_86"`` -> 86; ValueError for anything else."""
    digits = arch.removeprefix("sm_")
    if not arch.startswith("sm_") or not digits.isdigit() or not 50 <= int(digits) <= 130:
        raise ValueError(f"arch: expected a name such as sm_86 or sm_90, got {arch!r}")
    return int(digits)


@functools.cache
def nearest_table(arch: str) -> str:
    """The architecture whose table ``arch`` uses: its own, else the nearest older (or the oldest), with a warning.

    A table for an older architecture fits a newer one's larger shared memory, not the other way round.
    """
    if arch in TABLES:
        return arch
    number = parse_arch(arch)
    known = sorted(TABLES, key=parse_arch)
    older = [name for name in known if parse_arch(name) <= number]
    choice = older[-1] if older else known[0]
    if parse_arch(choice) == 90 and number != 90:
        choice = "sm_86"  # sm_90's tiles need 227 KB of shared memory and wgmma, which sm_100 and sm_120 lack
    warnings.warn(
        f"no tile table for {arch}: using {choice}'s; `python -m kernels.benchmark --tune FILE` writes one",
        stacklevel=2,
    )
    return choice


def write_table(path: str | Path, arch: str, table: Table, measured_on: str) -> None:
    """Writes ``table`` as the JSON that `read_table` reads, with the card that its times were measured on."""
    rules = {op: [[limit, list(tile)] for limit, tile in entries] for op, entries in table.items()}
    Path(path).write_text(
        json.dumps({"arch": arch, "measured_on": measured_on, "table": rules}, indent=1) + "\n", encoding="utf-8"
    )


def read_table(path: str | Path, arch: str | None = None) -> Table:
    """Reads a table written by ``--tune``; ValueError for other files and for other architectures' tables."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        table = {op: [(int(n), Tile(*tile)) for n, tile in rules] for op, rules in content["table"].items()}
        made_for = content["arch"]
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"tuning table {path}: expected the JSON that --tune writes, got {error!r}") from error
    if arch is not None and made_for != arch:
        raise ValueError(f"tuning table {path}: made for {made_for}, this card is {arch}; write one with --tune")
    return table


@functools.cache
def _table(arch: str, override: str | None) -> Table:
    table = dict(TABLES[nearest_table(arch)])
    if override:
        table.update(read_table(override, arch))
    return table


def table_of(arch: str) -> Table:
    """The architecture's table, with the rules of KERNELS_TUNING_TABLE in place of its own."""
    return _table(arch, os.environ.get("KERNELS_TUNING_TABLE"))


def has(op: str, arch: str) -> bool:
    """Whether the architecture's table has tiles for ``op``."""
    return op in table_of(arch)


def select(op: str, arch: str, rows_per_expert: int) -> Tile:
    """The tile of ``op`` for that many rows per expert, from the architecture's table."""
    return _first(op, arch, table_of(arch), rows_per_expert)


def for_float32(op: str, rows_per_expert: int) -> Tile:
    """The tile for float32 operands on any architecture: sm_86's, but smaller.

    The tables are made for bf16: with operands of twice the size some would need more shared memory than there is, and
    without tensor cores the largest takes 17 s to compile.
    """
    tile = _first(op, "sm_86", _SM_86, rows_per_expert)
    rows = min(tile.bm, 64) if tile.bk > 1 else tile.bm
    warps = 8 if rows >= 64 else tile.warps
    return tile._replace(bm=rows, bk=min(tile.bk, 32), stages=min(tile.stages, 2), warps=warps)


def _first(op: str, arch: str, table: Table, rows_per_expert: int) -> Tile:
    for limit, tile in table[op]:
        if rows_per_expert <= limit:
            return tile
    raise ValueError(f"tuning table of {arch}: no rule of {op} covers {rows_per_expert} rows per expert")
