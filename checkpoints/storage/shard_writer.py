"""Writes one safetensors file at disk speed and computes its checksums on the way.

Bytes go through a ring of page-aligned buffers: while one is filled, earlier ones are hashed by one thread and written
by others. Where the file system allows it, writes bypass the page cache (``O_DIRECT``): that takes a tenth of the CPU
time, starts the disk with the first buffer, and leaves the cache to the source, which is read once for each expert.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import zlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from checkpoints.storage.files import readable
from checkpoints.storage.safetensors_file import ByteRange, StoredTensor, encode_header, one_thread, tensor_bytes
from moe.errors import UserError

BUFFER_BYTES = 8 << 20
BUFFERS = 4
BLOCK_BYTES = 4096  # direct writes start and end at multiples of a disk block, 512 or 4,096 bytes
WRITERS = 2  # so that the next buffer is queued when the disk finishes one

Progress = Callable[[int], None]


class ShardFile:
    """A new file that is written sequentially; a context manager.

    :meth:`write` and :meth:`copy` append bytes; the file is complete after :meth:`finish`.

    Args:
        progress: gets the byte count of every piece.
        known: CRC-32 of byte ranges copied before, shared by the shards of a directory: experts that start as copies
            of one feed-forward come from the same range.
    """

    def __init__(self, path: Path, progress: Progress, known: MutableMapping[ByteRange, str]) -> None:
        self.progress, self.known = progress, known
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        try:
            self.descriptor, self.direct = os.open(path, flags | os.O_DIRECT, 0o666), True
        except (OSError, AttributeError):  # no direct writes on this file system or platform
            self.descriptor, self.direct = os.open(path, flags, 0o666), False
        self.buffers = [mmap.mmap(-1, BUFFER_BYTES) for _ in range(BUFFERS)]
        self.hasher, self.writers = ThreadPoolExecutor(1), ThreadPoolExecutor(WRITERS)
        self.busy: list[list[Future]] = [[] for _ in range(BUFFERS)]  # hashing and writing that still use each buffer
        self.number = 0  # of the buffer being filled, counted from the start of the file
        self.filled = 0  # bytes in it
        self.digest = hashlib.sha256()
        self.checksum = 0  # CRC-32 of the current tensor, to locate a flipped bit later

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.hasher.shutdown()
        self.writers.shutdown()
        os.close(self.descriptor)

    def write(self, data: bytes | memoryview) -> None:
        """Appends bytes."""
        view = memoryview(data)
        while view:
            free = self._free_part()
            count = min(len(free), len(view))
            free[:count] = view[:count]
            self._advance(count, True)
            view = view[count:]

    def copy(self, where: ByteRange) -> None:
        """Appends bytes of another file without decoding them."""
        left = where.nbytes
        with open(where.path, "rb", buffering=0) as source:
            source.seek(where.offset)
            while left:
                free = self._free_part()[:left]  # raises errors of earlier writes
                with readable(where.path):
                    count = source.readinto(free)
                if not count:
                    raise UserError(f"{where.path} ended early; the file was cut while it was read: copy it again")
                self._advance(count, where not in self.known)
                left -= count

    def tensor_checksum(self, where: ByteRange | None = None) -> str:
        """Hexadecimal CRC-32 of the bytes since the last call (a copy of ``where``, if given)."""
        found = self.known.get(where) if where is not None else None
        if found is None:
            found = self.hasher.submit(self._take_checksum).result()  # queued after all hashing so far
            if where is not None:
                self.known[where] = found
        return found

    def finish(self) -> str:
        """Writes the rest, flushes the file to disk, and returns its SHA-256."""
        size = self.number * BUFFER_BYTES + self.filled
        if self.filled:
            self._submit(-(-self.filled // BLOCK_BYTES) * BLOCK_BYTES)
        for futures in self.busy:
            self._wait(futures)
        os.ftruncate(self.descriptor, size)  # the last block was padded
        os.fsync(self.descriptor)
        return self.digest.hexdigest()

    def _free_part(self) -> memoryview:
        """The free part of the buffer being filled."""
        if self.filled == 0:
            self._wait(self.busy[self.number % BUFFERS])
        return memoryview(self.buffers[self.number % BUFFERS])[self.filled :]

    def _advance(self, count: int, checksum: bool) -> None:
        slot = self.number % BUFFERS
        part = memoryview(self.buffers[slot])[self.filled : self.filled + count]
        self.busy[slot].append(self.hasher.submit(self._hash, part, checksum))
        self.filled += count
        self.progress(count)
        if self.filled == BUFFER_BYTES:
            self._submit(BUFFER_BYTES)
            self.number, self.filled = self.number + 1, 0

    def _submit(self, size: int) -> None:
        slot = self.number % BUFFERS
        view = memoryview(self.buffers[slot])[:size]
        self.busy[slot].append(self.writers.submit(self._write_at, view, self.number * BUFFER_BYTES))

    def _hash(self, data: memoryview, checksum: bool) -> None:
        # one thread, so pieces are hashed in file order
        self.digest.update(data)
        if checksum:
            self.checksum = zlib.crc32(data, self.checksum)

    def _take_checksum(self) -> str:
        value, self.checksum = self.checksum, 0
        return f"{value:08x}"

    def _write_at(self, data: memoryview, offset: int) -> None:
        while data:
            direct = self.direct  # read before the write: another thread may turn it off meanwhile
            try:
                count = os.pwrite(self.descriptor, data, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not direct:
                    raise
                self._leave_direct()
                continue
            data, offset = data[count:], offset + count

    def _leave_direct(self) -> None:
        """Falls back to the page cache when a direct write is refused; harmless when called twice."""
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        self.direct = False

    @staticmethod
    def _wait(futures: list[Future]) -> None:
        for future in futures:
            future.result()
        futures.clear()


def _write_parts(shard: ShardFile, tensor: StoredTensor) -> None:
    # a separate function, so that no variable keeps the last part alive while the next tensor is read
    count = 0
    with one_thread() if tensor.in_parts is not None else nullcontext():
        for part in tensor.parts():
            assert part.dtype == tensor.dtype and part.shape[1:] == tensor.shape[1:], tensor.name
            shard.write(tensor_bytes(part))
            count += part.nbytes
    assert count == tensor.nbytes, tensor.name


def write_shard(
    path: Path,
    tensors: Sequence[StoredTensor],
    metadata: Mapping[str, str],
    progress: Progress,
    known: MutableMapping[ByteRange, str],
) -> dict[str, Any]:
    """Writes one safetensors file and flushes it to disk; returns its SHA-256 and its tensors' CRC-32."""
    checksums = {}
    with ShardFile(path, progress, known) as shard:
        shard.write(encode_header(tensors, dict(metadata)))
        shard.tensor_checksum()
        for tensor in tensors:
            if tensor.where is not None:
                shard.copy(tensor.where)
            else:
                _write_parts(shard, tensor)
            checksums[tensor.name] = shard.tensor_checksum(tensor.where)
        digest = shard.finish()
    return {"sha256": digest, "crc32": checksums}
