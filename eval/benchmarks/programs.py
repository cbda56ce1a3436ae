"""From an answer to the program that is judged: what the benchmark puts around it, and which libraries that needs."""

from __future__ import annotations

import re

from eval.answer_code import answer_code as code_of
from eval.benchmarks.problems import Problem
from eval.benchmarks.prompts import Style
from eval.benchmarks.source import brace_depth, class_body, declared, parse, prompt_parts
from eval.execution import CaseTests, ProgramTests

Tests = CaseTests | ProgramTests
_FUTURE = re.compile(r"^from __future__ import .*", re.MULTILINE)


def canonical_code(problem: Problem) -> str:
    """The benchmark's own solution, with the prompt that it completes."""
    assert problem.solution is not None
    return _closed(problem, problem.prompt + problem.solution) if problem.in_program else problem.solution


def answer_code(problem: Problem, answer: str, style: Style) -> str:
    """The code of an answer, with what it needs of the prompt.

    A completion follows the prompt. The code block of an instruction's answer gets the prompt's imports and those of
    its helper functions that it does not define itself; a Java method without a class gets the prompt's class.
    """
    if style == "completion":
        return _closed(problem, problem.prompt + answer) if problem.in_program else answer
    code = code_of(answer, problem.language)
    return _joined(problem, code) if problem.in_program and problem.prompt else code


def problem_tests(problem: Problem, style: Style, code: str) -> tuple[str, Tests]:
    """The code as the judge takes it, and its tests; ``code`` is what the functions above return.

    MultiPL-E's tests begin by closing what a completion leaves open (in Java they stand inside the class), so whole
    code is opened there.
    """
    if not problem.prompt:
        return code, CaseTests.parse(problem.tests, problem.language)
    after = problem.tests
    if style == "instruction" and after.lstrip().startswith("}"):
        after = after.lstrip()[1:]
        if problem.language == "java":
            name = prompt_parts(problem.prompt, "java").class_name
            body = class_body(parse(code, "java"), name)
            if body is not None:
                data = code.encode()
                after += "\n" + data[body.end_byte :].decode()
                mains = [(item.start, item.stop) for item in declared(body) if item.name == "main"]
                code = _without(data[: body.end_byte - 1].decode(), mains) + "\n"
    before = problem.setup
    if problem.language == "python":  # these imports have to come first
        before = "".join(f"{line}\n" for line in _FUTURE.findall(code)) + before
        code = _FUTURE.sub("", code)
    return code, ProgramTests(after, before, problem.entry_point or "")


def _closed(problem: Problem, code: str) -> str:
    """Closes the class around a completed Java method; MultiPL-E's tests do that themselves."""
    is_open = problem.language == "java" and problem.stop is None and brace_depth(code) == 1
    return f"{code.rstrip()}\n}}\n" if is_open else code


def _joined(problem: Problem, code: str) -> str:
    language, parts = problem.language, prompt_parts(problem.prompt, problem.language)
    if language == "java":
        return _joined_java(code, parts.preamble, parts.helpers, parts.class_name, problem.tests)
    root = parse(code, language)
    own = declared(root)
    if language == "cpp":  # the tests have a main function
        code = _without(code, [(item.start, item.stop) for item in own if item.name == "main"])
    names = {item.name for item in own}
    helpers = [text for name, text in parts.helpers.items() if name not in names]
    return "\n".join(filter(None, (parts.preamble, *helpers, code))) + "\n"


def _joined_java(code: str, preamble: str, helpers: dict[str, str], class_name: str, tests: str) -> str:
    root = parse(code, "java")
    if packages := [(n.start_byte, n.end_byte) for n in root.named_children if n.type == "package_declaration"]:
        code = _without(code, packages)  # the tests are in none
        root = parse(code, "java")
    classes = {item.name for item in declared(parse(tests, "java"))} - {class_name}
    own = declared(root)
    if class_name and not any(item.name == class_name for item in own):
        methods = [n for n in root.named_children if n.type == "method_declaration"]
        if methods:  # the method alone: everything but imports goes into the class
            imports = [n for n in root.named_children if n.type == "import_declaration"]
            top = "\n".join((n.text or b"").decode() for n in imports)
            body = _without(code, [(n.start_byte, n.end_byte) for n in imports])
            code = f"{top}\nclass {class_name} {{\n{body}\n}}\n"
            root = parse(code, "java")
            own = declared(root)
    body_node = class_body(root, class_name)
    if body_node is not None:
        names = {item.name for item in declared(body_node)}
        missing = "\n".join(text for name, text in helpers.items() if name not in names)
        data = code.encode()
        place = body_node.end_byte - 1
        code = data[:place].decode() + (f"\n{missing}\n" if missing else "") + data[place:].decode()
        own = declared(parse(code, "java"))
    code = _without(code, [(item.start, item.stop) for item in own if item.name in classes])  # the tests' own Main
    return f"{preamble}\n{code}\n"


def _without(text: str, spans: list[tuple[int, int]]) -> str:
    """``text`` without the spans, which are in bytes."""
    data = text.encode()
    for start, stop in sorted(spans, reverse=True):
        data = data[:start] + data[stop:]
    return data.decode()
