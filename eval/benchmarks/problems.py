"""Problems of the standard benchmarks, and the layouts that their files have.

A layout is recognized by its keys. Files are JSON Lines, ``*.gz`` too, or one JSON list (sanitized MBPP's form).
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.execution import CaseTests
from moe.errors import Notice, UserError
from moe.files import json_type, read_json_lines
from moe.languages import DEFAULT_LANGUAGES, LANGUAGES, get_language

SUFFIXES = (".jsonl", ".jsonl.gz", ".json")
Row = dict[str, Any]

# Where a completion ends in Python. HumanEval: Chen et al. 2021. HumanEval-X: the evaluation of CodeGeeX (Zheng et al.
# 2023), which in the other languages ends where the function's brace closes; MBXP's prompts have the same form. MBPP:
# InCoder (Fried et al. 2022), whose docstring prompt is used. MultiPL-E names the strings in its rows.
_HUMANEVAL_STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
_HUMANEVAL_X_STOP = (*_HUMANEVAL_STOP, "\n@", "\nassert")
_MBPP_STOP = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
# What HumanEval-X's own evaluation puts before every program.
_HUMANEVAL_X_SETUP = {
    "python": "import collections, copy, datetime, functools, hashlib, heapq, itertools, math, re, statistics, string, "
    "sys\nfrom typing import *\n",
    "cpp": "".join(
        f"#include <{name}>\n"
        for name in ("stdlib.h", "algorithm", "math.h", "stdio.h", "vector", "string", "climits", "cstring", "iostream")
    ),
}
_ID_LANGUAGES = {
    "python": "python",
    "java": "java",
    "javascript": "javascript",
    "cpp": "cpp",
    "mbpp": "python",
    "mbjp": "java",
    "mbjsp": "javascript",
    "mbcpp": "cpp",
}


@dataclass(frozen=True)
class Problem:
    """One problem of a benchmark.

    Attributes:
        number: its number in the benchmark (in a file of pairs, its place, from 0).
        prompt: what a completion continues, empty where there is nothing to continue.
        in_program: whether the prompt is the beginning of the program.
        description: what the code should do, where the data say it in words apart from the prompt.
        setup, tests: program text before and after the answer; for pairs ``tests`` are structured test cases, as JSON.
        entry_point: the function that the tests call, where the data name it.
        solution: the benchmark's own, which completes the prompt; None where it has none.
        stop: strings that end a completion, not part of it; None: it ends where the function's brace closes.
        where: file and line.
    """

    id: str
    number: int
    language: str
    prompt: str
    description: str
    tests: str
    where: str
    in_program: bool = True
    setup: str = ""
    entry_point: str | None = None
    solution: str | None = None
    stop: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """A benchmark's file format: the ``keys`` that its rows have, and the name in prose."""

    title: str
    keys: tuple[str, ...]


# The first layout whose keys a row has is its own: more specific ones stand first.
LAYOUTS: dict[str, Layout] = {
    "mbxp": Layout("MBXP", ("task_id", "language", "prompt", "entry_point", "test", "canonical_solution")),
    "humaneval": Layout("HumanEval", ("task_id", "prompt", "entry_point", "test", "canonical_solution")),
    "humaneval-x": Layout("HumanEval-X", ("task_id", "prompt", "declaration", "test", "canonical_solution")),
    "mbpp": Layout("MBPP", ("task_id", "code", "test_list")),
    "multipl-e": Layout("MultiPL-E", ("name", "language", "prompt", "tests", "stop_tokens")),
    "pairs": Layout("pairs with tests", ("language", "text", "code", "tests")),
}


def read_problems(
    name: str, data: Path, languages: Sequence[str], numbers: tuple[int, int] | None = None
) -> dict[str, list[Problem]]:
    """Reads a benchmark's problems, by language in the order of ``languages``, in the order of the files.

    Args:
        name: a key of :data:`LAYOUTS`.
        data: a file, or a directory that holds files, at any depth.
        languages: which to keep; empty keeps every language that can be run.
        numbers: the first and the last problem to keep.

    Raises:
        UserError: with file, line and id, for a row of another layout, a missing or mistyped value or a repeated id;
            and when a language that was asked for has no problems.
    """
    there: dict[str, list[Problem]] = {}
    seen: dict[tuple[str, str], str] = {}
    skipped = 0
    for path in _files(data):
        for place, (where, row) in enumerate(_rows(path)):
            problem = _problem(name, row, where, place)
            if problem is None:
                skipped += 1
                continue
            key = (problem.language, problem.id)
            if key in seen:
                raise UserError(f"{where}: the id {problem.id!r} is also in {seen[key]}; expected each problem once")
            seen[key] = where
            there.setdefault(problem.language, []).append(problem)
    if skipped:
        warnings.warn(
            f"{data}: {skipped} rows have no tests or a language that cannot be run; they were skipped",
            Notice,
            stacklevel=2,
        )
    first, last = numbers or (0, sys.maxsize)
    order = languages or [language for language in DEFAULT_LANGUAGES if language in there]
    found = {lang: [p for p in there.get(lang, ()) if first <= p.number <= last] for lang in order}
    empty = next((get_language(language).name for language, problems in found.items() if not problems), None)
    if empty or not found:
        chosen = f" numbered {first} to {last}" if numbers else ""
        names = ", ".join(sorted(there)) or "none that can be run"
        raise UserError(f"{data}: no {empty or 'runnable'} problems{chosen}; languages there: {names}")
    return found


def _files(data: Path) -> list[Path]:
    if data.is_file():
        return [data]
    if not data.exists():
        raise UserError(f"{data}: no such file or directory; expected the benchmark's *.jsonl, *.jsonl.gz or *.json")
    files = sorted(path for path in data.rglob("*") if path.name.endswith(SUFFIXES) and path.is_file())
    if not files:
        raise UserError(f"{data}: holds no *.jsonl, *.jsonl.gz or *.json file; give the benchmark's file or directory")
    return files


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    if not path.name.endswith(".json"):
        yield from read_json_lines(path, "a benchmark's problem")
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error}); expected a list of problems") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: found {json_type(rows)}; expected a list of problems")
    for place, row in enumerate(rows):
        where = f"{path}, item {place + 1}"
        if not isinstance(row, dict):
            raise UserError(f"{where}: found {json_type(row)}; expected an object")
        yield where, row


def _problem(name: str, row: Row, where: str, place: int) -> Problem | None:
    """The problem in a row; None if its language cannot be run."""
    layout = LAYOUTS[name]
    given = row.get("task_id", row.get("name", row.get("id")))
    identity = str(given) if isinstance(given, str | int) and given != "" else None
    where = f"{where}, {identity}" if identity else where
    is_own = next((key for key, other in LAYOUTS.items() if all(k in row for k in other.keys)), None)
    if is_own != name:
        if is_own is not None and not all(key in row for key in layout.keys):
            raise UserError(
                f"{where}: this is {LAYOUTS[is_own].title}'s layout; type: python -m eval benchmark {is_own}"
            )
        missing = next((key for key in layout.keys if key not in row), None)
        if missing is not None:
            keys = ", ".join(map(repr, row)) or "no keys"
            raise UserError(
                f"{where}: lacks the key {missing!r}; found {keys}; {layout.title} has {', '.join(layout.keys)}"
            )
    language = _language(name, row, where)
    if language not in DEFAULT_LANGUAGES or (name == "pairs" and row["tests"] is None):
        return None
    read = {
        "mbxp": _mbxp,
        "humaneval": _humaneval,
        "humaneval-x": _humaneval_x,
        "mbpp": _mbpp,
        "multipl-e": _multipl_e,
        "pairs": _pair,
    }[name]
    return read(row, where, identity or f"{language}-{place}", language, place)


def _language(name: str, row: Row, where: str) -> str | None:
    """The key of the row's language, None for one that is unknown here; from ``language``, else from the id."""
    if "language" in row:
        return language_key(_text(row, "language", where))
    if name in ("humaneval", "mbpp"):
        return "python"
    return _ID_LANGUAGES.get(str(row["task_id"]).partition("/")[0].lower())


def language_key(name: str) -> str | None:
    """The key of a language that a file calls ``name``, such as ``js`` or ``C++``; None for one that is unknown."""
    names = ((key, (key, *language.fences)) for key, language in LANGUAGES.items())
    return next((key for key, known in names if name.lower() in known), None)


def _text(row: Row, key: str, where: str, empty: bool = False) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} is {json_type(value)}; expected a string")
    if not empty and not value.strip():
        raise UserError(f"{where}: {key!r} is empty; expected text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can write lone surrogates, which neither tokenizers nor files take
        raise UserError(f"{where}: {key!r} holds a lone surrogate at character {error.start + 1}") from error
    return value


def _texts(row: Row, key: str, where: str) -> tuple[str, ...]:
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise UserError(f"{where}: {key!r} is {json_type(value)}; expected a list of strings, none empty")
    return tuple(value)


def _solution(row: Row, where: str) -> str | None:
    return None if row["canonical_solution"] is None else _text(row, "canonical_solution", where)


def _number(identity: str, place: int) -> int:
    found = re.search(r"(?:/|_|^)(\d+)(?:_|$)", identity)
    return int(found[1]) if found else place


def _make_problem(place: tuple[str, str, str, int], **fields: Any) -> Problem:
    """A problem at ``(where, id, language, place in its file)``."""
    where, identity, language, number = place
    start = {"id": identity, "number": _number(identity, number), "language": language, "description": ""}
    return Problem(**{**start, **fields}, where=where)


def _humaneval(row: Row, where: str, identity: str, language: str, place: int) -> Problem:
    entry = _text(row, "entry_point", where)
    return _make_problem(
        (where, identity, language, place),
        prompt=_text(row, "prompt", where),
        tests=f"{_text(row, 'test', where)}\ncheck({entry})\n",
        entry_point=entry,
        solution=_solution(row, where),
        stop=_HUMANEVAL_STOP,
    )


def _humaneval_x(row: Row, where: str, identity: str, language: str, place: int) -> Problem:
    return _make_problem(
        (where, identity, language, place),
        prompt=_text(row, "prompt", where),
        setup=_HUMANEVAL_X_SETUP.get(language, ""),
        tests=_text(row, "test", where),
        solution=_solution(row, where),
        stop=_HUMANEVAL_X_STOP if language == "python" else None,
    )


def _mbxp(row: Row, where: str, identity: str, language: str, place: int) -> Problem:
    entry = _text(row, "entry_point", where)
    tests = _text(row, "test", where)
    if language == "python":
        tests += f"\ncheck({entry})\n"
    return _make_problem(
        (where, identity, language, place),
        prompt=_text(row, "prompt", where),
        tests=tests,
        entry_point=entry,
        solution=_solution(row, where),
        stop=_HUMANEVAL_X_STOP if language == "python" else None,
    )


def _mbpp(row: Row, where: str, identity: str, language: str, place: int) -> Problem:
    description = _text(row, "text" if "text" in row else "prompt", where)  # sanitized MBPP calls it prompt
    tests = _texts(row, "test_list", where)
    if not tests:
        raise UserError(f"{where}: 'test_list' is empty; expected at least one assert statement")
    imports = _texts(row, "test_imports", where) if "test_imports" in row else ()
    setup = _text(row, "test_setup_code", where, empty=True) if row.get("test_setup_code") else ""
    asserts = "\n".join(tests)
    return _make_problem(
        (where, identity, language, place),
        prompt=f'"""\n{description}\n{asserts}\n"""\n',
        in_program=False,
        description=f"{description}\nIt has to pass these tests:\n{asserts}",
        tests="\n".join((*imports, setup, asserts, "")),
        solution=_text(row, "code", where),
        stop=_MBPP_STOP,
    )


def _multipl_e(row: Row, where: str, identity: str, language: str, place: int) -> Problem:
    return _make_problem(
        (where, identity, language, place),
        prompt=_text(row, "prompt", where),
        tests=_text(row, "tests", where),
        stop=_texts(row, "stop_tokens", where),
    )


def _pair(row: Row, where: str, identity: str, language: str, place: int) -> Problem:
    tests = _text(row, "tests", where)
    try:
        CaseTests.parse(tests, language)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Problem(
        id=identity,
        number=place,
        language=language,
        prompt="",
        description=_text(row, "text", where),
        tests=tests,
        solution=_text(row, "code", where),
        where=where,
    )
