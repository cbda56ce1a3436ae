"""Objects from the files that data come in: JSON Lines, one JSON array, Parquet and Arrow, plain or packed.

The content decides what a file is, not its name. What is none of these is refused by what it is.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import MAX_LINE, decode_line, json_type, named, numbered_lines, open_unpacked, optional_library

SUFFIXES = (".jsonl", ".json", ".ndjson", ".parquet", ".arrow")
PACKED = ("", ".gz", ".zst", ".zstd")
_HEAD = 4096  # bytes that are looked at
_ROWS = 1024  # rows of a table that are turned into objects at once
# The first bytes of files that are something else, what that is, and what to do.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive", "unpack it"),
    (b"\x1f\x8b", "packed twice with gzip", "unpack it once: gunzip FILE"),
    (b"\x28\xb5\x2f\xfd", "packed twice", "unpack it once"),
    (b"BZh", "packed with bzip2", "unpack it: bunzip2 FILE"),
    (b"\xfd7zXZ", "packed with xz", "unpack it: unxz FILE"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it: iconv -f UTF-32 -t UTF-8 FILE"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8 FILE"),
    (b"SQLite format 3", "an SQLite database", "write its rows as JSON Lines"),
    (b"version https://git-lfs", "a Git LFS pointer in place of the data", "fetch the data: git lfs pull"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"%PDF", "a PDF document", "give files of pairs"),
)
_EXPECTED = "expected JSON Lines, a JSON array or Parquet"


def data_suffix(name: str) -> str | None:
    """The ending of a data file's name (``.jsonl.gz``); None for other files, hidden ones and bare endings."""
    for suffix in (kind + packed for kind in SUFFIXES for packed in PACKED):
        if name.lower().endswith(suffix) and not name.startswith("."):
            return suffix
    return None


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the objects of a file with their places in it: ``line 3``, ``item 3`` of an array, ``row 3`` of a table.

    Raises:
        UserError: the file is missing, broken or something else; one line, with file and place.
    """
    with open_unpacked(path) as file:
        head = file.read(_HEAD)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"PAR1"):
        yield from _parquet(path)
    elif head.startswith(b"ARROW1") or path.name.endswith(".arrow"):
        yield from _arrow(path)
    elif start.startswith(b"["):
        for number, found in enumerate(_array_items(path), start=1):
            yield f"item {number}", _object(found, f"{path}, item {number}")
    else:
        _refuse_others(path, head)
        yield from _lines(path)


def dataset_files(directory: Path) -> list[Path]:
    """The Arrow files of a dataset that the library ``datasets`` wrote to this directory, in order; empty for others.

    Raises:
        UserError: the dataset is a selection of rows that only that library knows how to read, or a file is missing.
    """
    state = directory / "state.json"
    if not state.is_file():
        return []
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        files = [directory / item["filename"] for item in found["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{state}: not the description of a dataset that 'datasets' saved ({error!r})") from error
    if found.get("_indices_data_files") or found.get("_indices_files"):
        raise UserError(f"{directory}: a selection of rows; save it with dataset.flatten_indices().save_to_disk(...)")
    return files


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in numbered_lines(path):
        where = f"line {number}"
        with named(f"{path}, {where}"):
            text = decode_line(line)
            try:
                found = json.loads(text)
            except (ValueError, RecursionError) as error:
                hint = "; its lines end in CR alone: write them with LF" if "\r{" in text else ""
                if number == 1 and text.rstrip().endswith(("{", "[", ",")):
                    hint = "; an object over several lines: write each object on one line, or all in one array"
                raise UserError(f"not JSON ({error}); expected one JSON object on each line{hint}") from error
        yield where, _object(found, f"{path}, {where}")


def _object(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise UserError(f"{where}: found {json_type(found)}; expected an object with language, text, reference")
    return found


def _array_items(path: Path) -> Iterator[Any]:
    """The items of a JSON array, one at a time: no more than an item and a piece of the file are in memory."""
    decoder, parse = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder().raw_decode
    number, text, at, ended, space = 0, "", 0, False, re.compile(r"[ \t\r\n]*")
    with open_unpacked(path) as file:

        def more() -> None:
            nonlocal text, at, ended
            piece = file.read(max(1 << 16, len(text) - at))  # twice as much each time: a long item is parsed few times
            ended = not piece
            try:
                text, at = text[at:] + decoder.decode(piece, final=ended), 0
            except UnicodeDecodeError as error:
                raise UserError(f"{path}, after item {number}: not UTF-8 ({error.reason}); expected UTF-8") from error

        def sign() -> str:
            """The next character that is no white space; empty at the end."""
            nonlocal at
            while True:
                at = space.match(text, at).end()  # type: ignore[union-attr]
                if at < len(text) or ended:
                    return text[at : at + 1]
                more()

        def broken(what: str) -> UserError:
            return UserError(f"{path}, after item {number}: the JSON array {what}")

        assert sign() == "["
        at += 1
        if sign() == "]":
            at += 1
        else:
            while True:
                sign()
                while True:
                    try:
                        found, end = parse(text, at)
                        break
                    except (ValueError, RecursionError) as error:
                        if ended or isinstance(error, RecursionError):
                            cut = "breaks off" if at >= len(text) or text[at] in "{[" else "holds no JSON"
                            raise broken(f"is broken or {cut} ({error})") from error
                        if len(text) - at > MAX_LINE:
                            raise broken(f"is broken, or an item is longer than {MAX_LINE >> 20} MiB") from error
                    more()
                number, at = number + 1, end
                yield found
                after = sign()
                at += 1
                if after == "]":
                    break
                if after != ",":
                    raise broken("goes on without a comma" if after else "breaks off")
        if sign():
            raise broken("is followed by something else")


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    parquet = optional_library("pyarrow.parquet", f"{path} is Parquet")
    return _table_rows(path, lambda: parquet.ParquetFile(path).iter_batches(_ROWS), "Parquet")


def _arrow(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    ipc = optional_library("pyarrow.ipc", f"{path} is an Arrow file")

    def batches() -> Iterator[Any]:
        with path.open("rb") as file:
            if file.read(6) == b"ARROW1":
                table = ipc.open_file(path)
                yield from map(table.get_batch, range(table.num_record_batches))
            else:
                file.seek(0)
                yield from ipc.open_stream(file)

    return _table_rows(path, batches, "Arrow")


def _table_rows(path: Path, batches: Any, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    arrow = optional_library("pyarrow", f"{path} is {kind}")
    number = 0
    try:
        for batch in batches():
            for start in range(0, batch.num_rows, _ROWS):
                for found in batch.slice(start, _ROWS).to_pylist():
                    number += 1
                    yield f"row {number}", found
    except (arrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        message = str(error).splitlines()[0] if str(error) else repr(error)
        raise UserError(f"{path}, after row {number}: the {kind} data are broken ({message})") from error


def _refuse_others(path: Path, head: bytes) -> None:
    start = head.lstrip().lower() if head[:1] in b" \t\r\n<" else head
    for mark, what, todo in _OTHERS:
        if start.startswith(mark):
            raise UserError(f"{path}: is {what}; {todo}")
    if head[257:262] == b"ustar":
        raise UserError(f"{path}: is a tar archive; unpack it")
    if b"\x00" in head:
        raise UserError(f"{path}: is a binary file; {_EXPECTED}")
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n")[0].strip()
    if first and not first.startswith(b"{") and not _is_json(first):
        shown = first[:40].decode("utf-8", "replace")
        table = any(path.name.removesuffix(packed).endswith((".csv", ".tsv")) for packed in PACKED)
        what = "is a CSV table" if table else f"is no JSON (it starts with {shown!r})"
        raise UserError(f"{path}: {what}; {_EXPECTED}")


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def shown_keys(found: Mapping[str, Any], most: int = 12) -> str:
    """The keys of an object as messages list them."""
    names = [repr(name) for name in found][:most]
    return ", ".join(names) + (", ..." if len(found) > most else "") if names else "no keys"
