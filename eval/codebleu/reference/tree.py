"""One walk over a syntax tree: subtrees as numbers, variable tokens, and the program that dataflow runs.

A subtree's number stands for the text that tree-sitter prints for it (named nodes and field names; no identifiers, no
operators): equal numbers, equal text. Numbers are handed out bottom-up from the kinds, fields and numbers of the
children (hash-consing), so a walk costs time in proportion to the tree, where printing every subtree would cost its
depth times as much.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import count

from tree_sitter import Language, Node, Tree

from eval.codebleu.reference.instructions import Context, Program
from eval.codebleu.reference.program import Opener, StringContext, contexts
from eval.codebleu.reference.rules import Rules

ERROR = 0xFFFF  # tree-sitter's kind of a node that it could not parse
FIRST_NUMBER = ERROR + 1  # smaller numbers are those of the kinds themselves, without named children
PRINTABLE_DEPTH = 2_000  # tree-sitter prints recursively; deeper trees are never printed

# What a kind of node means to the walk. PLAIN: an anonymous token whose text is the name of its kind. RULE: its
# children are listed. Text that is broken or not ASCII is read with more care.
PLAIN, IDENTIFIER, NAMED, COMMENT, CHECKED_IDENTIFIER, RULE, ANONYMOUS = range(7)

# Anonymous tokens whose text can differ from their name (aliases of patterns, scanner tokens), from the grammars;
# besides these: names with a space, preprocessor directives, and all words of PHP, which knows no letter case.
_NOT_PLAIN = {
    "javascript": frozenset(("?", "||")),
    "typescript": frozenset(("?", "||")),
    "rust": frozenset('"'),
    "c_sharp": frozenset('"'),
    "ruby": frozenset(("<<", "-", "**", "[", "*", "&", '"', "`", "%w(", ")", "%i(", ':"', "/")),
}

Numbers = defaultdict[tuple[int, ...] | str, int]
"""Shape of a subtree, or its printed form -> its number."""


def new_numbers() -> Numbers:
    """No subtree has a number yet; asking for one hands it out."""
    return defaultdict(count(FIRST_NUMBER).__next__)


class Kinds:
    """What every kind of node of one grammar means to the walk."""

    def __init__(self, language: str, grammar: Language, rules: Rules):
        count = grammar.node_kind_count
        self.rules = rules
        self.names: list[str] = [grammar.node_kind_for_id(kind) or "" for kind in range(count)]
        self.names += ["ERROR"] * (ERROR + 1 - count)
        self.fields = {grammar.field_name_for_id(number): number for number in range(1, grammar.field_count + 1)}
        self.sides = frozenset((self.fields.get("left"), self.fields.get("right"))) - {None}
        openers = contexts(rules)
        self.openers: dict[int, Opener] = {}
        odd = _NOT_PLAIN.get(language, frozenset())
        self.careful = [NAMED] * (ERROR + 1)
        self.fast = [NAMED] * (ERROR + 1)
        for kind, name in enumerate(self.names[:count]):
            if not grammar.node_kind_is_named(kind):
                self.careful[kind] = ANONYMOUS
                check = name in odd or " " in name or name[:1] in "#\n" or (language == "php" and name[:1].isalpha())
                self.fast[kind] = ANONYMOUS if check else PLAIN
                continue
            meaning = {"identifier": IDENTIFIER, "comment": COMMENT}.get(name, NAMED)
            if name in openers:
                meaning = RULE
                self.openers[kind] = openers[name]
            self.fast[kind] = meaning
            self.careful[kind] = CHECKED_IDENTIFIER if meaning == IDENTIFIER else meaning
        self.broken = list(self.fast)
        if rules.clauses:  # in broken text a clause may stand in an error, and is read before its neighbours there too
            self.careful[ERROR] = self.broken[ERROR] = RULE
            self.openers[ERROR] = openers[next(iter(rules.clauses_first))]


@dataclass(slots=True)
class Reading:
    """What one walk finds.

    Attributes:
        subtrees: number of every subtree, children before parents; the root's is last.
        names: text of every variable token, in order.
        program: what dataflow does with them.
        same: tokens without width -> the last one at the same place, which stands for all of them.
        printed: the tree has nodes that only its printed form shows.
    """

    subtrees: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    program: Program = field(default_factory=list)
    same: dict[int, int] = field(default_factory=dict)
    printed: bool = False


def padded(text: str) -> str:
    """``text`` with each line as long in characters as it is in UTF-8 bytes.

    The published metric cuts lines of characters at byte columns; cutting this text there, and leaving out the newlines
    that are the padding, gives what it gets.
    """
    lines = text.split("\n")
    return "\n".join([line if line.isascii() else line.ljust(len(line.encode()), "\n") for line in lines])


def read_tree(tree: Tree, text: str, kinds: Kinds, numbers: Numbers) -> Reading:
    """Walks ``tree``, the parse of ``text``; ``numbers`` (shared by all texts that are compared) names the subtrees."""
    reading = Reading()
    root = tree.root_node
    broken = root.has_error
    meanings = kinds.fast
    missing = 0
    if broken:
        missing = count_missing(tree)
        meanings = kinds.careful if missing else kinds.broken
    if not text.isascii():
        text, meanings = padded(text), kinds.careful
    kind_names = kinds.names
    subtrees, names, program = reading.subtrees, reading.names, reading.program
    empty: dict[int, int] = {}
    cursor = tree.walk()
    down, right, up = cursor.goto_first_child, cursor.goto_next_sibling, cursor.goto_parent
    stack: list[tuple[list[int], Context | None]] = []
    push, pop, add_subtree, add_name, add_step = stack.append, stack.pop, subtrees.append, names.append, program.append
    # The open node's kind and the numbers of its children; a field is a negative number before its child.
    shape: list[int] = []
    context: Context | None = None  # of the open node, if it wants to know its children
    inner: Context | None = None
    while True:
        node = cursor.node
        kind = node.kind_id
        meaning = meanings[kind]
        if context is not None and context.lists:
            field_number = cursor.field_id
            inner = context.begin(kind, field_number, len(names), program) if context.asks else None
            context.children.append((kind, field_number, len(names), len(program), inner))
        if meaning:
            field_number = cursor.field_id
            if field_number:
                shape.append(-field_number)
            if down():
                push((shape, context))
                shape = [kind]
                if meaning >= RULE:
                    context = _open(kinds, node, kind, meaning, len(names), program, inner)
                else:
                    context = inner
                inner = None
                continue
            name = text[node.start_byte : node.end_byte]
            shape.append(kind)
            if meaning == IDENTIFIER:
                if name != "identifier":
                    add_step(len(names))
                    add_name(name)
            else:
                if "\n" in name:
                    name = name.replace("\n", "")
                if meaning == ANONYMOUS:
                    del shape[-2 if field_number else -1 :]
                if broken and (kind == ERROR or not name):
                    printed = print_leaf(node, meaning == ANONYMOUS, kind_names[kind])
                    missing -= printed.startswith("(MISSING")
                    if printed:
                        if meaning != ANONYMOUS:
                            del shape[-1]
                        elif field_number:
                            shape.append(-field_number)
                        shape.append(numbers[printed])
                if meaning != COMMENT and name != kind_names[kind]:
                    if not name and node.start_byte == node.end_byte:
                        empty[len(names)] = node.start_byte
                    add_step(len(names) if meaning == CHECKED_IDENTIFIER else ~len(names))
                    add_name(name)
        while not right():
            if not up():
                if not subtrees:
                    subtrees.append(root.kind_id)
                reading.printed = (reading.printed or missing != 0) and is_printable(tree)
                last = {place: token for token, place in empty.items()}
                reading.same = {token: last[place] for token, place in empty.items() if last[place] != token}
                return reading
            number = numbers[tuple(shape)] if len(shape) > 1 else shape[0]
            if context is not None:
                inner = None
                context.close(len(names), program)
                if type(context) is StringContext:
                    token = context.first_token
                    del program[context.first_step :], names[token:]
                    empty = {i: place for i, place in empty.items() if i < token} if empty else empty
                    add_step(~token)
                    add_name(context.text(text))
                elif type(context) is AnonymousContext:
                    reading.printed |= len(shape) > 1
                    add_subtree(numbers[str(context.node)])
                    shape, context = pop()
                    if shape[-1] < 0:
                        del shape[-1]
                    continue
            add_subtree(number)
            shape, context = pop()
            shape.append(number)


class AnonymousContext(Context):
    """An anonymous node with children, such as Python's ``not in``: no part of what its parent prints."""

    __slots__ = ("node",)

    lists = False


def _open(
    kinds: Kinds, node: Node, kind: int, meaning: int, token: int, program: Program, inner: Context | None
) -> Context:
    if meaning == ANONYMOUS:
        context: Context = AnonymousContext(kind, kinds, token, program)
        context.node = node
    else:
        context = kinds.openers[kind](kind, kinds, token, program)
        if type(context) is StringContext:
            context.span = slice(node.start_byte, node.end_byte)
            context.lists = inner is not None
    context.parts_of = inner
    return context


def print_leaf(node: Node, is_anonymous: bool, name: str) -> str:
    """What a leaf of broken text looks like in print, if that is more than its kind."""
    if node.is_missing:
        return f"(MISSING {is_anonymous} {name})"
    printed = str(node) if node.kind_id == ERROR else ""
    return "" if printed == "(ERROR)" else printed


def count_missing(tree: Tree) -> int:
    """Missing nodes that the printed tree shows; 1 for a tree too deep to be printed."""
    return str(tree.root_node).count("(MISSING ") if is_printable(tree) else 1


def is_printable(tree: Tree) -> bool:
    """Whether the tree is flat enough to be printed."""
    return tree.root_node.descendant_count < PRINTABLE_DEPTH or depth(tree) < PRINTABLE_DEPTH


def depth(tree: Tree, leaves: frozenset[str] = frozenset()) -> int:
    """Levels of the tree, the root being one; nodes of the kinds ``leaves`` are not entered."""
    cursor = tree.walk()
    level = deepest = 1
    while True:
        if (not leaves or cursor.node.type not in leaves) and cursor.goto_first_child():
            level += 1
            deepest = max(deepest, level)
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return deepest
            level -= 1


def printed_subtrees(root: Node) -> list[str]:
    """The printed form of every subtree, as slow as it sounds: for the rare tree that the walk cannot number."""
    printed, stack = [], [root]
    while stack:
        node = stack.pop()
        printed.append(str(node))
        stack.extend(child for child in node.children if child.child_count)
    return printed
