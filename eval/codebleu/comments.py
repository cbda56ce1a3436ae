"""Comments and docstrings are removed before parsing, in just the way the published metric does it."""

from __future__ import annotations

import io
import re
import tokenize

_LITERAL_OR_COMMENT = re.compile(r"""//[^\n]*|/\*.*?\*/|'(?:\\.|[^\\'])*'|"(?:\\.|[^\\"])*\"""", re.DOTALL)


def drop_blank_lines(text: str) -> str:
    """Leaves out the lines that hold only whitespace."""
    return "\n".join([line for line in text.split("\n") if line.strip()])


def strip_c_like(text: str) -> str:
    """A comment becomes one space; quoted literals stay. Template strings, regex literals and ``#`` are not known."""
    if "//" in text or "/*" in text:
        text = _LITERAL_OR_COMMENT.sub(lambda m: " " if m[0][0] == "/" else m[0], text)
    return drop_blank_lines(text)


def strip_python(text: str) -> str:
    """Comments, docstrings and strings in column 0 go; gaps between tokens become spaces."""
    parts: list[str] = []
    previous, last_line, last_column = tokenize.INDENT, -1, 0
    for kind, string, (line, column), (end_line, end_column), _ in tokenize.generate_tokens(io.StringIO(text).readline):
        if line > last_line:
            last_column = 0
        if column > last_column:
            parts.append(" " * (column - last_column))
        is_docstring = kind == tokenize.STRING and (previous in (tokenize.INDENT, tokenize.NEWLINE) or column == 0)
        if kind != tokenize.COMMENT and not is_docstring:
            parts.append(string)
        previous, last_line, last_column = kind, end_line, end_column
    return drop_blank_lines("".join(parts))


def strip_comments(text: str, language: str) -> str:
    """The text that is parsed; Python text that cannot be split into tokens stays as it is, and so does all Ruby."""
    if language == "ruby":
        return text
    if language != "python":
        return strip_c_like(text)
    try:
        return strip_python(text)
    except (tokenize.TokenError, SyntaxError):
        return text
