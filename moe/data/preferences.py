"""Preference pairs on disk: JSON Lines of ``prompt``, ``chosen``, ``rejected`` and ``language``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe.errors import UserError
from moe.files import json_type, named, read_json_lines
from moe.languages import language_key

KEYS = ("prompt", "chosen", "rejected", "language")


@dataclass(frozen=True)
class Preference:
    """Two answers to a description of code, of which ``chosen`` is the better one."""

    language: str
    prompt: str
    chosen: str
    rejected: str


def read_preferences(path: Path, languages: Sequence[str]) -> dict[str, list[Preference]]:
    """The preferences of a file by language, in the order of ``languages``; those without any are left out.

    Raises:
        UserError: naming file and line, for a line that is no preference or of another language, and for a file
            without any.
    """
    found: dict[str, list[Preference]] = {language: [] for language in languages}
    for where, row in read_json_lines(path, ", ".join(KEYS)):
        with named(where):
            preference = _parsed(row)
            if preference.language not in found:
                raise UserError(
                    f"language is {preference.language!r}, which the mixture has no expert for; its languages: "
                    f"{', '.join(languages)}"
                )
        found[preference.language].append(preference)
    if not any(found.values()):
        raise UserError(f"{path}: holds no preferences; expected at least one line with {', '.join(KEYS)}")
    return {language: items for language, items in found.items() if items}


def _parsed(row: dict[str, Any]) -> Preference:
    if "language" not in row and "lang" in row:
        row = {**row, "language": row["lang"]}
    for key in KEYS:
        if key not in row:
            raise UserError(f"lacks the key {key!r}; found {', '.join(map(repr, row))}; expected {', '.join(KEYS)}")
        if not isinstance(row[key], str):
            raise UserError(f"{key!r} is {json_type(row[key])}; expected a string")
        if not row[key].strip():
            raise UserError(f"{key!r} is empty; expected text")
        try:
            row[key].encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can write lone surrogates, which no tokenizer takes
            raise UserError(f"{key!r} holds a lone surrogate at character {error.start + 1}") from error
    prompt, chosen, rejected = (row[key] for key in KEYS[:3])
    if chosen.strip() == rejected.strip():
        raise UserError("'chosen' and 'rejected' are the same; expected two different answers")
    if prompt.strip() == chosen.strip():
        raise UserError("'chosen' repeats the prompt; expected an answer to it")
    return Preference(language_key(row["language"]), prompt, chosen, rejected)
