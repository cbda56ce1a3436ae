"""Which functions and texts make a pair to learn from: rules found by reading what a simpler miner takes."""

from __future__ import annotations

import re

from moe.data.grammars import parses
from moe.data.mining.functions import Function

LINES, CHARACTERS, LINE = (3, 60), (40, 2000), 160  # of code; the longest line
WORDS = (4, 60)
TOKENS = 16  # of a body
QUIET = 0.5  # share of comments and strings in a body from which it is a table or a text
NAMED = 0.34  # share of the text's words that are in the code's names, too

_COMMON = set(
    "a an the of to in is for from with if that this and or on by it its as be are not at into which all given when"
    " where whether only one two their than has have was will used using between per each any no can does there then"
    " but".split()
)
_FOREIGN = set(
    "der die das und ist nicht ein eine el los las una para por que les des est dans pour avec il della".split()
)
_WORD = re.compile(r"[A-Za-z][a-z]+|[A-Z]+(?![a-z])")
# Words anywhere in a text that is about the project's state, the author or a relative of the function.
_UNFIT = (
    r"todo|fixme|xxx|hack|deprecated|obsolete|legacy|copyright|licen[sc]ed?|all rights reserved|work in progress|bug"
    r"|jira|do not use|not implemented|unimplemented|auto-?generated|workaround|backwards? compat\w*|for compatibility"
    r"|issue|this (?:test|file|class|module|struct|constructor|package|version)|unit ?tests?|monkey.?patch\w*"
    r"|pull request|subclass(?:es)? (?:should|must|can|may)|to be (?:overridden|implemented)|overrid\w+|overload\w*"
    r"|inherited|see also|see the|refer to|as above|above method|same as|similar to|equivalent (?:to|of)|synonym"
    r"|is like|like the|variant of|version of|counterpart|alias (?:for|of|to)|wrapper|shorthand|shortcut|convenience"
    r"|constructor|destructor|please|we (?:need|want|should|have|are)|i think|hopefully|default implementation"
    r"|implementation of|(?:is )?called (?:by|when|from|on|after|before)|callback for|invoked (?:by|when)"
    r"|implements? (?:the )?[\w.]+ interface|helper (?:function|method|class|for|to)"
    r"|internal (?:function|method|use|helper)|utility (?:function|method)"
)
_ABOUT_ELSE = re.compile(rf"\b(?:{_UNFIT})\b|https?://|www\.", re.IGNORECASE)
# What a text that describes no function starts with.
_OPENINGS = (
    r"see|note|called|invoked|overrid\w+|internal|private|helper|used|example|default|public|protected|static|test"
    r"|also|but|and|or|because|so|however|since|while|when|once|after|before|otherwise|first|second|then|step|case|now"
    r"|this|these|if you|use this|use when|just|same|like|as|it|they|we|you|i|here|method|function|event|hook|stub"
    r"|dummy|do not|don['\u2019]?t|can['\u2019]?t|cannot|should|must|may|might|needed|required|make sure"
    r"|ensure that we|checking|constructs? (?:a|an|the|new)|creates? (?:a new )?instance|handler for|simple"
    r"|convenien\w*|utility|emulates?|proxy|initiali[sz]es? (?:a |an |the )?(?:new |instance|object|class|self)"
    r"|delegates?|forwards?|calls?|wraps?|needs?|requires?|locked|additional|tests?|throws? (?:an? )?exception"
)
_OPENING = re.compile(rf"(?:(?:{_OPENINGS})\b|\w+_|\w+:)", re.IGNORECASE)
_MARKUP = re.compile(
    r"[{}\\|<>\u2264\u2265\u2192]|@\w|==|->|=>|;$|::\w+::|&\w+;|``|\$\w|\*\*|__\w|:\w+:|\(\s*\)\s*\(|\?\?"
    r"|\[\d+\]|:=|%\w|&&|\+\+|\w\(\w+,? ?\w*\)"
)
_DANGLING = re.compile(
    r"(?:\b(?:the|a|an|of|to|and|or|for|with|in|by|is|are|that|e\.g|i\.e|following|below|above|as follows|form|example)"
    r"|[,(\u2013-])\.?$",
    re.IGNORECASE,
)
_ACCESSOR = re.compile(r"(?:get|set|is|has|return)s?\b", re.IGNORECASE)
_TRANSPILED = re.compile(
    r"void 0\b|\b__(?:extends|awaiter|assign|rest|spread\w*|decorate|webpack\w*)\b|\b_this\d?\b|\(0, _?\w+\."
    r"|\b_objectSpread"
    r"|\b_(?:interopRequire\w+|classCallCheck|createClass|inherits)\b|\barguments\.length (?:<=|>) \d+ (?:\|\||&&)"
)
_DISABLED = re.compile(
    r"\b(?:deprecat\w+|NotImplemented\w*|UnsupportedOperation\w*|todo!|unimplemented!|not implemented)\b", re.IGNORECASE
)
_TEST = re.compile(r"_*[tT]est(?:_|[A-Z]|$)|Benchmark|Example")


def text_flaw(text: str) -> str | None:
    """Why a text does not say what code does; None for a good one."""
    words = text.split()
    lowered = {word.strip(".,;:!?()'\"").lower() for word in words}
    if not text:
        return "without a summary"
    if not WORDS[0] <= len(words) <= WORDS[1]:
        return "with a text too short or too long"
    if not lowered & _COMMON or len(lowered & _FOREIGN) > 1 or sum(ord(sign) > 127 for sign in text) > 0.02 * len(text):
        return "with a text not in English"
    if _ABOUT_ELSE.search(text) or _OPENING.match(text) or text.endswith("?"):
        return "with a text about something else"
    if _MARKUP.search(text) or sum(sign.isalpha() or sign.isspace() for sign in text) < 0.85 * len(text):
        return "with markup or code in the text"
    if _DANGLING.search(text) or text.count("(") != text.count(")") or not text[0].isalpha():
        return "with a text that breaks off"
    return None


def code_flaw(found: Function, language: str) -> str | None:
    """Why a function is nothing to learn; None for a good one."""
    lines = found.code.split("\n")
    if found.flaw is not None:
        return found.flaw
    if found.tokens < TOKENS:
        return "with hardly a body"
    if not LINES[0] <= len(lines) <= LINES[1] or not CHARACTERS[0] <= len(found.code) <= CHARACTERS[1]:
        return "with code too short or too long"
    if max(map(len, lines)) > LINE:
        return "with code too short or too long"
    if found.quiet > QUIET:
        return "with mostly comments or strings"
    if _DISABLED.search(found.code):
        return "that are deprecated or do nothing"
    if language in ("javascript", "typescript") and _TRANSPILED.search(found.code):
        return "that a compiler wrote"
    if _TEST.match(found.name.rpartition("::")[2]):
        return "that are tests"
    return None


def pair_flaw(text: str, found: Function, language: str) -> str | None:
    """Why text and code do not belong together; None where they do."""
    wanted = {word.lower()[:4] for word in _WORD.findall(text) if word.lower() not in _COMMON and len(word) > 2}
    names = {word.lower()[:4] for word in _WORD.findall(found.code)}
    if not wanted or len(wanted & names) < NAMED * len(wanted):
        return "with a text that the code does not mention"
    if _ACCESSOR.match(text) and len(text.split()) < 6 and found.tokens < 2 * TOKENS:
        return "that get or set a field"
    if not parses(found.code, language):
        return "that do not parse"
    return None
