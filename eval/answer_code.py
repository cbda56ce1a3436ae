"""Takes the code out of a model's answer: all of it, its fenced block, or what is left without the prose around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moe.data.code_blocks import Block, fenced_blocks, without_thoughts
from moe.languages import get_language

if TYPE_CHECKING:
    from tree_sitter import Node

# An English sentence on a line of its own: a capital, two words, no sign that only code has, a full stop or colon.
_PROSE = re.compile(
    r"(?:[-*\d.]+\s+)?[A-Z][^\s{}=;]*(?:\s+[^\s{}=;]+)+[.:!?][*`)]*|(?:Explanation|Example|Note|Usage|Output)s?:"
)
# Text in which a fence is code. Template strings are left out: JavaScript reads a fence as one.
_TEXT = ("comment", "line_comment", "block_comment", "string", "string_literal", "raw_string_literal")
_FENCES = ("```", "~~~")


def answer_code(answer: str, language: str) -> str:
    """The code of a chat model's answer; line ends around a block are left out.

    What a model thinks aloud first is no part of it. Fences in comments and docstrings are code. Of the others: the
    first block that names the language, else the first that names none, else the first; a block that is never closed
    runs to the end. An answer without a fence is taken as it is where it parses, else without the sentences before and
    after the code.
    """
    answer = without_thoughts(answer)
    text = answer.removeprefix("\ufeff")
    if any(fence in text for fence in _FENCES):
        blocks = _blocks(text, language)
        if blocks:
            return min(blocks, key=lambda block: _rank(block, language)).code
    return answer if not _parse(text, language).has_error else _without_prose(text)


def is_complete(answer: str, language: str) -> bool:
    """Whether the block that :func:`answer_code` takes is closed, so that a model may stop writing."""
    if not any(answer.count(fence) > 1 for fence in _FENCES):
        return False
    blocks = _blocks(without_thoughts(answer), language)
    return any(block.closed and _rank(block, language) < 2 for block in blocks)


def is_code(text: str, language: str) -> bool:
    """Whether a text parses as code."""
    return not _parse(text, language).has_error


def _rank(block: Block, language: str) -> int:
    return 0 if block.name in get_language(language).fences else 1 if not block.name else 2


def _blocks(text: str, language: str) -> list[Block]:
    """The blocks with code in them that do not begin inside a comment or a string of the text as code."""
    spans = [(node.start_byte, node.end_byte) for node in _texts(_parse(text, language))]

    def is_fence(place: int) -> bool:
        byte = len(text[:place].encode("utf-8", errors="replace"))
        return not any(start < byte < stop for start, stop in spans)

    return [block for block in fenced_blocks(text, is_fence) if block.code.strip()]


def _parse(text: str, language: str) -> Node:
    from tree_sitter import Parser  # here, as scoring is imported where there is none

    from eval.codebleu.grammar import load_grammar

    return Parser(load_grammar(language)).parse(text.encode("utf-8", errors="replace")).root_node


def _texts(node: Node) -> Iterator[Node]:
    for child in node.children:
        if child.type in _TEXT and not (child.text or b"").startswith(b"`"):  # Python 2's strings
            yield child
        else:
            yield from _texts(child)


def _without_prose(answer: str) -> str:
    lines = answer.split("\n")
    code = [number for number, line in enumerate(lines) if line.strip() and not _PROSE.fullmatch(line.strip())]
    if not code:
        return answer.strip("\r\n")
    return "\n".join(lines[code[0] : code[-1] + 1]).rstrip("\r")
