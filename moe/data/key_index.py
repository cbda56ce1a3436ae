"""Numbers by 64-bit keys, in memory that hardly grows: all but the newest keys lie sorted in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable

import numpy as np

RECENT = 100_000  # keys in memory, about 11 MB
MERGED = 1 << 21  # keys from which sorted files are no longer merged


class KeyIndex:
    """Several numbers may have a key. The files are mapped, 12 bytes a key, and vanish with the process."""

    def __init__(self) -> None:
        self._recent: dict[int, int | tuple[int, ...]] = {}
        self._sorted: list[tuple[np.ndarray, np.ndarray]] = []  # keys in order, and their numbers

    def add(self, keys: Iterable[int], number: int = 0) -> None:
        """Gives each of the keys (of 64 bits) one more number, below 2**32."""
        for key in keys:
            old = self._recent.get(key)
            if old is None:
                self._recent[key] = number
            else:
                self._recent[key] = (*old, number) if isinstance(old, tuple) else (old, number)
        if len(self._recent) >= RECENT:
            self._store()

    def find(self, keys: list[int]) -> list[int]:
        """The numbers of all these keys, oldest first for each place where they are kept."""
        found: list[int] = []
        wanted = np.array(keys, dtype=np.uint64)
        for stored, numbers in self._sorted:
            first = np.searchsorted(stored, wanted)
            there = stored[np.minimum(first, len(stored) - 1)] == wanted
            for start, key in zip(first[there].tolist(), wanted[there].tolist()):
                while start < len(stored) and stored[start] == key:
                    found.append(int(numbers[start]))
                    start += 1
        for key in keys:
            recent = self._recent.get(key)
            if recent is not None:
                found += recent if isinstance(recent, tuple) else (recent,)
        return found

    def _store(self) -> None:
        items = [(k, n) for k, ns in self._recent.items() for n in (ns if isinstance(ns, tuple) else (ns,))]
        keys = np.array([key for key, _ in items], dtype=np.uint64)
        numbers = np.array([number for _, number in items], dtype=np.uint32)
        self._recent.clear()
        while self._sorted and len(self._sorted[-1][0]) <= len(keys) < MERGED:
            old_keys, old_numbers = self._sorted.pop()
            keys, numbers = np.concatenate((old_keys, keys)), np.concatenate((old_numbers, numbers))
        order = np.argsort(keys, kind="stable")
        self._sorted.append((_on_disk(keys[order]), _on_disk(numbers[order])))


def _on_disk(values: np.ndarray) -> np.ndarray:
    with tempfile.TemporaryFile() as file:
        values.tofile(file)
        file.flush()
        return np.memmap(file, values.dtype, "r")
