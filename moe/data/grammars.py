"""Whether code parses, by tree-sitter: to notice prose, truncated code and wrong languages among pairs."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Parser

# Pairs are often methods, which some grammars take only inside a class.
_CLASS = {language: "class X {\n%s\n}" for language in ("java", "javascript", "typescript", "cpp", "c_sharp")}
_CLASS |= {"php": "<?php class X {\n%s\n}"}
_OPENING = {"php": "<?php\n%s"}


def parses(code: str, language: str) -> bool:
    """Whether code parses without an error, alone or as the body of a class."""
    forms = [_OPENING.get(language, "%s"), _CLASS.get(language)]
    if language == "php" and code.lstrip().startswith("<?"):
        forms = ["%s"]
    parser = make_parser(language)
    return any(not parser.parse(form.replace("%s", code).encode()).root_node.has_error for form in forms if form)


@cache
def make_parser(language: str, tsx: bool = False) -> Parser:
    """The parser of a language; ``tsx`` for TypeScript with JSX."""
    from tree_sitter import Language, Parser  # training on a GPU machine does without it

    module = importlib.import_module(f"tree_sitter_{language}")
    function = {"php": "language_php", "typescript": "language_tsx" if tsx else "language_typescript"}.get(
        language, "language"
    )
    return Parser(Language(getattr(module, function)()))
