"""Variants of a piece of code: some keep its meaning, others most likely break it.

Variants are made from the syntax tree, so they are well formed; whether one really keeps or breaks the meaning has to
be tested.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType

from tree_sitter import Node, Parser

from eval.codebleu.corrected.rules import MEMBERS, VARIABLES
from eval.codebleu.corrected.scorer import CorrectedScorer
from eval.codebleu.grammar import load_grammar

_BLOCKS = frozenset(("block", "statement_block", "compound_statement"))
_JUMPS = frozenset(("return_statement", "break_statement", "continue_statement", "throw_statement", "raise_statement"))
_OPERATORS = MappingProxyType(
    {
        "+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "*", "<": "<=", "<=": "<", ">": ">=", ">=": ">",
        "==": "!=", "!=": "==", "===": "!==", "!==": "===", "&&": "||", "||": "&&", "and": "or", "or": "and",
        "+=": "-=", "-=": "+=", "*=": "+=", "++": "--",
    }
)  # fmt: skip
_NAMES = tuple("alpha bravo delta gamma kappa lima omega quebec sierra tango value0 item0 part0 entry0 slot0".split())
_REMARKS = tuple("keep this simple|the usual case first|see above|now the rest|nothing else to do here".split("|"))


@dataclass(frozen=True)
class Variant:
    """One variant: the kind of change, and the new text."""

    kind: str
    text: str


class VariantMaker:
    """Makes variants of code in one language (Python, Java, JavaScript, C++)."""

    def __init__(self, language: str, seed: int):
        self._language = language
        self._parser = Parser(load_grammar(language))
        self._scorer = CorrectedScorer(language)
        self._random = random.Random(seed)

    def keeping(self, text: str) -> Iterator[Variant]:
        """Yields one variant of each possible kind: renamed variables, reordered statements, comments."""
        yield from self._make(text, renamed=self._rename, reordered=self._reorder, commented=self._comment)

    def breaking(self, text: str) -> Iterator[Variant]:
        """Yields one variant of each possible kind: a wrong operator, a wrong variable, a dropped statement."""
        yield from self._make(text, operator=self._wrong_operator, variable=self._wrong_variable, dropped=self._drop)

    def _make(self, text: str, **makers: Callable[[bytes, list[Node]], bytes | None]) -> Iterator[Variant]:
        source = text.encode()
        nodes = _all_nodes(self._parser.parse(source).root_node)
        for kind, maker in makers.items():
            made = maker(source, nodes)
            if made is not None and made != source:
                yield Variant(kind, made.decode())

    def _variables(self, source: bytes, nodes: list[Node]) -> dict[str, list[Node]]:
        """Local variable -> its occurrences."""
        known = self._scorer.read(source.decode()).locals
        found: dict[str, list[Node]] = {name: [] for name in known}
        for node in nodes:
            if node.type in VARIABLES and not node.child_count:
                name = _text(node)
                if name in found and (_parent(node).type, _field(node)) not in MEMBERS:
                    found[name].append(node)
        return found

    def _rename(self, source: bytes, nodes: list[Node]) -> bytes | None:
        variables = self._variables(source, nodes)
        free = [name for name in _NAMES if name.encode() not in source]
        names = self._random.sample(free, min(len(free), len(variables)))
        edits = [(node, new.encode()) for new, places in zip(names, variables.values()) for node in places]
        return _edit(source, edits) if edits else None

    def _reorder(self, source: bytes, nodes: list[Node]) -> bytes | None:
        pairs = []
        for first, second in _neighbors(nodes):
            jumps = any(node.type in _JUMPS for node in (*_all_nodes(first), second))
            dependent = _written(first) & _names(second) or _names(first) & _written(second)
            if not jumps and not dependent and _text(first) != _text(second):
                pairs.append((first, second))
        if not pairs:
            return None
        first, second = self._random.choice(pairs)
        return _edit(source, [(first, _text(second).encode()), (second, _text(first).encode())])

    def _comment(self, source: bytes, nodes: list[Node]) -> bytes | None:
        mark = "#" if self._language == "python" else "//"
        statements = [node for node in _statements(nodes) if not _before(source, node).strip()]
        if not statements:
            return None
        for node in sorted(self._random.sample(statements, min(2, len(statements))), key=lambda n: -n.start_byte):
            gap = _before(source, node).decode()
            remark = f"{mark} {self._random.choice(_REMARKS)}\n{gap}".encode()
            source = source[: node.start_byte] + remark + source[node.start_byte :]
        return source

    def _wrong_operator(self, source: bytes, nodes: list[Node]) -> bytes | None:
        places = [node for node in nodes if not node.is_named and node.type in _OPERATORS and _is_operator(node)]
        if not places:
            return None
        node = self._random.choice(places)
        return _edit(source, [(node, _OPERATORS[node.type].encode())])

    def _wrong_variable(self, source: bytes, nodes: list[Node]) -> bytes | None:
        variables = self._variables(source, nodes)
        uses = [(name, node) for name, places in variables.items() for node in places[1:]]
        if len(variables) < 2 or not uses:
            return None
        name, node = self._random.choice(uses)
        return _edit(source, [(node, self._random.choice([other for other in variables if other != name]).encode())])

    def _drop(self, source: bytes, nodes: list[Node]) -> bytes | None:
        statements = [node for node in _statements(nodes) if _parent(node).named_child_count > 1]
        if not statements:
            return None
        node = self._random.choice(statements)
        start, end = node.start_byte - len(_before(source, node)), node.end_byte
        if source[start : node.start_byte].strip():
            start = node.start_byte
        return source[:start] + source[end:].removeprefix(b"\n")


def _all_nodes(root: Node) -> list[Node]:
    found, stack = [], [root]
    while stack:
        node = stack.pop()
        found.append(node)
        stack.extend(reversed(node.children))
    return found


def _text(node: Node) -> str:
    return (node.text or b"").decode()


def _parent(node: Node) -> Node:
    """The parent of a node other than the root."""
    assert node.parent is not None
    return node.parent


def _field(node: Node) -> str | None:
    parent = _parent(node)
    return next((parent.field_name_for_child(i) for i, child in enumerate(parent.children) if child == node), None)


def _before(source: bytes, node: Node) -> bytes:
    """The text before a node on its line."""
    return source[source.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte]


def _statements(nodes: list[Node]) -> list[Node]:
    return [
        node
        for node in nodes
        if node.is_named and node.parent and node.parent.type in _BLOCKS and "comment" not in node.type
    ]


def _neighbors(nodes: list[Node]) -> Iterator[tuple[Node, Node]]:
    statements = set(_statements(nodes))
    for node in nodes:
        following = node.next_named_sibling
        if node in statements and following in statements:
            yield node, following


def _names(node: Node) -> set[str]:
    return {_text(n) for n in _all_nodes(node) if n.type in VARIABLES and not n.child_count}


def _written(node: Node) -> set[str]:
    """Names that a statement may change: assigned, declared, incremented, or called upon."""
    found: set[str] = set()
    for inner in _all_nodes(node):
        if "assignment" in inner.type or "declarator" in inner.type:
            target = inner.child_by_field_name("left") or inner.child_by_field_name("name")
            found |= _names(target or inner.children[0])
        elif "update" in inner.type or "call" in inner.type or "invocation" in inner.type:
            found |= _names(inner.children[0])
        elif inner.type in ("for_statement", "for_in_statement", "enhanced_for_statement", "for_range_loop"):
            found |= _names(inner)
    return found


def _is_operator(node: Node) -> bool:
    """Whether it is an operator, and not a pointer, a template bracket or a default value."""
    parent = _parent(node).type
    return any(word in parent for word in ("binary", "boolean", "comparison", "assignment", "update"))


def _edit(source: bytes, edits: list[tuple[Node, bytes]]) -> bytes:
    for node, new in sorted(edits, key=lambda edit: -edit[0].start_byte):
        source = source[: node.start_byte] + new + source[node.end_byte :]
    return source
