"""Removes comments and docstrings before parsing, exactly as the published metric does.

For Python, that metric uses the pure-Python ``tokenize`` module of Python 3.11 and earlier, and joins the tokens with
spaces. The code below gives the same text under every version of Python, without building the tokens: it runs for every
text, also where the rest is done in C.
"""

from __future__ import annotations

import re

_COMMENT_OR_LITERAL = re.compile(r"""//[^\n]*|/\*.*?\*/|'(?:\\.|[^\\'])*+'|"(?:\\.|[^\\"])*+\"""", re.DOTALL)


def drop_blank_lines(text: str) -> str:
    """Drops the lines that hold only whitespace."""
    return "\n".join([line for line in text.split("\n") if line and not line.isspace()])


def strip_c_like(text: str) -> str:
    """Replaces comments with one space; skips quoted literals, but not template strings and regex literals."""
    return drop_blank_lines(_COMMENT_OR_LITERAL.sub(lambda found: " " if found[0][0] == "/" else found[0], text))


class _Untokenizable(Exception):
    """The tokenizer rejects the text: an unclosed string or bracket, or an indent that matches no line before."""


_PLACES = re.compile(r"[#'\"\\()\[\]{}]")  # where something other than a plain token begins
_QUOTED = re.compile(r"[#'\"\\]")
_PREFIX = re.compile(r"(?<!\w)(?:[bB][rR]?|[rR][bBfF]?|[uU]|[fF][rR]?)\Z")
_INDENT = re.compile(r"[ \t\f]*")
_COMMENT = re.compile(r"#[^\r\n]*")
_LINE_JOIN = re.compile(r"\\\r?\n")
_SHORT = {
    "'": re.compile(r"'[^\n'\\]*(?:\\.[^\n'\\]*)*('|\\\r?\n)"),
    '"': re.compile(r'"[^\n"\\]*(?:\\.[^\n"\\]*)*("|\\\r?\n)'),
}
_CONTINUED = {"'": re.compile(r"[^'\\]*(?:\\.[^'\\]*)*'"), '"': re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"')}
_LONG = {
    "'": re.compile(r"[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''", re.DOTALL),
    '"': re.compile(r'[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""', re.DOTALL),
}
# A gap becomes spaces unless no token follows it, in which case the tokenizer returns its characters one by one.
_GAP = re.compile(r"(?<![ \f\t])[ \f\t]++(?=\w|\r?\n|\Z|[%&()*+,\-./:;<=>@\[\]^{|}~]|!=)")


def _end(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


class _PythonStripper:
    """Copies a text line by line, without comments and without strings that stand alone."""

    def __init__(self, text: str):
        self.text = text
        self.out: list[str] = []
        self.gaps = "\t" in text or "\f" in text
        self.copied = 0  # the text up to here is in ``out``
        self.level = 0  # open brackets; negative if too many were closed
        self.at_start = True  # after an indent or the end of a statement, where a string would be a docstring
        # The tokenizer does not reset its state when it gives up a string, so it also gives up the next multi-line one.
        self.gave_up = False

    def run(self) -> str:
        text, size = self.text, len(self.text)
        indents = [0]
        joined = False  # the previous line ended in a backslash
        position = 0
        while position < size:
            end = text.find("\n", position) + 1 or size
            first = position
            if self.level == 0 and not joined:
                first = _end(_INDENT, text, position)
                if first == size:
                    break
                if text[first] in "#\r\n":
                    if text[first] == "\r" and not text[first:end].isspace():
                        self.out += (" " * (first - position), text[first:end])
                    self.at_start = False
                    position = end
                    continue
                self._indent(position, first, indents)
            self.copied = first
            if _QUOTED.search(text, first, end) is None:
                line = text[first:end]
                self.level += line.count("(") + line.count("[") + line.count("{")
                self.level -= line.count(")") + line.count("]") + line.count("}")
                self._copy(end)
                joined = False
                self.at_start = self.level <= 0
                position = end
            else:
                position, joined = self._line(position, first, end)
        if self.level or joined:
            raise _Untokenizable
        return "".join(self.out)

    def _indent(self, start: int, first: int, indents: list[int]) -> None:
        gap = self.text[start:first]
        column = first - start
        if self.gaps and ("\t" in gap or "\f" in gap):
            column = len(gap[gap.rfind("\f") + 1 :].expandtabs(8))
        if column > indents[-1]:
            indents.append(column)
            self.out.append(gap)
            self.at_start = True
            return
        if column < indents[-1]:
            if column not in indents:
                raise _Untokenizable
            del indents[indents.index(column) + 1 :]
            self.at_start = False
        elif _LINE_JOIN.match(self.text, first):
            return  # the gap before a joined line is dropped, as no token follows it
        self.out.append(" " * len(gap))

    def _copy(self, end: int) -> None:
        part = self.text[self.copied : end]
        if self.gaps:
            part = _GAP.sub(lambda gap: " " * len(gap[0]), part)
        self.out.append(part)
        self.copied = end

    def _line(self, start: int, position: int, end: int) -> tuple[int, bool]:
        """Copies the rest of a line; returns where the next one starts, and whether a backslash joins it."""
        text = self.text
        while place := _PLACES.search(text, position, end):
            mark, at = place[0], place.start()
            if mark in "([{":
                self.level += 1
            elif mark in ")]}":
                self.level -= 1
            elif mark == "#":
                self._copy(at)
                position = self.copied = _end(_COMMENT, text, at)
                self.at_start = False
                continue
            elif mark == "\\":
                if _LINE_JOIN.match(text, at):
                    gap = len(text[self.copied : at]) - len(text[self.copied : at].rstrip(" \f\t"))
                    self._copy(at - gap)
                    self.at_start = self.at_start and not text[position : at - gap].strip(" \f\t")
                    return end, True
            else:
                prefix = _PREFIX.search(text, position, at)
                token = prefix.start() if prefix else at
                stop, is_string = self._string(at, mark)
                if stop:
                    alone = self.at_start and not text[position:token].strip(" \f\t")
                    removed = is_string and (alone or token == start)
                    if removed or self.gaps:
                        self._copy(token)
                        if not removed:
                            self.out.append(text[token:stop])
                        self.copied = stop
                    self.at_start = False
                    if stop > end or (not is_string and stop == end):
                        if not is_string:
                            self._copy(stop)
                            return stop, False
                        start = text.rfind("\n", 0, stop) + 1
                        end = text.find("\n", stop) + 1 or len(text)
                    position = stop
                    continue
            self.at_start = False
            position = at + 1
        self._copy(end)
        self.at_start = self.level <= 0
        return end, False

    def _string(self, at: int, quote: str) -> tuple[int, bool]:
        """Where the string that opens at ``at`` ends (0 for a lone quote), and whether it is complete."""
        text = self.text
        if text.startswith(quote * 3, at):
            literal = _LONG[quote].match(text, at + 3)
            end = text.find("\n", at) + 1 or len(text)
            if not self.gave_up or (literal and literal.end() <= end):
                if literal is None:
                    raise _Untokenizable
                return literal.end(), True
            return self._continued(_LONG[quote], end)
        literal = _SHORT[quote].match(text, at)
        if literal is None:
            return 0, False
        if literal[1] == quote:
            return literal.end(), True
        return self._continued(_CONTINUED[quote], literal.end())

    def _continued(self, closing: re.Pattern[str], position: int) -> tuple[int, bool]:
        """The end of a string that continues on the next line as long as lines end in a backslash."""
        text = self.text
        while position < len(text):
            end = text.find("\n", position) + 1 or len(text)
            rest = closing.match(text, position, end)
            if rest:
                self.gave_up = False
                return rest.end(), True
            if not text.endswith(("\\\n", "\\\r\n"), position, end):
                self.gave_up = True
                return end, False
            position = end
        raise _Untokenizable


def strip_python(text: str) -> str:
    """Removes comments, docstrings and strings in column 0; gaps become spaces, and joined lines one line.

    Text that cannot be tokenized (unbalanced brackets, an unclosed string, a bad indent) stays as it is.
    """
    try:
        return drop_blank_lines(_PythonStripper(text).run())
    except _Untokenizable:
        return text


def strip_comments(text: str, language: str) -> str:
    """The text that is parsed; Ruby is left as it is."""
    if language == "ruby":
        return text
    return strip_python(text) if language == "python" else strip_c_like(text)
