"""Copies among pairs: exact ones by digest, near ones by MinHash, and word sequences shared with benchmarks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from moe.data.containers import read_objects
from moe.data.pairs import Pair
from moe.files import optional_library

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


class ExactCopies:
    """Exact copies of pairs that were added: three digests for each."""

    def __init__(self) -> None:
        self.pairs: set[int] = set()
        self.codes: set[int] = set()
        self.texts: set[int] = set()
        self.repeated = 0

    def add(self, pair: Pair) -> bool:
        """Adds a pair; returns whether its text and code were there already, which ``repeated`` counts."""
        text, code = text_key(pair), code_key(pair)
        both = digest(f"{text} {code}")
        old = both in self.pairs
        self.repeated += old
        self.pairs.add(both)
        self.codes.add(code)
        self.texts.add(text)
        return old

    def has(self, pair: Pair) -> bool:
        """Whether a pair with this text and code was added."""
        return digest(f"{text_key(pair)} {code_key(pair)}") in self.pairs

    def has_code(self, pair: Pair) -> bool:
        """Whether a pair with this code was added."""
        return code_key(pair) in self.codes

    def has_text(self, pair: Pair) -> bool:
        """Whether a pair with this text was added."""
        return text_key(pair) in self.texts


class NearCopies:
    """Near copies of code: at least :data:`SIMILAR` of the shingles in common.

    Raises:
        UserError: the library ``datasketch`` is missing.
    """

    def __init__(self) -> None:
        sketch = optional_library("datasketch", "near copies are found by MinHash")
        self.index = sketch.MinHashLSH(num_perm=BANDS * BAND_ROWS, params=(BANDS, BAND_ROWS))
        self.empty = sketch.MinHash(num_perm=BANDS * BAND_ROWS, hashfunc=int)  # shingles are hashed already
        self.shingles: list[np.ndarray] = []

    def find(self, code: str) -> bool:
        """Whether a near copy of the code was added."""
        return self._find(*self._sketched(code))

    def add(self, code: str) -> bool:
        """Adds code; returns whether a near copy of it was there already."""
        shingles, minhash = self._sketched(code)
        old = self._find(shingles, minhash)
        if not old:
            self.index.insert(len(self.shingles), minhash, check_duplication=False)
            self.shingles.append(shingles)
        return old

    def _find(self, shingles: np.ndarray, minhash: Any) -> bool:
        for place in self.index.query(minhash):
            common = len(np.intersect1d(shingles, self.shingles[place], assume_unique=True))
            if common >= SIMILAR * (len(shingles) + len(self.shingles[place]) - common):
                return True
        return False

    def _sketched(self, code: str) -> tuple[np.ndarray, Any]:
        tokens = _TOKEN.findall(code)
        starts = range(max(1, len(tokens) - SHINGLE + 1))
        found = {digest(" ".join(tokens[start : start + SHINGLE])) & 0xFFFFFFFF for start in starts}
        shingles = np.array(sorted(found), dtype=np.uint32)
        minhash = self.empty.copy()
        minhash.update_batch(shingles)
        return shingles, minhash


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
