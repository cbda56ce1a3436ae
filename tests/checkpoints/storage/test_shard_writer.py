"""A shard's bytes and checksums are right whatever its sizes, and whatever the file system does."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoints.storage import shard_writer
from checkpoints.storage.safetensors_file import ByteRange
from checkpoints.storage.shard_writer import ShardFile
from moe.errors import UserError


@pytest.fixture
def small_buffers(monkeypatch):
    monkeypatch.setattr(shard_writer, "BUFFER_BYTES", 8192)


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)


def check(path, pieces, known=None) -> None:
    """Writes the pieces (bytes, or ranges of files) and compares the file and all checksums."""
    counted = []
    contents = []
    with ShardFile(path, counted.append, {} if known is None else known) as shard:
        for piece in pieces:
            if isinstance(piece, ByteRange):
                shard.copy(piece)
                with open(piece.path, "rb") as file:
                    file.seek(piece.offset)
                    contents.append(file.read(piece.nbytes))
                found = shard.tensor_checksum(piece)
            else:
                shard.write(piece)
                contents.append(piece)
                found = shard.tensor_checksum()
            assert found == f"{zlib.crc32(contents[-1]):08x}"
        digest = shard.finish()
    whole = b"".join(contents)
    assert path.read_bytes() == whole and sum(counted) == len(whole)
    assert digest == hashlib.sha256(whole).hexdigest()


@given(st.lists(st.integers(0, 30_000), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_any_sizes(tmp_path_factory, sizes, data):
    folder = tmp_path_factory.mktemp("shard")
    (folder / "source").write_bytes(noise(60_000, 1))
    pieces = []
    for number, size in enumerate(sizes):
        if data.draw(st.booleans()):
            pieces.append(ByteRange(folder / "source", data.draw(st.integers(0, 30_000)), size))
        else:
            pieces.append(noise(size, number))
    before, shard_writer.BUFFER_BYTES = shard_writer.BUFFER_BYTES, 8192
    try:
        check(folder / "shard", pieces)
    finally:
        shard_writer.BUFFER_BYTES = before


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8191, 8192, 8193, 32768, 100_001])
def test_sizes_at_the_edges_of_blocks_and_buffers(tmp_path, small_buffers, size):
    check(tmp_path / "shard", [noise(size)])


def test_real_buffers(tmp_path):
    check(tmp_path / "shard", [noise(11 << 20), noise(5), noise((8 << 20) * 4 + 3)])


def test_equal_experts_have_their_checksum_computed_once(tmp_path, small_buffers, monkeypatch):
    (tmp_path / "source").write_bytes(noise(50_000))
    ranges = [ByteRange(tmp_path / "source", 100, 20_000), ByteRange(tmp_path / "source", 30_000, 9_000)]
    known: dict[ByteRange, str] = {}
    check(tmp_path / "first", [*ranges, b"between", *ranges], known)
    assert set(known) == set(ranges)
    calls = []
    monkeypatch.setattr(shard_writer.zlib, "crc32", lambda *args: calls.append(args) or 0)
    with ShardFile(tmp_path / "second", lambda count: None, known) as shard:
        shard.copy(ranges[0])
        assert shard.tensor_checksum(ranges[0]) == known[ranges[0]] and not calls
        shard.finish()


def without_direct_writes(monkeypatch, module):
    opened, flag = os.open, os.O_DIRECT

    def refuse(path, flags, *mode):
        if flags & flag:
            raise OSError(errno.EINVAL, "Invalid argument")
        return opened(path, flags, *mode)

    monkeypatch.setattr(module.os, "open", refuse)


def test_a_file_system_without_direct_writes(tmp_path, small_buffers, monkeypatch):
    without_direct_writes(monkeypatch, shard_writer)
    check(tmp_path / "shard", [noise(70_001), b"x"])


def test_direct_writes_refused_later_and_writes_cut_short(tmp_path, small_buffers, monkeypatch):
    written, refused = os.pwrite, []

    def pwrite(descriptor, data, offset):
        if not refused:
            refused.append(offset)
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(descriptor, data[:3000], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    check(tmp_path / "shard", [noise(40_000)])


def test_direct_writes_refused_to_both_writers_at_once(tmp_path, small_buffers, monkeypatch):
    written, both = os.pwrite, threading.Barrier(2, timeout=20)

    def pwrite(descriptor, data, offset):
        if offset < 2 * shard_writer.BUFFER_BYTES and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            both.wait()
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    check(tmp_path / "shard", [noise(40_000)])


def test_an_error_of_the_disk_reaches_the_caller(tmp_path, small_buffers, monkeypatch):
    def full(descriptor, data, offset):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(OSError, match="No space left"),
        ShardFile(tmp_path / "shard", lambda count: None, {}) as shard,
    ):
        shard.write(noise(500_000))
        shard.finish()


def test_a_source_that_was_cut_is_named(tmp_path, small_buffers):
    (tmp_path / "source").write_bytes(noise(10))
    with (
        pytest.raises(UserError, match="source ended early"),
        ShardFile(tmp_path / "shard", lambda count: None, {}) as shard,
    ):
        shard.copy(ByteRange(tmp_path / "source", 4, 10))
