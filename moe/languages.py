"""The programming languages that experts are named after."""

from __future__ import annotations

from dataclasses import dataclass

from moe.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Language:
    """A programming language: the ``key`` used in data and configs, its name in prose, and names of its code fence."""

    key: str
    name: str
    fences: tuple[str, ...]


LANGUAGES: dict[str, Language] = {
    language.key: language
    for language in (
        Language("python", "Python", ("python", "py", "python3")),
        Language("java", "Java", ("java",)),
        Language("javascript", "JavaScript", ("javascript", "js", "node", "jsx")),
        Language("cpp", "C++", ("cpp", "c++", "cc", "cxx")),
        Language("c", "C", ("c",)),
        Language("go", "Go", ("go", "golang")),
        Language("rust", "Rust", ("rust", "rs")),
        Language("c_sharp", "C#", ("csharp", "c#", "cs", "c_sharp")),
        Language("php", "PHP", ("php",)),
        Language("ruby", "Ruby", ("ruby", "rb")),
        Language("typescript", "TypeScript", ("typescript", "ts")),
    )
}
DEFAULT_LANGUAGES: tuple[str, ...] = ("python", "java", "javascript", "cpp")


_NAMES = {name: found.key for found in LANGUAGES.values() for name in (found.name.lower(), *found.fences)}


def language_key(name: str) -> str:
    """The key of a language by any of its names (Python, C++, js); other text as it is."""
    return name if name in LANGUAGES else _NAMES.get(name.lower(), name)


def get_language(key: str) -> Language:
    """Looks a language up by its key; raises :class:`UserError` with the known keys when there is none."""
    if key not in LANGUAGES:
        meant = language_key(key)
        hint = f" (did you mean {meant!r}?)" if meant in LANGUAGES else did_you_mean(key, LANGUAGES)
        raise UserError(f"unknown language {key!r}{hint}; known languages: {', '.join(LANGUAGES)}")
    return LANGUAGES[key]
