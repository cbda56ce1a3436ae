"""Containers: every form gives the same objects, and every other file one line that says what it is."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.data.containers import dataset_files, read_objects
from moe.errors import UserError
from moe.files import MAX_LINE

ROWS = [{"id": i, "text": f"Über {i}\u2028", "code": "x\n" * i} for i in range(5)]


def lines(rows=ROWS) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def objects(path: Path) -> list[dict]:
    return [found for _, found in read_objects(path)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.ndjson", "a.txt"])
@pytest.mark.parametrize("content", [lines(), json.dumps(ROWS).encode(), json.dumps(ROWS, indent=1).encode()])
def test_content_decides_what_a_file_is(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    (tmp_path / "packed.jsonl").write_bytes(gzip.compress(content))
    for file in (name, f"{name}.gz", "packed.jsonl"):
        assert objects(tmp_path / file) == ROWS, file


def test_zstandard_in_several_frames_whole_or_cut(tmp_path):
    zstd = pytest.importorskip("zstandard")
    first, second = zstd.compress(lines(ROWS[:2])), zstd.compress(lines(ROWS[2:]))
    (tmp_path / "a.jsonl.zst").write_bytes(first + second)
    assert objects(tmp_path / "a.jsonl.zst") == ROWS
    for name, content in {
        "cut": first + second[:-5],
        "plain": lines(),
        "damaged": first[:-9] + b"12345" + first[-4:],
    }.items():
        (tmp_path / f"{name}.jsonl.zst").write_bytes(content)
        with pytest.raises(UserError, match=rf"{name}\.jsonl\.zst: the Zstandard data are"):
            objects(tmp_path / f"{name}.jsonl.zst")


def test_parquet_and_saved_datasets(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = arrow.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert objects(tmp_path / "a.parquet") == ROWS
    saved = tmp_path / "saved"
    saved.mkdir()
    for number, part in enumerate((table.slice(0, 3), table.slice(3))):
        with arrow.ipc.new_stream(saved / f"data-{number}.arrow", table.schema) as writer:
            writer.write_table(part)
    with arrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    assert objects(tmp_path / "file.arrow") == ROWS
    state = {"_data_files": [{"filename": "data-0.arrow"}, {"filename": "data-1.arrow"}]}
    (saved / "state.json").write_text(json.dumps(state))
    assert [x for path in dataset_files(saved) for x in objects(path)] == ROWS
    (saved / "state.json").write_text(json.dumps({**state, "_indices_data_files": [{"filename": "indices.arrow"}]}))
    with pytest.raises(UserError, match="a selection of rows; save it with"):
        dataset_files(saved)
    content = (tmp_path / "a.parquet").read_bytes()
    for name, broken in {"cut": content[: len(content) // 2], "head": b"PAR1" + os.urandom(50)}.items():
        (tmp_path / f"{name}.parquet").write_bytes(broken)
        with pytest.raises(UserError, match="after row 0: the Parquet data are broken") as caught:
            objects(tmp_path / f"{name}.parquet")
        assert "\n" not in str(caught.value)


def test_missing_libraries_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1xxxx")
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfdxxxx")
    for module in ("pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(UserError, match=r"is Parquet, which needs pyarrow; type: pip install pyarrow"):
        objects(tmp_path / "a.parquet")
    with pytest.raises(
        UserError, match=r"is packed with Zstandard, which needs zstandard; type: pip install zstandard"
    ):
        objects(tmp_path / "a.jsonl.zst")


TAR = b"a.jsonl".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0")
OTHERS = {
    "twice": (gzip.compress(gzip.compress(lines())), "is packed twice with gzip; unpack it once"),
    "tar": (gzip.compress(TAR), "is a tar archive; unpack it"),
    "cr": (lines().replace(b"\n", b"\r"), "line 1: not JSON .*its lines end in CR alone"),
    "bz2": (bz2.compress(lines()), "is packed with bzip2; unpack it"),
    "xz": (lzma.compress(lines()), "is packed with xz; unpack it"),
    "utf16": (lines().decode().encode("utf-16"), "is UTF-16 text; convert it"),
    "utf32": (lines().decode().encode("utf-32"), "is UTF-32 text; convert it"),
    "quoted-csv": (b'"text","code"\n"a","x = 1"\n', 'is no JSON .it starts with \'"text","code"\''),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer in place of the data"),
    "web": (b"\n<!DOCTYPE html>\n<html>", "is a web page; download the file itself"),
    "binary": (b"{\x00\x01" * 100, "is a binary file; expected JSON Lines"),
    "noise": (b"\x80\x04\x95" + b"\xff" * 50, "is no JSON .it starts with"),
    "prose": (b"Some text.\n", "is no JSON .it starts with 'Some text.'"),
    "latin1": (b'{"text": "\xfcber"}\n', "line 1: not UTF-8"),
    "pretty": (json.dumps(ROWS[0], indent=1).encode(), "line 1: not JSON .*write each object on one line"),
    "numbers": (b"1\n2\n", "line 1: found a number"),
    "deep": (b"[" * 100_000, "after item 0: the JSON array is broken"),
    "cut": (json.dumps(ROWS).encode()[:-40], r"after item 4: the JSON array is broken or breaks off"),
    "after": (json.dumps(ROWS).encode() + b"{}", "after item 5: the JSON array is followed by something else"),
    "no-comma": (b'[{"a": 1} {"a": 2}]', "after item 1: the JSON array goes on without a comma"),
    "unclosed": (b'[{"a": 1}', "after item 1: the JSON array breaks off"),
    "mixed": (b'[{"a": 1}, "b"]', "item 2: found a string; expected an object"),
    "array-latin1": (b'[{"a": "\xfc"}]', "after item 0: not UTF-8"),
    "csv": (b"text,code\na,b\n", "is a CSV table; expected JSON Lines"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_refused_by_what_they_are(tmp_path, kind):
    content, message = OTHERS[kind]
    path = tmp_path / ("a.csv" if kind == "csv" else "a.jsonl")
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        objects(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 400


def test_zip_archives_folders_and_loops(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.jsonl", "w") as archive:
        archive.writestr("x", "y")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in {"a": "is a zip archive", "loop": "no such file", "folder": "is not a file"}.items():
        with pytest.raises(UserError, match=message):
            objects(tmp_path / f"{name}.jsonl")


@pytest.mark.parametrize("start", [b'{"text": "', b'[{"text": "'])
def test_endless_lines_take_bounded_memory(tmp_path, start):
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(start)
        for _ in range(100):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"longer than 16 MiB"):
        objects(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * MAX_LINE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.text(), json_values), max_size=4), indent=st.sampled_from([None, 0, 2]))
def test_arrays_come_back(tmp_path, rows, indent):
    path = tmp_path / "a.json"
    path.write_text(
        json.dumps(rows, indent=indent, ensure_ascii=bool(indent)).encode("utf-8", "replace").decode(), "utf-8"
    )
    assert objects(path) == json.loads(path.read_text("utf-8"))


def test_items_longer_than_a_piece(tmp_path):
    rows = [{"text": "é" * 200_000, "n": i} for i in range(3)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    assert objects(tmp_path / "a.json") == rows
