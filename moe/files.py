"""Files as every room reads and writes them: atomic replacement, and JSON Lines whose errors name file and line."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe.errors import UserError


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` to write to, which then replaces ``path`` atomically.

    On an error the sibling is removed and ``path`` is as before. The sibling's name holds the process id, so that a
    later process can tell what a killed one left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)


def replace_file(path: Path, content: bytes) -> None:
    """Writes or replaces one file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def json_bytes(document: Any) -> bytes:
    """A JSON document as it is written: indented, UTF-8, with a final newline."""
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """JSON Lines: one object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON Lines atomically, gzipped when the name ends in ``.gz``; the same rows give the same bytes.

    Raises:
        UserError: ``path`` cannot be written, or a row holds text that is not valid Unicode.
    """
    path = Path(path)
    try:
        content = json_lines(rows).encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{path}: a row holds text that is not valid Unicode ({error.reason})") from error
    if path.name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields each line that is not blank with its number from 1; ``*.gz`` is unpacked.

    Lines end at LF alone, as other separators may stand inside JSON strings; a byte order mark is dropped.

    Raises:
        UserError: the file is missing or cannot be read, or its gzip data are broken.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is not a file' if path.exists() else 'no such file'}")
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if line.strip():
                    yield number, line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}, after line {number}: the gzip data are broken or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def decode_line(line: bytes) -> str:
    """The text of a line; raises :class:`UserError`, without naming the line, when it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"not UTF-8 (byte {error.start + 1}: {error.reason})"
        raise UserError(f"{found}; expected UTF-8 text") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yields each line that is not blank, with its place (``"FILE, line N"``); ``*.gz`` is unpacked.

    Raises:
        UserError: as for :func:`numbered_lines`, and for a line that is not UTF-8.
    """
    for number, line in numbered_lines(path):
        with named(f"{path}, line {number}"):
            text = decode_line(line)
        yield f"{path}, line {number}", text


def read_json_lines(path: Path, expected: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each object of a JSON Lines file with its place (``"FILE, line N"``).

    Args:
        expected: what an object holds, for the error about a line that is none, such as ``"'text' and 'code'"``.

    Raises:
        UserError: as for :func:`read_lines`, and for a line that is not a JSON object.
    """
    for where, line in read_lines(path):
        with named(where):
            row = parse_object(line, expected)
        yield where, row


@contextmanager
def named(where: str) -> Iterator[None]:
    """Puts ``where`` before the message of a :class:`UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error.__cause__


def parse_object(line: str, expected: str) -> dict[str, Any]:
    """The JSON object in ``line``; raises :class:`UserError`, without naming the line, for anything else."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON ({error}); expected one JSON object on each line") from error
    if not isinstance(row, dict):
        raise UserError(f"found {json_type(row)}; expected an object with {expected}")
    return row


def json_type(value: object) -> str:
    """What JSON calls the type of a parsed value, with its article."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names[type(value)]
