"""Loads tree-sitter grammars and reads syntax trees into plain objects, which both modes work on."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from tree_sitter import Language, Node, Parser, Tree

from eval.codebleu.errors import CodeBLEUError
from eval.codebleu.languages import find_language

STRINGS = frozenset({"string_literal", "string", "character_literal"})
"""Kinds of nodes that dataflow takes as one token, whatever their children are."""


class Token(NamedTuple):
    """A token that dataflow treats as a variable.

    Attributes:
        number: its position among the tokens of the text; tokens that count as the same one share a number.
        name: its text.
        declares: whether the first use makes the name known (true of identifiers, not of literals).
        start, end: its place in the text, in bytes.
    """

    number: int
    name: str
    declares: bool
    start: int
    end: int


@dataclasses.dataclass(slots=True, eq=False)
class SyntaxNode:
    """A node of a syntax tree.

    Attributes:
        node: the node of tree-sitter.
        kind: its kind, such as ``if_statement``.
        field: the field of its parent that it fills, if any.
        is_leaf: whether the tree ends here; other nodes may also lack children, if all were skipped.
        children: its direct children, anonymous ones (keywords, punctuation) included.
        first, stop: the tokens within it are number ``first`` to ``stop`` - 1 of the text's list of tokens.
        token: the token that it is, if it is a single one.
        subtree: the number of its subtree; None if the subtrees around it do not show it.
    """

    node: Node
    kind: str
    field: str | None
    is_leaf: bool = False
    children: list[SyntaxNode] = dataclasses.field(default_factory=list)
    first: int = 0
    stop: int = 0
    token: Token | None = None
    subtree: int | None = None

    def child(self, selector: str | int) -> SyntaxNode | None:
        """The first child in a field, or the child at a position (from the end if negative)."""
        if isinstance(selector, int):
            return self.children[selector] if -len(self.children) <= selector < len(self.children) else None
        return next((child for child in self.children if child.field == selector), None)


@cache
def load_grammar(language: str) -> Language:
    """The tree-sitter grammar of ``language``.

    Raises:
        CodeBLEUError: the language is unknown or its grammar is not installed.
    """
    language = find_language(language)
    function = {"php": "language_php", "typescript": "language_typescript"}.get(language, "language")
    try:
        return Language(getattr(importlib.import_module(f"tree_sitter_{language}"), function)())
    except ImportError:
        package = f"tree-sitter-{language.replace('_', '-')}"
        raise CodeBLEUError(f"the grammar of {language} is not installed; type: pip install {package}") from None


def parse(parser: Parser, text: str) -> Tree:
    """The syntax tree of ``text``.

    Raises:
        CodeBLEUError: the text is not valid Unicode.
    """
    try:
        return parser.parse(text.encode())
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise CodeBLEUError(f"a text has the lone surrogate U+{code:04X}, which is not valid Unicode") from None


def syntax_nodes(tree: Tree, skip: Callable[[Node], bool] | None = None) -> list[SyntaxNode]:
    """All nodes of a tree in the order of the text, children before their parents; the root is last.

    Nodes for which ``skip`` is true are left out with all that is in them.
    """
    nodes: list[SyntaxNode] = []
    parents: list[SyntaxNode] = []
    cursor = tree.walk()
    while True:
        node = cursor.node
        assert node is not None
        if skip is None or not skip(node):
            made = SyntaxNode(node, node.type, cursor.field_name)
            if parents:
                parents[-1].children.append(made)
            if cursor.goto_first_child():
                parents.append(made)
                continue
            made.is_leaf = True
            nodes.append(made)
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return nodes
            nodes.append(parents.pop())


def depth(tree: Tree, leaves: frozenset[str] = frozenset()) -> int:
    """Number of levels of a tree, the root included; nodes of the kinds in ``leaves`` are not entered."""
    cursor = tree.walk()
    level = deepest = 1
    while True:
        node = cursor.node
        assert node is not None
        if node.type not in leaves and cursor.goto_first_child():
            level += 1
            deepest = max(deepest, level)
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return deepest
            level -= 1
