"""Mode ``reference`` in C, several times faster than the Python code; optional.

``pip install`` builds the sources in ``csrc/`` if there is a compiler. The extension is used if it was built from these
sources, if tree-sitter's Python objects are laid out as it expects, and if it lists a set in the order of this
interpreter; otherwise the Python code does the work. ``CODEBLEU_NATIVE=0`` in the environment switches it off.
"""

from __future__ import annotations

import os
import random
from array import array
from functools import cache, lru_cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tree_sitter import Node, Parser

from eval.codebleu.comments import strip_comments
from eval.codebleu.csrc_digest import SOURCES, sources_digest
from eval.codebleu.grammar import STRINGS, load_grammar
from eval.codebleu.reference.name_order import join
from eval.codebleu.reference.rules import REFERENCE_RULES, Rules, Selector
from eval.codebleu.reference.tree import count_missing, is_printable, padded

if TYPE_CHECKING:
    from eval.codebleu._native import Reader as NativeReader

VERSION = 2  # of the arguments of the extension; equal to NATIVE_VERSION in csrc/native.h
SWITCH = "CODEBLEU_NATIVE"

# What follows is as in csrc/native.h.
ERROR = 0xFFFF  # tree-sitter's kind of a node that it could not parse
PLAIN, IDENTIFIER, NAMED, COMMENT, CHECKED_IDENTIFIER, RULE, ANONYMOUS = range(7)
# fmt: off
(STRING_NODE, CLAUSES_FIRST, REPEATED, FOREACH, COUNTED, BRANCH, INCREMENT, ASSIGNMENT, TUPLE, CLAUSE, PATTERN_LOOP,
 DEFINITION) = range(12)
# fmt: on
_ALTERNATIVE, _ELSE, _CLAUSE, _COMMA, _BLOCK, _STRING = (1 << bit for bit in range(6))
_BASE_SURVIVES = ("never", "always", "unless else")
_NO_FIELD = (1, -1)

# The C code takes the text of an anonymous token to be the name of its kind. These are the exceptions in the grammars
# (aliases of patterns, tokens of external scanners); others are names with a space, preprocessor directives, and all
# words of PHP, which ignores case.
_NOT_PLAIN = {
    "javascript": frozenset(("?", "||")),
    "rust": frozenset('"'),
    "c_sharp": frozenset('"'),
    "ruby": frozenset(("<<", "-", "**", "[", "*", "&", '"', "`", "%w(", ")", "%i(", ':"', "/")),
}


@cache
def load_native() -> ModuleType | str:
    """The extension module, or why it is not used."""
    try:
        import eval.codebleu._native as _native
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


def make_reader(parser: Parser, language: str, keywords: frozenset[str]) -> NativeReader | None:
    """A reader of texts of one language; None if the extension is not used."""
    module = native_module()
    if module is None:
        return None
    strip = partial(strip_comments, language=language)
    callables = (parser.parse, strip, padded, count_missing, is_printable, _print_leaf)
    return module.Reader(_spec(language), _sorted_keywords(keywords), *callables)


def _print_leaf(node: Node, is_anonymous: bool, name: str) -> str:
    """What is printed for a leaf of broken text if that is more than its kind."""
    if node.is_missing:
        return str(node)
    printed = "" if is_anonymous else str(node)
    return "" if printed == f"({name})" else printed


@lru_cache(maxsize=64)
def _sorted_keywords(keywords: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(keywords))


@cache
def _spec(language: str) -> tuple[Any, ...]:
    """The grammar and its rules as ``csrc/module.c`` reads them; tables are indexed by kind of node."""
    grammar, rules = load_grammar(language), REFERENCE_RULES[language]
    count = grammar.node_kind_count
    names = [grammar.node_kind_for_id(kind) or "" for kind in range(count)] + ["ERROR"] * (ERROR + 1 - count)
    fields = {grammar.field_name_for_id(number): number for number in range(1, grammar.field_count + 1)}
    first: dict[str, int] = {}
    same_name = array("i", [first.setdefault(name, kind) for kind, name in enumerate(names)])
    flags_of = {name: _flags(name, rules) for name in first}
    openers = _openers(rules)
    found: dict[tuple[int, ...], int] = {}
    fast, careful, rule_of = bytearray([NAMED]) * (ERROR + 1), bytearray([NAMED]) * (ERROR + 1), bytearray(ERROR + 1)
    for kind, name in enumerate(names):
        if kind < count and not grammar.node_kind_is_named(kind):
            fast[kind] = PLAIN if _is_plain(name, language) else ANONYMOUS
            careful[kind] = ANONYMOUS
        elif name in openers:
            rule_of[kind] = found.setdefault(_rule(openers[name], name, rules, fields, first), len(found))
            fast[kind] = careful[kind] = RULE
        elif name in ("identifier", "comment"):
            fast[kind] = IDENTIFIER if name == "identifier" else COMMENT
            careful[kind] = CHECKED_IDENTIFIER if name == "identifier" else COMMENT
    comments = {"ruby": 0, "python": 2}.get(language, 1)
    tables = [bytes(table) for table in (fast, careful, [flags_of[name] for name in names], rule_of)]
    update = fields.get(rules.update_field, 0) if rules.update_field else 0
    return (
        tuple(names), *tables, same_name.tobytes(), tuple(found), fields.get("left", -1), fields.get("right", -1),
        update, int(rules.sticky_branches), _BASE_SURVIVES.index(rules.base_survives), int(not rules.tuple_assignments),
        comments,
    )  # fmt: skip


def _is_plain(name: str, language: str) -> bool:
    if name in _NOT_PLAIN.get(language, ()) or " " in name or name[:1] in "#\n":
        return False
    return language != "php" or not name[:1].isalpha()


def _flags(name: str, rules: Rules) -> int:
    return (
        _ALTERNATIVE * (name in rules.alternatives)
        | _ELSE * (rules.else_word in name)
        | _CLAUSE * (name in rules.clauses)
        | _COMMA * (name == ",")
        | _BLOCK * (name == "block")
        | _STRING * (name in STRINGS)
    )


def _openers(rules: Rules) -> dict[str, int]:
    """What is done with each kind of node that has a rule; where a kind has several, the last one counts."""
    plain, tuples = (frozenset(), rules.assignments) if rules.tuple_assignments else (rules.assignments, frozenset())
    openers: dict[str, int] = {}
    for opener, kinds in (
        (STRING_NODE, STRINGS), (CLAUSES_FIRST, rules.clauses_first), (REPEATED, rules.repeated),
        (FOREACH, rules.foreach_loops), (COUNTED, rules.counted_loops), (BRANCH, rules.branches),
        (INCREMENT, rules.increments), (ASSIGNMENT, plain), (TUPLE, tuples), (CLAUSE, rules.clauses),
        (PATTERN_LOOP, rules.pattern_loops), (DEFINITION, rules.definitions),
    ):  # fmt: skip
        openers.update(dict.fromkeys(kinds, opener))
    return openers


def _rule(
    opener: int, name: str, rules: Rules, fields: dict[str | None, int], first: dict[str, int]
) -> tuple[int, ...]:
    def number(selector: Selector) -> tuple[int, int]:
        return (0, selector) if isinstance(selector, int) else (1, fields.get(selector, -1))

    option, selectors = 0, [_NO_FIELD] * 3
    if opener == DEFINITION:
        definition = rules.definitions[name]
        option, selectors = definition.children, [number(definition.name), number(definition.value), _NO_FIELD]
    elif opener == BRANCH:
        option = int(rules.else_word in name)
    elif opener == TUPLE:
        option = int(name in rules.positional_assignments)
    elif opener == COUNTED:
        option = first.get(rules.counted_loops[name], -1)
    elif opener == FOREACH:
        loop = rules.foreach_loops[name]
        option = -1 if loop.by_kind is None else first.get(loop.by_kind, ERROR + 1)
        selectors = [number(part) for part in (loop.target, loop.source, loop.body)]
    return (opener, option, *[number for selector in selectors for number in selector])


def _lists_sets_alike(module: ModuleType) -> bool:
    """Compares the order of names in C with what this interpreter's own sets give."""
    empty = bytes(ERROR + 1)
    spec = (("",) * (ERROR + 1), *[empty] * 4, bytes(4 * (ERROR + 1)), ((0,) * 8,), -1, -1, 0, 0, 0, 0, 0)
    reader = module.Reader(spec, (), *[_unused] * 6)
    draw = random.Random(0)
    for count in (0, 1, 2, 3, 4, 5, 8, 13, 20, 40, 90, 400):
        names = tuple(f"{chr(draw.randrange(97, 999))}{draw.randrange(count)}" for _ in range(count))
        if tuple(reader.list_set(list(names))) != join(names, ()):
            return False
    return True


def _unused(*arguments: object) -> None:
    raise AssertionError("a reader without a grammar reads nothing")
