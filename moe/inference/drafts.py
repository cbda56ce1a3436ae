"""Prompt look-up decoding (Saxena, 2023): code repeats itself, so the text so far often says how it goes on."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2  # tokens that have to agree before what followed them is taken for a draft


class Lookup:
    """A text that grows, and where each short run of its tokens ended last."""

    def __init__(self, text: Iterable[int]):
        self._text: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        for token in text:
            self.push(token)

    def push(self, token: int) -> None:
        """Adds a token; the runs that ended before it are known from now on."""
        end = len(self._text)
        for length in range(SHORTEST, min(LONGEST, end) + 1):
            self._ends[tuple(self._text[end - length :])] = end
        self._text.append(token)

    def guess(self, count: int) -> list[int]:
        """Up to ``count`` tokens that followed the newest earlier place where the text ended as it does now."""
        if count > 0:
            for length in range(min(LONGEST, len(self._text)), SHORTEST - 1, -1):
                place = self._ends.get(tuple(self._text[-length:]))
                if place is not None:
                    return self._text[place : place + count]
        return []
