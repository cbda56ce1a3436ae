"""Where the first function of a text ends, by its syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from moe.data.grammars import make_parser
from moe.errors import UserError
from moe.languages import get_language

if TYPE_CHECKING:
    from tree_sitter import Node

FUNCTIONS = frozenset(
    "function_definition function_declaration method_declaration constructor_declaration method_definition"
    " function_item arrow_function function_expression local_function_statement method singleton_method".split()
)
# Methods, which some grammars take only inside a class, are parsed in one that stays open.
_OPENINGS = {"java": "class X {\n", "c_sharp": "class X {\n", "php": "<?php\n"}


class FunctionEnd:
    """Says of a text that grows by characters whether its first function is complete.

    Where braces enclose functions the closing one ends it; elsewhere the next line that is not indented.
    """

    def __init__(self, language: str):
        get_language(language)
        self.language = language
        self.braces = language not in ("python", "ruby")
        try:
            make_parser(language)
        except ModuleNotFoundError as error:
            name = str(error.name).replace("_", "-")
            raise UserError(f"finding the end of a function needs {name}; type: pip install {name}") from None

    def before(self, text: str, character: str) -> bool:
        """Whether the function was complete before this character, which belongs to the next line."""
        starts = not self.braces and text.endswith("\n") and not character.isspace()
        return starts and self._complete(text)

    def after(self, text: str) -> bool:
        """Whether the last character of the text completes the function."""
        return self.braces and text.endswith("}") and self._complete(text)

    def _complete(self, text: str) -> bool:
        opening = _OPENINGS.get(self.language, "")
        code = (opening + text).encode()
        for node in _functions(make_parser(self.language).parse(code).root_node):
            before = code[len(opening) : node.start_byte]
            if not node.has_error and before.count(b"{") <= before.count(b"}") + self._classes(node):
                return not self.braces or node.end_byte == len(code)
        return False

    def _classes(self, node: Node) -> int:
        """How many classes and namespaces are open around a function, each with a brace."""
        bodies, count, parent = ("class_body", "declaration_list", "field_declaration_list"), 0, node.parent
        while parent is not None:
            count += parent.type in bodies and parent.start_byte >= len(_OPENINGS.get(self.language, ""))
            parent = parent.parent
        return count


def _functions(node: Node) -> Iterator[Node]:
    """Functions in the order of their starts, outer ones before inner ones."""
    if node.type in FUNCTIONS:
        yield node
    for child in node.children:
        yield from _functions(child)
