"""Safe files: JSON with bounds, checksums, free space, and directories that appear whole or not at all.

Nothing is written in place. A directory is filled under a temporary sibling name, every file and the directory itself
are flushed to the disk (``fsync``), and then one rename makes it visible. A process killed at any point leaves the old
state or the new one, plus at most the temporary sibling.
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
MODEL_FILES = ("config.json", "manifest.json", "params.json")  # or tensor files: what tells a model

DiskUsage = Callable[[Path], int]  # free bytes at a path; a parameter so that tests can have a full disk


def free_bytes(path: Path) -> int:
    """Returns the free bytes of the disk on which ``path`` is, or would be created."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def format_bytes(count: float) -> str:
    """Writes a number of bytes for people, for example ``13.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def directory_bytes(directory: Path) -> int:
    """Bytes of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def require_free_space(path: Path, needed: int, disk_free: DiskUsage = free_bytes) -> None:
    """Raises :class:`UserError` before anything is written when ``needed`` bytes do not fit on the disk of ``path``."""
    free = disk_free(path)
    if free < needed:
        raise UserError(
            f"not enough disk for {path}: {format_bytes(needed)} needed, {format_bytes(free)} free; "
            "free some space or give an output path on another disk"
        )


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Reads a JSON file of at most ``limit`` bytes; raises :class:`UserError` naming the file when it cannot."""
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
    """Like :func:`read_json`, and the document has to be an object."""
    document = read_json(path, limit)
    if not isinstance(document, dict):
        raise UserError(f"{path} holds a JSON {type(document).__name__}; expected an object")
    return document


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file and flushes it to the disk. Not atomic by itself: for files inside a directory not yet visible."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document and flushes it to the disk."""
    write_bytes(path, json_bytes(document))


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Around reading a file: what the system says, a bad disk for example, becomes a :class:`UserError` naming it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def disk_is_full(error: BaseException) -> bool:
    """Whether the system refused to write because the disk, or what this user may fill of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def sha256_file(path: Path, progress: Callable[[int], None] | None = None) -> str:
    """Returns the SHA-256 of a file in hexadecimal, read in chunks; ``progress`` is told the bytes of each chunk."""
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
    """Copies the content of one file and flushes the copy to the disk."""
    shutil.copyfile(source, target)
    fsync_path(target)


def inside(directory: Path, name: str, told_by: Path) -> Path:
    """Returns ``directory / name`` for a file name read from ``told_by``; refuses names that leave the directory."""
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", ".."):
        raise UserError(f"{told_by} names the file {name!r}; expected a plain file name inside {directory}")
    return directory / name


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two directory entries in one system call (Linux ``renameat2``); False where the system cannot."""
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

    With an existing target the two are exchanged in one system call where Linux has it, so that ``target`` is whole at
    any moment; elsewhere two renames are needed, and a kill between them leaves the old state beside ``target``.
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
    """A file and the directories above it, as it is named and, where links are on the way, as it is stored."""
    found = (Path(os.path.abspath(path)), path.parent.resolve() / path.name, path.resolve())
    return {place for name in found for place in (name, *name.parents)}


def require_new(target: Path, force: bool, reads: Iterable[Path] = ()) -> None:
    """Checks that an output directory can be made without losing anything.

    Args:
        force: an existing directory may be replaced; only one that is empty or holds a model, so that a mistyped path
            never costs anybody's other files.
        reads: files that the job reads. ``target`` must not contain them, even with ``force``: replacing the base of a
            delta directory by that delta directory would leave neither.

    Raises:
        UserError: it exists and may not be replaced, contains what is read, or lies below a file.
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
            f"{target} holds something that is no model, for example {min(found)}; --force does not replace that: give "
            "another output directory"
        )


def partial_path(target: Path) -> Path:
    """The sibling in which ``target`` is prepared; the same name each time, so that a rerun finds what is finished."""
    return target.with_name(f".{target.name}.partial")


def _remove_abandoned(target: Path) -> None:
    """Removes temporary siblings of ``target`` that processes left which are no more (or this very process)."""
    for path in target.parent.iterdir():
        match = re.fullmatch(rf"\.{re.escape(target.name)}\.(\d+)\.tmp", path.name)
        if match and (int(match[1]) == os.getpid() or not _runs(int(match[1]))):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 is not sent, only checked
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
    """Gives a temporary sibling of ``target`` to fill; on success it becomes ``target``, on an error it is removed.

    Raises:
        UserError: ``target`` exists and ``force`` is not given, or ``needed`` bytes do not fit on the disk.
    """
    target = target.absolute()
    require_new(target, force, reads)
    require_free_space(target, needed, disk_free)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
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
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
