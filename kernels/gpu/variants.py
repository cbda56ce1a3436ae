"""Every kernel with every set of flags it is launched with, at every tile of a table: what the compile check compiles.

Shapes are Mistral-7B's experts (4096 / 14336), E = 4, two experts a token, rank 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from kernels.gpu import gemm, persistent, routing, w4
from kernels.gpu.tile_tables import Table, Tile

WIDTH, HIDDEN, EXPERTS, TOP_K, RANK = 4096, 14336, 4, 2, 64
PROGRAMS = 132

UP = {"N": HIDDEN, "K": WIDTH}
DOWN = {"N": WIDTH, "K": HIDDEN}


class Variant(NamedTuple):
    """``constants`` holds every constexpr, and None for each pointer the flags leave unused."""

    op: str
    label: str
    kernel: Any
    tile: Tile
    constants: dict[str, Any]
    types: dict[str, str]


def _gemm_flags(**flags: Any) -> dict[str, Any]:
    base = {
        "GATHER": False,
        "TRANSPOSED": False,
        "DUAL": False,
        "RANK": 0,
        "RANK_STEP": 16,
        "x2_ptr": None,
        "w2_ptr": None,
    }
    return {**base, "xa_ptr": None, "b_ptr": None, **flags}


def _dual(flags: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in flags.items() if k not in ("x2_ptr", "w2_ptr")}


def _low_rank_step(flags: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in flags.items() if k not in ("xa_ptr", "b_ptr")}


_SWIGLU = {"GATHER": True, "TWO_INPUTS": False, "HAS_BASE": False, "x2_ptr": None, "base1_ptr": None, "base3_ptr": None}
_BACKWARD = {"PRODUCT": True, "GATHER": True, "HAS_BASE": False, "GATHER_BASE": False, "base_ptr": None}
_NO_H = {"SAVE_H": False, "h1_ptr": None, "h3_ptr": None}
_ONE = {"q3_ptr": None, "s3_ptr": None, "h1_ptr": None, "h3_ptr": None, "SWIGLU": False, "SAVE_H": False}

# operation -> [(label, kernel, constants, pointer types that differ from the rule)]
_FLAGS: dict[str, list[tuple[str, Any, dict[str, Any], dict[str, str]]]] = {
    "gemm": [("down", gemm.grouped_gemm_kernel, {**_gemm_flags(), **DOWN}, {})],
    "gemm_dx": [
        ("pair dX", gemm.grouped_gemm_kernel, {**_dual(_gemm_flags(TRANSPOSED=True, DUAL=True)), **DOWN}, {}),
        ("dX", gemm.grouped_gemm_kernel, {**_gemm_flags(TRANSPOSED=True), **DOWN}, {}),
    ],
    "swiglu": [
        ("gather, keep h", gemm.swiglu_kernel, {**_SWIGLU, "SAVE_H": True, **UP}, {}),
        ("gather", gemm.swiglu_kernel, {**_SWIGLU, **_NO_H, **UP}, {}),
    ],
    "swiglu_backward": [
        ("gather, g*a", gemm.swiglu_backward_kernel, {**_BACKWARD, "WRITE_A": True, **UP}, {}),
        ("gather", gemm.swiglu_backward_kernel, {**_BACKWARD, "WRITE_A": False, "ga_ptr": None, **UP}, {}),
    ],
    "weight_gradient": [
        ("dW1", gemm.weight_gradient_kernel, {"GATHER_X": True, "GATHER_DY": False, "ACCUMULATE": False, **UP}, {}),
        (
            "dW2, add to fp32",
            gemm.weight_gradient_kernel,
            {"GATHER_X": False, "GATHER_DY": True, "ACCUMULATE": True, **DOWN},
            {"dw_ptr": "*fp32"},
        ),
    ],
    "low_rank_down": [
        ("x A", gemm.grouped_gemm_kernel, {**_gemm_flags(GATHER=True), "N": RANK, "K": WIDTH}, {}),
        ("dh B", gemm.grouped_gemm_kernel, {**_gemm_flags(TRANSPOSED=True), "N": RANK, "K": HIDDEN}, {}),
    ],
    "low_rank_up": [
        ("B", gemm.grouped_gemm_kernel, {**_gemm_flags(), "N": WIDTH, "K": RANK}, {}),
        (
            "pair dX",
            gemm.grouped_gemm_kernel,
            {**_dual(_gemm_flags(TRANSPOSED=True, DUAL=True)), "N": WIDTH, "K": RANK},
            {},
        ),
        (
            "W and B A",
            gemm.grouped_gemm_kernel,
            {**_low_rank_step(_gemm_flags(RANK=RANK, RANK_STEP=RANK)), **DOWN},
            {},
        ),
    ],
    "low_rank_gradient": [
        (
            "dB",
            gemm.weight_gradient_kernel,
            {"GATHER_X": False, "GATHER_DY": False, "ACCUMULATE": False, "N": HIDDEN, "K": RANK},
            {},
        ),
        (
            "dA",
            gemm.weight_gradient_kernel,
            {"GATHER_X": True, "GATHER_DY": False, "ACCUMULATE": False, "N": RANK, "K": WIDTH},
            {},
        ),
    ],
    "delta_swiglu": [
        (
            "base + B",
            gemm.swiglu_kernel,
            {"GATHER": False, "TWO_INPUTS": True, "HAS_BASE": True, "SAVE_H": True, "N": HIDDEN, "K": RANK},
            {},
        )
    ],
    "delta_swiglu_backward": [
        (
            "base + A",
            gemm.swiglu_backward_kernel,
            {
                "PRODUCT": True,
                "GATHER": False,
                "HAS_BASE": True,
                "GATHER_BASE": True,
                "WRITE_A": True,
                "N": HIDDEN,
                "K": RANK,
            },
            {},
        )
    ],
    "elementwise_backward": [
        (
            "given da",
            gemm.swiglu_backward_kernel,
            {
                "PRODUCT": False,
                "GATHER": False,
                "HAS_BASE": True,
                "GATHER_BASE": False,
                "WRITE_A": False,
                "dy_ptr": None,
                "w2_ptr": None,
                "ga_ptr": None,
                **UP,
            },
            {},
        )
    ],
    "persistent_gemm": [
        ("down", persistent.persistent_gemm_kernel, {**_ONE, "GATHER": False, "w3_ptr": None, **DOWN}, {}),
    ],
    "persistent_swiglu": [
        (
            "gather, keep h",
            persistent.persistent_gemm_kernel,
            {"GATHER": True, "SWIGLU": True, "SAVE_H": True, **UP},
            {},
        ),
        ("gather", persistent.persistent_gemm_kernel, {"GATHER": True, "SWIGLU": True, **_NO_H, **UP}, {}),
    ],
    "w4_gemm": [("down", w4.w4_gemm_kernel, {**_ONE, "GATHER": False, **DOWN}, {})],
    "w4_swiglu": [
        ("gather, keep h", w4.w4_gemm_kernel, {"GATHER": True, "SWIGLU": True, "SAVE_H": True, **UP}, {}),
        ("gather", w4.w4_gemm_kernel, {"GATHER": True, "SWIGLU": True, **_NO_H, **UP}, {}),
    ],
    "w4_swap": [("down", w4.w4_swap_kernel, {**_ONE, "GATHER": False, **DOWN}, {"y_ptr": "*fp32"})],
    "w4_swap_swiglu": [
        ("gather, keep h", w4.w4_swap_kernel, {"GATHER": True, "SWIGLU": True, "SAVE_H": True, **UP}, {}),
        ("gather", w4.w4_swap_kernel, {"GATHER": True, "SWIGLU": True, **_NO_H, **UP}, {}),
    ],
    "w4_gemv": [("down", w4.w4_gemv_kernel, {**_ONE, "TOPK": 1, **DOWN}, {"y_ptr": "*fp32"})],
    "w4_gemv_swiglu": [("up", w4.w4_gemv_kernel, {"SWIGLU": True, **UP}, {})],
    "w4_dx": [
        ("pair", w4.w4_dx_kernel, {"GATHER": False, "DUAL": True, **UP}, {}),
        (
            "gather",
            w4.w4_dx_kernel,
            {"GATHER": True, "DUAL": False, "dy2_ptr": None, "q2_ptr": None, "s2_ptr": None, **DOWN},
            {},
        ),
    ],
    "w4_dequantise": [("", w4.w4_dequantise_kernel, {**UP}, {})],
    "combine": [
        (
            "gates, split",
            routing.combine_kernel,
            {"SPLIT_K": 4, "SORTED": True, "HAS_GATES": True, "HAS_BASE": False, "base_ptr": None},
            {"y_ptr": "*fp32"},
        )
    ],
    "route": [("", routing.route_kernel, {"E_PAD": 4, "BLOCK": 512}, {})],
}


def scale_in_weight(tile: Tile, swiglu: bool) -> bool:
    """Whether the int4 scale goes into the bf16 weight: where a second accumulator of this tile would spill."""
    return tile.bm >= 64 or (swiglu and tile.bm * tile.bn > 16 * 64)


def tile_constants(op: str, tile: Tile) -> dict[str, Any]:
    """The constexprs a tile stands for; names a kernel lacks are dropped by the caller."""
    return {
        "BM": tile.bm,
        "BT": tile.bm,
        "BN": tile.bn,
        "BH": tile.bn,
        "BK": tile.bk,
        "GROUP_M": tile.group_m,
        "SPLIT_K": tile.split_k,
        "SCALE_W": scale_in_weight(tile, op.endswith("swiglu")),
        "ASM": True,
    }


def variants(table: Table) -> Iterator[Variant]:
    """All (operation, flags, tile) of a table, each distinct tile once."""
    for op, rules in table.items():
        for tile in dict.fromkeys(tile for _, tile in rules):
            for label, kernel, flags, types in _FLAGS[op]:
                constants = {"E": EXPERTS, "TOPK": TOP_K, "PROGRAMS": PROGRAMS, **tile_constants(op, tile), **flags}
                constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
                if (
                    constants.get("BK", 0)
                    and constants.get("K") == RANK
                    and "BN" in constants
                    and op != "low_rank_gradient"
                ):
                    constants["BK"] = RANK
                yield Variant(op, label, kernel, tile, constants, types)
    yield Variant(
        "combine",
        "gate gradients",
        routing.gate_gradient_kernel,
        Tile(64, 224, 1, 4, 1),
        {"TILES": 224, "PAD": 256},
        {},
    )
