"""Names of the languages that can be scored."""

from __future__ import annotations

import difflib
from types import MappingProxyType

from eval.codebleu.errors import CodeBLEUError

LANGUAGES: tuple[str, ...] = (
    "python", "java", "javascript", "cpp", "c", "go", "rust", "c_sharp", "php", "ruby", "typescript",
)  # fmt: skip
"""Languages of mode ``corrected``; mode ``reference`` supports all but TypeScript."""

_ALIASES = MappingProxyType(
    {
        "py": "python", "js": "javascript", "c++": "cpp", "golang": "go", "rs": "rust", "c#": "c_sharp",
        "cs": "c_sharp", "csharp": "c_sharp", "rb": "ruby", "ts": "typescript",
    }
)  # fmt: skip


def find_language(name: str) -> str:
    """The key of a language given by its key or by a common short name.

    Raises:
        CodeBLEUError: there is no such language.
    """
    key = _ALIASES.get(str(name).lower(), name)
    if key not in LANGUAGES:
        close = difflib.get_close_matches(str(name).lower(), LANGUAGES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise CodeBLEUError(f"unknown language {name!r}{hint}; known languages: {', '.join(LANGUAGES)}")
    return key
