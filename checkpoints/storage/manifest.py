"""The manifest of a model directory: size and SHA-256 of each file, CRC-32 of each tensor, which loading compares."""

from __future__ import annotations

import os
import shlex
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checkpoints.storage.files import CHUNK_BYTES, MODEL_FILES, read_json_object
from checkpoints.storage.safetensors_file import SafetensorsFile, StoredTensor
from moe.errors import UserError

MANIFEST = "manifest.json"


def manifest_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Reads a manifest's entries; raises :class:`UserError` if it is missing or damaged."""
    path = directory / MANIFEST
    if not path.is_file():
        if not any((directory / name).is_file() for name in MODEL_FILES):
            raise UserError(f"{directory} is not a model; give a model directory")
        raise UserError(
            f"{directory} has no {MANIFEST}, so its bytes cannot be checked; write one with: "
            f"python -m checkpoints verify {shlex.quote(str(directory))} --write"
        )
    entries = read_json_object(path).get("files")
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int)
        for entry in entries.values()
    ):
        raise UserError(f"{path} is damaged: it has no map from file names to bytes and sha256; write it again")
    return entries


def crc32(tensor: StoredTensor) -> str:
    """CRC-32 of a tensor's bytes in its file, as a manifest has it."""
    where = tensor.where
    assert where is not None, "tensors of a file have their bytes in it"
    value, left = 0, where.nbytes
    with open(where.path, "rb", buffering=0) as file:
        file.seek(where.offset)
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            value = zlib.crc32(chunk, value)
            left -= len(chunk)
    return f"{value:08x}"


def damaged_tensor(path: Path, checksums: Any) -> str:
    """Names the first tensor of a damaged file whose bytes changed, for an error message."""
    if path.suffix != ".safetensors" or not isinstance(checksums, Mapping):
        return ""
    for name, tensor in SafetensorsFile(path).tensors.items():
        if checksums.get(name) != crc32(tensor):
            return f": tensor {name!r} is damaged"
    return ": its header is damaged"


def check_tensors(files: Iterable[Path]) -> None:
    """Compares the tensors of weight files with the manifest beside them; files without one pass.

    CRC-32 takes about a second per gigabyte and core; all cores work at it.

    Raises:
        UserError: naming the tensor that is not as it was written.
    """
    expected: list[tuple[StoredTensor, Any]] = []
    for path in files:
        if path.suffix != ".safetensors" or not (path.parent / MANIFEST).is_file():
            continue
        checksums = manifest_files(path.parent).get(path.name, {}).get("crc32")
        if isinstance(checksums, Mapping):
            expected += [(tensor, checksums.get(name)) for name, tensor in SafetensorsFile(path).tensors.items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(crc32, [tensor for tensor, _ in expected])
        for (tensor, wanted), value in zip(expected, found, strict=True):
            if value != wanted and tensor.where is not None:
                raise UserError(
                    f"{tensor.where.path}: tensor {tensor.name!r} does not have the checksum in {MANIFEST}; copy the "
                    "file again, or load it as it is with --no-check"
                )
