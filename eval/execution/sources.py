"""What the parser says about an answer: the functions and classes that it defines, and how to make it a whole file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from tree_sitter import Node, Parser

from eval.codebleu.grammar import load_grammar

_JAVA_TYPES = (
    "class_declaration",
    "interface_declaration",
    "enum_declaration",
    "record_declaration",
    "annotation_type_declaration",
)
_INNER = {"static", "private", "protected"}  # modifiers of classes that stand in a class
_JAVA_IMPORTS = "import java.util.*; import java.util.function.*; import java.util.stream.*;"
_ANY, _VARIABLE = -1, -2  # numbers of parameters: unknown; of what may be no function, and is called only by its name
ARGUMENT = "@"  # of a class template
_TYPE_PARAMETERS = ("type_parameter_declaration", "template_template_parameter_declaration")
_JS_CLASSES = ("class_declaration", "abstract_class_declaration")


@cache
def _parser(language: str) -> Parser:
    return Parser(load_grammar(language))


def _parse(language: str, text: str) -> Node:
    return _parser(language).parse(text.encode("utf-8", errors="replace")).root_node


def _text(node: Node | None) -> str:
    return (node.text or b"").decode() if node else ""


@dataclass(frozen=True)
class Script:
    """A JavaScript answer: whether it is a module, the names at its top level, the last one first, and its classes.

    An object literal that a variable holds counts as a class: it has methods.
    """

    module: bool
    functions: tuple[str, ...]
    classes: tuple[str, ...]


def javascript(answer: str) -> Script:
    """Reads declarations of functions, and of variables whatever their value; ``main`` is left out."""
    functions: list[str] = []
    others: list[str] = []
    classes: list[str] = []
    root = _parse("javascript", answer)
    module = _awaits(root) or any(_text(node) == "import.meta" for node in _descend(root, "meta_property"))
    for node in root.children:
        if node.type in ("export_statement", "import_statement"):
            module = True
            node = node.child_by_field_name("declaration") or node
        if node.type in ("function_declaration", "generator_function_declaration"):
            functions.append(_text(node.child_by_field_name("name")))
        elif node.type in _JS_CLASSES:
            classes.append(_text(node.child_by_field_name("name")))
        elif node.type in ("lexical_declaration", "variable_declaration"):
            for declarator in node.named_children:
                name, value = (declarator.child_by_field_name(field) for field in ("name", "value"))
                if name is not None and name.type == "object_pattern":
                    bound = ("shorthand_property_identifier_pattern", "identifier")
                    others += [_text(n) for kind in bound for n in _descend(name, kind)]
                if name is None or name.type != "identifier":
                    continue
                called = value is not None and value.type in (
                    "arrow_function", "function_expression", "generator_function",
                )  # fmt: skip
                if value is not None and value.type in ("class", "object"):
                    classes.append(_text(name))
                else:
                    (functions if called else others).append(_text(name))
    # Another name may be called only if a function is written there; the wanted one, whatever it holds.
    names = [name for name in (*others, *functions) if name != "main"]
    return Script(module, tuple(reversed(names)), tuple(classes))


def _awaits(node: Node) -> bool:
    """Whether an ``await`` stands outside of all functions, as it may in a module."""
    return any(
        child.type == "await_expression"
        or ("function" not in child.type and "method" not in child.type and _awaits(child))
        for child in node.children
    )


def javascript_functions(script: Script, wanted: str, answer: str) -> tuple[str, ...]:
    """The names that may be called: ``wanted`` first if it is there."""
    return (wanted, *script.functions) if wanted in script.functions else script.functions


@dataclass(frozen=True)
class JavaFile:
    """A compilation unit, the methods it defines (the last one first) and its classes in their order."""

    source: str
    methods: tuple[str, ...]
    classes: tuple[str, ...]


def java(answer: str, imports: bool = True) -> JavaFile:
    """The answer as a file: methods and fields that stand outside of classes get one around them.

    imports: also import ``java.util`` and its functions and streams, on the line that comes first.
    """
    answer = answer.removeprefix("\ufeff")
    data = answer.encode("utf-8", errors="replace")
    root = _parse("java", answer)
    package, head, types, loose = b"", [], [], []
    for node in root.children:
        piece = data[node.start_byte : node.end_byte]
        if node.type == "package_declaration":
            package = piece
        elif node.type == "import_declaration":
            head.append(piece)
        elif node.type in _JAVA_TYPES and not _INNER & _modifiers(node):
            types.append(piece)
        elif node.type not in ("line_comment", "block_comment", ";"):
            loose.append(piece)
    classes = [_text(node.child_by_field_name("name")) for kind in _JAVA_TYPES for node in _descend(root, kind)]
    extra, name = _JAVA_IMPORTS.encode() if imports else b"", "Answer"
    if not loose:
        start = next((n.end_byte for n in root.children if n.type == "package_declaration"), 0)
        source = data[:start] + b" " + extra + b" " + data[start:]
    else:
        while name in classes:
            name += "_"
        wrapped = f"class {name} {{\n".encode() + b"\n".join(loose) + b"\n}"
        source = b"\n".join([package, extra, *head, wrapped, *types])
    names = [_text(node.child_by_field_name("name")) for node in _descend(root, "method_declaration")]
    methods = tuple(name for name in reversed(names) if name != "main")
    return JavaFile(source.decode("utf-8", errors="replace"), methods, (name, *classes) if loose else (*classes,))


def _modifiers(node: Node) -> set[str]:
    return {word for child in node.children if child.type == "modifiers" for word in _text(child).split()}


def _descend(node: Node, kind: str) -> Iterator[Node]:
    for child in node.children:
        if child.type == kind:
            yield child
        yield from _descend(child, kind)


@dataclass(frozen=True)
class Function:
    """A C++ function as an expression to call.

    name: qualified. kind: ``plain`` (one definition, whose address says its types), ``method`` of the class ``owner``,
    or ``generic`` (a template, an overload or an object, called with the types of ``types``, else the test's). For each
    type that a class template wants, name and owner hold :data:`ARGUMENT`.
    """

    name: str
    kind: Literal["plain", "method", "generic"]
    parameters: int
    owner: str = ""
    types: tuple[str, ...] = ()


@dataclass(frozen=True)
class CppFile:
    """A C++ answer: its functions in order, without ``main``; the macros it leaves defined; and its main's bytes."""

    functions: tuple[Function, ...]
    macros: tuple[str, ...]
    main: tuple[int, int] | None

    def find(self, wanted: str, parameters: int) -> Function:
        """``wanted`` if it is defined, else the last function, of so many parameters if there is one."""
        # A declaration and its definition are one function; one outside of namespaces and classes goes first.
        named = list({(f.name, f.types): f for f in self.functions if f.name.rpartition("::")[2] == wanted}.values())
        named = [f for f in named if f.name == wanted] or named
        if len(named) > 1:
            fitting = [f for f in named if f.parameters == parameters] or named
            owners = {f.owner for f in named}
            if fitting[-1].kind == "method" and len(owners) == len(named):
                return fitting[-1]
            own = len(fitting) == 1 and ARGUMENT not in fitting[0].owner
            return replace(fitting[-1], kind="generic", types=fitting[0].types if own else ())
        functions = [f for f in self.functions if f.parameters != _VARIABLE]
        others = [f for f in functions if f.parameters == parameters] or functions
        return (named or others or [Function(wanted, "generic", parameters)])[-1]


def cpp(answer: str) -> CppFile:
    """Reads definitions at the top level, in namespaces and in classes."""
    root = _parse("cpp", answer)
    found: list[Function] = []
    main: list[tuple[int, int]] = []
    for node, scope, owner, template in _definitions(root, "", "", None):
        declarator = node.child_by_field_name("declarator")
        while declarator is not None and declarator.type in ("pointer_declarator", "reference_declarator"):
            declarator = declarator.child_by_field_name("declarator") or declarator.named_children[-1]
        if declarator is None:
            continue
        if declarator.type == "init_declarator":
            value = declarator.child_by_field_name("value")
            called = value is not None and (value.type == "lambda_expression" or "function<" in _text(node))
            name = next((_text(n) for n in _descend(declarator, "identifier")), "")
            found.append(Function(f"{scope}{name}", "generic", _ANY if called else _VARIABLE))
            continue
        if declarator.type != "function_declarator":
            continue
        name_node = declarator.child_by_field_name("declarator")
        name = _text(name_node)
        if name_node is None or name_node.type in ("operator_name", "destructor_name") or "operator" in name:
            continue
        if name == "main" and not scope and not owner:
            main.append((node.start_byte, node.end_byte))
            continue
        if owner and name == owner.rpartition("::")[2].partition("<")[0]:
            continue  # a constructor
        if "::" in name:
            continue  # defined outside of the class that declares it
        listed = declarator.child_by_field_name("parameters")
        parameters = [n for n in listed.named_children if "parameter" in n.type] if listed else []
        count = 0 if [_text(p) for p in parameters] == ["void"] else len(parameters)
        autos = [n for n in parameters if "auto" in _text(n.child_by_field_name("type")).split()]
        generic = template is not None or bool(autos)
        kind: Literal["plain", "method", "generic"] = "generic" if generic else "method" if owner else "plain"
        types = () if generic else tuple(_parameter_type(p) for p in parameters)
        found.append(Function(f"{owner}::{name}" if owner else f"{scope}{name}", kind, count, owner, types))
    macros = {
        _text(node.child_by_field_name("name")): "" if calls else _text(node.child_by_field_name("value")).strip()
        for calls in (False, True)
        for node in _descend(root, "preproc_function_def" if calls else "preproc_def")
    }
    functions: list[Function] = []
    for function in found:
        alias = macros.get(function.name)
        if alias == "":  # `FUNCTION(twice) { ... }` defines what its arguments say
            functions += [Function(name, "generic", _VARIABLE) for name in function.types]
        else:
            functions.append(replace(function, name=alias) if alias and alias.isidentifier() else function)
    return CppFile(tuple(functions), tuple(macros), main[-1] if main else None)


def _parameter_type(node: Node) -> str:
    """The type of a parameter: its declaration without its name and its default value."""
    inner = node.child_by_field_name("declarator")
    name = inner if inner is not None and inner.type == "identifier" else None
    if inner is not None and name is None:
        name = next(_descend(inner, "identifier"), None)
    default = node.child_by_field_name("default_value")
    text = (node.text or b"")[: default.start_byte - node.start_byte if default else None]
    if name is not None:
        text = text[: name.start_byte - node.start_byte] + text[name.end_byte - node.start_byte :]
    return " ".join(text.decode().rstrip("= \n").split())


def _definitions(
    node: Node, scope: str, owner: str, template: Node | None
) -> Iterator[tuple[Node, str, str, Node | None]]:
    """Definitions below a node, each with its namespace, its class and, if it is a template, its parameters."""
    for child in node.children:
        match child.type:
            case "function_definition" | "declaration":
                yield child, scope, owner, template
                if child.type == "function_definition":
                    continue
                yield from _definitions(child, scope, owner, template)
            case "field_declaration" if owner:
                yield child, scope, owner, template
            case "template_declaration":
                yield from _definitions(child, scope, owner, child.child_by_field_name("parameters"))
            case "namespace_definition":
                name = _text(child.child_by_field_name("name"))
                body = child.child_by_field_name("body")
                if body is not None:
                    yield from _definitions(body, f"{scope}{name}::" if name else scope, owner, template)
            case "class_specifier" | "struct_specifier":
                name, body = _text(child.child_by_field_name("name")), child.child_by_field_name("body")
                if name and body is not None:
                    name += _template_arguments(template)
                    yield from _definitions(body, scope, f"{owner}::{name}" if owner else f"{scope}{name}", None)
            case "linkage_specification" | "declaration_list" | "preproc_if" | "preproc_ifdef" | "preproc_else":
                yield from _definitions(child, scope, owner, template)


def _template_arguments(parameters: Node | None) -> str:
    """What follows the name of a class template; parameters with a default value, and packs, are left out."""
    wanted = [node for node in parameters.named_children if node.type in _TYPE_PARAMETERS] if parameters else []
    return f"<{', '.join(ARGUMENT for _ in wanted)}>" if parameters and parameters.named_children else ""


def without_main(answer: str) -> str:
    """A C++ answer without its ``main``, for tests that bring their own."""
    answer = answer.removeprefix("\ufeff")
    data = answer.encode("utf-8", errors="replace")
    span = cpp(answer).main
    if span is None:
        return answer
    lines = b"\n" * data[span[0] : span[1]].count(b"\n")
    return (data[: span[0]] + lines + data[span[1] :]).decode("utf-8", errors="replace")
