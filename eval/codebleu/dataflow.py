"""Dataflow edges of a syntax tree, in the way of the published metric (see ``dataflow_rules``)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tree_sitter import Node

from eval.codebleu.dataflow_rules import Rules
from eval.codebleu.name_order import NameOrder

STRINGS = frozenset({"string_literal", "string", "character_literal"})
COMES_FROM, COMPUTED_FROM = "comesFrom", "computedFrom"


class _Broken(Exception):
    """The published metric raises here and then counts the text as having no dataflow."""


class DataflowReader:
    def __init__(self, root: Node, text: str, rules: Rules):
        self.rules = rules
        self.spans: dict[tuple, tuple[int, str]] = {}
        lines = text.split("\n")
        for index, node in enumerate(leaves(root)):
            (row, column), (end_row, end_column) = node.start_point, node.end_point
            if row == end_row:
                token = lines[row][column:end_column]
            else:
                token = "".join([lines[row][column:], *lines[row + 1 : end_row], lines[end_row][:end_column]])
            self.spans[node.start_point, node.end_point] = index, token
        self.items: list[tuple[int, str, str, list[str]]] = []
        self.marked: set[int] = set()

    def token(self, node: Node) -> tuple[int, str]:
        try:
            return self.spans[node.start_point, node.end_point]
        except KeyError:
            raise _Broken from None

    def tokens(self, node: Node | None) -> list[tuple[int, str]]:
        if node is None:
            raise _Broken
        found = []
        for leaf in leaves(node):
            index, text = self.token(leaf)
            if leaf.type != text:
                found.append((index, text))
        return found

    def child(self, node: Node, selector) -> Node | None:
        if isinstance(selector, int):
            return node.children[selector] if selector < len(node.children) else None
        return node.child_by_field_name(selector)

    def edge(self, target, relation, sources):
        self.items.append((target[0], target[1], relation, [name for _, name in sources]))
        if sources:
            self.marked.add(target[0])
            self.marked.update(index for index, _ in sources)

    def assign(self, left, right, relation, states, joined):
        for target in left:
            if joined:
                self.edge(target, relation, right)
            else:
                for source in right:
                    self.edge(target, relation, [source])
            states[target[1]] = {target[0]}

    def visit_all(self, nodes, states):
        for node in nodes:
            states = self.visit(node, states)
        return states

    def visit(self, node: Node | None, states: dict) -> dict:
        if node is None:
            raise _Broken
        rules, kind = self.rules, node.type
        if is_leaf(node):
            states = dict(states)
            index, name = self.token(node)
            if kind == name:
                return states
            if name in states:
                self.items.append((index, name, COMES_FROM, [name]))
                self.marked |= states[name]
                self.marked.add(index)
                return states
            if kind == "identifier":
                states[name] = {index}
            self.items.append((index, name, COMES_FROM, []))
            return states
        if kind in rules.definitions:
            definition = rules.definitions[kind]
            name, value = self.child(node, definition.name), self.child(node, definition.value)
            n = len(node.children)
            if (definition.children > 0 and n != definition.children) or (
                definition.children < 0 and n < -definition.children
            ):
                value = None
            if value is None:
                states = dict(states)
                for index, text in self.tokens(name):
                    self.items.append((index, text, COMES_FROM, []))
                    states[text] = {index}
                return states
            left, right = self.tokens(name), self.tokens(value)
            states = dict(self.visit(value, states))
            self.assign(left, right, COMES_FROM, states, False)
            return states
        if kind in rules.assignments or kind in rules.clauses or kind in rules.pattern_loops:
            if kind in rules.pattern_loops:
                return self.loop(lambda s: self.pattern_round(node, s), states)
            return self.assignment(node, states)
        if kind in rules.increments:
            both = self.tokens(node)
            states = dict(states)
            self.assign(both, both, COMPUTED_FROM, states, False)
            return states
        if kind in rules.branches:
            return self.branch(node, states)
        if kind in rules.counted_loops:
            return self.loop(lambda s: self.counted(node, s), states, 1)
        if kind in rules.foreach_loops:
            return self.loop(lambda s: self.foreach(node, s), states)
        if kind in rules.repeated:
            return self.loop(lambda s: self.visit_all(node.children, s), states)
        early = [c for c in node.children if c.type in rules.clauses]
        return self.visit_all(early + [c for c in node.children if c.type not in rules.clauses], states)

    def sides(self, node):
        left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
        if left is None or right is None:
            raise _Broken
        lefts = [c for c in left.children if c.type != ","]
        rights = [c for c in right.children if c.type != ","]
        if len(lefts) != len(rights) or not lefts:
            lefts, rights = [left], [right]
        return lefts, rights

    def assignment(self, node, states):
        rules = self.rules
        if not rules.tuple_assignments:
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            states = dict(self.visit(right, states))
            self.assign(self.tokens(left), self.tokens(right), COMPUTED_FROM, states, False)
            return states
        if node.type in rules.clauses:
            lefts, rights = [node.child_by_field_name("left")], [node.children[-1]]
        elif "left" and node.child_by_field_name("right") is None and not rules.positional_assignments:
            return states
        else:
            lefts, rights = self.sides(node)
            if node.type in rules.positional_assignments:
                lefts, rights = [node.children[0]], [node.children[-1]]
        states = dict(self.visit_all(rights, states))
        for left, right in zip(lefts, rights):
            self.assign(self.tokens(left), self.tokens(right), COMPUTED_FROM, states, True)
        return states

    def pattern_round(self, node, states):
        lefts, rights = self.sides(node)
        states = dict(self.visit_all(rights, states))
        for left, right in zip(lefts, rights):
            self.assign(self.tokens(left), self.tokens(right), COMPUTED_FROM, states, True)
        if node.children[-1].type == "block":
            states = self.visit(node.children[-1], states)
        return states

    def counted(self, node, states):
        states = self.visit_all(node.children, states)
        marker, again = self.rules.counted_loops[node.type], False
        for child in node.children:
            if again:
                states = self.visit(child, states)
            elif child.type == marker:
                again = True
                update = self.rules.update_field and child.child_by_field_name(self.rules.update_field)
                if update:
                    states = self.visit(update, states)
        return states

    def foreach(self, node, states):
        loop = self.rules.foreach_loops[node.type]
        if loop.by_kind:
            named = [c for c in node.children if c.type == loop.by_kind] + [None, None]
            source, target = named[:2]
        else:
            source, target = self.child(node, loop.source), self.child(node, loop.target)
        states = dict(self.visit(source, states))
        self.assign(self.tokens(target), self.tokens(source), COMPUTED_FROM, states, self.rules.tuple_assignments)
        return self.visit(self.child(node, loop.body), states)

    def loop(self, round_, states, times=2):
        outer, self.items = self.items, []
        for _ in range(times):
            states = round_(states)
        merged: dict[tuple, list[str]] = {}
        for index, name, relation, names in self.items:
            key = (index, name, relation)
            merged[key] = union(merged[key], names) if key in merged else names
        self.items = outer + [(*key, names) for key, names in merged.items()]
        return states

    def branch(self, node, states):
        rules = self.rules
        current, results, alternative = dict(states), [], False
        has_else = rules.else_word in node.type
        for child in node.children:
            has_else = has_else or rules.else_word in child.type
            if child.type in rules.alternatives or alternative:
                alternative = rules.sticky_branches
                results.append(self.visit(child, states))
            else:
                current = self.visit(child, current)
        results.append(current)
        if rules.base_survives == "always" or (rules.base_survives == "unless else" and not has_else):
            results.append(states)
        joined: dict = {}
        for result in results:
            for name, indices in result.items():
                joined[name] = joined.get(name, frozenset()) | indices
        return joined


def union(left: Sequence[str], right: Sequence[str]) -> tuple[str, ...]:
    return NameOrder().join(left, right)


def is_leaf(node: Node) -> bool:
    return (not node.child_count or node.type in STRINGS) and node.type != "comment"


def leaves(node: Node) -> list[Node]:
    found, stack = [], [node]
    while stack:
        node = stack.pop()
        if is_leaf(node):
            found.append(node)
        else:
            stack.extend(reversed(node.children))
    return found


def dataflow_edges(root: Node, text: str, rules: Rules) -> Counter:
    """Edges with their variables numbered in order of first sight: (variable, relation, source variables) -> count."""
    reader = DataflowReader(root, text, rules)
    try:
        reader.visit(root, {})
    except (_Broken, RecursionError):
        return Counter()
    merged: dict = {}
    for index, name, relation, names in reader.items:
        if index in reader.marked:
            merged[index] = (name, relation, union(merged[index][2], names) if index in merged else names)
    variables: dict[str, int] = {}
    edges = []
    for index in sorted(merged):
        name, relation, names = merged[index]
        for n in (*names, name):
            variables.setdefault(n, len(variables))
        edges.append((variables[name], relation, tuple(variables[n] for n in names)))
    return Counter(edges)
