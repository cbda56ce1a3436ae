"""The few value types of the synthetic tasks, and how each language writes them.

A type is a short string: ``int``, ``float``, ``bool``, ``str``, ``list[T]``, ``map[K, V]`` or ``matrix[T]`` (a list of
rows of equal length; an ``int[][]`` in Java where a list of lists is a ``List<List<Integer>>``).

In JSON a map is a list of ``[key, value]`` pairs, because JSON objects know only string keys.
"""

from __future__ import annotations

from functools import cache
from typing import Any

_JAVA = {"int": "int", "float": "double", "bool": "boolean", "str": "String"}
_JAVA_BOXED = {"int": "Integer", "float": "Double", "bool": "Boolean", "str": "String"}
_CPP = {"int": "int", "float": "double", "bool": "bool", "str": "std::string"}


@cache
def parse_type(type_: str) -> tuple[str, tuple[str, ...]]:
    """Splits ``"map[str, list[int]]"`` into ``("map", ("str", "list[int]"))``; a scalar has no parts."""
    head, bracket, rest = type_.partition("[")
    if not bracket:
        if head not in _JAVA:
            raise ValueError(f"unknown type {type_!r}")
        return head, ()
    inner = rest.removesuffix("]")
    if head == "map":
        key, _, value = inner.partition(",")
        return head, (key.strip(), value.strip())
    if head not in ("list", "matrix"):
        raise ValueError(f"unknown type {type_!r}")
    return head, (inner.strip(),)


@cache
def java_type(type_: str, boxed: bool = False) -> str:
    """The Java type; ``boxed`` for use between angle brackets."""
    head, parts = parse_type(type_)
    if head == "list":
        return f"List<{java_type(parts[0], True)}>"
    if head == "map":
        return f"Map<{java_type(parts[0], True)}, {java_type(parts[1], True)}>"
    if head == "matrix":
        return f"{java_type(parts[0])}[][]"
    return (_JAVA_BOXED if boxed else _JAVA)[head]


@cache
def cpp_type(type_: str) -> str:
    """The C++ type as a value (as a variable or a result)."""
    head, parts = parse_type(type_)
    if head == "list":
        return f"std::vector<{cpp_type(parts[0])}>"
    if head == "map":
        return f"std::map<{cpp_type(parts[0])}, {cpp_type(parts[1])}>"
    if head == "matrix":
        return f"std::vector<std::vector<{cpp_type(parts[0])}>>"
    return _CPP[head]


@cache
def cpp_parameter(type_: str) -> str:
    """The C++ type as a parameter: small scalars by value, all else by const reference."""
    return cpp_type(type_) if type_ in ("int", "float", "bool") else f"const {cpp_type(type_)}&"


def to_json(value: Any, type_: str) -> Any:
    """A Python value as plain JSON data; maps become lists of pairs, in the order of their keys."""
    head, parts = parse_type(type_)
    if not parts:
        return value
    if head == "map":
        return [[key, to_json(item, parts[1])] for key, item in sorted(value.items())]
    if head == "matrix":
        return [list(row) for row in value]
    return [to_json(item, parts[0]) for item in value]
