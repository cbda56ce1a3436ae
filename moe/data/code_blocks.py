"""The fenced code blocks of Markdown text."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

# Some templates write the opening mark themselves, so that the answer has the closing one alone.
_THOUGHTS = re.compile(r"\s*<(think|thinking|reasoning)>.*?(?:</\1>|\Z)|.*?^</think>[ \t]*$", re.DOTALL | re.MULTILINE)


def without_thoughts(answer: str) -> str:
    """The answer after what a model thinks aloud first (``<think>...</think>``); nothing where that never ends."""
    found = _THOUGHTS.match(answer)
    return answer if found is None else answer[found.end() :].strip("\r\n")


_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<lead>\S.*?)??(?P<fence>`{3,}|~{3,})[ \t]*(?P<name>[\w+#.-]*)[^`]*")
_CLOSER_INDENT = 3  # columns beyond the opening fence; a fence further in is code (CommonMark)


class Block(NamedTuple):
    """A fenced block: the name after its fence in lower case, its code, and whether a fence closes it."""

    name: str
    code: str
    closed: bool


def fenced_blocks(text: str, is_fence: Callable[[int], bool] = lambda place: True) -> list[Block]:
    """The fenced blocks of Markdown text; ``is_fence`` says of the place of an opening fence whether it is one."""
    blocks: list[Block] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    start = 0
    for line in text.split("\n"):
        if opened is None:
            opened, lines = _FENCE.fullmatch(line), []
            if opened is not None and not is_fence(start + opened.start("fence")):
                opened = None
        elif _closes(line, opened):
            blocks.append(Block(opened["name"].lower(), _code(lines, opened), True))
            opened = None
        else:
            lines.append(line)
        start += len(line) + 1
    if opened is not None:
        blocks.append(Block(opened["name"].lower(), _code(lines, opened), False))
    return blocks


def _closes(line: str, opened: re.Match[str]) -> bool:
    fence = line.strip()
    indent = len(line.expandtabs(4)) - len(line.expandtabs(4).lstrip())
    is_fence = fence.startswith(opened["fence"]) and not fence.strip(opened["fence"][0])
    return is_fence and indent <= len(opened["indent"].expandtabs(4)) + _CLOSER_INDENT


def _code(lines: Sequence[str], opened: re.Match[str]) -> str:
    indent = "" if opened["lead"] else opened["indent"]  # a fence in a list takes its code in with it
    return "\n".join(line.removeprefix(indent) for line in lines).strip("\r\n")
