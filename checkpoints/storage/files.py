"""Files and directories: bounded JSON, checksums, free disk space, atomic directories.

A directory is filled under a temporary sibling name, every file and the directory itself are flushed to disk
(``fsync``), and one rename makes it visible. A process killed at any point leaves the old state or the new one, plus at
most the temporary sibling.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import fsync_path, json_bytes

MAX_JSON_BYTES = 64 << 20  # the largest index of a real model (Mixtral-8x22B) has 170 kB; a tokenizer.json 20 MB
CHUNK_BYTES = 4 << 20
MODEL_FILES = ("config.json", "manifest.json", "params.json")  # a model directory has one, or tensor files

DiskUsage = Callable[[Path], int]  # free bytes at a path; a parameter so that tests can have a full disk


def free_bytes(path: Path) -> int:
    """Returns the free bytes of the disk on which ``path`` is, or would be created."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def format_bytes(count: float) -> str:
    """Formats a number of bytes with a unit, for example ``13.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def require_free_space(path: Path, needed: int, disk_free: DiskUsage = free_bytes) -> None:
    """Raises :class:`UserError` when ``needed`` bytes do not fit on the disk of ``path``; call it before writing."""
    free = disk_free(path)
    if free < needed:
        raise UserError(
            f"not enough disk for {path}: {format_bytes(needed)} needed, {format_bytes(free)} free; "
            "free some space or give an output path on another disk"
        )


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Reads a JSON file of at most ``limit`` bytes.

    Raises:
        UserError: the file is missing, too large, unreadable or not JSON.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise UserError(f"{path} has {format_bytes(size)}; expected a JSON file of at most {format_bytes(limit)}")
        return json.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; give a directory that contains {path.name}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not valid JSON ({error}); download or write the file again") from None


def read_json_object(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Like :func:`read_json` for a document that must be an object."""
    document = read_json(path, limit)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a JSON {type(document).__name__}; expected an object")
    return document


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and flushes it to disk. Not atomic: for files in a directory that is not visible yet."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document and flushes it to disk. Not atomic, like :func:`write_bytes`."""
    write_bytes(path, json_bytes(document))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns an :class:`OSError` while reading ``path`` (a bad disk, for example) into a :class:`UserError`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def disk_is_full(error: BaseException) -> bool:
    """Whether a write failed because the disk, or the user's quota, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Returns the SHA-256 of a file in hexadecimal; ``progress`` gets the byte count of each chunk read."""
    digest = hashlib.sha256()
    buffer = bytearray(CHUNK_BYTES)
    view = memoryview(buffer)
    with readable(path), open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
            if progress is not None:
                progress(count)
    return digest.hexdigest()


def copy_file(source: Path, target: Path) -> None:
    """Copies one file's content and flushes the copy to disk."""
    shutil.copyfile(source, target)
    fsync_path(target)


def inside(directory: Path, name: str, source: Path) -> Path:
    """Returns ``directory / name`` for a file name found in ``source``; rejects names that leave the directory."""
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise UserError(f"{source} names the file {name!r}; expected a plain file name inside {directory}")
    return directory / name


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two directory entries in one system call (Linux ``renameat2``); False where that is unsupported."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_cwd, exchange_flag = -100, 2
    if rename(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), exchange_flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(second))


def publish_directory(finished: Path, target: Path) -> None:
    """Makes the finished directory visible as ``target``, replacing a directory that is there.

    An existing target is swapped atomically where the system supports it. Elsewhere this takes two renames, and a kill
    between them leaves the old directory as ``.NAME.old``.
    """
    for path in [finished, *(entry for entry in finished.rglob("*") if entry.is_dir())]:
        fsync_path(path)
    if target.exists():
        if _exchange(finished, target):
            fsync_path(target.parent)
            shutil.rmtree(finished)
            return
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(finished, target)
        fsync_path(target.parent)
        shutil.rmtree(old)
    else:
        os.rename(finished, target)
        fsync_path(target.parent)


def _places(path: Path) -> set[Path]:
    """A file and its parent directories, both as named and with symbolic links resolved."""
    found = (Path(os.path.abspath(path)), path.parent.resolve() / path.name, path.resolve())
    return {place for name in found for place in (name, *name.parents)}


def require_new(target: Path, force: bool, reads: Iterable[Path] = ()) -> None:
    """Checks that writing ``target`` destroys nothing.

    Args:
        force: replace an existing directory, provided that it is empty or holds a model: a mistyped path must not
            delete other files.
        reads: input files of the job. ``target`` must not contain them, even with ``force``: a delta directory that
            replaced its own base would be useless.

    Raises:
        UserError: ``target`` exists and may not be replaced, contains an input, or lies below a file.
    """
    place = target.resolve()
    read = next((path for path in reads if place in _places(path)), None)
    if read is not None:
        raise UserError(f"{target} is where {read} is read from; give another output directory")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(f"{target} exists and is not a directory; give another output directory")
    above = next(path for path in target.absolute().parents if path.exists())
    if not above.is_dir():
        raise UserError(f"{target} cannot be made, because {above} is a file; give another output directory")
    if not target.exists():
        return
    if not force:
        raise UserError(f"{target} exists already; give another output directory, or --force to replace it when done")
    found = [path.name for path in target.iterdir()]
    if found and not any(name in MODEL_FILES or name.endswith(".safetensors") for name in found):
        raise UserError(
            f"{target} holds files of something else, such as {min(found)}; --force replaces models only: give another "
            "output directory"
        )


def partial_path(target: Path) -> Path:
    """The sibling in which ``target`` is prepared; always the same name, so that a rerun finds finished shards."""
    return target.with_name(f".{target.name}.partial")


def remove_abandoned(directory: Path, name: str = "") -> None:
    """Removes what killed processes, or this one, left of unfinished writes in ``directory`` (of all, or to ``name``).

    Those are the temporary siblings of :func:`new_directory` and :func:`moe.files.replacing`.
    """
    for path in directory.iterdir():
        match = re.fullmatch(rf"\.{re.escape(name) or '.+'}\.(\d+)\.tmp", path.name)
        if match and (int(match[1]) == os.getpid() or not _runs(int(match[1]))):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only checks that the process exists
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def new_directory(
    target: Path,
    force: bool = False,
    needed: int = 0,
    disk_free: DiskUsage = free_bytes,
    reads: Iterable[Path] = (),
) -> Iterator[Path]:
    """Yields a temporary sibling of ``target`` to fill, which becomes ``target`` on success and is removed on error.

    Raises:
        UserError: ``target`` exists and ``force`` is not given, or ``needed`` bytes do not fit on the disk.
    """
    target = target.absolute()
    require_new(target, force, reads)
    require_free_space(target, needed, disk_free)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target.parent, target.name)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                fsync_path(path)
        publish_directory(temporary, target)
    except OSError as error:
        if disk_is_full(error):
            raise UserError(f"the disk of {target} is full; nothing was written: free some space and rerun") from None
        error.filename = error.filename or str(target)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
