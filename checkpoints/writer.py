"""Writes model directories: tensors streamed into shards, checksummed on the way, published by one rename.

Tensors that lie in a file as they are get copied chunk by chunk without being decoded; others are read (decoded,
generated) one at a time. So memory is one tensor at most, whatever the size of the model. While one chunk is written,
the next is read, a second thread computes the SHA-256, and a third has what was written flushed to the disk.

A long job is prepared in ``.NAME.partial`` beside its target. Each finished shard is flushed and noted with its
checksum in ``job.json``; a rerun of the same job verifies the noted shards and goes on after them.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from checkpoints.files import (
    CHUNK_BYTES,
    DiskUsage,
    format_bytes,
    free_bytes,
    fsync_path,
    json_bytes,
    partial_path,
    publish_directory,
    read_json_object,
    replace_file,
    require_free_space,
    require_new,
    sha256_file,
    write_bytes,
    write_json,
)
from checkpoints.safetensors_file import ByteRange, StoredTensor, encode_header, tensor_bytes
from moe.errors import UserError

MANIFEST = "manifest.json"
JOB = "job.json"
MAX_SHARD_BYTES = 4 << 30
FLUSH_BYTES = 64 << 20  # after which the disk is set to work: left till a shard's end it would stand idle till then
SMALL_FILES_BYTES = 64 << 20  # room for tokenizer files, configs and the manifest when disk space is checked

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Output:
    """What a model directory shall contain.

    Attributes:
        tensors: in the order in which they are written, under the names they get.
        documents: JSON files by name.
        files: other small files by name, as bytes or as the path of a file to copy.
        stem: ``model`` gives model.safetensors, or model-00001-of-0000N.safetensors and an index.
        metadata: strings for the header of each tensor file.
    """

    tensors: Sequence[StoredTensor]
    documents: Mapping[str, Any]
    files: Mapping[str, bytes | Path] = field(default_factory=dict)
    stem: str = "model"
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})
    max_shard_bytes: int = MAX_SHARD_BYTES

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


def in_dtype(tensor: StoredTensor, dtype: torch.dtype | None) -> StoredTensor:
    """The same tensor in another dtype (None: as it is)."""
    if dtype is None or dtype == tensor.dtype:
        return tensor
    return replace(tensor, dtype=dtype, read=lambda: tensor.read().to(dtype), where=None)


def renamed(tensor: StoredTensor, name: str) -> StoredTensor:
    """The same tensor under another name."""
    return replace(tensor, name=name)


def plan_shards(output: Output) -> list[tuple[str, list[StoredTensor]]]:
    """Splits the tensors into files of at most ``max_shard_bytes`` (a larger tensor gets a file of its own)."""
    groups: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in output.tensors:
        if groups[-1] and size + tensor.nbytes > output.max_shard_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    if len(groups) == 1:
        return [(f"{output.stem}.safetensors", groups[0])]
    count = len(groups)
    return [(f"{output.stem}-{i:05d}-of-{count:05d}.safetensors", group) for i, group in enumerate(groups, 1)]


class _HashingWriter:
    """Writes buffers to a file while one thread hashes them and another keeps the disk busy; two buffers take turns."""

    def __init__(
        self, file: BinaryIO, pool: ThreadPoolExecutor, flusher: ThreadPoolExecutor, progress: Progress
    ) -> None:
        self.file, self.pool, self.flusher, self.progress = file, pool, flusher, progress
        self.digest = hashlib.sha256()
        self.checksum = 0  # CRC-32 of the tensor that is being written, to tell which one a flipped bit is in
        self.pending: list[Any] = [None, None]
        self.buffers = [bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)]
        self.turn = 0
        self.flush: Any = None
        self.unflushed = 0

    def write(self, data: bytes | memoryview) -> None:
        """Writes bytes that stay as they are until :meth:`finish` or the second next write."""
        slot = self.turn
        self._wait(slot)
        self.pending[slot] = self.pool.submit(self._hash, data)
        # one digest, so one thread: chunks are hashed in the order in which they were submitted
        view = memoryview(data)
        while view:
            view = view[self.file.write(view) :]
        self.progress(len(data))
        self.turn = 1 - slot
        self.unflushed += len(data)
        if self.unflushed >= FLUSH_BYTES and (self.flush is None or self.flush.done()):
            self._flushed()
            self.flush, self.unflushed = self.flusher.submit(os.fdatasync, self.file.fileno()), 0

    def _hash(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.checksum = zlib.crc32(data, self.checksum)

    def tensor_checksum(self) -> str:
        """CRC-32 of what was written since the last call, in hexadecimal."""
        self._wait(0)
        self._wait(1)
        value, self.checksum = self.checksum, 0
        return f"{value:08x}"

    def _wait(self, slot: int) -> None:
        if self.pending[slot] is not None:
            self.pending[slot].result()
            self.pending[slot] = None

    def _flushed(self) -> None:
        if self.flush is not None:
            self.flush.result()  # an error of the disk is told to one flush only, so each is asked

    def copy(self, where: ByteRange) -> None:
        """Copies bytes of another file without looking at them."""
        left = where.nbytes
        with open(where.path, "rb", buffering=0) as source:
            source.seek(where.offset)
            while left:
                self._wait(self.turn)
                view = memoryview(self.buffers[self.turn])[: min(left, CHUNK_BYTES)]
                count = source.readinto(view)
                if not count:
                    raise UserError(f"{where.path} ended early; the file was cut while it was read: copy it again")
                self.write(view[:count])
                left -= count

    def finish(self) -> str:
        """Waits for everything, flushes the file to the disk, and returns its SHA-256."""
        self._wait(0)
        self._wait(1)
        self._flushed()
        os.fsync(self.file.fileno())
        return self.digest.hexdigest()


def write_shard(
    path: Path, tensors: Sequence[StoredTensor], metadata: Mapping[str, str], progress: Progress
) -> dict[str, Any]:
    """Writes one safetensors file and flushes it to the disk; returns its SHA-256 and its tensors' CRC-32."""
    checksums = {}
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as flusher:
        writer = _HashingWriter(file, pool, flusher, progress)
        writer.write(encode_header(tensors, dict(metadata)))
        writer.tensor_checksum()
        for tensor in tensors:
            if tensor.where is not None:
                writer.copy(tensor.where)
            else:
                value = tensor.read()
                assert value.dtype == tensor.dtype and tuple(value.shape) == tensor.shape, tensor.name
                data = tensor_bytes(value)
                for start in range(0, len(data), CHUNK_BYTES):
                    writer.write(data[start : start + CHUNK_BYTES])
            checksums[tensor.name] = writer.tensor_checksum()
        digest = writer.finish()
    return {"sha256": digest, "crc32": checksums}


def job_identity(description: Mapping[str, Any]) -> str:
    """A fingerprint of everything that decides a job's output; equal fingerprints may share finished shards."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Makes and holds the job's directory; raises :class:`UserError` when another process is at the same job."""
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = directory.exists() and os.path.samestat(os.fstat(descriptor), os.stat(directory))
        except OSError:
            held = False
        if not held:
            raise UserError(f"another process is writing {directory}; wait for it or give another output")
        yield
    finally:
        os.close(descriptor)


def _noted_shards(directory: Path, identity: str) -> dict[str, Any]:
    """Checksums that an earlier run of the same job noted, while it went on (job.json) or at its end (the manifest)."""
    for name in (JOB, MANIFEST):
        if (directory / name).is_file():
            document = read_json_object(directory / name)
            files = document.get("files")
            return files if document.get("job") == identity and isinstance(files, dict) else {}
    return {}


def _finished_shards(
    directory: Path, identity: str | None, names: set[str], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Returns the shards of an interrupted run of the same job that are whole; removes everything else."""
    finished: dict[str, dict[str, Any]] = {}
    for name, entry in _noted_shards(directory, identity).items() if identity is not None else ():
        path = directory / name
        if name in names and path.is_file() and sha256_file(path, progress) == entry["sha256"]:
            finished[name] = {key: entry[key] for key in ("sha256", "crc32")}
    for entry in list(directory.iterdir()):
        if entry.name not in finished:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    return finished


def write_model_directory(
    target: Path,
    output: Output,
    *,
    force: bool = False,
    identity: str | None = None,
    progress: Progress = lambda count: None,
    disk_free: DiskUsage = free_bytes,
    reads: Iterable[Path] = (),
) -> dict[str, Any]:
    """Writes a model directory so that it appears whole or not at all.

    Args:
        identity: with a fingerprint of the job (:func:`job_identity`), finished shards survive a kill and are reused
            by the next run; without one an interrupted run leaves nothing.
        progress: told the bytes of every chunk that was written or verified.
        reads: files that the tensors come from, which ``target`` must not replace.

    Returns:
        The manifest, also written as ``manifest.json``: bytes and SHA-256 of every file.

    Raises:
        UserError: the target exists and ``force`` is not given, another process is at it, or the disk is too small.
    """
    target = target.absolute()
    if identity is not None and not force and target.is_dir() and _noted_shards(target, identity):
        return read_json_object(target / MANIFEST)  # this very job was finished before
    require_new(target, force, reads)
    shards = plan_shards(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    directory = partial_path(target)
    existing = sum(path.stat().st_size for path in directory.glob("*.safetensors")) if directory.is_dir() else 0
    require_free_space(target, output.nbytes + SMALL_FILES_BYTES - existing, disk_free)
    with _locked(directory):
        try:
            entries = _finished_shards(directory, identity, {name for name, _ in shards}, progress)
            for name, tensors in shards:
                if name not in entries:
                    entries[name] = write_shard(directory / name, tensors, output.metadata, progress)
                    if identity is not None:
                        job = {"job": identity, "files": entries}
                        replace_file(directory / JOB, json.dumps(job, indent=2).encode())
            manifest = _write_small_files(directory, output, shards, entries, identity)
            (directory / JOB).unlink(missing_ok=True)
            publish_directory(directory, target)
        except BaseException as error:
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            if full or identity is None or isinstance(error, UserError):
                shutil.rmtree(directory, ignore_errors=True)
            if full:
                raise UserError(
                    f"the disk of {target} is full ({format_bytes(output.nbytes)} needed in all); nothing was written: "
                    "free some space and rerun"
                ) from None
            raise
    return manifest


def _write_small_files(
    directory: Path,
    output: Output,
    shards: list[tuple[str, list[StoredTensor]]],
    noted: Mapping[str, Mapping[str, Any]],
    identity: str | None,
) -> dict[str, Any]:
    for name, content in output.files.items():
        if isinstance(content, bytes):
            write_bytes(directory / name, content)
        else:
            shutil.copyfile(content, directory / name)
            fsync_path(directory / name)
    for name, document in output.documents.items():
        write_json(directory / name, document)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, tensors in shards for tensor in tensors}
        index = {"metadata": {"total_size": output.nbytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / f"{output.stem}.safetensors.index.json", index)
    entries = {}
    for path in sorted(directory.iterdir()):
        if path.name == JOB:
            continue
        checksums = noted.get(path.name) or {"sha256": sha256_file(path)}
        entries[path.name] = {"bytes": path.stat().st_size, **checksums}
    manifest = {"format_version": 1, **({"job": identity} if identity else {}), "files": entries}
    write_json(directory / MANIFEST, manifest)
    return manifest


def add_to_directory(directory: Path, name: str, content: bytes) -> None:
    """Adds or replaces one small file of a finished model directory, and its entry in the manifest."""
    replace_file(directory / name, content)
    manifest = read_json_object(directory / MANIFEST)
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"] = dict(sorted(manifest["files"].items()))
    replace_file(directory / MANIFEST, json_bytes(manifest))
