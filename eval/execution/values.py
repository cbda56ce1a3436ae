"""The form in which arguments and results cross the pipes, and how the judge compares results.

A value is a sequence of words: ``N`` null, ``T`` ``F`` booleans, ``i12`` (or ``hc``) an integer, ``d1.5`` a float,
``j12`` a JavaScript number (which is either), ``s`` and ``c`` with the text of a string or a character in hexadecimal
UTF-8, ``[2`` a list and its items, ``{1`` a map with its keys and values, ``O1`` a map whose keys are names (an
object), and ``x`` with the name, in hexadecimal, of a type that is none of these.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eval.execution.cases import TOLERANCE, Type

_LARGEST = sys.float_info.max
_EXACT = 1 << 53  # integers up to here are JavaScript numbers without rounding


@dataclass(frozen=True)
class Number:
    """A JavaScript number."""

    value: float

    def __repr__(self) -> str:
        return str(int(self.value)) if self.value.is_integer() else repr(self.value)


@dataclass(frozen=True)
class Pairs:
    """A map; ``named``: its keys are the names of an object's properties, whatever they were written as."""

    items: tuple[tuple[Any, Any], ...]
    named: bool

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{key!r}: {value!r}" for key, value in self.items) + "}"


@dataclass(frozen=True)
class Other:
    """A value of a type that no test expects."""

    type: str

    def __repr__(self) -> str:
        return f"a value of type {self.type}"


class Char(str):
    """A Java or C++ character; it counts as a string of length one."""


def encode(value: Any, type_: Type) -> str:
    """The words of a value of a checked test."""
    if value is None:
        return "N"
    match type_.head:
        case "bool":
            return "T" if value else "F"
        case "str":
            return "s" + value.encode().hex()
        case "int" | "float":
            return f"i{value}" if isinstance(value, int) else f"d{value!r}"
        case "map":
            pairs = (f"{encode(key, type_.parts[0])} {encode(item, type_.parts[1])}" for key, item in value)
            return " ".join([f"{{{len(value)}", *pairs])
    inner = Type("list", type_.parts) if type_.head == "matrix" else type_.parts[0]
    return " ".join([f"[{len(value)}", *(encode(item, inner) for item in value)])


def decode(words: Iterator[str]) -> Any:
    """Reads one value. Raises ``ValueError`` or ``StopIteration`` for anything that is none."""
    word = next(words)
    kind, rest = word[:1], word[1:]
    match kind:
        case "N":
            return None
        case "T" | "F":
            return kind == "T"
        case "i":
            return int(rest)
        case "h":
            return int(rest, 16)
        case "d":
            return float(rest)
        case "j":
            return Number(float(rest))
        case "s":
            return text(rest)
        case "c":
            return Char(text(rest))
        case "[":
            return [decode(words) for _ in range(int(rest))]
        case "{" | "O":
            return Pairs(tuple((decode(words), decode(words)) for _ in range(int(rest))), kind == "O")
        case "x":
            return Other(text(rest))
    raise ValueError(f"unknown word {word!r}")


def text(hexadecimal: str) -> str:
    return bytes.fromhex(hexadecimal).decode("utf-8", errors="surrogatepass")


def same(actual: Any, expected: Any, type_: Type) -> bool:
    """Whether a result is the expected value: the same type, and the same value up to the tolerance for floats.

    An integer may stand for a float, never the reverse.
    """
    if expected is None or actual is None:
        return expected is None and actual is None
    match type_.head:
        case "bool":
            return isinstance(actual, bool) and actual == expected
        case "str":
            return isinstance(actual, str) and actual == expected
        case "int" | "float" if isinstance(actual, bool):
            return False
        case "int" if isinstance(expected, int):
            if isinstance(actual, Number):
                rounded = abs(expected) > _EXACT and actual.value == float(expected)
                return rounded or (actual.value.is_integer() and int(actual.value) == expected)
            return isinstance(actual, int) and actual == expected
        case "int" | "float":
            if isinstance(actual, Number):
                actual = actual.value
            if not isinstance(actual, float | int):
                return False
            if actual == expected or (actual != actual and expected != expected):
                return True
            # Python compares integers of any size with floats, but does not subtract them.
            near = math.isfinite(expected) and -_LARGEST <= actual <= _LARGEST
            return near and abs(actual - expected) <= TOLERANCE * max(1.0, abs(expected))
        case "map":
            return isinstance(actual, Pairs) and _same_pairs(actual, expected, type_)
    inner = Type("list", type_.parts) if type_.head == "matrix" else type_.parts[0]
    return (
        isinstance(actual, list)
        and len(actual) == len(expected)
        and all(same(one, other, inner) for one, other in zip(actual, expected))
    )


def _same_pairs(actual: Pairs, expected: list[tuple[Any, Any]], type_: Type) -> bool:
    if len(actual.items) != len(expected):
        return False
    left = {_key(key, type_.parts[0], actual.named): value for key, value in actual.items}
    for key, value in expected:
        key = _key(key, type_.parts[0], False)
        if key not in left or not same(left[key], value, type_.parts[1]):
            return False
    return len(left) == len(expected)


def _key(key: Any, type_: Type, named: bool) -> tuple[str, Any]:
    """A key with its type, so that True is not 1; names of properties become what the type says."""
    if named and isinstance(key, str):
        try:
            key = key if type_.head == "str" else json.loads(key)
        except ValueError:
            return "text", key
    if isinstance(key, Number):
        key = int(key.value) if key.value.is_integer() else key.value
    if isinstance(key, bool) or not isinstance(key, int | float | str):
        return type(key).__name__, key if isinstance(key, bool) else repr(key)
    if type_.head == "float" and not isinstance(key, str):
        key = float(key)
    return "text" if isinstance(key, str) else "float" if isinstance(key, float) else "int", key
