"""Classes of characters that string families choose from, as predicates of one character."""

from __future__ import annotations

from moe.data.synthetic.family import Part


def _char_class(key: str, name: str, python: str, java: str, javascript: str, cpp: str, members: str) -> Part:
    code = {"python": python, "java": java, "javascript": javascript, "cpp": cpp}
    return Part(key, key, name, code, lambda v: v in members, before=True)


def _letter(c: str) -> Part:
    code = {"python": f'@v == "{c}"', "java": f"@v == '{c}'", "javascript": f'@v === "{c}"', "cpp": f"@v == '{c}'"}
    return Part(f"letter {c}", f"letters {c}", f"letters {c}", code, lambda v: v == c, before=True)


def _one_of(key: str, name: str, members: str) -> Part:
    return _char_class(
        key,
        name,
        f'@v in "{members}"',
        f'"{members}".indexOf(@v) >= 0',
        f'"{members}".includes(@v)',
        f'std::strchr("{members}", @v) != nullptr',
        members,
    )


_LOWER = "abcdefghijklmnopqrstuvwxyz"
# Plural nouns: "the vowels (aeiou) in a text". The plain ASCII functions are enough: the inputs are ASCII.
CHAR_CLASSES = (
    _one_of("lowercase vowels", "vowels", "aeiou"),
    _one_of("commas and dots", "commas and dots", ",."),
    _char_class(
        "digits", "digits", "@v.isdigit()", "Character.isDigit(@v)", r"/\d/.test(@v)", "std::isdigit(@v)", "0123456789"
    ),
    _char_class(
        "uppercase letters",
        "uppercase",
        "@v.isupper()",
        "Character.isUpperCase(@v)",
        "/[A-Z]/.test(@v)",
        "std::isupper(@v)",
        _LOWER.upper(),
    ),
    _char_class(
        "lowercase letters",
        "lowercase",
        "@v.islower()",
        "Character.isLowerCase(@v)",
        "/[a-z]/.test(@v)",
        "std::islower(@v)",
        _LOWER,
    ),
    _char_class(
        "letters",
        "letters",
        "@v.isalpha()",
        "Character.isLetter(@v)",
        "/[A-Za-z]/.test(@v)",
        "std::isalpha(@v)",
        _LOWER + _LOWER.upper(),
    ),
    _char_class("spaces", "spaces", '@v == " "', "@v == ' '", '@v === " "', "@v == ' '", " "),
    *(_letter(c) for c in "aenolst"),
)

SYMBOLS = (
    ("*", "an asterisk"),
    ("#", "a hash sign"),
    ("_", "an underscore"),
    ("-", "a hyphen"),
    (".", "a dot"),
    ("x", "the letter x"),
)
SEPARATORS = (
    (",", "comma"),
    (";", "semicolon"),
    ("-", "hyphen"),
    ("/", "slash"),
    (":", "colon"),
    ("_", "underscore"),
    (" ", "space"),
)
