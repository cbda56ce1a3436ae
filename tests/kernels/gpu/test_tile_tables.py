"""Tile tables: choice by rows and architecture, the nearest table with one warning, tables from --tune."""

from __future__ import annotations

import json
import warnings

import pytest

from kernels.gpu import tile_tables


def test_rows_choose_the_tile():
    few, many = tile_tables.select("gemm", "sm_86", 4), tile_tables.select("gemm", "sm_86", 4096)
    assert few.bm == 16 and many.bm == 64 and tile_tables.select("gemm", "sm_86", 16) == few


def test_every_operation_has_a_last_rule_for_any_number_of_rows():
    for table in tile_tables.TABLES.values():
        for rules in table.values():
            limits = [limit for limit, _ in rules]
            assert limits == sorted(limits) and limits[-1] == tile_tables.ANY


def test_float32_takes_small_tiles_on_every_card_and_with_any_table(tmp_path, monkeypatch):
    """bf16's would need more shared memory than there is: 147 KB for the first operation here."""
    tile_tables.write_table(tmp_path / "t.json", "sm_90", {}, "a card")
    monkeypatch.setenv("KERNELS_TUNING_TABLE", str(tmp_path / "t.json"))
    for op, rules in tile_tables.TABLES["sm_86"].items():
        for limit, _ in rules:
            tile = tile_tables.for_float32(op, limit)
            columns = 2 * tile.bn if "swiglu" in op else tile.bn
            assert tile.stages * 4 * tile.bk * (tile.bm + columns) <= 99 * 1024


@pytest.mark.parametrize(("arch", "table"), [("sm_80", "sm_86"), ("sm_89", "sm_86"), ("sm_120", "sm_86")])
def test_an_architecture_without_a_table_warns_once(arch, table):
    tile_tables.nearest_table.cache_clear()
    tile_tables._table.cache_clear()
    with pytest.warns(UserWarning, match=f"no tile table for {arch}: using {table}'s"):
        tile = tile_tables.select("gemm", arch, 4096)
    assert tile == tile_tables.select("gemm", table, 4096)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tile_tables.select("swiglu", arch, 1)


@pytest.mark.parametrize("arch", ["86", "sm_9", "cuda", "sm_xx"])
def test_a_name_that_is_no_architecture(arch):
    with pytest.raises(ValueError, match="arch: expected a name such as sm_86"):
        tile_tables.parse_arch(arch)


def test_a_written_table_is_used(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    tile = tile_tables.Tile(32, 32, 32, 4, 2)
    tile_tables.write_table(path, "sm_86", {"gemm": [(tile_tables.ANY, tile)]}, "a card")
    assert json.loads(path.read_text())["measured_on"] == "a card"
    monkeypatch.setenv("KERNELS_TUNING_TABLE", str(path))
    assert tile_tables.select("gemm", "sm_86", 4096) == tile
    assert tile_tables.select("swiglu", "sm_86", 4096) == tile_tables.TABLES["sm_86"]["swiglu"][-1][1]
    with pytest.raises(ValueError, match="made for sm_86, this card is sm_90"):
        tile_tables.select("gemm", "sm_90", 4096)


@pytest.mark.parametrize(
    "content", ["", "[]", json.dumps({"arch": "sm_86"}), json.dumps({"arch": "x", "table": {"a": 1}})]
)
def test_a_file_that_is_no_table(tmp_path, content):
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected the JSON that --tune writes"):
        tile_tables.read_table(path)
