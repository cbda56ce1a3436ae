"""Files as every room reads and writes them: atomic replacement, and JSON Lines whose errors name file and line."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from moe.errors import UserError

MAX_LINE = 1 << 24  # bytes of a line, or of one object of a JSON array: memory stays bounded whatever a file holds
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def fsync_path(path: Path) -> None:
    """Flushes a file or a directory entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an :class:`OSError` without a file name, as writes raise on a full disk, the name of ``path``."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary sibling of ``path`` to write to, which then replaces ``path`` atomically.

    On an error the sibling is removed and ``path`` is as before; an :class:`OSError` names ``path``. The sibling's name
    holds the process id, so that a later process can tell what a killed one left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path) if error.filename in (None, str(temporary)) else error.filename
        raise
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


class Journal:
    """Results noted one by one, so that work which was killed goes on behind them: JSON Lines, appended to.

    Args:
        path: the file; :meth:`finish` removes it.
        task: what the work is; the results of another one are dropped. None keeps no file.
    """

    def __init__(self, path: Path | None, task: Any):
        self.path, self.rows = path, list[dict[str, Any]]()
        if path is None:
            return
        digest = hashlib.sha256(json_bytes(task)).hexdigest()
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    self.rows.append(parse_object(line.decode("utf-8"), "a result"))
                except ValueError:  # cut short by a kill
                    break
        if not self.rows or self.rows.pop(0) != {"task": digest}:
            self.rows = []
        replace_file(path, json_lines([{"task": digest}, *self.rows]).encode("utf-8"))

    def add(self, row: Mapping[str, Any]) -> None:
        """Notes one result."""
        if self.path is not None:
            with naming(self.path), self.path.open("a", encoding="utf-8") as file:
                file.write(json_lines([row]))

    def finish(self) -> None:
        """Removes the file, once all results are kept elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading and unpacks gzip and Zstandard, which its first bytes or its name tell.

    Raises:
        UserError: the file is missing or cannot be read, its packed data are broken, or a library is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is not a file; give one' if path.exists() else 'no such file; check the path'}")
    try:
        with path.open("rb") as file:
            start = file.read(4)
            file.seek(0)
            if start.startswith(_GZIP) or path.name.endswith(".gz"):
                yield gzip.GzipFile(fileobj=file)  # type: ignore[misc]
            elif start == _ZSTD or path.name.endswith((".zst", ".zstd")):
                yield io.BufferedReader(_Zstandard(file, path))
            else:
                yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the gzip data are broken or cut short ({error})") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Zstandard(io.RawIOBase):
    """Unpacks Zstandard frames; unlike the library's reader it fails where the last frame is cut short."""

    def __init__(self, file: BinaryIO, path: Path):
        self.zstd = optional_library("zstandard", f"{path} is packed with Zstandard")
        self.file, self.path = file, path
        self.frame = self.zstd.ZstdDecompressor().decompressobj()
        self.begun, self.rest, self.ready = False, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            packed = self.rest or self.file.read(1 << 10)  # each may unpack to 32 MiB

            if not packed:
                if self.begun and not self.frame.eof:
                    raise UserError(f"{self.path}: the Zstandard data are cut short")
                return 0
            if self.frame.eof:
                self.frame = self.zstd.ZstdDecompressor().decompressobj()
            try:
                self.ready, self.begun = self.frame.decompress(packed), True
            except self.zstd.ZstdError as error:
                raise UserError(f"{self.path}: the Zstandard data are broken ({error})") from error
            self.rest = self.frame.unused_data if self.frame.eof else b""
        count = min(len(buffer), len(self.ready))
        buffer[:count], self.ready = self.ready[:count], self.ready[count:]
        return count


def optional_library(module: str, why: str) -> Any:
    """Imports a module that the product starts without; raises :class:`UserError` with the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0].replace("_", "-")
        raise UserError(f"{why}, which needs {package}; type: pip install {package}") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields each line that is not blank with its number from 1; gzip and Zstandard are unpacked.

    Lines end at LF alone, as other separators may stand inside JSON strings; a byte order mark is dropped.

    Raises:
        UserError: as for :func:`open_unpacked`, and for a line of more than :data:`MAX_LINE` bytes.
    """
    with open_unpacked(path) as file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UserError(f"{path}, line {number}: longer than {MAX_LINE >> 20} MiB; expected one row a line")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                yield number, line


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
    return names.get(type(value), f"of type {type(value).__name__}")  # Parquet has bytes and dates
