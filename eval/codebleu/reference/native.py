"""Mode ``reference`` in C, where the extension module could be built; everything works without it, only slower.

The C sources are in ``csrc/``; ``pip install`` builds them if there is a compiler. They are used if they were built
from the sources that lie beside them, if tree-sitter's Python objects are made as they expect, and if they list a set
in the order of this interpreter; else Python does the work. ``CODEBLEU_NATIVE=0`` in the environment has it do so too.
"""

from __future__ import annotations

import hashlib
import os
import random
from array import array
from functools import cache, lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from tree_sitter import Parser

from eval.codebleu.comments import strip_comments
from eval.codebleu.reference.instructions import STRINGS
from eval.codebleu.reference.name_order import NameOrder
from eval.codebleu.reference.program import (
    AssignmentContext,
    BranchContext,
    ClauseContext,
    ClausesFirstContext,
    CountedLoopContext,
    DefinitionContext,
    ForEachContext,
    IncrementContext,
    LoopContext,
    PatternLoopContext,
    StringContext,
    TupleAssignmentContext,
)
from eval.codebleu.reference.rules import Rules, Selector
from eval.codebleu.reference.tree import ERROR, Kinds, count_missing, is_printable, padded, print_leaf

VERSION = 1  # of what is handed over to C; equal to NATIVE_VERSION there
SWITCH = "CODEBLEU_NATIVE"
SOURCES = Path(__file__).parents[1] / "csrc"

# As in csrc/native.h.
_OPENERS = (
    StringContext, ClausesFirstContext, LoopContext, ForEachContext, CountedLoopContext, BranchContext,
    IncrementContext, AssignmentContext, TupleAssignmentContext, ClauseContext, PatternLoopContext, DefinitionContext,
)  # fmt: skip
_ALTERNATIVE, _ELSE, _CLAUSE, _COMMA, _BLOCK, _STRING = (1 << bit for bit in range(6))
_BASE_SURVIVES = ("never", "always", "unless else")
_NO_FIELD = (1, -1)


def sources_digest(folder: Path = SOURCES) -> str:
    """A name for the C sources as they are; the build writes it into the module."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def load_native() -> ModuleType | str:
    """The extension module, or why it is not used."""
    try:
        from eval.codebleu import _native
    except ImportError as error:
        return f"it is not built or cannot be loaded: {error}"
    if getattr(_native, "VERSION", None) != VERSION:
        return "it was built for another version of this package"
    if SOURCES.is_dir() and getattr(_native, "SOURCES", None) != sources_digest():
        return "it was built from other sources; type: python setup.py build_ext --inplace"
    return _native if _lists_sets_alike(_native) else "this Python lists a set in another order than it expects"


def native_module() -> ModuleType | None:
    """The extension module if it is to be used."""
    if os.environ.get(SWITCH) == "0":
        return None
    found = load_native()
    return None if isinstance(found, str) else found


def describe_native() -> str:
    """Which code is in use, in a few words."""
    if os.environ.get(SWITCH) == "0":
        return f"Python ({SWITCH}=0)"
    found = load_native()
    return f"Python ({found})" if isinstance(found, str) else "C"


def make_reader(module: ModuleType, kinds: Kinds, language: str, keywords: frozenset[str], parser: Parser) -> Any:
    """A reader of texts of one language."""
    return module.Reader(
        _spec(language, kinds),
        _sorted_keywords(keywords),
        parser.parse,
        partial(strip_comments, language=language),
        padded,
        count_missing,
        is_printable,
        print_leaf,
    )


@lru_cache(maxsize=64)
def _sorted_keywords(keywords: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(keywords))


@lru_cache(maxsize=64)
def _spec(language: str, kinds: Kinds) -> tuple:
    """The grammar and its rules as ``csrc/module.c`` reads them."""
    rules, names = kinds.rules, kinds.names
    first: dict[str, int] = {}
    same_name = array("i", [first.setdefault(name, kind) for kind, name in enumerate(names)])
    flags = bytearray(ERROR + 1)
    for name, kind in first.items():
        flags[kind] = (
            _ALTERNATIVE * (name in rules.alternatives)
            | _ELSE * (rules.else_word in name)
            | _CLAUSE * (name in rules.clauses)
            | _COMMA * (name == ",")
            | _BLOCK * (name == "block")
            | _STRING * (name in STRINGS)
        )
    flags = bytes([flags[kind] for kind in same_name])
    found: dict[tuple, int] = {}
    rule_of = bytearray(ERROR + 1)
    for kind, opener in kinds.openers.items():
        rule_of[kind] = found.setdefault(_rule(kinds, kind, opener, first), len(found))
    tables = [bytes(table) for table in (kinds.fast, kinds.broken, kinds.careful, flags, rule_of)]
    comments = {"ruby": 0, "python": 2}.get(language, 1)
    fields = [kinds.fields.get(name, -1) for name in ("left", "right")]
    update = kinds.fields.get(rules.update_field, 0) if rules.update_field else 0
    return (
        tuple(names), *tables, same_name.tobytes(), tuple(found), *fields, update, int(rules.sticky_branches),
        _BASE_SURVIVES.index(rules.base_survives), int(not rules.tuple_assignments), comments,
    )  # fmt: skip


def _rule(kinds: Kinds, kind: int, opener: Any, first: dict[str, int]) -> tuple[int, ...]:
    rules: Rules = kinds.rules
    name = kinds.names[kind]
    option, selectors = 0, [_NO_FIELD] * 3
    if opener is DefinitionContext:
        rule = rules.definitions[name]
        option, selectors = rule.children, [_selector(kinds, rule.name), _selector(kinds, rule.value), _NO_FIELD]
    elif opener is BranchContext:
        option = int(rules.else_word in name)
    elif opener is TupleAssignmentContext:
        option = int(name in rules.positional_assignments)
    elif opener is CountedLoopContext:
        option = first.get(rules.counted_loops[name], -1)
    elif opener is ForEachContext:
        loop = rules.foreach_loops[name]
        option = -1 if loop.by_kind is None else first.get(loop.by_kind, ERROR + 1)
        selectors = [_selector(kinds, part) for part in (loop.target, loop.source, loop.body)]
    return (_OPENERS.index(opener), option, *[number for selector in selectors for number in selector])


def _selector(kinds: Kinds, selector: Selector) -> tuple[int, int]:
    return (0, selector) if isinstance(selector, int) else (1, kinds.fields.get(selector, -1))


def _lists_sets_alike(module: ModuleType) -> bool:
    """Compares the order of names in C with what this interpreter's own sets give."""
    empty = bytes(ERROR + 1)
    spec = (("",) * (ERROR + 1), *[empty] * 5, bytes(4 * (ERROR + 1)), ((0,) * 8,), -1, -1, 0, 0, 0, 0, 0)
    reader = module.Reader(spec, (), *[_unused] * 6)
    draw = random.Random(0)
    for count in (0, 1, 2, 3, 4, 5, 8, 13, 20, 40, 90, 400):
        names = [f"{chr(draw.randrange(97, 999))}{draw.randrange(count)}" for _ in range(count)]
        if tuple(reader.list_set(list(names))) != NameOrder().join(names, ()):
            return False
    return True


def _unused(*arguments: object) -> None:
    raise AssertionError("a reader without a grammar reads nothing")
