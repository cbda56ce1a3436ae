"""Reads a syntax tree for mode ``reference``: subtrees as numbers, and the tokens that dataflow treats as variables.

The published metric compares subtrees by the text that tree-sitter prints for them: named nodes and field names, but no
identifiers and no operators. Printing every subtree takes time in proportion to nodes times depth, so equal text is
represented by equal numbers here, which are assigned bottom-up from the kind of a node and the numbers of its children.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import count

from tree_sitter import Node, Tree

from eval.codebleu.grammar import STRINGS, SyntaxNode, Token, depth, syntax_nodes

MAX_PRINTED_DEPTH = 2_000  # tree-sitter prints recursively; deeper trees are never printed

Numbers = defaultdict[Hashable, int]
"""What identifies the printed form of a subtree -> its number; looking up a new one assigns the next number."""


def new_numbers() -> Numbers:
    """An empty table."""
    return defaultdict(count().__next__)


@dataclass(frozen=True)
class Reading:
    """What is read from the tree of one text.

    Attributes:
        root: the tree itself.
        inner: the nodes whose subtrees count, children before parents: all with children, and the root.
        subtrees: the number of the subtree of each of them.
        tokens: the tokens that dataflow treats as variables.
        is_numbered: False for the rare tree whose printed form shows more than the numbers know; its subtrees are
            compared with those of other trees by :func:`printed_subtrees`.
    """

    root: SyntaxNode
    inner: list[SyntaxNode]
    subtrees: list[int]
    tokens: list[Token]
    is_numbered: bool


def padded(text: str) -> str:
    """``text`` with each line as long in characters as it is in UTF-8 bytes.

    The published metric cuts lines of characters at byte columns. Cutting this text there, and leaving out newlines,
    which serve as the padding, gives the same result.
    """
    if text.isascii():
        return text
    return "\n".join(line.ljust(len(line.encode()), "\n") for line in text.split("\n"))


def read_tree(tree: Tree, text: str, numbers: Numbers) -> Reading:
    """Reads ``tree``, the parse of ``text``; all texts that are compared share ``numbers``."""
    source = padded(text)
    nodes = syntax_nodes(tree)
    inner: list[SyntaxNode] = []
    subtrees: list[int] = []
    tokens: list[Token] = []
    shown_missing, is_numbered = 0, True
    for node in nodes:
        node.first = node.children[0].first if node.children else len(tokens)
        if node.kind in STRINGS or (node.is_leaf and node.kind != "comment"):
            del tokens[node.first :]  # of the parts of a string
            name = source[node.node.start_byte : node.node.end_byte].replace("\n", "")
            if name != node.kind or not node.is_leaf:
                _add_token(node, name, tokens)
        node.stop = len(tokens)

        if node.node.is_named:
            node.subtree = numbers[_printed(node)]
            shown_missing += node.node.is_missing
        elif node.node.is_missing:
            node.subtree = numbers[str(node.node)]
            shown_missing += 1
        elif any(child.subtree is not None for child in node.children):
            is_numbered = False  # in print, the parent of an anonymous node shows that node's named children
        if not node.is_leaf or node is nodes[-1]:
            inner.append(node)
            subtrees.append(numbers[str(node.node)] if node.subtree is None else node.subtree)
    if is_numbered and tree.root_node.has_error:
        is_numbered = count_missing(tree) == shown_missing
    return Reading(nodes[-1], inner, subtrees, tokens, is_numbered or not is_printable(tree))


def _add_token(node: SyntaxNode, name: str, tokens: list[Token]) -> None:
    start, end = node.node.start_byte, node.node.end_byte
    number = len(tokens)
    if start == end and tokens and tokens[-1].start == tokens[-1].end == start:
        number = tokens[-1].number  # the parser may add several tokens at one place; they count as one
    node.token = Token(number, name, node.kind == "identifier", start, end)
    tokens.append(node.token)


def _printed(node: SyntaxNode) -> Hashable:
    """What identifies the printed form of a named node."""
    children = [(child.field, child.subtree) for child in node.children if child.subtree is not None]
    if children:
        return (node.kind, *children)
    return str(node.node) if node.is_leaf else f"({node.kind})"


def count_missing(tree: Tree) -> int:
    """Number of missing nodes that the printed tree shows; 1 for a tree too deep to print."""
    return str(tree.root_node).count("(MISSING ") if is_printable(tree) else 1


def is_printable(tree: Tree) -> bool:
    """Whether the tree is shallow enough to print."""
    return tree.root_node.descendant_count < MAX_PRINTED_DEPTH or depth(tree) < MAX_PRINTED_DEPTH


def printed_subtrees(root: Node) -> list[str]:
    """The printed form of every subtree that counts, in the reverse order of ``inner``; takes O(nodes x depth)."""
    printed, stack = [], [root]
    while stack:
        node = stack.pop()
        printed.append(str(node))
        stack.extend(child for child in node.children if child.child_count)
    return printed
