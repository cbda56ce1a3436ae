"""Reads and writes the parts of SentencePiece's model file that are needed here, without a protobuf library.

The file is a protobuf message (sentencepiece_model.proto): field 1 a vocabulary piece, repeated; 2 the trainer's
settings; 3 the normalizer's. sentencepiece and transformers each carry generated classes for it, and a process that
imports both fails ("duplicate file name sentencepiece_model.proto"); they would also need protobuf, which nothing else
here does. The wire format takes a page of code: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # a piece's type; GGUF has the same numbers
UNIGRAM, BPE = 1, 2
Settings = Mapping[int, int | bytes]  # field number -> its last value
PIECES, TRAINER, NORMALIZER = 1, 2, 3
MODEL_TYPE, SUFFIX_SPACE, BYTE_FALLBACK = 3, 24, 35  # fields of the trainer's settings
UNK_ID, UNK_PIECE, BOS_PIECE, EOS_PIECE, PAD_PIECE = 40, 45, 46, 47, 48
CHARSMAP, DUMMY_PREFIX, REMOVE_EXTRA_SPACES, ESCAPE_SPACES = 2, 3, 4, 5  # fields of the normalizer's settings
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Piece(NamedTuple):
    text: str
    score: float
    type: int = NORMAL


@dataclass(frozen=True)
class Model:
    """A SentencePiece model: ``pieces`` in the order of their ids, and its settings."""

    pieces: list[Piece]
    trainer: Settings
    normalizer: Settings

    @property
    def is_bpe(self) -> bool:
        return self.trainer.get(MODEL_TYPE, UNIGRAM) == BPE

    @property
    def dummy_prefix(self) -> bool:
        return bool(self.normalizer.get(DUMMY_PREFIX, 1))

    @property
    def loses_text(self) -> str | None:
        """Says what the model's settings do that changes text, or None when they keep it."""
        if self.normalizer.get(CHARSMAP):
            return "normalizes characters"
        if self.normalizer.get(REMOVE_EXTRA_SPACES, 1):
            return "removes extra spaces"
        if not self.normalizer.get(ESCAPE_SPACES, 1) or self.trainer.get(SUFFIX_SPACE, 0):
            return "writes spaces in a way that is not supported"
        if not self.trainer.get(BYTE_FALLBACK, 0):
            return "has no byte fallback"
        return None


def parse_model(data: bytes) -> Model:
    """Reads a model file's bytes; raises ValueError when they are no such message."""
    pieces: list[Piece] = []
    settings: dict[int, dict[int, int | bytes]] = {TRAINER: {}, NORMALIZER: {}}
    for number, value in _fields(data):
        if number == PIECES:
            content = dict(_fields(_message(value)))
            text, score = _message(content.get(1, b"")).decode("utf-8"), content.get(2, b"\0\0\0\0")
            pieces.append(Piece(text, struct.unpack("<f", _message(score))[0], int(content.get(3, NORMAL))))
        elif number in settings:
            settings[number].update(_fields(_message(value)))
    if not pieces:
        raise ValueError("no vocabulary in it")
    return Model(pieces, settings[TRAINER], settings[NORMALIZER])


def write_model(pieces: Sequence[Piece], trainer: Settings, normalizer: Settings) -> bytes:
    """A model file's bytes."""
    out = []
    for piece in pieces:
        score = _varint(2 << 3 | FIXED32) + struct.pack("<f", piece.score)
        out.append(_tagged(PIECES, _tagged(1, piece.text.encode()) + score + _tagged(3, piece.type)))
    for number, settings in ((TRAINER, trainer), (NORMALIZER, normalizer)):
        out.append(_tagged(number, b"".join(_tagged(key, value) for key, value in settings.items())))
    return b"".join(out)


def without_dummy_prefix(data: bytes) -> bytes:
    """The same model without a space before each text: settings given again at the end win."""
    return data + _tagged(NORMALIZER, _tagged(DUMMY_PREFIX, 0))


def as_control(data: bytes, ids: set[int]) -> bytes:
    """The same model with the pieces of these ids as control tokens, which no text gives."""
    out, index = [], 0
    for number, value in _fields(data):
        if number == PIECES:
            if index in ids:  # a field given again wins
                value = _message(value) + _tagged(3, CONTROL)
            index += 1
        out.append(_tagged(number, value))
    return b"".join(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yields (field number, value) of a message; a value is an integer or the bytes of all other types."""
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == VARINT:
            value, position = _read_varint(data, position)
            yield key >> 3, value
            continue
        if kind == BYTES:
            size, position = _read_varint(data, position)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"unknown field type {kind} at byte {position}")
        if position + size > len(data):
            raise ValueError("it is cut short")
        yield key >> 3, data[position : position + size]
        position += size


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number stands where text was expected")
    return value


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError("it is cut short")
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers take ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tagged(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | BYTES) + _varint(len(value)) + value
    return _varint(number << 3 | VARINT) + _varint(value)
