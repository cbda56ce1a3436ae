"""Source text of prompts and answers, seen through tree-sitter: what a prompt declares, and where a function ends."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from tree_sitter import Node, Parser

from eval.codebleu.grammar import load_grammar

BRACE_LANGUAGES = ("java", "javascript", "cpp")
# Strings, comments, regular expressions: their braces do not count. Unclosed ones run to the end of the line or text.
_NOT_CODE = re.compile(
    r"""//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\\n])*"?|(?<!\d)'(?:\\.|[^'\\\n])*'?|`(?:\\.|[^`\\])*(?:`|\Z)"""
    r"""|(?:[(,=:\[!&|?;]|\breturn)\s*/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/""",
    re.DOTALL,
)
_FUNCTIONS = {"function_definition", "function_declaration", "generator_function_declaration", "method_declaration"}
_CLASSES = {"class_definition", "class_declaration", "class_specifier", "struct_specifier", "interface_declaration"}
_COMMENTS = {"comment", "line_comment", "block_comment"}


@dataclass(frozen=True)
class Declared:
    """Something that a source text declares: a function, a class, or a JavaScript constant."""

    name: str
    start: int  # bytes
    stop: int


@dataclass(frozen=True)
class PromptParts:
    """What a completion-style prompt consists of.

    Attributes:
        preamble: its imports and other lines outside functions, comments left out.
        helpers: functions that it defines in full before the one to complete, by name.
        description: its comments and docstring, without their marks.
        signature: the declaration to complete, without comments.
        name: of the function to complete; empty when the prompt declares none.
        class_name: of the class around it (Java), else empty.
    """

    preamble: str
    helpers: dict[str, str]
    description: str
    signature: str
    name: str
    class_name: str


def brace_depth(text: str) -> int:
    """How many braces are open at the end of ``text``; negative when more are closed than were opened."""
    return sum((mark == "{") - (mark == "}") for mark in _braces(text))


def function_end(completion: str) -> int | None:
    """Where the function that ``completion`` continues is closed: the place after that brace; None if it is not."""
    depth = 0
    for match in re.finditer(r"[{}]", _blank(completion)):
        depth += 1 if match[0] == "{" else -1
        if depth < 0:
            return match.end()
    return None


def _braces(text: str) -> list[str]:
    return re.findall(r"[{}]", _blank(text))


def _blank(text: str) -> str:
    """The text with everything that is not code replaced by as many spaces."""
    return _NOT_CODE.sub(lambda match: " " * len(match[0]), text)


def parse(text: str, language: str) -> Node:
    """The root of the syntax tree of ``text``."""
    return Parser(load_grammar(language)).parse(text.encode("utf-8", "surrogatepass")).root_node


def declared(root: Node) -> list[Declared]:
    """What stands directly in ``root`` (a file or a class body): functions, classes, variables with a value."""
    found = []
    for node in root.named_children:
        inner = _unwrapped(node)
        if inner.type in _FUNCTIONS | _CLASSES:
            found.append(Declared(_name(inner), node.start_byte, node.end_byte))
        elif inner.type in ("lexical_declaration", "variable_declaration"):
            for variable in inner.named_children:
                if variable.type == "variable_declarator":
                    found.append(Declared(_name(variable), node.start_byte, node.end_byte))
    return found


def _unwrapped(node: Node) -> Node:
    """The declaration without decorators, ``export`` or ``template``."""
    while node.type in ("export_statement", "decorated_definition", "template_declaration") and node.named_children:
        node = node.named_children[-1]
    return node


def _name(node: Node) -> str:
    """The declared name; C++ hides it inside declarators."""
    inner = node.child_by_field_name("declarator")
    if inner is not None:
        return _name(inner)
    named = node.child_by_field_name("name")
    if named is None and not node.named_children:
        named = node
    if named is None and node.type == "reference_declarator":
        return _name(node.named_children[-1])
    return (named.text or b"").decode() if named is not None else ""


def class_body(root: Node, name: str) -> Node | None:
    """The body of the class ``name`` that stands directly in ``root``."""
    for node in root.named_children:
        if node.type in _CLASSES and _name(node) == name:
            return node.child_by_field_name("body")
    return None


def prompt_parts(prompt: str, language: str) -> PromptParts:
    """Takes a prompt apart: everything before its last declaration, which is the one to complete, and that."""
    indent = re.search(r"^[ \t]+", prompt, re.MULTILINE)
    closed = prompt + (
        "}" * brace_depth(prompt) if language in BRACE_LANGUAGES else f"\n{indent[0] if indent else ' '}pass\n"
    )
    data = closed.encode()
    root = parse(closed, language)
    scope, class_name = root, ""
    if language == "java":
        classes = [node for node in root.named_children if node.type in _CLASSES]
        body = classes[-1].child_by_field_name("body") if classes else None
        if body is not None:
            scope, class_name = body, _name(classes[-1])
    functions = declared(scope)
    if not functions:
        return PromptParts(prompt, {}, "", "", "", class_name)
    target = functions[-1]
    inner = {(item.start, item.stop) for item in functions}
    children = [*(root.named_children if scope is not root else ()), *scope.named_children]
    comments = []  # spans that are description
    cut: list[tuple[int, int]] = []  # spans of comments and the docstring inside the target
    preamble = []
    for node, following in zip(children, [*children[1:], None]):
        if node.type in _COMMENTS:
            helper = following is not None and (following.start_byte, following.end_byte) in inner
            if not helper or (following is not None and following.start_byte == target.start):
                comments.append((node.start_byte, node.end_byte))
        elif (node.start_byte, node.end_byte) not in inner and not node.type.endswith("class_declaration"):
            preamble.append(data[node.start_byte : node.end_byte].decode().rstrip("\n"))
        elif node.start_byte == target.start:
            cut = _documentation(node)
    comments += cut
    words = "\n".join(filter(None, (_plain(data[start:stop].decode()) for start, stop in comments)))
    start = next(node.start_byte for node in children if node.start_byte == target.start)
    stop = len(prompt.encode())
    pieces, place = [], start
    for first, last in cut:
        pieces.append(data[place:first])
        place = last
    signature = textwrap.dedent(_indent_of(data, start) + b"".join([*pieces, data[place:stop]]).decode()).strip()
    signature = re.sub(r"\n\s*\n", "\n", signature)
    helpers = {item.name: data[item.start : item.stop].decode() for item in functions[:-1]}
    return PromptParts("\n".join(preamble), helpers, words, signature, target.name, class_name)


def _indent_of(data: bytes, start: int) -> str:
    line = data[data.rfind(b"\n", 0, start) + 1 : start].decode()
    return line if not line.strip() else ""


def _documentation(function: Node) -> list[tuple[int, int]]:
    """Spans of the comments and docstrings directly in a function's body."""
    spans = []
    for node in _body_children(function):
        is_docstring = (
            node.type == "expression_statement" and node.named_children and node.named_children[0].type == "string"
        )
        if node.type in _COMMENTS or is_docstring:
            spans.append((node.start_byte, node.end_byte))
    return spans


def _body_children(node: Node) -> list[Node]:
    node = _unwrapped(node)
    if node.type in ("lexical_declaration", "variable_declaration"):
        values = [child.child_by_field_name("value") for child in node.named_children]
        node = next((value for value in values if value is not None), node)
    body = node.child_by_field_name("body")
    inside = list(body.named_children) if body is not None else []
    return sorted(
        [*inside, *(c for c in node.named_children if c.type in _COMMENTS)], key=lambda child: child.start_byte
    )


def _plain(comment: str) -> str:
    """A comment's or docstring's text."""
    text = comment.strip()
    if text[:1] in "rRbBuUfF" and text[1:2] in "\"'":
        text = text[1:]
    for opening, closing in (('"""', '"""'), ("'''", "'''"), ("/**", "*/"), ("/*", "*/")):
        if text.startswith(opening):
            text = text.removeprefix(opening).removesuffix(closing)
            break
    else:
        return re.sub(r"^\s*(?://+|#+) ?", "", text)
    lines = text.split("\n")
    if opening[0] == "/" and all(line.lstrip()[:1] in ("*", "") for line in lines[1:]):  # Javadoc's margin
        lines = [re.sub(r"^\s*\*(?: \*)? ?", "", line) for line in lines]
    first, rest = lines[0].strip(), textwrap.dedent("\n".join(lines[1:]))
    return f"{first}\n{rest}".strip()
