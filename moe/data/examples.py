"""Examples as flat arrays of token ids, in memory or read from a cache on disk: 4 bytes a token, nothing twice."""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, overload

import numpy as np

from moe.files import fsync_path, json_bytes


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and response together; ``tokens[response_start:]`` are learned; ``language`` is an index."""

    tokens: tuple[int, ...]
    response_start: int
    language: int


class TokensOnDisk:
    """[T] int32 of a file, read a part at a time: pages of a mapped file would fill memory, 64 KiB for each example."""

    def __init__(self, path: Path):
        self._file = path.open("rb")  # stays open, as another run may replace the cache

    def __getitem__(self, part: slice) -> np.ndarray:
        """The values of a slice without a step."""
        size = np.dtype(np.int32).itemsize
        return np.frombuffer(
            os.pread(self._file.fileno(), size * (part.stop - part.start), size * part.start), np.int32
        )


class Examples(Sequence[Example]):
    """The examples of one language; one is made when it is asked for.

    Args:
        tokens: [T] int32, all examples one after the other.
        rows: [N, 3] int64: where each ends in ``tokens``, its response's start, its place in the pairs.
        language: the index of all.
    """

    def __init__(self, tokens: np.ndarray | TokensOnDisk, rows: np.ndarray, language: int):
        self.tokens, self.rows, self.language = tokens, rows, language

    @classmethod
    def of(cls, items: Sequence[Example]) -> Examples:
        """The same examples, which are all of one language."""
        if isinstance(items, Examples):
            return items
        assert len({item.language for item in items}) == 1, "examples of one language"
        encoded = ((item.tokens, item.response_start, place) for place, item in enumerate(items))
        return cls(*_flat(encoded), items[0].language)

    @property
    def lengths(self) -> np.ndarray:
        """[N] tokens of each."""
        return np.diff(self.rows[:, 0], prepend=0)

    @property
    def places(self) -> np.ndarray:
        """[N] where each stood in the pairs."""
        return self.rows[:, 2]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        end, start, _ = self.rows[place].tolist()
        begin = int(self.rows[place - 1, 0]) if place else 0
        return Example(tuple(self.tokens[begin:end].tolist()), start, self.language)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other))

    __hash__ = None  # type: ignore[assignment]


Encoded = Iterable[tuple[Sequence[int], int, int]]  # token ids, where the response starts, the place in the pairs


def _flat(encoded: Encoded) -> tuple[np.ndarray, np.ndarray]:
    tokens, rows = array("i"), array("q")
    for ids, start, place in encoded:
        tokens.extend(ids)
        rows.extend((len(tokens), start, place))
    return np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32), _rows(rows)


def _rows(rows: array[int]) -> np.ndarray:
    return (np.frombuffer(rows, np.int64) if rows else np.zeros(0, np.int64)).reshape(-1, 3)


class TokenCache:
    """Examples on disk, in a folder named by all that they depend on.

    Args:
        folder: of the caches of a run; those of other keys are removed.
        key: what the token ids depend on, as JSON: fingerprints of data and tokenizer, template, lengths, seed.
    """

    def __init__(self, folder: Path, key: Any):
        self.folder = folder
        self.path = folder / sha256(json_bytes(key)).hexdigest()[:16]

    def read(self) -> tuple[dict[str, Examples], dict[str, int]] | None:
        """Examples by language, on disk, and the pairs that were left out; None where they are not there."""
        about = self.path / "counts.json"
        if not about.is_file():
            return None
        counts = json.loads(about.read_text(encoding="utf-8"))
        found = {}
        for index, language in enumerate(counts):
            tokens = TokensOnDisk(self.path / f"{language}.tokens")
            found[language] = Examples(tokens, np.load(self.path / f"{language}.npy", mmap_mode="r"), index)
        return found, counts

    def write(self, encoded: Mapping[str, Encoded], counts: Mapping[str, int]) -> None:
        """Writes examples language by language; ``counts`` is read at the end. The folder appears when it is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)
        temporary = self.folder / f".{self.path.name}.tmp"
        temporary.mkdir(parents=True)
        for language, items in encoded.items():
            rows, end = array("q"), 0
            with (temporary / f"{language}.tokens").open("wb") as file:
                for ids, start, place in items:
                    array("i", ids).tofile(file)
                    end += len(ids)
                    rows.extend((end, start, place))
            np.save(temporary / f"{language}.npy", _rows(rows))
        (temporary / "counts.json").write_bytes(json_bytes(dict(counts)))
        for path in temporary.iterdir():
            fsync_path(path)
        os.replace(temporary, self.path)
        fsync_path(self.folder)


def in_memory(encoded: Mapping[str, Encoded]) -> dict[str, Examples]:
    """Examples by language without a cache."""
    return {language: Examples(*_flat(items), index) for index, (language, items) in enumerate(encoded.items())}
