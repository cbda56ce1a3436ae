"""Takes the code out of a chat model's answer: the fenced block, or what is left without the prose around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe.languages import get_language


def extract_code(answer: str, language: str) -> str:
    """Takes the code out of a chat model's answer.

    The first fenced block that names the language, else the first that names none, else the first; a block that is
    never closed runs to the end. What a model thinks aloud first is no part of it. Without a fence, sentences before
    and after the code are dropped. Line ends around the code are left out.
    """
    answer = without_thoughts(answer)
    fences = get_language(language).fences
    blocks = [(name, code) for name, code in fenced_blocks(answer) if code.strip()]
    for wanted in (lambda name: name in fences, lambda name: not name, lambda name: True):
        for name, code in blocks:
            if wanted(name):
                return code
    return _without_prose(answer)


# Some templates write the opening mark themselves, so that the answer has the closing one alone.
_THOUGHTS = re.compile(r"\s*<(think|thinking|reasoning)>.*?(?:</\1>|\Z)|.*?^</think>[ \t]*$", re.DOTALL | re.MULTILINE)


def without_thoughts(answer: str) -> str:
    """The answer after what a model thinks aloud first (``<think>...</think>``); nothing where that never ends."""
    found = _THOUGHTS.match(answer)
    return answer if found is None else answer[found.end() :].strip("\r\n")


_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<lead>\S.*?)??(?P<fence>`{3,}|~{3,})[ \t]*(?P<name>[\w+#.-]*)[^`]*")
# An English sentence on a line of its own: a capital, two words, no sign that only code has, a full stop or colon.
_PROSE = re.compile(
    r"(?:[-*\d.]+\s+)?[A-Z][^\s{}=;]*(?:\s+[^\s{}=;]+)+[.:!?][*`)]*|(?:Explanation|Example|Note|Usage|Output)s?:"
)


def fenced_blocks(answer: str) -> list[tuple[str, str]]:
    """The fenced blocks of Markdown text, as (the name after the fence in lower case, the code)."""
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in answer.split("\n"):
        if opened is None:
            opened, lines = _FENCE.fullmatch(line), []
        elif line.strip().startswith(opened["fence"]) and not line.strip().strip(opened["fence"][0]):
            blocks.append((opened["name"].lower(), _block(lines, opened)))
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        blocks.append((opened["name"].lower(), _block(lines, opened)))
    return blocks


def _block(lines: Sequence[str], opened: re.Match[str]) -> str:
    indent = "" if opened["lead"] else opened["indent"]  # a fence in a list takes its code in with it
    return "\n".join(line.removeprefix(indent) for line in lines).strip("\r\n")


def _without_prose(answer: str) -> str:
    lines = answer.split("\n")
    code = [number for number, line in enumerate(lines) if line.strip() and not _PROSE.fullmatch(line.strip())]
    if not code:
        return answer.strip("\r\n")
    return "\n".join(lines[code[0] : code[-1] + 1]).rstrip("\r")
