"""The rules of mode ``corrected``: dataflow in terms of today's grammars, and which names are local variables."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from eval.codebleu.reference.rules import Definition, ForEach, Rules


def _kinds(text: str) -> frozenset[str]:
    return frozenset(text.split())


_LOOPS = _kinds("while_statement do_statement for_statement")
_ELSE = _kinds("else_clause")

_C = Rules(
    definitions={"init_declarator": Definition("declarator", "value")},
    assignments=_kinds("assignment_expression"),
    compounds=True,
    lenient=True,
    increments=_kinds("update_expression"),
    branches=_kinds("if_statement"),
    alternatives=_ELSE,
    sticky_branches=False,
    foreach_loops={"for_range_loop": ForEach("declarator", "right")},
    repeated=_LOOPS,
)
_JAVASCRIPT = Rules(
    definitions={"variable_declarator": Definition("name", "value")},
    assignments=_kinds("assignment_expression augmented_assignment_expression assignment_pattern"),
    compounds=True,
    lenient=True,
    tuple_assignments=True,
    tuple_kinds=_kinds("array_pattern array"),
    increments=_kinds("update_expression"),
    branches=_kinds("if_statement"),
    alternatives=_ELSE,
    sticky_branches=False,
    foreach_loops={"for_in_statement": ForEach("left", "right")},
    repeated=_LOOPS,
)

CORRECTED_RULES: Mapping[str, Rules] = MappingProxyType(
    {
        "python": Rules(
            definitions={
                "default_parameter": Definition("name", "value"),
                "typed_default_parameter": Definition("name", "value"),
                "named_expression": Definition("name", "value"),
                "as_pattern": Definition("alias", 0),
            },
            assignments=_kinds("assignment augmented_assignment"),
            compounds=True,
            lenient=True,
            tuple_assignments=True,
            tuple_kinds=_kinds("pattern_list tuple_pattern list_pattern expression_list tuple list"),
            branches=_kinds("if_statement"),
            alternatives=_kinds("elif_clause else_clause"),
            sticky_branches=False,
            foreach_loops={"for_statement": ForEach("left", "right")},
            repeated=_kinds("while_statement"),
            clauses=_kinds("for_in_clause"),
            clauses_first=_kinds("list_comprehension set_comprehension dictionary_comprehension generator_expression"),
        ),
        "java": Rules(
            definitions={
                "variable_declarator": Definition("name", "value"),
                "resource": Definition("name", "value"),
            },
            assignments=_kinds("assignment_expression"),
            compounds=True,
            lenient=True,
            increments=_kinds("update_expression"),
            branches=_kinds("if_statement"),
            alternatives=_kinds("else"),
            foreach_loops={"enhanced_for_statement": ForEach("name", "value")},
            repeated=_LOOPS,
        ),
        "javascript": _JAVASCRIPT,
        "typescript": _JAVASCRIPT,
        "c": _C,
        "cpp": _C,
        "go": Rules(
            definitions={"var_spec": Definition("name", "value")},
            assignments=_kinds("assignment_statement short_var_declaration range_clause"),
            compounds=True,
            lenient=True,
            tuple_assignments=True,
            tuple_kinds=_kinds("expression_list"),
            increments=_kinds("inc_statement dec_statement"),
            branches=_kinds("if_statement"),
            alternatives=_kinds("else"),
            repeated=_kinds("for_statement"),
        ),
        "rust": Rules(
            definitions={
                "let_declaration": Definition("pattern", "value"),
                "let_condition": Definition("pattern", "value"),
            },
            assignments=_kinds("assignment_expression compound_assignment_expr"),
            compounds=True,
            lenient=True,
            branches=_kinds("if_expression"),
            alternatives=_ELSE,
            sticky_branches=False,
            foreach_loops={"for_expression": ForEach("pattern", "value")},
            repeated=_kinds("while_expression loop_expression"),
        ),
        "c_sharp": Rules(
            definitions={"variable_declarator": Definition("name", -1, children=-3)},
            assignments=_kinds("assignment_expression"),
            compounds=True,
            lenient=True,
            increments=_kinds("postfix_unary_expression"),
            branches=_kinds("if_statement"),
            alternatives=_kinds("else"),
            foreach_loops={"foreach_statement": ForEach("left", "right")},
            repeated=_LOOPS,
        ),
        "php": Rules(
            definitions={"simple_parameter": Definition("name", "default_value")},
            assignments=_kinds("assignment_expression augmented_assignment_expression"),
            compounds=True,
            lenient=True,
            increments=_kinds("update_expression"),
            branches=_kinds("if_statement"),
            alternatives=_kinds("else_if_clause else_clause"),
            sticky_branches=False,
            foreach_loops={"foreach_statement": ForEach(target=4, source=2)},  # foreach ( source as target
            repeated=_LOOPS,
        ),
        "ruby": Rules(
            definitions={
                "optional_parameter": Definition("name", "value"),
                "keyword_parameter": Definition("name", "value"),
            },
            assignments=_kinds("assignment operator_assignment"),
            compounds=True,
            lenient=True,
            tuple_assignments=True,
            tuple_kinds=_kinds("left_assignment_list right_assignment_list"),
            branches=_kinds("if unless elsif"),
            alternatives=_kinds("elsif else"),
            sticky_branches=False,
            foreach_loops={"for": ForEach("pattern", "value")},
            repeated=_kinds("while until while_modifier until_modifier"),
        ),
    }
)

BINDERS: Mapping[str, frozenset[str | None]] = MappingProxyType(
    {
        kind: frozenset(None if name == "*" else name for name in fields.split())
        for kind, fields in {
            "assignment": "left",
            "augmented_assignment": "left",
            "named_expression": "name",
            "for_statement": "left",
            "for_in_clause": "left",
            "parameters": "*",
            "lambda_parameters": "*",
            "default_parameter": "name",
            "typed_default_parameter": "name",
            "typed_parameter": "*",
            "as_pattern": "alias",
            "variable_declarator": "name",
            "assignment_expression": "left",
            "augmented_assignment_expression": "left",
            "compound_assignment_expr": "left",
            "enhanced_for_statement": "name",
            "formal_parameter": "name",
            "catch_formal_parameter": "name",
            "resource": "name",
            "inferred_parameters": "*",
            "lambda_expression": "parameters",
            "formal_parameters": "*",
            "arrow_function": "parameter",
            "assignment_pattern": "left",
            "for_in_statement": "left",
            "catch_clause": "parameter",
            "required_parameter": "pattern",
            "optional_parameter": "pattern name",
            "declaration": "declarator",
            "init_declarator": "declarator",
            "array_declarator": "declarator",
            "parameter_declaration": "declarator name",
            "optional_parameter_declaration": "declarator",
            "for_range_loop": "declarator",
            "short_var_declaration": "left",
            "var_spec": "name",
            "range_clause": "left",
            "assignment_statement": "left",
            "parameter": "pattern name",
            "let_declaration": "pattern",
            "let_condition": "pattern",
            "for_expression": "pattern",
            "closure_parameters": "*",
            "foreach_statement": "left",
            "simple_parameter": "name",
            "method_parameters": "*",
            "block_parameters": "*",
            "splat_parameter": "name",
            "block_parameter": "name",
            "operator_assignment": "left",
            "for": "pattern",
        }.items()
    }
)
"""Kind of node -> fields in which it introduces or assigns names; None stands for children without a field."""

PATTERNS = _kinds(
    "pattern_list tuple_pattern list_pattern list_splat_pattern dictionary_splat_pattern as_pattern_target "
    "array_pattern object_pattern rest_pattern pointer_declarator reference_declarator structured_binding_declarator "
    "expression_list tuple_struct_pattern slice_pattern mut_pattern ref_pattern left_assignment_list variable_name "
    "list_literal destructured_left_assignment"
)
"""Nodes whose children are introduced or assigned when they are."""

VARIABLES = _kinds("identifier name shorthand_property_identifier_pattern shorthand_property_identifier")
"""Kinds of leaves that can be variables."""

MEMBERS: frozenset[tuple[str, str | None]] = frozenset(
    {
        ("attribute", "attribute"),
        ("keyword_argument", "name"),
        ("field_access", "field"),
        ("method_invocation", "name"),
        ("member_access_expression", "name"),
        ("member_call_expression", "name"),
        ("scoped_call_expression", "name"),
        ("function_call_expression", "function"),
        ("call", "method"),
        ("function_definition", "name"),
        ("function_declaration", "name"),
        ("function_item", "name"),
        ("method_declaration", "name"),
        ("method", "name"),
        ("local_function_statement", "name"),
    }
)
"""(kind of parent, field) of names that are not variables: members, functions, names of arguments."""
