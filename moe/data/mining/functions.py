"""Documented functions in source files, by tree-sitter.

A function is cut out without its documentation, and written so that it stands alone: JavaScript's ``exports.f =
function`` becomes ``function f``, decorators, annotations and export macros that say nothing about the code go. What is
declared in one C or C++ file and defined in another is matched by name and parameter types.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from moe.data.grammars import make_parser

if TYPE_CHECKING:
    from tree_sitter import Node

# File name endings of each language; headers are C++ unless a package has no C++ files (:mod:`moe.data.mining.trees`).
SUFFIXES = {
    "python": (".py",),
    "java": (".java",),
    "javascript": (".js", ".mjs", ".cjs", ".jsx"),
    "typescript": (".ts", ".mts", ".cts", ".tsx"),
    "cpp": (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".hxx", ".ipp", ".inl", ".h"),
    "c": (".c", ".h"),
    "go": (".go",),
    "rust": (".rs",),
}
_SCRIPT = "[(function_declaration) (generator_function_declaration) (method_definition) (function_expression)"
_SCRIPT += " (generator_function) (arrow_function)] @function"
_C = "(function_definition) @function [(declaration) (field_declaration)] @declaration"
_QUERIES = {
    "python": "(function_definition) @function",
    "java": "(method_declaration) @function",
    "javascript": _SCRIPT,
    "typescript": _SCRIPT,
    "cpp": _C,
    "c": _C,
    "go": "[(function_declaration) (method_declaration)] @function",
    "rust": "(function_item) @function",
}
# Nodes around a function whose comment is the function's.
_AROUND = (
    "export_statement", "lexical_declaration", "variable_declaration", "variable_declarator", "expression_statement",
    "assignment_expression", "pair", "public_field_definition", "field_definition", "template_declaration",
)  # fmt: skip
_BETWEEN = ("attribute_item", "decorator")  # may stand between a comment and its function
# What opens a comment that documents something; C and Go have no mark for it.
_DOCUMENTS = {
    "java": ("/**",),
    "javascript": ("/**",),
    "typescript": ("/**",),
    "rust": ("///", "/**"),
    "cpp": ("/**", "/*!", "//"),
    "c": ("/*", "//"),
    "go": ("//", "/*"),
}
_KEPT_DECORATORS = re.compile(r"@(?:staticmethod|classmethod|property|(?:\w+\.)?\w*contextmanager|functools\.\w+)\b")
# Macros that hold attributes; tree-sitter takes "class X_EXPORT Name {" for a function.
_MACROS = re.compile(
    rb"\b[A-Z][A-Z0-9_]*(?:EXPORTS?|API|INLINE|DECLS?|NODISCARD|CONSTEXPR|NOEXCEPT|DEPRECATED|PUBLIC|HIDDEN|EXTERN|UNUSED"
    rb"|NOINLINE|ATTRIBUTE_\w+|LOCKS_\w+|LOCK_\w+|LOCKED|GUARDED_BY|RETURNS_NONNULL)\b(?:\([^()\n]*\))?[ \t]*"
)
_CLASS_MACRO = re.compile(rb"(?:(?<=\bclass )|(?<=\bstruct ))[A-Z][A-Z0-9_]{2,} (?=[A-Za-z_])")
_IDENTIFIER = re.compile(r"[A-Za-z_$][\w$]*")


@dataclass(frozen=True)
class Function:
    """A function as it stands in a file.

    Attributes:
        comment: its documentation with the comment's marks, or the string of a docstring; None without any.
        code: the function without it.
        line: where it starts, from 1.
        tokens: leaves of the syntax tree in the body.
        quiet: share of the code's bytes in comments and strings.
        flaw: why it is no use, where the syntax tree tells.
        key: name and parameter types of C and C++ functions, by which declarations are matched.
    """

    name: str
    comment: str | None
    code: str
    line: int
    tokens: int
    quiet: float
    flaw: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class Found:
    """The functions of a file, and the comments of C and C++ declarations by :attr:`Function.key`."""

    functions: list[Function]
    declared: dict[str, str]


def find_functions(source: bytes, language: str, suffix: str = "") -> Found:
    """Finds all functions with a name; in a documented one no others are looked for."""
    from tree_sitter import QueryCursor

    family = language in ("c", "cpp")
    parser = make_parser(language, tsx=suffix == ".tsx")
    read = _blanked(source) if family else source
    captures = QueryCursor(_query(language, suffix == ".tsx")).captures(parser.parse(read).root_node)
    functions: list[Function] = []
    inside = 0  # the end of the last documented function
    for node in sorted(captures.get("function", []), key=lambda node: node.start_byte):
        if node.start_byte >= inside and (found := _function(node, source, language)):
            functions.append(found)
            inside = node.end_byte if found.comment is not None else inside
    declared: dict[str, str] = {}
    for node in captures.get("declaration", []):
        key, comment = _key(node, source), _comment(node, source, language)
        if key is not None and comment is not None:
            declared[key] = comment
    return Found(functions, declared)


@cache
def _query(language: str, tsx: bool):
    from tree_sitter import Query

    grammar = make_parser(language, tsx=tsx).language
    assert grammar is not None, "make_parser sets one"
    return Query(grammar, _QUERIES[language])


def _blanked(source: bytes) -> bytes:
    """Attribute macros as spaces, so that all places stay; their definitions are left alone."""

    def line(found: re.Match[bytes]) -> bytes:
        text = found[0]
        for macros in (_MACROS, _CLASS_MACRO):
            text = macros.sub(lambda macro: b" " * len(macro[0]), text)
        return text

    return re.sub(rb"(?m)^(?![ \t]*#).*[A-Z]{3}.*$", line, source)


def _first(node: Node) -> Node | None:
    return node.named_child(0) if node.named_child_count else None


def _text(node: Node, source: bytes) -> str:
    return source[node.start_byte : node.end_byte].decode("utf-8", "replace")


def _function(node: Node, source: bytes, language: str) -> Function | None:
    body = node.child_by_field_name("body")
    name = _name(node, source)
    if body is None or not name:
        return None
    if language == "python":
        comment, code = _python(node, body, source)
    else:
        comment, code = _comment(node, source, language), _code(node, source, language, name)
    tokens, quiet = _measured(body, _docstring(body) if language == "python" else None)
    line = node.start_point[0] + 1
    key = _key(node, source) if language in ("c", "cpp") else None
    return Function(name, comment, code, line, tokens, quiet, _flaw(node, body, source, language), key)


def _name(node: Node, source: bytes) -> str | None:
    found = node.child_by_field_name("name") or _declared_name(node)
    parent = node.parent
    if node.type in ("function_expression", "generator_function", "arrow_function") and parent is not None:
        if parent.type == "assignment_expression":
            found = parent.child_by_field_name("left")
            found = found and (found.child_by_field_name("property") or found)
        elif parent.type in ("variable_declarator", "pair", "public_field_definition", "field_definition"):
            fields = (parent.child_by_field_name(x) for x in ("name", "key", "property"))
            found = next((x for x in fields if x is not None), None)
        else:
            return None
    name = _text(found, source) if found is not None else ""
    return name if _IDENTIFIER.fullmatch(name.rpartition("::")[2].lstrip("#")) else None


def _comment(node: Node, source: bytes, language: str) -> str | None:
    """The documentation before a node, or before what it is the value of."""
    while node.parent is not None and node.parent.type in _AROUND and _opens(node, node.parent):
        node = node.parent
    row, before = node.start_point[0], node.prev_sibling
    while before is not None and before.type in _BETWEEN:
        row, before = before.start_point[0], before.prev_sibling
    lines: list[str] = []
    while before is not None and "comment" in before.type:
        text = _text(before, source).rstrip()
        start = before.start_point[0]
        other = before.prev_sibling
        code = other if other is not None and other.is_named and "comment" not in other.type else None
        behind = code is not None and code.end_point[0] == start and code.end_point[1] > 0
        if start + text.count("\n") < row - 1 or behind:  # apart, or a remark at the end of a line of code
            break
        if not text.startswith(_DOCUMENTS[language]) or text.startswith(("///<", "/**<", "//!<", "/*!<", "//go:")):
            break
        if text.startswith("/*"):
            return text if not lines else "\n".join(lines)
        lines.insert(0, text)
        row, before = start, other
    return "\n".join(lines) or None


def _opens(node: Node, parent: Node) -> bool:
    """Whether the node is all that the parent declares."""
    if parent.type in ("lexical_declaration", "variable_declaration"):
        return parent.named_child_count == 1
    return True


def _python(node: Node, body: Node, source: bytes) -> tuple[str | None, str]:
    """The docstring and the function without it, its decorators thinned."""
    start = node.start_byte
    heads: list[str] = []
    if node.parent is not None and node.parent.type == "decorated_definition":
        decorators = [_text(child, source) for child in node.parent.children if child.type == "decorator"]
        heads = [text for text in decorators if _KEPT_DECORATORS.match(text)]
    string = _docstring(body)
    comment, end = None, len(source)
    if string is not None:
        text = _text(string, source)
        mark = re.match(r"[rRuU]?(\"\"\"|'''|\"|')", text)
        if mark is not None and len(text) >= mark.end() + len(mark[1]):
            comment = text[mark.end() : -len(mark[1])]
            end = string.end_byte
    if comment is None or string is None:
        code = source[start : node.end_byte]
    else:
        before, after = source[start : string.start_byte], source[end : node.end_byte]
        line, _, rest = after.partition(b"\n")
        code = before.rstrip(b" \t") + (rest if not line.strip(b" \t;") else after)
    indent = _indentation(node, source)
    lines = [*heads, code.decode("utf-8", "replace")]
    return comment, textwrap.dedent("".join(f"{indent}{x}\n" for x in lines).expandtabs(4)).strip()


def _indentation(node: Node, source: bytes) -> str:
    """The white space that the line of a node starts with."""
    line = source[source.rfind(b"\n", 0, node.start_byte) + 1 : node.start_byte]
    return line[: len(line) - len(line.lstrip())].decode("utf-8", "replace")


def _code(node: Node, source: bytes, language: str, name: str) -> str:
    parent = node.parent
    if language in ("javascript", "typescript") and parent is not None and not node.child_by_field_name("name"):
        if parent.type == "variable_declarator" and parent.parent is not None and parent.parent.named_child_count == 1:
            return _dedented(parent.parent, source)
        if parent.type in ("public_field_definition", "field_definition"):
            return _dedented(parent, source)
        if node.type == "arrow_function":
            return f"const {name} = {_dedented(node, source)};"
        return re.sub(r"^((?:async )?function)\s*(\*?)\s*", rf"\1\2 {name}", _dedented(node, source), count=1)
    if language == "java":
        return _java(node, source)
    if language in ("c", "cpp"):
        top = node.parent if node.parent is not None and node.parent.type == "template_declaration" else node
        return _dedented(top, source, _MACROS)
    return _dedented(node, source)


def _java(node: Node, source: bytes) -> str:
    """The method without annotations other than ``@Override``, and without comments between them."""
    modifiers = next((child for child in node.children if child.type == "modifiers"), None)
    if modifiers is None:
        return _dedented(node, source)
    override = [x for x in modifiers.children if _text(x, source) == "@Override"]
    words = [_text(x, source) for x in modifiers.children if not x.type.endswith(("annotation", "comment"))]
    rest = _indentation(node, source) + source[modifiers.end_byte : node.end_byte].decode("utf-8", "replace").lstrip()
    head, body = textwrap.dedent(rest.expandtabs(4)).strip(), "@Override\n" if override else ""
    return body + " ".join([*words, head])


def _dedented(node: Node, source: bytes, without: re.Pattern[bytes] | None = None) -> str:
    text = source[node.start_byte : node.end_byte]
    if without is not None:
        text = without.sub(b"", text)
    code = _indentation(node, source) + text.decode("utf-8", "replace")
    return textwrap.dedent(code.expandtabs(4)).strip()


def _measured(body: Node, docstring: Node | None) -> tuple[int, float]:
    """Leaves of the body, comments aside, and the share of comments and strings in it; without the docstring."""
    tokens = quiet = 0
    skipped = 0 if docstring is None else docstring.end_byte - docstring.start_byte
    todo = [child for child in body.children if docstring is None or child.start_byte != docstring.start_byte]
    while todo:
        found = todo.pop()
        if "comment" in found.type or found.type.endswith(("string", "string_literal", "template_string")):
            quiet += found.end_byte - found.start_byte
            tokens += "comment" not in found.type
        elif found.child_count:
            todo += found.children
        else:
            tokens += 1
    return tokens, quiet / max(1, body.end_byte - body.start_byte - skipped)


def _docstring(body: Node) -> Node | None:
    """The string that a Python body starts with."""
    first = _first(body)
    string = _first(first) if first is not None and first.type == "expression_statement" else first
    return string if string is not None and string.type == "string" else None


_FAILS = ("raise_statement", "throw_statement", "pass_statement", "assert_statement")


def _flaw(node: Node, body: Node, source: bytes, language: str) -> str | None:
    if node.has_error:
        return "that do not parse"
    if language == "rust" and _is_test(node, source):
        return "that are tests"
    statements = [child for child in body.named_children if "comment" not in child.type]
    if language == "python" and _docstring(body) is not None:
        statements = statements[1:]
    if not statements or (len(statements) == 1 and statements[0].type in _FAILS):
        return "that do nothing"
    if language in ("c", "cpp") and any(child.type.startswith("preproc_") for child in _below(body)):
        return "with preprocessor lines"
    return None


def _is_test(node: Node, source: bytes) -> bool:
    """Whether a Rust function has the attribute ``#[test]`` or stands in a module of tests."""
    before = node.prev_sibling
    while before is not None and (before.type == "attribute_item" or "comment" in before.type):
        if before.type == "attribute_item" and re.search(r"\btest\b", _text(before, source)):
            return True
        before = before.prev_sibling
    module = node.parent
    while module is not None and module.type != "mod_item":
        module = module.parent
    name = module.child_by_field_name("name") if module is not None else None
    return name is not None and _text(name, source) in ("test", "tests")


def _below(node: Node) -> Iterator[Node]:
    todo = [node]
    while todo:
        found = todo.pop()
        yield found
        todo += found.children


def _declarator(node: Node | None) -> Node | None:
    """The function_declarator of a C or C++ declaration."""
    while node is not None and node.type != "function_declarator":
        inner = node.child_by_field_name("declarator")
        if inner is None and node.type == "reference_declarator":
            inner = _first(node)
        node = inner
    return node


def _declared_name(node: Node) -> Node | None:
    found = _declarator(node)
    if found is None or node.child_by_field_name("type") is None:  # constructors have no type
        return None
    return found.child_by_field_name("declarator")


def _key(node: Node, source: bytes) -> str | None:
    """Classes, name and parameter types, without white space: ``Class::name(int,char*)``."""
    name, declarator = _declared_name(node), _declarator(node)
    if name is None or declarator is None:
        return None
    classes, parent = [_text(name, source)], node.parent
    while parent is not None:
        if parent.type in ("class_specifier", "struct_specifier") and (found := parent.child_by_field_name("name")):
            classes.insert(0, _text(found, source))
        parent = parent.parent
    types, parameters = [], declarator.child_by_field_name("parameters")
    for child in parameters.named_children if parameters is not None else ():
        if child.type.endswith("parameter_declaration"):
            types.append(_type(child, source))
    return re.sub(r"\s+", "", "::".join(classes) + "(" + ",".join(types) + ")")


def _type(parameter: Node, source: bytes) -> str:
    """A parameter without its name and default value."""
    text = _text(parameter, source)
    if (default := parameter.child_by_field_name("default_value")) is not None:
        text = source[parameter.start_byte : default.start_byte].decode("utf-8", "replace").rstrip(" =")
    named = parameter.child_by_field_name("declarator")
    while named is not None and named.type not in ("identifier", "field_identifier"):
        named = named.child_by_field_name("declarator") or _first(named)
    if named is not None:
        text = re.sub(rf"\b{re.escape(_text(named, source))}\b(?!.*\b{re.escape(_text(named, source))}\b)", "", text)
    return text.replace("std::", "")
