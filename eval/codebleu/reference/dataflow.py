"""Dataflow edges: which variables the value of each variable comes from.

The syntax tree is visited in the order of execution. A state maps every known name to the tokens that may have given it
its value. A branch visits its alternatives from the same state and joins the states after them; a loop visits its body
twice, so that a use sees the definitions that follow it in the text.

Visits are generators that yield the visits they depend on, so the depth of a tree is not limited by Python's stack.
The outcome of a loop from a given state is remembered, since visiting every loop twice would visit the innermost of k
nested ones 2**k times.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

from eval.codebleu.grammar import STRINGS, SyntaxNode, Token
from eval.codebleu.reference.name_order import Names, extend, join
from eval.codebleu.reference.rules import Rules

COMES_FROM, COMPUTED_FROM = 0, 1
RELATIONS = ("comesFrom", "computedFrom")

Visit = Generator["Visit", None, None]
State = dict[str, frozenset[int]]  # name -> numbers of the tokens that may have given it its value
Found = dict[tuple[int, int], Names]  # (token, relation) -> names that its value comes from
Edge = tuple[int, ...]  # variable, relation, source variables ...


class BrokenRuleError(Exception):
    """A node lacks a part that its rule needs; the published metric then takes the text to have no dataflow."""


class Item(NamedTuple):
    """What is known of one token: its name, and where its value comes from."""

    token: int
    name: str
    relation: int
    sources: Names


def dataflow_items(root: SyntaxNode, tokens: Sequence[Token], rules: Rules) -> list[Item]:
    """The tokens of a text that are an end of an edge, in order.

    Raises:
        BrokenRuleError: a node lacks a part that its rule needs.
    """
    flow = Dataflow(tokens, rules)
    visits = [flow.visit(root)]
    while visits:
        try:
            visits.append(next(visits[-1]))
        except StopIteration:
            visits.pop()
    return flow.items()


def edges_of(items: Iterable[Item]) -> list[Edge]:
    """The edge of every item, with the variables numbered in order of first sight, sources before targets."""
    variables: dict[str, int] = {}
    edges: list[Edge] = []
    for _, name, relation, sources in items:
        numbers = [variables.setdefault(source, len(variables)) for source in sources]
        edges.append((variables.setdefault(name, len(variables)), relation, *numbers))
    return edges


class Dataflow:
    """Visits the tree of one text."""

    def __init__(self, tokens: Sequence[Token], rules: Rules):
        self.tokens = tokens
        self.rules = rules
        self.state: State = {}
        self.found: Found = {}  # of assigned tokens; within a loop, of those assigned in it
        self.used: dict[int, Names] = {}  # tokens that were read -> their own name if its value was known, else nothing
        self.connected: set[int] = set()  # tokens that are an end of an edge
        self.loops: dict[tuple, tuple[Found, State]] = {}  # (loop, state of its names before it) -> outcome

    def items(self) -> list[Item]:
        """What is known of each token that is an end of an edge: the last relation, and the sources of all."""
        merged: dict[int, tuple[int, Names]] = {}
        for (token, relation), sources in self.found.items():
            if token in merged:
                sources = join(merged[token][1], sources)
            merged[token] = relation, sources
        for token, sources in self.used.items():
            if token not in merged:
                merged[token] = COMES_FROM, sources
            elif sources:
                merged[token] = merged[token][0], join(merged[token][1], sources)
        return [
            Item(token, self.tokens[token].name, *merged[token]) for token in sorted(self.connected & merged.keys())
        ]

    def visit(self, node: SyntaxNode) -> Visit:
        """Visits a node by the rule for its kind."""
        rules, kind = self.rules, node.kind
        if node.token is not None:
            self._use(node.token)
        elif node.is_leaf:
            return
        elif kind in rules.definitions:
            yield self._define(node)
        elif kind in rules.clauses:
            yield self._assign_parts(node, node.child("left"), node.child(-1), together=True)
        elif kind in rules.assignments:
            yield self._assign(node)
        elif kind in rules.increments:
            self._set(self._tokens(node), self._tokens(node), COMPUTED_FROM)
        elif kind in rules.branches:
            yield self._branch(node)
        elif kind in rules.loops:
            yield self._loop(node)
        else:
            yield self._children(node)

    def _children(self, node: SyntaxNode) -> Visit:
        first = self.rules.clauses if node.kind in self.rules.clauses_first else frozenset()
        for child in sorted(node.children, key=lambda child: child.kind not in first):
            if child.children or child.token is not None:  # others hold nothing to visit
                yield self.visit(child)

    def _give_up(self, node: SyntaxNode) -> Visit:
        """Visits a node that lacks a part that its rule needs."""
        if not self.rules.lenient:
            raise BrokenRuleError
        yield self._children(node)

    def _tokens(self, node: SyntaxNode) -> Sequence[Token]:
        return self.tokens[node.first : node.stop]

    def _use(self, token: Token) -> None:
        definitions = self.state.get(token.name)
        if definitions is not None:
            self.used[token.number] = (token.name,)
            self.connected |= {token.number, *definitions}
        else:
            self.used.setdefault(token.number, ())
            if token.declares:
                self.state[token.name] = frozenset((token.number,))

    def _set(self, targets: Sequence[Token], sources: Sequence[Token], relation: int, together: bool = False) -> None:
        """Every target takes its value from all sources: by one edge per source, or by one for all ``together``."""
        names = tuple(source.name for source in sources)
        if targets and sources:
            self.connected.update(token.number for token in (*targets, *sources))
        for target in targets:
            known = self.found.get((target.number, relation))
            if names and not together:
                self.found[target.number, relation] = extend(known, names)
            elif together:
                self.found[target.number, relation] = names if known is None else join(known, names)
            self.state[target.name] = frozenset((target.number,))

    def _define(self, node: SyntaxNode) -> Visit:
        rule = self.rules.definitions[node.kind]
        name, value = node.child(rule.name), node.child(rule.value)
        count = len(node.children)
        if (rule.children > 0 and count != rule.children) or count < -rule.children:
            value = None
        if name is None:
            yield self._give_up(node)
        elif value is None:
            self._set(self._tokens(name), (), COMES_FROM, together=True)
        else:
            yield self.visit(value)
            self._set(self._tokens(name), self._tokens(value), COMES_FROM)

    def _assign(self, node: SyntaxNode) -> Visit:
        left, right = node.child("left"), node.child("right")
        positional = node.kind in self.rules.positional_assignments
        if right is None and self.rules.tuple_assignments and not positional:
            return  # an annotation without a value
        if left is None or right is None:
            yield self._give_up(node)
        elif self.rules.compounds and any(_is_compound_operator(child.kind) for child in node.children):
            yield self._children(node)
            self._set(self._tokens(left), self.tokens[left.first : right.stop], COMPUTED_FROM)
        elif positional:
            yield self._assign_parts(node, node.child(0), node.child(-1), together=True)
        elif self.rules.tuple_assignments:
            yield self._assign_tuple(left, right)
        else:
            yield self._assign_parts(node, left, right, together=False)

    def _assign_parts(
        self, node: SyntaxNode, left: SyntaxNode | None, right: SyntaxNode | None, together: bool
    ) -> Visit:
        if left is None or right is None:
            yield self._give_up(node)
        else:
            yield self.visit(right)
            self._set(self._tokens(left), self._tokens(right), COMPUTED_FROM, together)

    def _assign_tuple(self, left: SyntaxNode, right: SyntaxNode) -> Visit:
        """Assigns part by part if both sides have as many, as in ``a, b = c, d``; else from side to side."""
        kinds = self.rules.tuple_kinds
        lefts, rights = ([part for part in side.children if part.kind != ","] for side in (left, right))
        if not lefts or len(lefts) != len(rights) or (kinds is not None and not {left.kind, right.kind} <= kinds):
            lefts, rights = [left], [right]
        elif len(lefts) > 1 and (left.kind in STRINGS or right.kind in STRINGS):
            raise BrokenRuleError  # the parts of a string are not tokens
        lefts, rights = ([side] if side.kind in STRINGS else parts for side, parts in ((left, lefts), (right, rights)))
        for part in rights:
            yield self.visit(part)
        for target, source in zip(lefts, rights):
            self._set(self._tokens(target), self._tokens(source), COMPUTED_FROM, together=True)

    def _branch(self, node: SyntaxNode) -> Visit:
        rules = self.rules
        has_else = rules.else_word in node.kind
        before, ends = dict(self.state), []
        aside = False
        for child in node.children:
            has_else = has_else or rules.else_word in child.kind
            aside = child.kind in rules.alternatives or (aside and rules.sticky_branches)
            if aside:
                main, self.state = self.state, dict(before)
                yield self.visit(child)
                ends.append(self.state)
                self.state = main
            else:
                yield self.visit(child)
        if rules.base_survives == "always" or (rules.base_survives == "unless else" and not has_else):
            ends.append(before)
        for end in ends:
            for name, definitions in end.items():
                known = self.state.get(name, definitions)
                self.state[name] = known if known is definitions else known | definitions

    def _loop(self, node: SyntaxNode) -> Visit:
        names = tuple(dict.fromkeys(token.name for token in self._tokens(node)))
        key = (node, *map(self.state.get, names))
        if key not in self.loops:
            outside, self.found = self.found, {}
            yield self._rounds(node)
            self.loops[key] = self.found, {name: self.state[name] for name in names if name in self.state}
            self.found = outside
        found, state = self.loops[key]
        for place, sources in found.items():
            self.found[place] = join(self.found[place], sources) if place in self.found else sources
        self.state.update(state)

    def _rounds(self, node: SyntaxNode) -> Visit:
        """Visits a loop twice, or the part of it that is repeated."""
        kind, children = node.kind, node.children
        if kind in self.rules.counted_loops:
            yield self._counted_rounds(node)
        elif kind in self.rules.foreach_loops:
            yield self._foreach_rounds(node)
        elif kind in self.rules.pattern_loops:
            left, right = node.child("left"), node.child("right")
            if left is None or right is None:
                raise BrokenRuleError
            for _ in range(2):
                yield self._assign_tuple(left, right)
                if children[-1].kind == "block":
                    yield self.visit(children[-1])
        else:
            for _ in range(2):
                yield self._children(node)

    def _counted_rounds(self, node: SyntaxNode) -> Visit:
        yield self._children(node)
        kinds = [child.kind for child in node.children]
        marker = self.rules.counted_loops[node.kind]
        if marker not in kinds:
            return
        again = kinds.index(marker)
        update = node.children[again].child(self.rules.update_field) if self.rules.update_field else None
        if update is not None:
            yield self.visit(update)
        for child in node.children[again + 1 :]:
            yield self.visit(child)

    def _foreach_rounds(self, node: SyntaxNode) -> Visit:
        rule = self.rules.foreach_loops[node.kind]
        source, target, body = node.child(rule.source), node.child(rule.target), node.child(rule.body)
        if rule.by_kind:
            named = [child for child in node.children if child.kind == rule.by_kind]
            source, target = named[:2] if len(named) > 1 else (None, None)
        if source is None or target is None or body is None:
            yield self._give_up(node)
            return
        for _ in range(2):
            yield self.visit(source)
            self._set(self._tokens(target), self._tokens(source), COMPUTED_FROM, self.rules.tuple_assignments)
            yield self.visit(body)


def _is_compound_operator(kind: str) -> bool:
    return kind.endswith("=") and kind not in ("=", ":=")
