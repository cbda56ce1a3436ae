"""Copies among pairs: exact ones by digest, near ones by MinHash, and word sequences shared with benchmarks."""

from __future__ import annotations

import os
import re
import tempfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from moe.data.containers import read_objects
from moe.data.key_index import KeyIndex
from moe.data.pairs import Pair

SIMILAR = 0.8  # Jaccard similarity of shingles from which code is a near copy
SHINGLE = 5  # tokens
# 20 bands of 6 rows find 99.7% of the pairs at similarity 0.8; what they find is then compared exactly.
BANDS, BAND_ROWS = 20, 6
GRAM = 13  # words that a pair may not share with a benchmark (Brown et al., 2020, appendix C)
_SHORT = 6  # words from which a whole text counts where it is shorter than that
_COMMON = 10  # tasks of a benchmark from which a sequence is boilerplate
_TOKEN = re.compile(r"\w+|[^\w\s]")
_WORD = re.compile(r"\w+")


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
    disk; about 0.2 ms a pair.
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


_RANDOM = np.random.RandomState(0).randint(0, 1 << 63, (3, BANDS * BAND_ROWS), dtype=np.int64).astype(np.uint64) * 2 + 1
_SCALES, _SHIFTS, _MIXERS = _RANDOM
_WITHIN = np.uint64(0x9E3779B97F4A7C15) ** np.arange(SHINGLE, dtype=np.uint64)
_token_key = lru_cache(1 << 16)(digest)


def _shingles(code: str) -> np.ndarray:
    """Hashes of every :data:`SHINGLE` tokens in a row (of all, in shorter code), sorted; uint32."""
    tokens = np.array([_token_key(token) for token in _TOKEN.findall(code)], dtype=np.uint64)
    if len(tokens) < SHINGLE:
        tokens = np.concatenate((tokens, np.zeros(SHINGLE - len(tokens), dtype=np.uint64)))
    sums = np.lib.stride_tricks.sliding_window_view(tokens, SHINGLE) @ _WITHIN
    return np.unique((sums >> np.uint64(32)).astype(np.uint32))


def _band_keys(shingles: np.ndarray) -> list[int]:
    """Keys of which two sets share one with the probability 1 - (1 - J**rows)**bands, J their Jaccard similarity."""
    hashes = (shingles.astype(np.uint64)[:, None] * _SCALES + _SHIFTS) >> np.uint64(32)  # multiply-shift
    rows = hashes.min(0) * _MIXERS
    return np.bitwise_xor.reduce(rows.reshape(BANDS, BAND_ROWS), 1).tolist()


class Benchmarks:
    """Word sequences of benchmark files; raises :class:`UserError` for files that cannot be read."""

    def __init__(self, files: Sequence[Path]):
        self.grams: set[int] = set()
        self.tasks = 0
        for path in files:
            counts: Counter[int] = Counter()
            for _, found in read_objects(path):
                self.tasks += 1
                counts.update({gram for text in _strings(found) for gram in _grams(text)})
            self.grams |= {gram for gram, count in counts.items() if count < _COMMON}

    def touch(self, pair: Pair) -> bool:
        """Whether text or code share :data:`GRAM` words in a row with a task, or are all of a shorter text."""
        return any(gram in self.grams for text in (pair.text, pair.code) for gram in _grams(text))


def _grams(text: str) -> Iterator[int]:
    words = _WORD.findall(text.lower())
    if _SHORT <= len(words) < GRAM:
        yield digest(" ".join(words))
    for start in range(len(words) - GRAM + 1):
        yield digest(" ".join(words[start : start + GRAM]))


def _strings(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
