"""From a documentation comment to one paragraph of plain text: reST, Javadoc, JSDoc, Doxygen, rustdoc and HTML.

The first paragraph says what a function does; sections about parameters, examples and notes follow it and are cut off.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

MAX_TEXT = 500  # characters; longer ones are cut after a sentence

_MARKS = re.compile(r"^\s*(?:/\*[*!]*<?|//[/!]*<?|\*+(?!\w))[ \t]?")
# JSDoc's and Doxygen's commands: those before the summary, those that only name things, those that mark a word.
_TAG = re.compile(r"^\s*[@\\](\w+)")
_SUMMARY = ("brief", "short", "details", "description", "desc", "summary", "classdesc", "abstract")
_NAMING = (
    "fn function method func name memberof static private protected public internal ingroup relates relatesalso"
    " override async export inner instance alias kind ignore hidden alpha beta virtual overload doc category since"
    " nosideeffects"
).split()
_WORD_TAGS = ("c", "p", "a", "e", "b", "em", "ref", "link", "code")
_SECTIONS = (
    r"args?|arguments|params?|parameters?|keyword arguments|attributes|input|output|inputs|outputs|returns?|yields"
    r"|raises|throws|exceptions?|errors|examples?|notes?|usage|warnings?|see also|references|todo|remarks?|requires"
    r"|safety|panics|complexity|since|author|where|effects?"
)
_SECTION = re.compile(
    rf"^\s*(?:#{{1,6}}\s|:\w[\w ]*(?:\[[^\]]*\])?:(?!`)|(?:{_SECTIONS})\s*(?::|-{{2,}}|$)|>>> |\.\. |```|~~~|\|)",
    re.IGNORECASE,
)
_LIST = re.compile(r"^\s*(?:[-*+\u2022]\s|\d+[.)]\s|<li>|@li\b|\\li\b)")
_RULE = re.compile(r"[-=*~/#+^ ]*")
_BLOCK = re.compile(r"</?(?:p|br|pre|ul|ol|table|blockquote|h\d)\b[^>]*>", re.IGNORECASE)
_SIGNATURE = re.compile(r"^\s*(?:\w+ = )?[\w.]+\([^()]*(?:\([^()]*\)[^()]*)*\)\s*(?:->.*|--.*|:|=.*)?$")
_SENTENCE_END = re.compile(r"(?<![A-Z])(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)(?<!cf)(?<!\bno)[.!?](?=\s+[A-Z`\"'(]|\s*$)")


def summary(comment: str, language: str, name: str) -> str:
    """The first paragraph of a comment, without markup; empty where there is none.

    Args:
        comment: with the comment's marks; of Python, the inside of the docstring.
    """
    lines = _unmarked(comment) if language != "python" else comment.expandtabs().strip().split("\n")
    lines = [line[:1000] for line in lines[:100]]  # whatever a file holds takes no time
    text = " ".join(_first_paragraph(lines, language, name))
    text = _plain(text, language)
    if language == "go" or re.match(rf"{re.escape(name)}\b(?!\s*[(:=])", text):
        text = _without_name(text, name)
    return _shortened(text)


def _unmarked(comment: str) -> list[str]:
    lines = re.sub(r"\s*\*+/\s*$", "", comment).strip().split("\n")
    return [_MARKS.sub("", line).rstrip() for line in lines]


def _first_paragraph(lines: list[str], language: str, name: str) -> list[str]:
    found: list[str] = []
    for number, line in enumerate(lines):
        tag = None if language == "python" else _TAG.match(line)
        if tag is not None and tag[1].lower() in _SUMMARY:
            if found:
                break
            line = line[tag.end() :]
        elif tag is not None and tag[1].lower() in _NAMING and not found:
            continue
        elif tag is not None and (tag[1] not in _WORD_TAGS or line[tag.end() :].startswith(":")):
            tags = [x[1].lower() for later in lines[number:] if (x := _TAG.match(later))]
            if found or not {*_SUMMARY} & {*tags}:
                break
            continue  # JSDoc may have its description after the parameters
        text = line.strip()
        signature = _SIGNATURE.match(text) and (name in text or language == "python")
        if not found and (signature or _RULE.fullmatch(text)):
            continue
        if _RULE.fullmatch(text) or _SECTION.match(line) or _LIST.match(line):
            break
        block = _BLOCK.search(text)
        if block is not None and not block.start() and not found:
            text = text[block.end() :].strip()
            block = _BLOCK.search(text)
        if block is not None:
            found.append(text[: block.start()].strip())
            break
        found.append(text)
    return found


class _Tags(HTMLParser):
    """The text without tags and with entities resolved."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)


_INLINE = r"(?:a|b|i|u|em|strong|code|tt|var|sub|sup|kbd|span|small|cite|samp|q|dfn|font)\b[^<>]*>"
_NO_TAG = re.compile(rf"<(?!/?{_INLINE})", re.IGNORECASE)
_ROLE = re.compile(r":[\w+.:-]+:`(?:([^`<]+?)\s*<[^`>]+>|(~)?!?\.?([^`<>]*))`")
_REPLACED = {
    "python": (
        (r"`([^`<]+?)\s*<[^`>]+>`_{1,2}", r"\1"),  # links
        (r"\s*\[[\w.-]+\]_|(?<=\w)`?_(?=[\s.,])", ""),  # citations
        (r"\b[CLIB]\{([^{}]*)\}", r"\1"),  # epydoc
        (r"(?<!\w)\|(\w+)\|(?!\w)", r"\1"),
    ),
    "doxygen": (
        (r"(?<!\w)[@\\](?:ref|link|see|sa)\s+[\w:#.~()]+\s+\"([^\"]+)\"", r"\1"),
        (r"(?<!\w)[@\\](?:ref|link|c|p|a|e|b|em|emph|endlink|n)(?:\s+|$)", ""),
        (r"(?<!\w)[%#](?=[A-Z]\w)", ""),
        (r"\[`?([^\]`]+)`?\]\(http[^()]*\)", r"\1"),
    ),
    "markdown": (
        (r"(?<!\w)[@\\](?:link|see)\s+", ""),
        (r"!?\[\[?`?([^\]`|]+)`?\]?\](?:\([^()]*\)|\[[^\]]*\])?(?!\w|\[)", r"\1"),
    ),
    "all": (
        (r"(?<![\w`])(`{1,2})([^`]+)\1(?!\w)", r"\2"),
        (r"(?<!\w)(\*{1,2}|__)(?=\S)([^*_]+?)(?<=\S)\1(?!\w)", r"\2"),
    ),
}
_MARKUP = {"python": "python", "java": "doxygen", "c": "doxygen", "cpp": "doxygen"}


def _plain(text: str, language: str) -> str:
    text = _inline_tags(text)
    if language == "python":
        text = _ROLE.sub(lambda x: x[1] or (x[3].rpartition(".")[2] if x[2] else x[3]), text)
    for pattern, replaced in (*_REPLACED[_MARKUP.get(language, "markdown")], *_REPLACED["all"]):
        text = re.sub(pattern, replaced, text)
    if language not in ("python", "go", "rust") and ("<" in text or "&" in text):
        reader = _Tags()
        reader.feed(_NO_TAG.sub("&lt;", text))
        reader.close()
        text = "".join(reader.parts)
    return re.sub(r"\s+([.,;:])(?=\s|$)", r"\1", " ".join(text.split()))


_OPENING = re.compile(r"\{@(\w+)")


def _inline_tags(text: str) -> str:
    """``{@code a{b}}`` becomes ``a{b}``; of ``{@link a.B#m label}`` the label or the last name stays."""
    while (found := _OPENING.search(text)) is not None:
        depth, end = 0, len(text)
        for place in range(found.start(), len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if not depth:
                end = place
                break
        inside = text[found.end() : end].strip()
        if found[1].startswith("link") or found[1] in ("value", "see"):
            target, _, label = re.sub(r"\([^)]*\)", "", inside).replace("|", " ", 1).partition(" ")
            inside = label.strip() or target.rpartition("#")[2].rpartition(".")[2] or target
        elif found[1].lower() == "inheritdoc":
            inside = ""
        text = text[: found.start()] + inside + text[end + 1 :]
    return text


_VERB = re.compile(r"(?!(?:this|its|as|is|was|does|has)\b)[a-z]+s\b")


def _without_name(text: str, name: str) -> str:
    """``Name returns x`` and ``name - return x`` become ``Returns x`` and ``Return x``."""
    plain = re.escape(name.rpartition("::")[2])
    match = re.match(rf"(?:The )?{plain}(?:\(\))?(\s*[:\u2014\u2013-]{{1,2}})?\s+(?=[a-zA-Z])", text, re.IGNORECASE)
    if match is None or not (match[1] or _VERB.match(text[match.end() :])):
        return text
    return text[match.end()].upper() + text[match.end() + 1 :]


def _shortened(text: str) -> str:
    """Whole sentences of at most :data:`MAX_TEXT` characters, where there are any."""
    text = text.strip().lstrip("-\u2013\u2014: ")
    if text.endswith(":") or len(text) > MAX_TEXT or not text.endswith((".", "!", ")", '"', "'")):
        ends = [x.end() for x in _SENTENCE_END.finditer(text) if x.end() <= MAX_TEXT]
        rest = text if len(text) <= MAX_TEXT and not text.endswith(":") else ""
        text = text[: ends[-1]] if ends else rest
    return text[:1].upper() + text[1:]
