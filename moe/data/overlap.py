"""Copies among pairs: exact ones by digest, near ones by MinHash, and word sequences shared with benchmarks."""

from __future__ import annotations

import os
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from moe.data.containers import read_objects
from moe.data.key_index import KeyIndex
from moe.data.pairs import Pair

SIMILAR = 0.8  # Jaccard similarity of shingles from which code is a near copy
SHINGLE = 5  # tokens
# 16 bands of 6 rows find 99.2% of the pairs at similarity 0.8; what they find is then compared exactly.
BANDS, BAND_ROWS = 16, 6
GRAM = 13  # words that a pair may not share with a benchmark (Brown et al., 2020, appendix C)
_SHORT = 6  # words from which a whole text counts where it is shorter than that
_COMMON = 10  # tasks of a benchmark from which a sequence is boilerplate
_LONGEST = 1 << 18  # characters of code that are compared


def digest(text: str) -> int:
    """64 bits of a hash."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def text_key(pair: Pair) -> int:
    """Equal for texts that differ in case, white space or the last sign alone."""
    return digest(" ".join(pair.text.lower().split()).rstrip(".!:"))


def code_key(pair: Pair) -> int:
    """Equal for code that differs in white space alone."""
    return digest("".join(pair.code.split()))


_BOTH, _CODE, _TEXT = 0, 1, 2  # kinds of keys: the last two bits of a digest


class ExactCopies:
    """Exact copies of pairs that were added: three digests for each."""

    def __init__(self) -> None:
        self.index = KeyIndex()
        self.repeated = 0

    def add(self, pair: Pair) -> bool:
        """Adds a pair; returns whether its text and code were there already, which ``repeated`` counts."""
        keys = _keys(pair)
        old = bool(self.index.find(keys[:1]))
        self.repeated += old
        if not old:
            self.index.add(keys)
        return old

    def has(self, pair: Pair) -> bool:
        """Whether a pair with this text and code was added."""
        return bool(self.index.find([_keys(pair)[_BOTH]]))

    def has_code(self, pair: Pair) -> bool:
        """Whether a pair with this code was added."""
        return bool(self.index.find([_keys(pair)[_CODE]]))

    def has_text(self, pair: Pair) -> bool:
        """Whether a pair with this text was added."""
        return bool(self.index.find([_keys(pair)[_TEXT]]))


def _keys(pair: Pair) -> list[int]:
    text, code = text_key(pair), code_key(pair)
    return [digest(f"{text} {code}") & ~3 | _BOTH, code & ~3 | _CODE, text & ~3 | _TEXT]


class NearCopies:
    """Near copies of code: at least :data:`SIMILAR` of the shingles in common.

    Found by MinHash (Broder, 1997) in bands of :data:`BAND_ROWS` and compared exactly. Signatures and shingles are on
    disk.
    """

    def __init__(self) -> None:
        self.index = KeyIndex()
        self.shingles = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (it lives as long as this object)
        self.ends = array("Q", [0])

    def find(self, code: str) -> bool:
        """Whether a near copy of the code was added."""
        shingles = _shingles(code)
        return self._find(shingles, _band_keys(shingles))

    def add(self, code: str) -> bool:
        """Adds code; returns whether a near copy of it was there already."""
        shingles = _shingles(code)
        keys = _band_keys(shingles)
        old = self._find(shingles, keys)
        if not old:
            self.index.add(keys, len(self.ends) - 1)
            self.shingles.write(shingles.tobytes())
            self.ends.append(self.ends[-1] + shingles.nbytes)
        return old

    def _find(self, shingles: np.ndarray, keys: list[int]) -> bool:
        for place in set(self.index.find(keys)):
            start, end = self.ends[place], self.ends[place + 1]
            other = np.frombuffer(os.pread(self.shingles.fileno(), end - start, start), dtype=np.uint32)
            common = len(np.intersect1d(shingles, other, assume_unique=True))
            if common >= SIMILAR * (len(shingles) + len(other) - common):
                return True
        return False


_RANDOM = np.random.RandomState(0).randint(0, 1 << 63, 1024, dtype=np.int64).astype(np.uint64) * 2 + 1
_BYTES, _PLACES, _WITHIN, _MIXERS = _RANDOM[:256], _RANDOM[256:320], _RANDOM[320:336], _RANDOM[512 : 512 + BAND_ROWS]
_SCALES, _SHIFTS = _RANDOM[768:].astype(np.uint32)[: 2 * BANDS * BAND_ROWS].reshape(2, -1)
_SPACE, _WORD, _SIGN = range(3)
_KINDS = np.full(256, _SIGN, dtype=np.uint8)
_KINDS[[byte for byte in range(256) if byte >= 128 or chr(byte).isalnum() or byte == ord("_")]] = _WORD
_KINDS[[byte for byte in range(128) if chr(byte).isspace()]] = _SPACE
_FOREIGN_SPACE, _FOREIGN_SIGN = re.compile(r"[^\S\0-\x7f]"), re.compile(r"[^\w\s\0-\x7f]")


def _tokens(text: str, signs: bool) -> np.ndarray:
    """Hashes of the words (``\\w+``) of a text, and of every other sign where wanted; [T] uint64."""
    if not text.isascii():
        text = _FOREIGN_SIGN.sub("?", _FOREIGN_SPACE.sub(" ", text))
    data = np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8)
    kinds = _KINDS[data]
    first = kinds == _WORD
    first[1:] &= kinds[:-1] != _WORD
    values = _BYTES[data]
    if signs:
        first |= kinds == _SIGN
        values[kinds == _SPACE] = 0
    else:
        values[kinds != _WORD] = 0
    starts = np.flatnonzero(first)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    places = np.arange(len(data), dtype=np.int32)
    within = places - np.maximum.accumulate(np.where(first, places, 0))
    values *= _PLACES[np.minimum(within, len(_PLACES) - 1)]
    return np.add.reduceat(values, starts)


def _windows(tokens: np.ndarray, size: int) -> np.ndarray:
    """Hashes of every ``size`` tokens in a row; uint64."""
    count = len(tokens) - size + 1
    sums = np.zeros(max(count, 0), dtype=np.uint64)
    for place in range(size if count > 0 else 0):
        sums += tokens[place : place + count] * _WITHIN[place]
    return sums ^ (sums >> np.uint64(29))


def _shingles(code: str) -> np.ndarray:
    """Hashes of every :data:`SHINGLE` tokens in a row (of all, in shorter code), sorted; uint32."""
    tokens = _tokens(code[:_LONGEST], True)
    if len(tokens) < SHINGLE:
        tokens = np.concatenate((tokens, np.zeros(SHINGLE - len(tokens), dtype=np.uint64)))
    found = (_windows(tokens, SHINGLE) >> np.uint64(32)).astype(np.uint32)
    found.sort()
    return found[np.concatenate(([True], found[1:] != found[:-1]))]


def _band_keys(shingles: np.ndarray) -> list[int]:
    """Keys of which two sets share one with the probability 1 - (1 - J**rows)**bands, J their Jaccard similarity."""
    least = np.full(BANDS * BAND_ROWS, 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, len(shingles), 256):  # a part fits into the processor's cache
        hashes = shingles[start : start + 256, None] * _SCALES
        hashes += _SHIFTS
        np.minimum(least, hashes.min(0), out=least)
    rows = least.astype(np.uint64).reshape(BANDS, BAND_ROWS) * _MIXERS
    rows ^= rows >> np.uint64(31)
    return (rows.sum(1) * np.uint64(0x9E3779B97F4A7C15) + np.arange(BANDS, dtype=np.uint64)).tolist()


class Benchmarks:
    """Word sequences of benchmark files; raises :class:`UserError` for files that cannot be read."""

    def __init__(self, files: Sequence[Path]):
        self.tasks, found = 0, [np.zeros(0, dtype=np.uint64)]
        for path in files:
            counts: Counter[int] = Counter()
            for _, task in read_objects(path):
                self.tasks += 1
                counts.update({gram for text in _strings(task) for gram in _grams(text).tolist()})
            found.append(np.array([gram for gram, count in counts.items() if count < _COMMON], dtype=np.uint64))
        self.grams = np.unique(np.concatenate(found))

    def touch(self, pair: Pair) -> bool:
        """Whether text or code share :data:`GRAM` words in a row with a task, or are all of a shorter text."""
        return any(bool(_among(_grams(text), self.grams).any()) for text in (pair.text, pair.code))


def _among(values: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Which values are in a sorted array."""
    place = np.searchsorted(stored, values)
    place[place == len(stored)] = 0
    return stored[place] == values if len(stored) else np.zeros(len(values), dtype=bool)


def _grams(text: str) -> np.ndarray:
    words = _tokens(text.lower(), False)
    return _windows(words, len(words) if _SHORT <= len(words) < GRAM else GRAM)


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
