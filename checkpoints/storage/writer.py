"""Writes model directories: streams tensors into shards with checksums, then publishes them with one rename.

Tensors whose bytes lie in a file are copied in chunks without decoding; others are decoded or computed one at a time,
most of them in parts. Memory is at most one tensor, whatever the size of the model.

A long job is prepared in ``.NAME.partial`` beside its target. Each finished shard is flushed and recorded with its
checksums in ``job.json``; a rerun of the same job verifies the recorded shards and continues after them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.storage.files import (
    DiskUsage,
    disk_is_full,
    format_bytes,
    free_bytes,
    partial_path,
    publish_directory,
    read_json_object,
    require_free_space,
    require_new,
    sha256_file,
    write_bytes,
    write_json,
)
from checkpoints.storage.manifest import MANIFEST
from checkpoints.storage.safetensors_file import ByteRange, StoredTensor, computed
from checkpoints.storage.shard_writer import Progress, write_shard
from moe.errors import UserError
from moe.files import fsync_path, json_bytes, replace_file

JOB = "job.json"
MAX_SHARD_BYTES = 4 << 30
SMALL_FILES_BYTES = 64 << 20  # room for tokenizer files, configs and the manifest when disk space is checked


@dataclass(frozen=True)
class Output:
    """The content of a model directory.

    Attributes:
        tensors: in file order, under their names in the file.
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
    return computed(tensor, dtype, lambda: (part.to(dtype) for part in tensor.parts()))


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


def job_identity(description: Mapping[str, Any]) -> str:
    """A fingerprint of everything that determines a job's output; jobs with equal ones share finished shards."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Creates and locks the job's directory; raises :class:`UserError` when another process holds it."""
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(descriptor), os.stat(directory))
        except (BlockingIOError, FileNotFoundError):  # another process holds it, or has just published it
            held = False
        if not held:
            raise UserError(f"another process is writing {directory}; wait for it or give another output")
        yield
    finally:
        os.close(descriptor)


def _noted_shards(directory: Path, identity: str) -> dict[str, Any]:
    """Checksums that an earlier run of the same job recorded, in job.json while running or in its final manifest."""
    for name in (JOB, MANIFEST):
        if (directory / name).is_file():
            document = read_json_object(directory / name)
            files = document.get("files")
            if document.get("job") != identity or not isinstance(files, dict):
                return {}
            return {n: e for n, e in files.items() if isinstance(e, dict) and isinstance(e.get("sha256"), str)}
    return {}


def _require_whole(directory: Path, noted: Mapping[str, Any], progress: Progress) -> None:
    """Verifies the files of a job that has finished; raises :class:`UserError` for one that is missing or changed."""
    for name, entry in noted.items():
        path = directory / name
        if not path.is_file() or sha256_file(path, progress) != entry["sha256"]:
            what = "is not as it was written" if path.exists() else "is missing"
            raise UserError(f"{path} {what}, though this job was finished before; add --force to write it again")


def _finished_shards(
    directory: Path, identity: str | None, names: set[str], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Returns the intact shards of an interrupted run of the same job; removes everything else."""
    finished: dict[str, dict[str, Any]] = {}
    for name, entry in _noted_shards(directory, identity).items() if identity is not None else ():
        path = directory / name
        noted = name in names and isinstance(entry.get("crc32"), dict)
        if noted and path.is_file() and sha256_file(path, progress) == entry["sha256"]:
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
    """Writes a model directory atomically.

    Args:
        identity: a fingerprint of the job (:func:`job_identity`): finished shards survive a kill and the next run
            reuses them. Without one an interrupted run leaves nothing.
        progress: gets the byte count of every chunk written or verified.
        reads: files that the tensors come from, which ``target`` must not replace.

    Returns:
        The manifest, also written as ``manifest.json``: size and SHA-256 of every file, CRC-32 of every tensor.

    Raises:
        UserError: the target exists and ``force`` is not given, another process writes it, or the disk is too small.
    """
    target = target.absolute()
    if identity is not None and not force and target.is_dir() and (noted := _noted_shards(target, identity)):
        _require_whole(target, noted, progress)
        return read_json_object(target / MANIFEST)  # an earlier run finished this job
    require_new(target, force, reads)
    shards = plan_shards(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    directory = partial_path(target)
    existing = sum(path.stat().st_size for path in directory.glob("*.safetensors")) if directory.is_dir() else 0
    require_free_space(target, output.nbytes + SMALL_FILES_BYTES - existing, disk_free)
    with _locked(directory):
        try:
            known: dict[ByteRange, str] = {}
            entries = _finished_shards(directory, identity, {name for name, _ in shards}, progress)
            for name, tensors in shards:
                if name not in entries:
                    entries[name] = write_shard(directory / name, tensors, output.metadata, progress, known)
                    if identity is not None:
                        job = {"job": identity, "files": entries}
                        replace_file(directory / JOB, json.dumps(job, indent=2).encode())
            manifest = _write_small_files(directory, output, shards, entries, identity)
            (directory / JOB).unlink(missing_ok=True)
            publish_directory(directory, target)
        except BaseException as error:
            full = disk_is_full(error)
            if full or identity is None or isinstance(error, UserError):
                shutil.rmtree(directory, ignore_errors=True)
            if full:
                raise UserError(
                    f"the disk of {target} is full ({format_bytes(output.nbytes)} needed in all); nothing was written: "
                    "free some space and rerun"
                ) from None
            if isinstance(error, OSError) and error.filename is None:
                raise UserError(f"{target} cannot be written: {error.strerror}; check its disk and rerun") from error
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
