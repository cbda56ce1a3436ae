"""Grammars of the languages that can be scored."""

from __future__ import annotations

import difflib
import importlib
from functools import cache
from types import MappingProxyType

from tree_sitter import Language

from eval.codebleu.errors import CodeBLEUError

# language -> (module of the grammar, its function)
_GRAMMARS = MappingProxyType(
    {
        "python": ("tree_sitter_python", "language"),
        "java": ("tree_sitter_java", "language"),
        "javascript": ("tree_sitter_javascript", "language"),
        "cpp": ("tree_sitter_cpp", "language"),
        "c": ("tree_sitter_c", "language"),
        "go": ("tree_sitter_go", "language"),
        "rust": ("tree_sitter_rust", "language"),
        "c_sharp": ("tree_sitter_c_sharp", "language"),
        "php": ("tree_sitter_php", "language_php"),
        "ruby": ("tree_sitter_ruby", "language"),
        "typescript": ("tree_sitter_typescript", "language_typescript"),
    }
)
_ALIASES = MappingProxyType(
    {
        "py": "python", "js": "javascript", "c++": "cpp", "golang": "go", "rs": "rust", "c#": "c_sharp",
        "cs": "c_sharp", "csharp": "c_sharp", "rb": "ruby", "ts": "typescript",
    }
)  # fmt: skip
LANGUAGES: tuple[str, ...] = tuple(_GRAMMARS)
"""Languages of mode ``corrected``; mode ``reference`` knows all but TypeScript."""


def find_language(name: str) -> str:
    """The key of a language given by key or by a usual short name.

    Raises:
        CodeBLEUError: there is no such language.
    """
    key = _ALIASES.get(str(name).lower(), name)
    if key not in _GRAMMARS:
        close = difflib.get_close_matches(str(name).lower(), LANGUAGES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise CodeBLEUError(f"unknown language {name!r}{hint}; known languages: {', '.join(LANGUAGES)}")
    return key


@cache
def load_grammar(language: str) -> Language:
    """The tree-sitter grammar of ``language``.

    Raises:
        CodeBLEUError: the language is unknown or its grammar is not installed.
    """
    module, function = _GRAMMARS[find_language(language)]
    try:
        return Language(getattr(importlib.import_module(module), function)())
    except ImportError:
        package = module.replace("_", "-")
        raise CodeBLEUError(f"the grammar of {language} is not installed; type: pip install {package}") from None
