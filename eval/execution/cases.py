"""What an answer is judged by: typed cases of one function, or a benchmark's own test program."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import json_type

SCALARS = ("int", "float", "bool", "str")
TOLERANCE = 1e-6  # of floats: |actual - expected| <= TOLERANCE * max(1, |expected|)
_KEYS = ("function", "parameters", "returns", "cases")
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass(frozen=True)
class Type:
    """``int float bool str``, ``list[T]``, ``matrix[T]`` (rows of equal length) or ``map[K, V]``; null fits all."""

    head: str
    parts: tuple[Type, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Type:
        """Raises ``UserError`` for anything but a type."""
        head, bracket, rest = text.strip().partition("[")
        if not bracket and head in SCALARS:
            return cls(head)
        inner = rest.removesuffix("]")
        if inner != rest and head == "map" and inner.partition(",")[0].strip() in SCALARS:
            key, _, value = inner.partition(",")
            return cls(head, (cls.parse(key), cls.parse(value)))
        if inner != rest and head in ("list", "matrix"):
            return cls(head, (cls.parse(inner),))
        raise UserError(f"unknown type {text!r}; expected {', '.join(SCALARS)}, list[T], matrix[T] or map[SCALAR, T]")

    def __str__(self) -> str:
        return f"{self.head}[{', '.join(map(str, self.parts))}]" if self.parts else self.head


@dataclass(frozen=True)
class Case:
    """One call: ``arguments`` and ``expected`` as JSON data, a map as a list of ``[key, value]``."""

    arguments: list[Any]
    expected: Any


@dataclass(frozen=True)
class CaseTests:
    """Cases of one function. ``parameters`` are (name, type); expected values stay in the judge's process."""

    function: str
    parameters: tuple[tuple[str, Type], ...]
    returns: Type
    cases: tuple[Case, ...]

    @classmethod
    def parse(cls, tests: Mapping[str, Any] | str, language: str = "") -> CaseTests:
        """Checks an object, or JSON, of the form that docs/data.md describes.

        language: refuse also the integers that this language has no type for (Java and C++: beyond 64 bits). Raises
        ``UserError`` that says which case does not fit.
        """
        if isinstance(tests, str):
            try:
                tests = json.loads(tests)
            except (ValueError, RecursionError) as error:
                raise UserError(f"tests are not JSON ({error}); expected an object with {', '.join(_KEYS)}") from error
        if not isinstance(tests, Mapping) or any(key not in tests for key in _KEYS):
            raise UserError(f"tests are not an object with {', '.join(_KEYS)}")
        function, parameters, returns, cases = (tests[key] for key in _KEYS)
        if not isinstance(function, str) or not function.replace("$", "_").isidentifier():
            raise UserError(f"function is {function!r}; expected the name of a function")
        if not _is_list(parameters) or not all(
            _is_list(p) and len(p) == 2 and all(isinstance(part, str) for part in p) for p in parameters
        ):
            raise UserError("parameters are not a list of [name, type]")
        if not isinstance(returns, str):
            raise UserError(f"returns is {json_type(returns)}; expected a type")
        if not _is_list(cases) or not cases:
            raise UserError("cases are not a list with at least one case")
        types = tuple((name, Type.parse(type_)) for name, type_ in parameters)
        result = Type.parse(returns)
        bounded = language in ("java", "cpp")
        return cls(function, types, result, tuple(_case(i, c, types, result, bounded) for i, c in enumerate(cases)))


@dataclass(frozen=True)
class ProgramTests:
    """A benchmark's own test program: ``before``, the answer and ``after``, one after the other.

    The answer passes when the program runs to its end: a failed assert (JavaScript: ``console.assert``, too), an
    exception and an early exit are failures; what is printed means nothing. Java: the class with a ``main`` method in
    ``after``, else in the answer, is run with assertions on. C++: ``main`` is the one in ``after``.

    entry_point: the function that ``after`` tests; where ``after`` only defines ``check(candidate)``, as OpenAI's
    HumanEval does, ``check`` is called with it. flags: for the C++ compiler and linker, such as ``-lcrypto``.
    paths: folders of Node modules, or JARs, that the program needs.
    """

    after: str
    before: str = ""
    entry_point: str = ""
    flags: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _case(index: int, case: Any, parameters: tuple[tuple[str, Type], ...], returns: Type, bounded: bool) -> Case:
    if not isinstance(case, Mapping) or "expected" not in case or not _is_list(case.get("arguments")):
        raise UserError(f"case {index} is not an object with a list 'arguments' and 'expected'")
    arguments = case["arguments"]
    if len(arguments) != len(parameters):
        raise UserError(f"case {index} has {len(arguments)} arguments; the function has {len(parameters)} parameters")
    values = [
        _fit(value, type_, f"case {index}, argument {name!r}", bounded)
        for value, (name, type_) in zip(arguments, parameters)
    ]
    return Case(values, _fit(case["expected"], returns, f"case {index}, expected", bounded))


def _fit(value: Any, type_: Type, where: str, bounded: bool) -> Any:
    """The value in its normal form; raises ``UserError`` when it is not of the type."""

    def wrong() -> UserError:
        shown = json.dumps(value, ensure_ascii=False, default=str)
        return UserError(f"{where}: {shown if len(shown) <= 60 else shown[:57] + '...'} is not {type_}")

    if value is None:
        return None
    match type_.head:
        case "bool" if isinstance(value, bool):
            return value
        case "str" if isinstance(value, str):
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise UserError(f"{where}: the text holds a lone surrogate")
            return value
        case "int" | "float" if isinstance(value, int | float) and not isinstance(value, bool):
            if type_.head == "float":
                return float(value)
            # A fraction declared int stays what it is: no integer is equal to it.
            whole = int(value) if math.isfinite(value) and value == int(value) else value
            if bounded and isinstance(whole, int) and whole not in _INT64:
                raise UserError(f"{where}: {whole} does not fit 64 bits")
            return whole
        case "list" | "matrix" if _is_list(value):
            row = type_.parts[0] if type_.head == "list" else Type("list", type_.parts)
            rows = [_fit(item, row, where, bounded) for item in value]
            if type_.head == "matrix" and (None in rows or len({len(r) for r in rows}) > 1):
                raise wrong()
            return rows
        case "map" if _is_list(value) or (isinstance(value, Mapping) and type_.parts[0].head == "str"):
            pairs = list(value.items()) if isinstance(value, Mapping) else list(value)
            if not all(_is_list(pair) and len(pair) == 2 and pair[0] is not None for pair in pairs):
                raise wrong()
            fitted = [
                [_fit(pair[0], type_.parts[0], where, bounded), _fit(pair[1], type_.parts[1], where, bounded)]
                for pair in pairs
            ]
            if len({key for key, _ in fitted}) < len(fitted):
                raise UserError(f"{where}: the map has a key twice")
            return fitted
    raise wrong()
