"""One walk over a syntax tree for mode ``corrected``: tokens, subtrees with their operators, variables, dataflow.

Nothing is removed from the text before it is parsed: comments and docstrings are nodes that are left out, so every
position is right and no literal is mistaken for a comment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tree_sitter import Language, Node, Tree

from eval.codebleu.corrected.rules import BINDERS, MEMBERS, PATTERNS, VARIABLES
from eval.codebleu.reference.instructions import Context, Program
from eval.codebleu.reference.program import Opener, StringContext, contexts
from eval.codebleu.reference.rules import Rules
from eval.codebleu.reference.tree import ERROR, FIRST_NUMBER, Numbers

PUNCTUATION = frozenset("( ) [ ] { } , ; : . ' \" ` \"\"\" '''".split()) | {"\n", ""}
STRING_PARTS = frozenset(
    "string_start string_content string_end string_fragment escape_sequence string_literal_content character "
    "raw_string_content character_literal_content interpreted_string_literal_content raw_string_delimiter".split()
)

MISSING = -FIRST_NUMBER  # the number of a token that the parser had to add is this less its kind

# What a kind of node means to the walk.
TOKEN, OPERATOR, NAMED, VARIABLE, RULE, LEFT_OUT, STATEMENT = range(7)


class CorrectedKinds:
    """What every kind of node of one grammar means to the walk."""

    def __init__(self, language: str, grammar: Language, rules: Rules):
        count = grammar.node_kind_count
        self.rules = rules
        self.names: list[str] = [grammar.node_kind_for_id(kind) or "" for kind in range(count)]
        self.names += ["ERROR"] * (ERROR + 1 - count)
        self.fields = {grammar.field_name_for_id(number): number for number in range(1, grammar.field_count + 1)}
        self.field_names = [None, *self.fields]
        self.sides = frozenset((self.fields.get("left"), self.fields.get("right"))) - {None}
        openers = contexts(rules)
        self.openers: dict[int, Opener] = {}
        self.meanings = [NAMED] * (ERROR + 1)
        self.binders: dict[int, frozenset[str | None]] = {}
        self.patterns: set[int] = set()
        for kind, name in enumerate(self.names[:count]):
            if not grammar.node_kind_is_named(kind):
                self.meanings[kind] = TOKEN if name in PUNCTUATION else OPERATOR
                continue
            if name in BINDERS:
                self.binders[kind] = BINDERS[name]
            if name in PATTERNS:
                self.patterns.add(kind)
            if name in VARIABLES:
                self.meanings[kind] = VARIABLE
            elif "comment" in name:
                self.meanings[kind] = LEFT_OUT
            elif name in openers:
                self.meanings[kind] = RULE
                self.openers[kind] = openers[name]
            elif language == "python" and name == "expression_statement":
                self.meanings[kind] = STATEMENT


@dataclass(slots=True)
class CorrectedReading:
    """What one walk finds.

    Attributes:
        subtrees: number of every subtree without its comments, and with its operators.
        kinds: the kind of each of those.
        places: where each of those lies, as bytes (from, to).
        tokens: text of every token but comments.
        variables: whether that token is a name that could be a local variable.
        locals: the names that the text introduces or assigns, in order.
        names: text of every token that dataflow knows; a member's name has a dot before it.
        name_places: where each of those lies.
        program: what dataflow does with them.
        same: empty, for texts of mode ``reference`` have tokens without width.
    """

    subtrees: list[int] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    variables: list[bool] = field(default_factory=list)
    locals: dict[str, None] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    name_places: list[tuple[int, int]] = field(default_factory=list)
    program: Program = field(default_factory=list)
    same: dict[int, int] = field(default_factory=dict)


def read_corrected(tree: Tree, source: bytes, kinds: CorrectedKinds, numbers: Numbers) -> CorrectedReading:
    """Walks ``tree``, the parse of ``source``; ``numbers`` (shared by all texts compared) names the subtrees."""
    reading = CorrectedReading()
    meanings, kind_names, field_names = kinds.meanings, kinds.names, kinds.field_names
    names, program = reading.names, reading.program
    cursor = tree.walk()
    stack: list[tuple] = []
    shape: list[int] = []
    context: Context | None = None
    inner: Context | None = None
    parent = 0
    binding = False  # whether the open node is introduced or assigned
    while True:
        node = cursor.node
        kind, field_number = node.kind_id, cursor.field_id
        meaning = meanings[kind]
        if meaning == LEFT_OUT or (meaning == STATEMENT and _is_docstring(node)):
            pass
        else:
            field_name = field_names[field_number or 0]
            bound = (binding and parent in kinds.patterns) or field_name in kinds.binders.get(parent, ())
            if context is not None and context.lists:
                inner = context.begin(kind, field_number, len(names), program) if context.asks else None
                context.children.append((kind, field_number, len(names), len(program), inner))
            if cursor.goto_first_child():
                stack.append((kind, field_number, shape, context, parent, binding, node))
                shape, parent, binding = [kind], kind, bound
                context = inner
                if meaning == RULE:
                    context = kinds.openers[kind](kind, kinds, len(names), program)
                    context.parts_of = inner
                    if type(context) is StringContext:
                        context.span = slice(node.start_byte, node.end_byte)
                        context.lists = inner is not None
                inner = None
                continue
            _read_leaf(reading, source, node, meaning, kind_names, (kind_names[parent], field_name), bound)
            if meaning != TOKEN:
                if field_number:
                    shape.append(-field_number)
                shape.append(kind if node.start_byte < node.end_byte else MISSING - kind)
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                if not reading.subtrees:
                    reading.subtrees.append(tree.root_node.kind_id)
                    reading.kinds.append(tree.root_node.type)
                    reading.places.append((tree.root_node.start_byte, tree.root_node.end_byte))
                return reading
            closing = context
            number = numbers[tuple(shape)]
            kind, field_number, shape, context, parent, binding, node = stack.pop()
            if closing is not None:
                inner = None
                closing.close(len(names), program)
                if type(closing) is StringContext and _is_plain_string(node):
                    token = closing.first_token
                    del program[closing.first_step :], names[token:], reading.name_places[token:]
                    program.append(~token)
                    names.append(_text(source, node))
                    reading.name_places.append((node.start_byte, node.end_byte))
            reading.subtrees.append(number)
            reading.kinds.append(kind_names[kind])
            reading.places.append((node.start_byte, node.end_byte))
            if field_number:
                shape.append(-field_number)
            shape.append(number)


def _text(source: bytes, node: Node) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")


def _read_leaf(
    reading: CorrectedReading,
    source: bytes,
    node: Node,
    meaning: int,
    kind_names: list[str],
    place: tuple[str, str | None],
    bound: bool,
) -> None:
    text = _text(source, node)
    if not text.strip():
        return
    kind = kind_names[node.kind_id]
    is_variable = meaning == VARIABLE and place not in MEMBERS
    reading.tokens.append(text)
    reading.variables.append(is_variable)
    if bound and is_variable:
        reading.locals.setdefault(text)
    if meaning > OPERATOR and text != kind:
        token = len(reading.names)
        reading.program.append(token if is_variable else ~token)
        reading.names.append("." + text if place in MEMBERS else text)
        reading.name_places.append((node.start_byte, node.end_byte))


def _is_docstring(node: Node) -> bool:
    children = node.children
    return len(children) == 1 and children[0].type == "string"


def _is_plain_string(node: Node) -> bool:
    return all(child.type in STRING_PARTS for child in node.children if child.is_named)
