"""Wrong programs from right ones: one operator flipped, one return dropped or one branch removed, by seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from eval.benchmarks.source import parse

FLIPS = {
    "+": "-",
    "-": "+",
    "*": "+",
    "/": "*",
    "//": "*",
    "%": "*",
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "===": "!==",
    "!==": "===",
    "&&": "||",
    "||": "&&",
    "and": "or",
    "or": "and",
}
OPERATIONS = {"binary_expression", "binary_operator", "comparison_operator", "boolean_operator"}
KINDS = ("operator", "return", "branch")


@dataclass(frozen=True)
class Mutant:
    """A changed program; ``change`` says what was changed, in which line."""

    kind: str
    change: str
    code: str


def mutants(code: str, language: str, start: int = 0) -> list[Mutant]:
    """All mutants of ``code`` that change it after the byte ``start``, in the order of the text."""
    data = code.encode()
    found = []
    for node in _nodes(parse(code, language)):
        for kind, place, text in _changes(node, language):
            if place.start_byte >= start:
                changed = data[: place.start_byte] + text.encode() + data[place.end_byte :]
                old = " ".join((place.text or b"").decode().split())[:60]
                line = place.start_point[0] + 1
                found.append(Mutant(kind, f"line {line}: {old!r} -> {text!r}", changed.decode()))
    return found


def choose(found: list[Mutant], seed: str, kind: str | None = None) -> Mutant | None:
    """One of the mutants, of ``kind`` if that is given; the same seed chooses the same."""
    of_kind = [mutant for mutant in found if kind in (None, mutant.kind)]
    return random.Random(seed).choice(of_kind) if of_kind else None


def _nodes(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _nodes(child)


def _changes(node: Node, language: str) -> Iterator[tuple[str, Node, str]]:
    nothing = "pass" if language == "python" else ";"
    if node.type in OPERATIONS:
        for child in node.children:
            if not child.is_named and child.type in FLIPS:
                yield "operator", child, FLIPS[child.type]
    elif node.type == "return_statement":
        yield "return", node, nothing
    elif node.type == "if_statement":
        alternative = node.child_by_field_name("alternative")
        if alternative is None:
            yield "branch", node, nothing
        elif language == "python" and alternative.type == "else_clause":
            yield "branch", alternative, ""
        elif language != "python":
            body = alternative if alternative.type != "else_clause" else alternative.named_children[-1]
            yield "branch", body, nothing
