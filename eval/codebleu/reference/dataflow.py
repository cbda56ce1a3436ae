"""Dataflow edges: which variables the value of each variable comes from.

Runs the program of :mod:`eval.codebleu.reference.program` in one loop without recursion. A branch notes what it
changes, so joining branches costs what they changed and not what is known; a loop that is nested in others runs once
per state that it starts from, where visiting every loop twice would visit k nested ones 2**k times.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import length_hint

from eval.codebleu.reference.instructions import (
    AGAIN,
    ASSIGN,
    COMES_FROM,
    DEFINE,
    FORK,
    JOIN,
    LOOP,
    LOOP_END,
    ONCE,
    SIDE,
    SIDE_END,
    SKIP,
)
from eval.codebleu.reference.name_order import NameOrder
from eval.codebleu.reference.tree import Reading

RELATIONS = ("comesFrom", "computedFrom")
MEMORY_DEPTH = 2  # loops in so many others are remembered
LONG = 64  # a set of definitions larger than this is joined lazily

UNREAD, NEW, USED = range(3)  # a token that was read as a name without a value, and one with a value

Edge = tuple  # (variable, relation, source variables...)
Found = dict[int, tuple[str, ...]]  # 2 * token + relation -> source names


class BrokenRule(Exception):
    """A rule asks for a part that the node lacks; the published metric then counts the text as having no dataflow."""


class _Joined:
    """Many definitions of one variable, joined without copying; marked at most once."""

    __slots__ = ("marked", "parts")

    def __init__(self, parts: tuple):
        self.parts = parts
        self.marked = False


Definitions = int | frozenset | _Joined  # the tokens that may have given a variable its value


def _join(parts: Sequence[Definitions]) -> Definitions:
    distinct = dict.fromkeys(parts)
    if len(distinct) == 1:
        return parts[0]
    if len(distinct) == 2 and type(parts[0]) is type(parts[1]) is int and parts[0] != parts[1]:
        return frozenset(distinct)
    if any(type(part) is _Joined for part in distinct):
        return _Joined(tuple(distinct))
    whole = frozenset().union(*[(part,) if type(part) is int else part for part in distinct])
    return whole if len(whole) <= LONG else _Joined(tuple(distinct))


class Dataflow:
    """Runs the program of one text."""

    def __init__(self, reading: Reading, order: NameOrder):
        self.names, self.program, self.same, self.order = reading.names, reading.program, reading.same, order
        self.read = [UNREAD] * len(reading.names)  # how each token was read
        self.found: Found = {}  # what assignments give
        self.marked = bytearray(len(reading.names))  # tokens that are an end of an edge, besides those read as USED
        self.states: dict[str, Definitions] = {}
        self.journal: dict[str, Definitions | None] | None = None  # values before the open branch changed them
        self.loops: list[tuple] = []  # (what was found before, round, key, names) of every open loop
        self.forks: list[tuple] = []  # (outer journal, changes of each side, changes of the main line)
        self.memory: dict[tuple, tuple[Found, dict[str, Definitions]]] = {}

    def run(self) -> None:
        """Runs the program.

        Raises:
            BrokenRule: a node lacks a part that its rule needs.
        """
        names, program, states, same, read = self.names, self.program, self.states, self.same, self.read
        marked = self.marked
        journal = self.journal
        # A list's iterator can be moved, which makes jumps rare work and every other step cheap.
        steps = iter(program)
        for step in steps:
            if type(step) is int:
                token = step if step >= 0 else ~step
                name = names[token]
                if same:
                    token = same.get(token, token)
                if name in states:
                    read[token] = USED
                    definitions = states[name]
                    if type(definitions) is int:
                        marked[definitions] = 1
                    else:
                        self._mark(definitions)
                    continue
                if not read[token]:
                    read[token] = NEW
                if step >= 0:
                    if journal is not None and name not in journal:
                        journal[name] = None
                    states[name] = token
                continue
            operation = step[0]
            if operation == ASSIGN:
                self._assign(step)
            elif operation == FORK:
                self.forks.append((journal, [], None))
                journal = self.journal = {}
            elif operation == SIDE:
                outer, sides, _ = self.forks.pop()
                self.forks.append((outer, sides, self._undo()))
                journal = self.journal = {}
            elif operation == SIDE_END:
                outer, sides, main = self.forks[-1]
                sides.append(self._undo())
                journal = self.journal = {}
                for name, definitions in main.items():
                    self._set(name, definitions)
            elif operation == JOIN:
                self._join_sides(step[1])
                journal = self.journal
            elif operation == LOOP:
                position = len(program) - length_hint(steps)
                if skipped := self._enter_loop(position, step):
                    steps.__setstate__(position + skipped)
            elif operation == AGAIN:
                before, round_number, *rest = self.loops.pop()
                self.loops.append((before, round_number + 1, *rest))
                if not round_number:
                    steps.__setstate__(len(program) - length_hint(steps) - step[1])
            elif operation == LOOP_END:
                self._leave_loop()
            elif operation == DEFINE:
                for token in self._tokens(step[1], step[2]):
                    self._add(token, COMES_FROM, (), False)
                    self._set(names[token], token)
            elif operation == SKIP or (operation == ONCE and self.loops[-1][1]):
                steps.__setstate__(len(program) - length_hint(steps) + step[1])
            elif operation != ONCE:
                raise BrokenRule

    def _tokens(self, start: int, stop: int) -> Sequence[int]:
        same = self.same
        return [same.get(token, token) for token in range(start, stop)] if same else range(start, stop)

    def _set(self, name: str, definitions: Definitions) -> None:
        if self.journal is not None and name not in self.journal:
            self.journal[name] = self.states.get(name)
        self.states[name] = definitions

    def _mark(self, definitions: Definitions) -> None:
        stack = [definitions]
        while stack:
            part = stack.pop()
            if type(part) is int:
                self.marked[part] = 1
            elif type(part) is frozenset:
                for token in part:
                    self.marked[token] = 1
            elif not part.marked:
                part.marked = True
                stack.extend(part.parts)

    def _add(self, token: int, relation: int, sources: tuple[str, ...], apart: bool) -> None:
        key = token + token + relation
        before = self.found.get(key)
        if apart:
            self.found[key] = self.order.extend(before, sources)
        elif before is None:
            self.found[key] = sources
        else:
            self.found[key] = self.order.join(before, sources)

    def _assign(self, step: tuple) -> None:
        _, start, stop, source, source_stop, relation, apart = step
        names, found, journal, states = self.names, self.found, self.journal, self.states
        sources = tuple(names[source:source_stop])
        tokens: Sequence[int] = range(start, stop)
        if self.same:
            tokens = self._tokens(start, stop)
        if sources and start < stop:
            marked = self.marked
            for token in self._tokens(source, source_stop) if self.same else range(source, source_stop):
                marked[token] = 1
            for token in tokens:
                marked[token] = 1
        apart = apart and len(sources) != 1
        first = self.order.extend(None, sources) if apart and sources else sources
        for token in tokens:
            if sources or not apart:
                key = token + token + relation
                before = found.get(key)
                if before is None:
                    found[key] = first
                elif apart:
                    found[key] = self.order.extend(before, sources)
                else:
                    found[key] = self.order.join(before, sources)
            name = names[token]
            if journal is not None and name not in journal:
                journal[name] = states.get(name)
            states[name] = token

    def _undo(self) -> dict[str, Definitions]:
        """Takes back what the open side of a branch changed and returns it."""
        changed, states = {}, self.states
        for name, before in self.journal.items():
            changed[name] = states[name]
            if before is None:
                del states[name]
            else:
                states[name] = before
        return changed

    def _join_sides(self, keep_base: bool) -> None:
        outer, sides, _ = self.forks.pop()
        if not sides:
            states = self.states
            for name, base in self.journal.items():
                if keep_base and base is not None:
                    states[name] = _join((states[name], base))
                if outer is not None and name not in outer:
                    outer[name] = base
            self.journal = outer
            return
        main = self._undo()
        self.journal = outer
        base_of = self.states.get
        sides.append(main)
        for name in dict.fromkeys([name for side in sides for name in side]):
            base = base_of(name)
            parts = [side.get(name, base) for side in sides]
            if keep_base:
                parts.append(base)
            self._set(name, _join([part for part in parts if part is not None]))

    def _enter_loop(self, position: int, step: tuple) -> int:
        """Opens a loop, or repeats what it gave before; returns how much of the program to skip."""
        key = names = None
        if len(self.loops) >= MEMORY_DEPTH:
            names = tuple(dict.fromkeys(self.names[step[1] : step[2]]))
            key = (position, *map(self.states.get, names))
            if key in self.memory:
                found, after = self.memory[key]
                self._merge(found)
                for name, definitions in after.items():
                    self._set(name, definitions)
                return step[3]
        self.loops.append((self.found, 0, key, names))
        self.found = {}
        return 0

    def _leave_loop(self) -> None:
        before, _, key, names = self.loops.pop()
        found, self.found = self.found, before
        self._merge(found)
        if key is not None:
            self.memory[key] = found, {name: self.states[name] for name in names if name in self.states}

    def _merge(self, found: Found) -> None:
        mine, join = self.found, self.order.join
        for key, sources in found.items():
            if key in mine:
                mine[key] = join(mine[key], sources)
            else:
                mine[key] = sources

    def items(self) -> list[Item]:
        """Every token that is an end of an edge, in order."""
        names, marked = self.names, self.marked
        assigned = self._assigned()
        items = []
        for token, (name, read) in enumerate(zip(names, self.read)):
            if token in assigned:
                if read == USED or marked[token]:
                    relation, sources = assigned[token]
                    if read == USED:
                        sources = self.order.join(sources, (name,))
                    items.append((token, name, relation, sources))
            elif read == USED:
                items.append((token, name, COMES_FROM, (name,)))
            elif read and marked[token]:
                items.append((token, name, COMES_FROM, ()))
        return items

    def edges(self) -> dict[Edge, int]:
        """How often each edge occurs: what :func:`edges_of` makes of :meth:`items`, at a third of the cost."""
        marked, join = self.marked, self.order.join
        assigned = self._assigned()
        variables: dict[str, int] = {}
        uses: list[int] = []  # of each variable: edges from itself, which are most of all edges
        counts: dict[Edge, int] = {}
        for token, (name, read) in enumerate(zip(self.names, self.read)):
            if token in assigned:
                if read != USED and not marked[token]:
                    continue
                relation, sources = assigned[token]
                if read == USED:
                    sources = join(sources, (name,))
            elif read == USED:
                if name in variables:
                    uses[variables[name]] += 1
                else:
                    variables[name] = len(uses)
                    uses.append(1)
                continue
            elif read and marked[token]:
                relation, sources = COMES_FROM, ()
            else:
                continue
            for source in (*sources, name):
                if source not in variables:
                    variables[source] = len(uses)
                    uses.append(0)
            edge = (variables[name], relation, *[variables[source] for source in sources])
            counts[edge] = counts.get(edge, 0) + 1
        for variable, count in enumerate(uses):
            if count:
                edge = (variable, COMES_FROM, variable)
                counts[edge] = counts.get(edge, 0) + count
        return counts

    def _assigned(self) -> dict[int, tuple[int, tuple[str, ...]]]:
        """Token -> relation and sources; published: the later relation, the sources of both."""
        assigned: dict[int, tuple[int, tuple[str, ...]]] = {}
        for key, sources in self.found.items():
            token = key >> 1
            if token in assigned:
                sources = self.order.join(assigned[token][1], sources)
            assigned[token] = key & 1, sources
        return assigned


Item = tuple[int, str, int, tuple[str, ...]]
"""Token, name, relation, source names."""


def edges_of(items: Sequence[Item]) -> list[Edge]:
    """The edge of every item, with the variables numbered in order of first sight, sources first."""
    variables: dict[str, int] = {}
    number = variables.setdefault
    edges: list[Edge] = []
    for _, name, relation, sources in items:
        if len(sources) == 1:
            source = number(sources[0], len(variables))
            edges.append((source if name == sources[0] else number(name, len(variables)), relation, source))
        else:
            numbers = [number(source, len(variables)) for source in sources]
            edges.append((number(name, len(variables)), relation, *numbers))
    return edges


def dataflow_edges(reading: Reading, order: NameOrder) -> dict[Edge, int]:
    """How often each edge of a text occurs; none if a rule asks for a part that a node lacks."""
    flow = Dataflow(reading, order)
    try:
        flow.run()
    except BrokenRule:
        return {}
    return flow.edges()
