"""Pairs that need no memory: a sequence in a temporary file."""

from __future__ import annotations

import json
import tempfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import overload

IN_MEMORY = 1 << 26  # bytes of pairs that stay in memory


@dataclass(frozen=True)
class Pair:
    """An English description and the code that does it, with executable ``tests`` (a JSON object) where there are any.

    ``language`` is a key of :data:`moe.languages.LANGUAGES`; ``license`` is an SPDX expression; ``package`` says where
    the code is from.
    """

    language: str
    text: str
    code: str
    id: str | None = None
    tests: str | None = None
    license: str | None = None
    package: str | None = field(default=None, compare=False)


_FIELDS = [x.name for x in fields(Pair)]


class StoredPairs(Sequence[Pair]):
    """Pairs in the order in which they were appended; a pair is made when it is asked for."""

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 (it lives as long as this object)
        self._ends = array("Q", [0])

    def append(self, pair: Pair) -> None:
        """Adds a pair."""
        line = json.dumps([getattr(pair, name) for name in _FIELDS], ensure_ascii=False).encode()
        self._file.seek(self._ends[-1])
        self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        self._file.seek(self._ends[place])
        return Pair(*json.loads(self._file.read(self._ends[place + 1] - self._ends[place])))

    def __iter__(self) -> Iterator[Pair]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]
