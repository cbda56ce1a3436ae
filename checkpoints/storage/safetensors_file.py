"""Safetensors files: headers checked by the safetensors library, tensors read with plain reads.

A file is 8 bytes (little-endian length of the header), the header (JSON: tensor name to dtype, shape and byte range),
and the data. Data are read into one buffer and never mapped: mapped pages count as resident memory until the file is
closed, and a file that is cut while it is mapped kills the process (SIGBUS) instead of raising an error.
Format: https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from checkpoints.storage.files import readable
from moe.errors import UserError

MAX_HEADER_BYTES = 32 << 20  # the format allows 100 MB; this holds 200,000 tensors and keeps parsing small
MAX_DIMENSIONS = 16
STORED_DTYPES: dict[str, torch.dtype] = {  # by their names in files
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PART_ELEMENTS = 512 << 10  # of one part of a tensor: 1 to 4 MB
_STORED_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in STORED_DTYPES.items()}


@dataclass(frozen=True)
class ByteRange:
    """``nbytes`` bytes of a file, starting at ``offset``."""

    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk, or one computed from such tensors, that is read on demand.

    Attributes:
        read: returns the whole tensor, in ``dtype`` and ``shape``.
        where: the bytes in a file that are this tensor (C order, little-endian), to be copied without decoding; None
            if it has to be decoded or computed.
        in_parts: yields the tensor in pieces along the first dimension, in little memory; see :meth:`parts`.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    where: ByteRange | None = None
    in_parts: Callable[[], Iterator[Tensor]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def parts(self) -> Iterator[Tensor]:
        """Yields the tensor in pieces along the first dimension; tensors of equal shape are cut at the same rows."""
        if self.in_parts is not None:
            yield from self.in_parts()
        elif self.where is None or not self.nbytes:
            whole = self.read()
            yield from whole.split(rows_at_once(self.shape)) if self.shape else [whole]
        else:
            row = self.nbytes // self.shape[0] if self.shape else self.nbytes
            for start, stop in row_ranges(self.shape):
                place = ByteRange(self.where.path, self.where.offset + start * row, (stop - start) * row)
                yield read_range(place, self.dtype, (stop - start, *self.shape[1:]) if self.shape else ())


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread: on small parts, threads cost more in synchronization than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rows_at_once(shape: tuple[int, ...]) -> int:
    """Rows (along the first dimension) of one part of a tensor."""
    return max(1, PART_ELEMENTS // max(1, math.prod(shape[1:])))


def row_ranges(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Start and stop row of each part of a tensor."""
    rows, step = shape[0] if shape else 1, rows_at_once(shape)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def slice_of(tensor: StoredTensor, name: str, start: int, shape: tuple[int, ...]) -> StoredTensor:
    """Consecutive rows of a stored tensor seen as a matrix, from row ``start``, as a tensor of its own."""
    assert tensor.where is not None
    row = math.prod(shape[1:]) * tensor.dtype.itemsize
    where = ByteRange(tensor.where.path, tensor.where.offset + start * row, math.prod(shape) * tensor.dtype.itemsize)
    return StoredTensor(name, tensor.dtype, shape, lambda: read_range(where, tensor.dtype, shape), where)


def computed(like: StoredTensor, dtype: torch.dtype, parts: Callable[[], Iterator[Tensor]]) -> StoredTensor:
    """A tensor with the name and shape of ``like`` that is computed part by part."""

    def read() -> Tensor:
        whole = torch.empty(like.shape, dtype=dtype)
        flat, done = whole.view(-1), 0
        for part in parts():
            flat[done : done + part.numel()] = part.reshape(-1)
            done += part.numel()
        return whole

    return replace(like, dtype=dtype, read=read, where=None, in_parts=parts)


def read_range(where: ByteRange, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """Reads one tensor from its bytes; raises :class:`UserError` when the file was cut after it was opened."""
    buffer = torch.empty(where.nbytes, dtype=torch.uint8)
    view = buffer.numpy().data
    done = 0
    with readable(where.path), open(where.path, "rb", buffering=0) as file:
        file.seek(where.offset)
        while done < where.nbytes:
            count = file.readinto(view[done:])
            if not count:
                raise UserError(f"{where.path} ended at byte {where.offset + done}; the file was cut: copy it again")
            done += count
    return buffer.view(dtype).reshape(shape)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name appears twice")
    return result


def _read_header(path: Path) -> tuple[Any, int]:
    """Returns the header as parsed and the offset at which the data begin.

    The bytes are read, not mapped: a disk error raises :class:`UserError` here; in mapped memory it kills the process.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, size - 8):
                raise UserError(
                    f"{path} announces a header of {length} bytes in a file of {size}; it is cut, damaged or not "
                    "safetensors: download it again"
                )
            raw = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; download the whole checkpoint again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates), 8 + length
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a damaged header ({error}); download it again") from None


class SafetensorsFile:
    """The checked contents of one safetensors file: ``tensors`` by name and the string ``metadata``.

    The safetensors library checks the header against its format and the size of the file. Added here: a limit on its
    length, no duplicate names, and dtypes and shapes that torch can hold.

    Raises:
        UserError: naming the file and the tensor, if one is at fault.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        header, data_start = _read_header(path)
        try:
            with safe_open(path, framework="np") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
                self.tensors: dict[str, StoredTensor] = {
                    name: self._stored(name, file.get_slice(name), data_start + entry["data_offsets"][0])
                    for name, entry in header.items()
                    if name != "__metadata__"
                }
        except (SafetensorError, OSError) as error:
            reason = " ".join(str(error).removeprefix("Error while deserializing header: ").replace("`", "'").split())
            raise UserError(f"{path}: {reason[:200]}; the file is cut or damaged: download it again") from None

    def _stored(self, name: str, described: Any, offset: int) -> StoredTensor:
        dtype_name, shape = described.get_dtype(), tuple(described.get_shape())
        if dtype_name not in STORED_DTYPES:
            raise UserError(
                f"{self.path}: tensor {name!r} has dtype {dtype_name!r}; supported: {', '.join(STORED_DTYPES)}: "
                "convert the checkpoint first"
            )
        if len(shape) > MAX_DIMENSIONS or math.prod(max(size, 1) for size in shape) >= 1 << 62:  # 0 x 2^62 x 2^62
            raise UserError(f"{self.path}: tensor {name!r} has the shape {str(list(shape))[:80]}; download it again")
        dtype = STORED_DTYPES[dtype_name]
        where = ByteRange(self.path, offset, math.prod(shape) * dtype.itemsize)
        return StoredTensor(name, dtype, shape, lambda: read_range(where, dtype, shape), where)


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered from all ranks if it is sharded (:func:`moe.training.sharding.whole`)."""
    if not hasattr(tensor, "full_tensor"):
        return tensor.detach()
    from moe.training import sharding  # imports what only training needs

    return sharding.whole(tensor)


def memory_tensor(name: str, tensor: Tensor) -> StoredTensor:
    """Wraps a tensor in memory as a :class:`StoredTensor`; of a sharded one :func:`whole` is read."""
    return StoredTensor(name, tensor.dtype, tuple(tensor.shape), lambda: whole(tensor))


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Returns the bytes of a tensor (C order), without a copy when it is contiguous on the CPU."""
    flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data


def tensors_digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the bytes of several tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def encode_header(tensors: Iterable[StoredTensor], metadata: dict[str, str]) -> bytes:
    """Builds the length and header of a file that holds the tensors in this order; the data start 8-byte aligned."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for tensor in tensors:
        assert tensor.name not in header, f"{tensor.name} would be written twice"
        header[tensor.name] = {
            "dtype": _STORED_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors in memory to one file and flushes it to disk. Not atomic."""
    stored = [memory_tensor(name, tensor) for name, tensor in tensors.items()]
    with open(path, "wb") as file:
        file.write(encode_header(stored, {"format": "pt"} if metadata is None else metadata))
        for tensor in stored:
            file.write(tensor_bytes(tensor.read()))
        file.flush()
        os.fsync(file.fileno())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads all tensors of one file into memory; raises :class:`UserError` for a damaged file."""
    return {name: stored.read() for name, stored in SafetensorsFile(path).tensors.items()}
