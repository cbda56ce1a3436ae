"""The order in which the published metric lists the source variables of a merged dataflow edge.

It merges two lists with ``list(set(a + b))``, so the order, and with it the score, depends on PYTHONHASHSEED. Here it
is always the order under ``PYTHONHASHSEED=0``: names are hashed with SipHash-1-3 and a zero key over CPython's
representation of the string (Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF"), and listed by a set of
objects with those hashes.
"""

from __future__ import annotations

from functools import lru_cache

Names = tuple[str, ...]

MAX_STEPS = 4_000_000  # adding more names than this one by one takes too long; they are added all at once
_MASK = (1 << 64) - 1


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
    """SipHash with one compression round and three final rounds under the zero key; an unsigned 64-bit number."""
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573
    tail = len(data) & ~7
    last = int.from_bytes(data[tail:], "little") | (len(data) & 0xFF) << 56
    for word in (*(int.from_bytes(data[i : i + 8], "little") for i in range(0, tail, 8)), last):
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3 ^ word, 1)
        v0 ^= word
    v0, v1, v2, v3 = _rounds(v0, v1, v2 ^ 0xFF, v3, 3)
    return v0 ^ v1 ^ v2 ^ v3


class _Name:
    """Stands for a string in a set, with the hash that ``hash(text)`` has under PYTHONHASHSEED=0."""

    __slots__ = ("text", "value")

    def __init__(self, text: str):
        widest = max(text, default="")
        encoding = "latin-1" if widest <= "\xff" else "utf-16-le" if widest <= "\uffff" else "utf-32-le"
        value = siphash13(text.encode(encoding, "surrogatepass")) if text else 0
        value -= (value >> 63) << 64
        self.text = text
        self.value = -2 if value == -1 else value

    def __hash__(self) -> int:
        return self.value


_name = lru_cache(maxsize=65536)(_Name)


@lru_cache(maxsize=4096)
def join(left: Names, right: Names) -> Names:
    """``tuple(set(left + right))`` in the order that it has under PYTHONHASHSEED=0."""
    distinct = dict.fromkeys((*left, *right))
    return tuple(name.text for name in set([_name(text) for text in distinct]))


@lru_cache(maxsize=4096)
def extend(before: Names | None, names: Names) -> Names:
    """Joins ``names`` to ``before`` one by one; without ``before`` the first one stands as it is."""
    if before is None:
        before, names = names[:1], names[1:]
    if len(names) * (len(names) + len(before)) > MAX_STEPS:
        return join(before, names)
    for name in names:
        before = join(before, (name,))
    return before
