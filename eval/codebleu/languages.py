"""Grammars of the languages that can be scored."""

from __future__ import annotations

import difflib
import importlib
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
LANGUAGES: tuple[str, ...] = tuple(_GRAMMARS)
REFERENCE_LANGUAGES: tuple[str, ...] = tuple(name for name in LANGUAGES if name != "typescript")


def load_grammar(language: str) -> Language:
    """The tree-sitter grammar of ``language``; :class:`CodeBLEUError` when it is unknown or not installed."""
    if language not in _GRAMMARS:
        close = difflib.get_close_matches(str(language), LANGUAGES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise CodeBLEUError(f"unknown language {language!r}{hint}; known languages: {', '.join(LANGUAGES)}")
    module, function = _GRAMMARS[language]
    try:
        return Language(getattr(importlib.import_module(module), function)())
    except ImportError:
        package = module.replace("_", "-")
        raise CodeBLEUError(f"the grammar of {language} is not installed; type: pip install {package}") from None
