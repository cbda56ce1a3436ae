"""The header of a GGUF file, parsed with bounds checks; the ``gguf`` library decodes the tensors.

``gguf.GGUFReader`` makes an array object for every element of every metadata list and trusts every count: a 1 MB file
with one list takes it 720 MB and half a minute. Here each length is checked against the bytes that are left.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe.errors import UserError

_SCALARS: dict[int, str] = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_MAX_COUNT = 4 << 20  # metadata entries, or elements of one list; the largest vocabularies have 262,144
_MAX_TENSORS = 1 << 20


class _Damaged(Exception):
    """An impossible length or value; the message continues "FILE ..."."""


class _Cursor:
    """Reads consecutive values from mapped bytes, never past their end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position, self.size = data, 0, len(data)

    def take(self, count: int) -> bytes:
        if count < 0 or count > self.size - self.position:
            raise _Damaged(f"announces {count} bytes at byte {self.position} of {self.size}")
        piece = self.data[self.position : self.position + count]
        self.position += count
        return piece

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def count(self, limit: int, what: str, each: int) -> int:
        value = self.scalar("<Q")
        if value > limit or value * each > self.size - self.position:
            raise _Damaged(f"announces {value} {what} at byte {self.position}")
        return value

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8", errors="surrogateescape")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        if kind not in _SCALARS:
            raise _Damaged(f"has a metadata value of unknown type {kind} at byte {self.position}")
        return self.scalar(_SCALARS[kind])

    def array(self) -> list[Any]:
        kind = self.scalar("<I")
        if kind == _STRING:
            return [self.string() for _ in range(self.count(_MAX_COUNT, "strings", 8))]
        if kind not in _SCALARS:
            raise _Damaged(f"has a metadata list of unsupported type {kind} at byte {self.position}")
        dtype = np.dtype("?" if kind == 7 else _SCALARS[kind])
        count = self.count(_MAX_COUNT, "list elements", dtype.itemsize)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype=dtype).tolist()


@dataclass(frozen=True)
class GGUFTensor:
    """One tensor of a GGUF file: its shape in C order (slowest first), quantization type and bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int  # gguf.GGMLQuantizationType
    offset: int
    nbytes: int


class GGUFFile:
    """The checked header of a GGUF file: ``fields`` (metadata as plain values) and ``tensors`` by name.

    Raises:
        UserError: naming the file and the tensor, if one is at fault.
    """

    def __init__(self, path: Path) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType  # 0.3 s, which other formats need not pay

        self.path = path
        self._sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
        self._kinds = {int(kind): kind.name for kind in GGMLQuantizationType}
        self.fields: dict[str, Any] = {}
        self.tensors: dict[str, GGUFTensor] = {}
        try:
            with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._parse(_Cursor(data))
        except FileNotFoundError:
            raise UserError(f"{path} is missing; give the path of a GGUF file") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (_Damaged, ValueError, struct.error) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path} {error}; the file is cut, damaged or not GGUF: download it again") from None

    def _parse(self, cursor: _Cursor) -> None:
        if cursor.take(4) != b"GGUF":
            raise _Damaged("does not begin with GGUF")
        version = cursor.scalar("<I")
        if version not in (2, 3):
            raise UserError(f"{self.path} is GGUF version {version}; supported: 2 and 3 (little-endian)")
        tensor_count = cursor.count(_MAX_TENSORS, "tensors", 24)
        for _ in range(cursor.count(_MAX_COUNT, "metadata entries", 13)):
            key = cursor.string()
            if key in self.fields:
                raise _Damaged(f"has the metadata key {key[:80]!r} twice")
            self.fields[key] = cursor.value(cursor.scalar("<I"))
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Damaged(f"has the alignment {alignment}")
        relative = list(self._tensor_infos(cursor, tensor_count))
        start = -(-cursor.position // alignment) * alignment
        end = start
        for tensor in sorted(relative, key=lambda t: t.offset):
            placed = GGUFTensor(tensor.name, tensor.shape, tensor.kind, start + tensor.offset, tensor.nbytes)
            if placed.offset < end:
                raise _Damaged(f"has a tensor {tensor.name[:80]!r} that overlaps the one before it")
            if tensor.offset % alignment:
                raise _Damaged(f"has a tensor {tensor.name[:80]!r} that is not aligned to {alignment} bytes")
            end = placed.offset + placed.nbytes
            if end > cursor.size:
                raise _Damaged(f"has a tensor {tensor.name[:80]!r} that ends at byte {end} of {cursor.size}")
            self.tensors[tensor.name] = placed

    def _tensor_infos(self, cursor: _Cursor, count: int) -> Iterator[GGUFTensor]:
        seen: set[str] = set()
        for _ in range(count):
            name = cursor.string()
            if name in seen:
                raise _Damaged(f"has the tensor {name[:80]!r} twice")
            seen.add(name)
            dimensions = cursor.scalar("<I")
            if not 1 <= dimensions <= 4:
                raise _Damaged(f"has a tensor {name[:80]!r} of {dimensions} dimensions")
            shape = tuple(reversed([cursor.scalar("<Q") for _ in range(dimensions)]))
            kind, offset = cursor.scalar("<I"), cursor.scalar("<Q")
            if kind not in self._sizes:
                raise _Damaged(f"has a tensor {name[:80]!r} of unknown type {kind}")
            block, size = self._sizes[kind]
            if shape[-1] % block or 0 in shape:
                raise _Damaged(f"has a tensor {name[:80]!r} of shape {list(shape)}, not in blocks of {block}")
            yield GGUFTensor(name, shape, kind, offset, math.prod(shape) // block * size)

    def kind_name(self, tensor: GGUFTensor) -> str:
        """The name of a tensor's quantization type, e.g. ``Q4_K``."""
        return self._kinds[tensor.kind]
