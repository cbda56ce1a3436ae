"""Which syntax nodes define, use and join variables in each language: data for the dataflow.

Mode ``reference`` follows the published metric, whose rules are older than today's grammars: C and C++ use the rules of
C#, some kinds of nodes no longer exist, and a child given by position may not be the one that was meant. Scores depend
on these oddities, so they are kept here and fixed only in mode ``corrected``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal

Selector = str | int
"""A child: by field name, or by position (from the end if negative)."""


@dataclass(frozen=True)
class Definition:
    """``name`` gets its value from ``value``; without a ``value``, the name is only introduced.

    ``children``: the exact number (positive) or the minimum number (negative) of children of a node with a value.
    """

    name: Selector
    value: Selector
    children: int = 0


@dataclass(frozen=True)
class ForEach:
    """A loop over a collection: ``target`` takes its values from ``source``.

    With ``by_kind``, ``source`` and ``target`` are the first and second child of that kind.
    """

    target: Selector = 0
    source: Selector = 0
    body: Selector = "body"
    by_kind: str | None = None


@dataclass(frozen=True)
class Rules:
    """How dataflow is read from the nodes of one language; names are kinds of nodes.

    Attributes:
        definitions: declarations; an edge ``comesFrom`` for each token of the name and each of the value.
        assignments: an edge ``computedFrom`` from right to left.
        tuple_assignments: ``a, b = c, d`` is assigned part by part, and one edge holds all tokens of a right side.
        positional_assignments: assignments whose sides are the first and the last child.
        increments: nodes all of whose tokens are read and written.
        branches: nodes with alternatives.
        alternatives: children that begin an alternative.
        sticky_branches: all children after the first alternative are alternatives too.
        base_survives: whether the state before a branch may hold after it: always, never, or unless there is an "else".
        counted_loops: kind -> kind of the child after which the children are visited again.
        update_field: the child of that child that is visited again first.
        foreach_loops: loops over collections.
        pattern_loops: Python's ``for``: tuple targets, and a body only where the last child is a block.
        repeated: loops whose children are all visited twice.
        clauses: comprehension clauses; they assign their last child to the field ``left``.
        clauses_first: nodes whose clauses are visited before their other children.
        else_word: a kind whose name contains this covers the other case of a branch.
        tuple_kinds: sides that are assigned part by part; all kinds if None.
        compounds: whether ``x += y`` also takes its value from ``x``.
        lenient: whether a node that lacks a part that its rule needs is read without the rule; otherwise the whole text
            has no dataflow.
    """

    definitions: Mapping[str, Definition] = field(default_factory=dict)
    assignments: frozenset[str] = frozenset()
    tuple_assignments: bool = False
    positional_assignments: frozenset[str] = frozenset()
    increments: frozenset[str] = frozenset()
    branches: frozenset[str] = frozenset()
    alternatives: frozenset[str] = frozenset()
    sticky_branches: bool = True
    base_survives: Literal["always", "never", "unless else"] = "unless else"
    counted_loops: Mapping[str, str] = field(default_factory=dict)
    update_field: str | None = None
    foreach_loops: Mapping[str, ForEach] = field(default_factory=dict)
    pattern_loops: frozenset[str] = frozenset()
    repeated: frozenset[str] = frozenset()
    clauses: frozenset[str] = frozenset()
    clauses_first: frozenset[str] = frozenset()
    else_word: str = "else"
    tuple_kinds: frozenset[str] | None = None
    compounds: bool = False
    lenient: bool = False

    @cached_property
    def loops(self) -> frozenset[str]:
        """All kinds of loops."""
        return frozenset().union(self.counted_loops, self.foreach_loops, self.pattern_loops, self.repeated)


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _map(**entries):
    return MappingProxyType(entries)


_C_SHARP = Rules(
    definitions=_map(variable_declarator=Definition(0, 1, children=2)),
    assignments=_kinds("assignment_expression"),
    increments=_kinds("postfix_unary_expression"),
    branches=_kinds("if_statement else"),
    alternatives=_kinds("if_statement else"),
    counted_loops=_map(for_statement="local_variable_declaration"),
    foreach_loops=_map(for_each_statement=ForEach("left", "right")),
    repeated=_kinds("while_statement"),
)

REFERENCE_RULES: MappingProxyType[str, Rules] = MappingProxyType(
    {
        "python": Rules(
            definitions=_map(default_parameter=Definition("name", "value")),
            assignments=_kinds("assignment augmented_assignment"),
            tuple_assignments=True,
            branches=_kinds("if_statement"),
            alternatives=_kinds("elif_clause else_clause"),
            sticky_branches=False,
            pattern_loops=_kinds("for_statement"),
            repeated=_kinds("while_statement"),
            clauses=_kinds("for_in_clause"),
            clauses_first=_kinds(
                "list_comprehension set_comprehension dictionary_comprehension generator_expression ERROR"
            ),
        ),
        "java": Rules(
            definitions=_map(variable_declarator=Definition("name", "value")),
            assignments=_kinds("assignment_expression"),
            increments=_kinds("update_expression"),
            branches=_kinds("if_statement else"),
            alternatives=_kinds("if_statement else"),
            counted_loops=_map(for_statement="local_variable_declaration"),
            foreach_loops=_map(enhanced_for_statement=ForEach("name", "value")),
            repeated=_kinds("while_statement"),
        ),
        "javascript": Rules(
            definitions=_map(variable_declarator=Definition("name", "value")),
            assignments=_kinds("assignment_pattern augmented_assignment_expression"),
            increments=_kinds("update_expression"),
            branches=_kinds("if_statement else"),
            alternatives=_kinds("if_statement else"),
            base_survives="always",
            counted_loops=_map(for_statement="variable_declaration"),
            repeated=_kinds("while_statement"),
        ),
        "go": Rules(
            definitions=_map(var_spec=Definition("name", "value")),
            assignments=_kinds("assignment_statement"),
            increments=_kinds("inc_statement"),
            branches=_kinds("if_statement else"),
            alternatives=_kinds("if_statement else"),
            base_survives="always",
            counted_loops=_map(for_statement="for_clause"),
            update_field="update",
        ),
        "rust": Rules(
            definitions=_map(function_item=Definition(1, 2, children=-3)),
            assignments=_kinds("assignment_expression compound_assignment_expr let_expression"),
            branches=_kinds("if_expression if_let_expression match_expression else"),
            alternatives=_kinds("if_expression if_let_expression match_expression else"),
            counted_loops=_map(for_expression="local_variable_declaration"),
            foreach_loops=_map(for_each_statement=ForEach("left", "right")),
            repeated=_kinds("while_expression while_let_expression loop_expression"),
        ),
        "php": Rules(
            definitions=_map(simple_parameter=Definition("name", "default_value")),
            assignments=_kinds("assignment_expression augmented_assignment_expression"),
            increments=_kinds("update_expression"),
            branches=_kinds("if_statement else_clause"),
            alternatives=_kinds("if_statement else_clause"),
            base_survives="always",
            counted_loops=_map(for_statement="assignment_expression"),
            foreach_loops=_map(foreach_statement=ForEach(by_kind="variable_name")),
            repeated=_kinds("while_statement"),
        ),
        "ruby": Rules(
            definitions=_map(keyword_parameter=Definition("name", "value")),
            assignments=_kinds("assignment operator_assignment"),
            tuple_assignments=True,
            positional_assignments=_kinds("operator_assignment"),
            branches=_kinds("if elsif else unless when"),
            alternatives=_kinds("if elsif else unless when"),
            sticky_branches=False,
            foreach_loops=_map(**{"for": ForEach("pattern", "value")}),
            repeated=_kinds("while_modifier until"),
        ),
        "c_sharp": _C_SHARP,
        "c": _C_SHARP,
        "cpp": _C_SHARP,
    }
)
