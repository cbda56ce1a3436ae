"""Reads a syntax tree for mode ``corrected``: tokens, subtrees with their operators, variables, dataflow.

Nothing is removed from the text before it is parsed. Comments and docstrings are nodes that are skipped, so positions
are correct and no literal is mistaken for a comment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

from tree_sitter import Node, Tree

from eval.codebleu.corrected.rules import BINDERS, CORRECTED_RULES, MEMBERS, PATTERNS, VARIABLES
from eval.codebleu.grammar import STRINGS, SyntaxNode, Token, syntax_nodes
from eval.codebleu.reference.dataflow import Item, dataflow_items
from eval.codebleu.reference.tree import Numbers

PUNCTUATION = frozenset("( ) [ ] { } , ; : . ' \" ` \"\"\" '''".split()) | {"\n", ""}
STRING_PARTS = frozenset(
    "string_start string_content string_end string_fragment escape_sequence string_literal_content character "
    "raw_string_content character_literal_content interpreted_string_literal_content raw_string_delimiter".split()
)


NamedEdge = tuple[str, int, str]
"""Variable, relation, source variable."""


@dataclass
class CorrectedReading:
    """What is read from one text, without comments and docstrings.

    Attributes:
        subtrees: the number of every subtree, operators included, children before parents.
        spans: kind and bytes (from, to) of each of them.
        words: text of every token.
        variables: for every word, whether it is a name that could be a local variable.
        locals: the names that the text introduces or assigns, in order.
        tokens: the tokens that dataflow treats as variables; the name of a member has a dot before it.
        items: the dataflow, token by token.
    """

    subtrees: list[int] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    variables: list[bool] = field(default_factory=list)
    locals: dict[str, None] = field(default_factory=dict)
    tokens: list[Token] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    @cached_property
    def subtree_counts(self) -> Counter[int]:
        """How often each subtree occurs."""
        return Counter(self.subtrees)

    @cached_property
    def edges(self) -> Counter[NamedEdge]:
        """How often each dataflow edge occurs."""
        return Counter((item.name, item.relation, source) for item in self.items for source in item.sources)


def read_corrected(tree: Tree, source: bytes, language: str, numbers: Numbers) -> CorrectedReading:
    """Reads ``tree``, the parse of ``source``; all texts that are compared share ``numbers``."""
    reading = CorrectedReading()
    nodes = syntax_nodes(tree, _is_docstring_or_comment if language == "python" else _is_comment)
    root, tokens = nodes[-1], reading.tokens
    bound, parents = _bindings(nodes)
    for node in nodes:
        node.first = node.children[0].first if node.children else len(tokens)
        if node.is_leaf:
            _read_leaf(reading, node, parents.get(node), node in bound, _text(source, node))
        elif node.kind in STRINGS and all(c.kind in STRING_PARTS for c in node.children if c.node.is_named):
            del tokens[node.first :]
            _add_token(node, _text(source, node), False, tokens)
        node.stop = len(tokens)
        key = _subtree(node)
        node.subtree = None if key is None else numbers[key]
        if not node.is_leaf or node is root:
            reading.subtrees.append(numbers[key])
            reading.spans.append((node.kind, node.node.start_byte, node.node.end_byte))
    reading.items = dataflow_items(root, tokens, CORRECTED_RULES[language])
    return reading


def _text(source: bytes, node: SyntaxNode) -> str:
    return source[node.node.start_byte : node.node.end_byte].decode("utf-8", "replace")


def _is_comment(node: Node) -> bool:
    return node.is_named and "comment" in node.type and node.type not in VARIABLES


def _is_docstring_or_comment(node: Node) -> bool:
    if node.type == "expression_statement" and node.child_count == 1:
        return node.children[0].type == "string"
    return _is_comment(node)


def _bindings(nodes: list[SyntaxNode]) -> tuple[set[SyntaxNode], dict[SyntaxNode, SyntaxNode]]:
    """The nodes that are introduced or assigned, and the parent of each node."""
    bound: set[SyntaxNode] = set()
    parents: dict[SyntaxNode, SyntaxNode] = {}
    for node in reversed(nodes):  # parents before children
        fields = BINDERS.get(node.kind, frozenset())
        hands_on = node in bound and node.kind in PATTERNS
        for child in node.children:
            parents[child] = node
            if hands_on or child.field in fields:
                bound.add(child)
    return bound, parents


def _subtree(node: SyntaxNode) -> Hashable | None:
    """What identifies the subtree of a node; None for punctuation."""
    if not node.is_leaf:
        return (node.kind, *[(child.field, child.subtree) for child in node.children if child.subtree is not None])
    is_named = node.node.is_named
    if not is_named and node.kind in PUNCTUATION:
        return None
    return (node.kind, is_named, node.node.start_byte < node.node.end_byte)


def _read_leaf(
    reading: CorrectedReading, node: SyntaxNode, parent: SyntaxNode | None, is_bound: bool, text: str
) -> None:
    if not text.strip():
        return
    is_member = parent is not None and (parent.kind, node.field) in MEMBERS
    is_variable = node.kind in VARIABLES and node.node.is_named and not is_member
    reading.words.append(text)
    reading.variables.append(is_variable)
    if is_bound and is_variable:
        reading.locals.setdefault(text)
    if node.node.is_named and text != node.kind:
        _add_token(node, "." + text if is_member else text, is_variable, reading.tokens)


def _add_token(node: SyntaxNode, name: str, declares: bool, tokens: list[Token]) -> None:
    node.token = Token(len(tokens), name, declares, node.node.start_byte, node.node.end_byte)
    tokens.append(node.token)
