"""The instructions of a dataflow program, and what is noted of the children of a syntax node."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eval.codebleu.reference.tree import Kinds

COMES_FROM, COMPUTED_FROM = 0, 1
# ASSIGN target tokens from, to, source tokens from, to, relation, each source an edge of its own
# DEFINE tokens from, to                  introduces names without a value
# FORK, SIDE, SIDE_END, JOIN keep base    alternatives, each starting from what holds at FORK
# LOOP tokens from, to, length            keeps what is found until LOOP_END apart, to be merged there
# AGAIN back                              jumps back once
# ONCE length                             skips so much of the program in the second round of a loop
# SKIP length                             skips so much of the program
# BROKEN                                  a rule asks for a part that the node lacks
ASSIGN, DEFINE, FORK, SIDE, SIDE_END, JOIN, LOOP, LOOP_END, AGAIN, ONCE, SKIP, BROKEN = range(12)
STRINGS = frozenset({"string_literal", "string", "character_literal"})  # one token each, whatever is inside

LONG_TAIL = 256  # moving more of the program than this costs more than a SKIP

Step = int | tuple
Program = list[Step]


# A direct child: its kind and field, where its tokens and its steps begin, and what lists its own children, if wanted.
Child = tuple[int, int | None, int, int, "Context | None"]
KIND, FIELD, TOKEN, STEP, INNER = range(5)


class Context:
    """A node that is open and whose direct children are listed. This one does nothing else."""

    __slots__ = ("children", "first_step", "first_token", "kind", "kinds", "parts_of", "raw")

    lists = True  # whether the children are listed
    asks = False  # whether ``begin`` is called for every child

    def __init__(self, kind: int, kinds: Kinds, first_token: int, program: Program):
        self.kind, self.kinds = kind, kinds
        self.first_token, self.first_step = first_token, len(program)
        self.children: list[Child] = []
        self.parts_of: Context | None = None  # of a side of a tuple assignment: the context that lists its parts
        self.raw: Program | None = None  # ... and the program that its parts give without a rule

    def begin(self, kind: int, field: int | None, token: int, program: Program) -> Context | None:
        """Called when a child begins; gives the context for the child's own children, if they are wanted."""
        raise NotImplementedError

    def close(self, token: int, program: Program) -> None:
        """Rearranges the program of the children; ``token`` is the end of the tokens."""
        if self.parts_of is not None:
            self.parts_of.children = self.children
            apart = self.kinds.rules.tuple_kinds
            if apart is None or self.kinds.names[self.kind] in apart:
                self.parts_of.raw = self.without_rule(program)
        self.rearrange(token, program)

    def without_rule(self, program: Program) -> Program:
        """The program that the children have added, without commas (one can be a token where text is not ASCII)."""
        steps: Program = []
        for index in range(len(self.children)):
            start, end = self.steps(index, program)
            if self.name(index) != ",":
                steps += self.of_child(program[start:end])
        return steps

    def of_child(self, steps: Program) -> Program:
        """What of ``steps`` a child has added."""
        return steps

    def rearrange(self, token: int, program: Program) -> None:
        """What the rule of this node does; nothing here."""

    def index(self, selector: str | int) -> int | None:
        """The position of a child by field or position."""
        if isinstance(selector, int):
            count = len(self.children)
            return selector % count if -count <= selector < count else None
        number = self.kinds.fields.get(selector, -1)
        for index, child in enumerate(self.children):
            if child[FIELD] == number:
                return index
        return None

    def name(self, index: int) -> str:
        """The kind of a child."""
        return self.kinds.names[self.children[index][KIND]]

    def tokens(self, index: int, end: int) -> tuple[int, int]:
        """The tokens of a child: from, to."""
        children = self.children
        following = index + 1
        return children[index][TOKEN], children[following][TOKEN] if following < len(children) else end

    def steps(self, index: int, program: Program) -> tuple[int, int]:
        """The part of the program that a child has added: from, to."""
        following = index + 1
        children = self.children
        return children[index][STEP], children[following][STEP] if following < len(children) else len(program)

    def replace(self, program: Program, *steps: Step) -> None:
        """Puts ``steps`` in the place of all that the children have added."""
        program[self.first_step :] = steps

    def give_up(self, program: Program) -> None:
        """What becomes of a node that lacks a part that its rule needs."""
        if not self.kinds.rules.lenient:
            self.replace(program, (BROKEN,))

    def is_compound(self) -> bool:
        """Whether this is an assignment like ``x += y`` whose target is a source too, and the rules say so."""
        if not self.kinds.rules.compounds:
            return False
        operators = (self.name(index) for index in range(len(self.children)))
        return any(name.endswith("=") and name not in ("=", ":=") for name in operators)

    def update(self, left: int, right: int, token: int, program: Program) -> None:
        """Lets the left side take its value from both sides."""
        target, end = self.tokens(left, token), self.tokens(right, token)[1]
        program.append((ASSIGN, *target, target[0], end, COMPUTED_FROM, True))

    def keep(self, index: int, program: Program) -> None:
        """Leaves of what the children have added only the part of one of them."""
        start, end = self.steps(index, program)
        del program[end:]
        head = start - self.first_step
        if head and end - start > LONG_TAIL:
            program[self.first_step] = (SKIP, head - 1)
        elif head:
            del program[self.first_step : start]
