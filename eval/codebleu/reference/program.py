"""Turns syntax nodes into a short program that :mod:`eval.codebleu.reference.dataflow` runs.

While a tree is walked, every variable token adds its number to the program: ``n`` for an identifier, ``~n`` for another
token. A node with a rule rearranges, when it ends, what its children added: it leaves out the target of an assignment,
puts a source before its target, or wraps the program of a loop or branch. So the program is in the order in which the
published metric visits the tree, and running it takes no recursion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from eval.codebleu.reference.instructions import (
    AGAIN,
    ASSIGN,
    COMES_FROM,
    COMPUTED_FROM,
    DEFINE,
    FORK,
    INNER,
    JOIN,
    LOOP,
    LOOP_END,
    ONCE,
    SIDE,
    SIDE_END,
    STEP,
    STRINGS,
    Context,
    Program,
    Step,
)
from eval.codebleu.reference.rules import Definition, ForEach, Rules

if TYPE_CHECKING:
    from eval.codebleu.reference.tree import Kinds


class SideContext(Context):
    """One side of a tuple assignment; lists its parts, which the assignment matches with those of the other side."""

    __slots__ = ("end",)

    def rearrange(self, token: int, program: Program) -> None:
        self.end = token

    def commas(self) -> set[int]:
        """Steps of the commas between the parts that are variable tokens, as they can be where text is not ASCII."""
        ranges = enumerate(self.tokens(index, self.end) for index in range(len(self.children)))
        return {~start for index, (start, end) in ranges if start < end and self.name(index) == ","}


class DefinitionContext(Context):
    __slots__ = ()

    def rearrange(self, token: int, program: Program) -> None:
        rule: Definition = self.kinds.rules.definitions[self.kinds.names[self.kind]]
        name, value = self.index(rule.name), self.index(rule.value)
        count = len(self.children)
        if (rule.children > 0 and count != rule.children) or count < -rule.children:
            value = None
        if name is None:
            self.give_up(program)
        elif value is None:
            self.replace(program, (DEFINE, *self.tokens(name, token)))
        else:
            self.keep(value, program)
            program.append((ASSIGN, *self.tokens(name, token), *self.tokens(value, token), COMES_FROM, True))


class AssignmentContext(Context):
    __slots__ = ()

    def rearrange(self, token: int, program: Program) -> None:
        left, right = self.index("left"), self.index("right")
        if left is None or right is None:
            self.give_up(program)
        elif self.is_compound():
            self.update(left, right, token, program)
        else:
            self.keep(right, program)
            program.append((ASSIGN, *self.tokens(left, token), *self.tokens(right, token), COMPUTED_FROM, True))


class TupleAssignmentContext(Context):
    """``a, b = c, d`` part by part; the parts are the children of both sides, if there are as many."""

    __slots__ = ()

    asks = True

    def begin(self, kind: int, field: int | None, token: int, program: Program) -> Context | None:
        if field not in self.kinds.sides:
            return None
        for child in self.children:
            if child[INNER] is not None and not child[INNER].children:
                return None  # the left side has no parts that the right side's could be matched with
        return SideContext(kind, self.kinds, token, program)

    def rearrange(self, token: int, program: Program) -> None:
        left, right = self.index("left"), self.index("right")
        rules, kind = self.kinds.rules, self.kinds.names[self.kind]
        positional = kind in rules.positional_assignments
        if left is None or right is None:
            nothing = right is None and not positional and kind not in rules.pattern_loops
            if nothing:
                self.replace(program)
            else:
                self.give_up(program)
        elif self.is_compound():
            self.update(left, right, token, program)
        elif positional:
            self.keep(len(self.children) - 1, program)
            sides = self.tokens(0, token), self.tokens(len(self.children) - 1, token)
            program.append((ASSIGN, *sides[0], *sides[1], COMPUTED_FROM, False))
        else:
            self.pair(left, right, token, program)

    def pair(self, left: int, right: int, token: int, program: Program) -> None:
        """Leaves the program of the right side and appends the assignments."""
        sides = [self.pieces(index, token) for index in (left, right)]
        apart = self.kinds.rules.tuple_kinds
        matched = apart is None or (self.name(left) in apart and self.name(right) in apart)
        if matched and len(sides[0]) == len(sides[1]) and sides[0]:
            if len(sides[0]) > 1 and (self.name(left) in STRINGS or self.name(right) in STRINGS):
                self.give_up(program)  # the parts of a string literal are no tokens
                return
            inner = self.children[right][INNER]
            if inner.raw is not None:
                self.replace(program, *inner.raw)
            elif commas := inner.commas():
                start, end = self.steps(right, program)
                self.replace(program, *(step for step in program[start:end] if step not in commas))
            else:
                self.keep(right, program)
        else:
            sides = [[self.tokens(index, token)] for index in (left, right)]
            self.keep(right, program)
        program += [(ASSIGN, *to, *source, COMPUTED_FROM, False) for to, source in zip(*sides)]

    def pieces(self, index: int, token: int) -> list[tuple[int, int]]:
        """Tokens of the children of a side, without commas; a string is one token whatever is in it."""
        inner = self.children[index][INNER]
        if inner is None:
            return []
        whole = self.tokens(index, token)
        pieces = [inner.tokens(i, whole[1]) for i in range(len(inner.children)) if inner.name(i) != ","]
        return [whole] * len(pieces) if self.name(index) in STRINGS else pieces


class PatternLoopContext(TupleAssignmentContext):
    __slots__ = ()

    def __init__(self, kind: int, kinds: Kinds, first_token: int, program: Program):
        program.append((LOOP,))
        super().__init__(kind, kinds, first_token, program)

    def pair(self, left: int, right: int, token: int, program: Program) -> None:
        last = len(self.children) - 1
        body: Sequence[Step] = ()
        if self.name(last) == "block":
            body = program[self.children[last][STEP] :]
        super().pair(left, right, token, program)
        program += body
        close_loop(self, program, token, self.first_step)


class ClauseContext(Context):
    __slots__ = ()

    def rearrange(self, token: int, program: Program) -> None:
        left, right = self.index("left"), len(self.children) - 1
        if left is None:
            self.give_up(program)
        else:
            self.keep(right, program)
            program.append((ASSIGN, *self.tokens(left, token), *self.tokens(right, token), COMPUTED_FROM, False))


class ClausesFirstContext(Context):
    __slots__ = ()

    def rearrange(self, token: int, program: Program) -> None:
        first, rest = [], []
        clauses = self.kinds.rules.clauses
        for index in range(len(self.children)):
            start, end = self.steps(index, program)
            (first if self.name(index) in clauses else rest).append(program[start:end])
        if first:
            self.replace(program, *(step for part in first + rest for step in part))


class IncrementContext(Context):
    __slots__ = ()

    def rearrange(self, token: int, program: Program) -> None:
        self.replace(program, (ASSIGN, self.first_token, token, self.first_token, token, COMPUTED_FROM, True))


class BranchContext(Context):
    __slots__ = ("aside", "beside", "has_else")

    asks = True

    def __init__(self, kind: int, kinds: Kinds, first_token: int, program: Program):
        super().__init__(kind, kinds, first_token, program)
        self.has_else = kinds.rules.else_word in kinds.names[kind]
        self.beside = self.aside = False  # after the first alternative; within one
        program.append((FORK,))

    def begin(self, kind: int, field: int | None, token: int, program: Program) -> Context | None:
        rules, name = self.kinds.rules, self.kinds.names[kind]
        if self.aside:
            program.append((SIDE_END,))
        self.has_else = self.has_else or rules.else_word in name
        self.aside = name in rules.alternatives or self.beside
        self.beside = self.aside and rules.sticky_branches
        if self.aside:
            program.append((SIDE,))
        return None

    def of_child(self, steps: Program) -> Program:
        while steps and steps[-1] in ((SIDE,), (SIDE_END,)):
            steps = steps[:-1]
        return steps

    def rearrange(self, token: int, program: Program) -> None:
        if self.aside:
            program.append((SIDE_END,))
        base = self.kinds.rules.base_survives
        program.append((JOIN, base == "always" or (base == "unless else" and not self.has_else)))


class LoopContext(Context):
    """A loop whose children are all visited twice."""

    __slots__ = ()

    def __init__(self, kind: int, kinds: Kinds, first_token: int, program: Program):
        program.append((LOOP,))
        super().__init__(kind, kinds, first_token, program)

    def rearrange(self, token: int, program: Program) -> None:
        close_loop(self, program, token, self.first_step)


class CountedLoopContext(LoopContext):
    __slots__ = ("marker", "update")

    asks = True

    def __init__(self, kind: int, kinds: Kinds, first_token: int, program: Program):
        super().__init__(kind, kinds, first_token, program)
        self.marker = kinds.rules.counted_loops[kinds.names[kind]]
        self.update = kinds.rules.update_field

    def begin(self, kind: int, field: int | None, token: int, program: Program) -> Context | None:
        wanted = self.update and self.kinds.names[kind] == self.marker
        return Context(kind, self.kinds, token, program) if wanted else None

    def rearrange(self, token: int, program: Program) -> None:
        index = next((i for i in range(len(self.children)) if self.name(i) == self.marker), None)
        if index is None:
            close_loop(self, program, token, None)
            return
        start = self.steps(index, program)[1]
        inner = self.children[index][INNER]
        update = inner.index(self.update) if inner else None
        if update is not None:
            begin = inner.children[update][STEP]
            end = inner.children[update + 1][STEP] if update + 1 < len(inner.children) else start
            program += [(ONCE, end - begin), *program[begin:end]]
        close_loop(self, program, token, start)


class ForEachContext(LoopContext):
    __slots__ = ()

    def rearrange(self, token: int, program: Program) -> None:
        rules = self.kinds.rules
        rule: ForEach = rules.foreach_loops[self.kinds.names[self.kind]]
        if rule.by_kind:
            named = [i for i in range(len(self.children)) if self.name(i) == rule.by_kind]
            source, target = named[:2] if len(named) > 1 else (None, None)
        else:
            source, target = self.index(rule.source), self.index(rule.target)
        body = self.index(rule.body)
        if source is None or target is None or body is None:
            self.give_up(program)
            close_loop(self, program, token, None)
            return
        parts = [program[slice(*self.steps(index, program))] for index in (source, body)]
        apart = not rules.tuple_assignments
        assign = (ASSIGN, *self.tokens(target, token), *self.tokens(source, token), COMPUTED_FROM, apart)
        self.replace(program, *parts[0], assign, *parts[1])
        close_loop(self, program, token, self.first_step)


def close_loop(context: Context, program: Program, token: int, again: int | None) -> None:
    """Ends a loop that begins before the context's first step; it runs again from ``again`` on, if that is given."""
    if again is not None:
        program.append((AGAIN, len(program) - again + 1))
    program.append((LOOP_END,))
    begin = context.first_step - 1
    program[begin] = (LOOP, context.first_token, token, len(program) - 1 - begin)


class StringContext(Context):
    """A string literal with parts: one token, which the walk puts in the place of theirs."""

    __slots__ = ("lists", "span")

    def text(self, source: str) -> str:
        """The text of the token, without the newlines in it."""
        return source[self.span].replace("\n", "")


Opener = Callable[[int, "Kinds", int, Program], Context]


def contexts(rules: Rules) -> dict[str, Opener]:
    """The context of every kind of node with a rule."""
    found: dict[str, Opener] = dict.fromkeys(STRINGS, StringContext)
    for kinds, context in (
        (rules.clauses_first, ClausesFirstContext),
        (rules.repeated, LoopContext),
        (rules.foreach_loops, ForEachContext),
        (rules.counted_loops, CountedLoopContext),
        (rules.branches, BranchContext),
        (rules.increments, IncrementContext),
        (rules.assignments, TupleAssignmentContext if rules.tuple_assignments else AssignmentContext),
        (rules.clauses, ClauseContext),
        (rules.pattern_loops, PatternLoopContext),
        (rules.definitions, DefinitionContext),
    ):
        found.update(dict.fromkeys(kinds, context))
    return found
