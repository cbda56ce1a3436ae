"""The order in which the published metric lists the variables of a joined dataflow edge.

It joins two lists with ``list(set(a + b))``, so the order, and with it the score, changes with PYTHONHASHSEED. Here the
order is always the one of ``PYTHONHASHSEED=0``: names are hashed with SipHash-1-3 and a zero key over CPython's
representation of the string (Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF"), and an ordinary set of
objects with those hashes lists them.
"""

from __future__ import annotations

import _imp
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache

_MASK = (1 << 64) - 1
MOST_STEPS = 4_000_000  # joining more names one by one takes too long (so it does in the published metric)


def _rounds(v0: int, v1: int, v2: int, v3: int, count: int) -> tuple[int, int, int, int]:
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v1 = (v1 << 13 | v1 >> 51) & _MASK ^ v0
        v0 = (v0 << 32 | v0 >> 32) & _MASK
        v2 = (v2 + v3) & _MASK
        v3 = (v3 << 16 | v3 >> 48) & _MASK ^ v2
        v0 = (v0 + v3) & _MASK
        v3 = (v3 << 21 | v3 >> 43) & _MASK ^ v0
        v2 = (v2 + v1) & _MASK
        v1 = (v1 << 17 | v1 >> 47) & _MASK ^ v2
        v2 = (v2 << 32 | v2 >> 32) & _MASK
    return v0, v1, v2, v3


def siphash13(data: bytes) -> int:
    """SipHash with one compression and three final rounds under the zero key; an unsigned 64-bit number."""
    state = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    tail = len(data) & ~7
    last = int.from_bytes(data[tail:], "little") | (len(data) & 0xFF) << 56
    for word in (*(int.from_bytes(data[i : i + 8], "little") for i in range(0, tail, 8)), last):
        v0, v1, v2, v3 = state
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3 ^ word, 1)
        state = (v0 ^ word, v1, v2, v3)
    v0, v1, v2, v3 = _rounds(state[0], state[1], state[2] ^ 0xFF, state[3], 3)
    return v0 ^ v1 ^ v2 ^ v3


@cache
def _fast_siphash13() -> Callable[[bytes], int]:
    """CPython's own function, which it keeps for the hashes of ``.pyc`` files, where it gives the same numbers."""
    sample = b"one of each: words and a tail"
    try:
        if int.from_bytes(_imp.source_hash(0, sample), "little") == siphash13(sample):
            return lambda data: int.from_bytes(_imp.source_hash(0, data), "little")
    except (AttributeError, TypeError):
        pass
    return siphash13


@lru_cache(maxsize=65536)
def string_hash(text: str) -> int:
    """``hash(text)`` of CPython 3.11 and later under PYTHONHASHSEED=0."""
    if not text:
        return 0
    widest = "" if text.isascii() else max(text)
    encoding = "latin-1" if widest <= "\xff" else "utf-16-le" if widest <= "\uffff" else "utf-32-le"
    value = _fast_siphash13()(text.encode(encoding, "surrogatepass"))
    value -= (value >> 63) << 64
    return -2 if value == -1 else value


class _Name:
    """Stands for a string in a set, with the hash that the string would have."""

    __slots__ = ("text", "value")

    def __init__(self, text: str):
        self.text = text
        self.value = string_hash(text)

    def __hash__(self) -> int:
        return self.value


@cache
def _mask(count: int) -> int:
    """One less than the slots of a CPython set of so many elements, made from a list."""
    slots, fill = 8, 0
    while fill < count:
        fill += 1
        if fill * 5 >= (slots - 1) * 3:
            least = fill * (4 if fill <= 50_000 else 2)
            while slots <= least:
                slots *= 2
    return slots - 1


def _in_slots(names: Iterable[str], count: int) -> tuple[str, ...] | None:
    """The names in the order of a set where each has a slot of its own, as most small sets do; else None."""
    mask = 7 if count < 5 else _mask(count)
    slots = {string_hash(name) & mask: name for name in names}
    return tuple([slots[slot] for slot in sorted(slots)]) if len(slots) == count else None


class NameOrder:
    """Joins lists of names in a fixed order; remembers names for as long as it lives."""

    def __init__(self) -> None:
        self._names: dict[str, _Name] = {}

    def join(self, left: Sequence[str], right: Sequence[str]) -> tuple[str, ...]:
        """``tuple(set(left + right))`` in the order that it has under PYTHONHASHSEED=0."""
        distinct = dict.fromkeys((*left, *right))
        if len(distinct) < 2:
            return tuple(distinct)
        return _in_slots(distinct, len(distinct)) or self._in_set((*left, *right))

    def extend(self, before: tuple[str, ...] | None, names: Sequence[str]) -> tuple[str, ...]:
        """Joins ``names`` to ``before`` one by one; without ``before`` the first one stands as it is."""
        distinct = dict.fromkeys(names if before is None else (*before, *names))
        if len(distinct) < 2:
            return tuple(distinct)
        whole = _in_slots(distinct, len(distinct))  # where no names meet, only the last step counts
        if whole is not None:
            return whole
        if before is None:
            before, names = tuple(names[:1]), names[1:]
        if len(names) * (len(names) + len(before)) > MOST_STEPS:
            return self._in_set((*before, *names))
        for name in names:
            before = self._in_set((*before, name))
        return before

    def _in_set(self, together: tuple[str, ...]) -> tuple[str, ...]:
        return tuple([name.text for name in set([self._name(text) for text in together])])

    def _name(self, text: str) -> _Name:
        name = self._names.get(text)
        if name is None:
            name = self._names[text] = _Name(text)
        return name
