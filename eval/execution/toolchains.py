"""How each language runs an answer: the programs to start, one after the other."""

from __future__ import annotations

import ast
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

from eval.execution.builds import JVM_FLAGS, PLAIN, SANITIZED, Builds, Built
from eval.execution.cases import CaseTests, ProgramTests, Type
from eval.execution.results import Verdict, one_line
from eval.execution.sandbox import HARNESS, Program, Sandbox
from eval.execution.sources import ARGUMENT, Function, cpp, java, javascript, javascript_functions, without_main
from eval.execution.values import encode

TOOLS = {"python": (), "java": ("javac", "java"), "javascript": ("node",), "cpp": ("g++",)}
PACKAGES = {"javac": "a JDK 17 or later", "java": "a JDK 17 or later", "node": "nodejs", "g++": "g++"}
_SANITIZED_SLOWER = 4  # times as long as the plain program
_ASSERTS_ON = "\n#undef NDEBUG\n#undef assert\n#include <assert.h>\n"  # whatever the answer made of them
# Errors that an answer has without the harness's headers in front, too: they only add names. A test program, which
# comes with its headers, is tried without them first.
_UNKNOWN = ("was not declared", "not been declared", "does not name a type", "is not a member of", "incomplete type")
_LACKS = ("was not declared in this scope", "does not name a type", "[-Werror=return-type]")
# The function cannot be handed on: the C library has one of that name, too, or it is of a rare kind, as `int f() &`.
_NO_ADDRESS = ("unresolved overloaded function", "to ‘judged::Entry::Entry(")
# What judged.hpp does not include.
_MORE = re.compile(
    r"\b(stdc\+\+|any\w*|atomic\w*|async|barrier|chrono|complex|condition_variable|coroutine\w*|filesystem|forward_list"
    r"|\w*fstream|future|latch|locale|mt19937\w*|\w*mutex|\w+_distribution|promise|random_device|ranges|regex\w*"
    r"|\w*semaphore|source_location|span|this_thread|j?thread|time_point|valarray|variant|views|visit)\b"
)
_QUOTED, _CALLED, _WORD = re.compile("[‘']([^’']*)[’']"), re.compile(r"(\w+)\("), re.compile(r"\w+")
_CPP_TYPES = {"float": "double", "bool": "bool", "str": "std::string"}


@dataclass(frozen=True)
class Task:
    """One answer to judge. ``secret`` opens each line of its results."""

    answer: str
    tests: CaseTests | ProgramTests
    secret: str

    @property
    def mode(self) -> str:
        return "cases" if isinstance(self.tests, CaseTests) else "program"

    def request(self, source: str, functions: Sequence[str] = (), classes: Sequence[str] = (), test: str = "") -> bytes:
        """The lines that a harness reads: secret, source, wanted name, other names, and calls or ``test``."""
        if isinstance(self.tests, CaseTests):
            wanted, rest = self.tests.function, calls(self.tests)
        else:
            wanted, rest = self.tests.entry_point, [test]
        lines: list[str] = [self.secret, _hex(source), wanted, " ".join(functions), " ".join(classes), *rest]
        return "\n".join(lines).encode("ascii", errors="replace")


def make_task(answer: str, tests: CaseTests | ProgramTests) -> Task:
    return Task(answer, tests, secrets.token_hex(16))


def missing_tools(language: str) -> tuple[str, ...]:
    """The tools that running ``language`` needs and that are not on the path."""
    return tuple(tool for tool in TOOLS[language] if shutil.which(tool) is None)


def calls(tests: CaseTests) -> list[str]:
    types = [type_ for _, type_ in tests.parameters]
    return [
        " ".join([f"[{len(types)}", *(encode(value, type_) for value, type_ in zip(case.arguments, types))])
        for case in tests.cases
    ]


def _hex(source: str) -> str:
    return source.encode("utf-8", errors="surrogatepass").hex()


def steps(language: str, task: Task, sandbox: Sandbox, builds: Builds) -> Iterator[Program | Verdict]:
    """The programs to run, all of which must pass, or the verdict that needs none."""
    return {"python": _python, "java": _java, "javascript": _javascript, "cpp": _cpp}[language](task, sandbox, builds)


def _python(task: Task, sandbox: Sandbox, builds: Builds) -> Iterator[Program | Verdict]:
    argv = [sys.executable, "-I", "-B", str(HARNESS / "worker.py"), task.mode, "{request}", "{results}"]
    if isinstance(task.tests, CaseTests):
        request = task.request(task.answer)
    else:
        request = task.request(task.tests.before + task.answer, test=_hex(_calling_check(task.tests)))
    yield Program(argv, sandbox.limits.seconds, request)


def _calling_check(tests: ProgramTests) -> str:
    """The test program; ``check(ENTRY_POINT)`` is added where it defines ``check`` and never calls it."""
    try:
        body = ast.parse(tests.after).body
    except (SyntaxError, ValueError):
        return tests.after
    defined = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in body)
    called = any(
        isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "check"
        for node in body
        for call in ast.walk(node)
    )
    call = f"\ncheck({tests.entry_point})\n" if tests.entry_point and defined and not called else ""
    return tests.after + call


def _javascript(task: Task, sandbox: Sandbox, builds: Builds) -> Iterator[Program | Verdict]:
    tests = task.tests
    own = task.answer if isinstance(tests, CaseTests) else tests.before + task.answer + "\n"
    source = own if isinstance(tests, CaseTests) else own + tests.after
    script = javascript(source)
    functions = javascript_functions(script, tests.function, source) if isinstance(tests, CaseTests) else ()
    memory = max(64, sandbox.limits.memory >> 21)  # half, in MiB: the rest is for the runtime
    argv = [_tool("node"), f"--max-old-space-size={memory}", str(HARNESS / "worker.js"), task.mode]
    argv += ["module" if script.module else "script", "{request}", "{results}"]
    paths = tests.paths if isinstance(tests, ProgramTests) else ()
    environment = {"NODE_PATH": ":".join(map(str, paths))} if paths else {}
    request = task.request(source, functions, script.classes, str(own.count("\n") + 1))
    yield Program(argv, sandbox.limits.seconds, request, paths, environment=environment)


def java_file(task: Task, imports: bool = True) -> str:
    tests = task.tests
    text = task.answer if isinstance(tests, CaseTests) else tests.before + task.answer + "\n" + tests.after
    return java(text, imports).source if isinstance(tests, CaseTests) else text


def _java(task: Task, sandbox: Sandbox, builds: Builds) -> Iterator[Program | Verdict]:
    paths = task.tests.paths if isinstance(task.tests, ProgramTests) else ()
    [built] = builds.java(sandbox, [java_file(task)], paths)
    if built.error and isinstance(task.tests, CaseTests):  # a name may be ambiguous among the imports
        [again] = builds.java(sandbox, [java_file(task, imports=False)], paths)
        built = built if again.error else again
    if built.error:
        yield Verdict("timeout" if built.timed_out else "compile_error", one_line(built.error))
        return
    harness = builds.java_harness(sandbox)
    memory = max(64, sandbox.limits.memory >> 21)
    argv = [_tool("java"), *JVM_FLAGS, f"-Xmx{memory}m", "-cp", str(harness), "Worker", task.mode, str(built.folder)]
    argv += [":".join(map(str, paths)), "{request}", "{results}"]
    file = java(java_file(task))
    request = task.request("", file.methods, file.classes)
    yield Program(argv, sandbox.limits.seconds, request, [harness, built.folder, *paths])


def _cpp(task: Task, sandbox: Sandbox, builds: Builds) -> Iterator[Program | Verdict]:
    tests = task.tests
    flags = tests.flags if isinstance(tests, ProgramTests) else ()
    kinds: list[tuple[str, ...]] = [PLAIN]
    if sandbox.limits.sanitize and builds.sanitizes(sandbox):
        kinds.append(SANITIZED)
        if isinstance(tests, ProgramTests):  # solutions of benchmarks loop until they return; the sanitizer reports
            flags = ("-Wno-error=return-type", *flags)  # an end that is reached
    for kind in kinds:
        built, error = _cpp_build(task, sandbox, builds, kind, flags)
        if built.error:
            yield Verdict("timeout" if built.timed_out else "compile_error", one_line(error))
            return
        request = "\n".join([task.secret, *(calls(tests) if isinstance(tests, CaseTests) else ())]).encode()
        sanitized = kind is SANITIZED
        yield Program(
            [str(built.folder / "answer"), task.mode, "{request}", "{results}"],
            sandbox.limits.seconds * (_SANITIZED_SLOWER if sanitized else 1),
            request,
            [built.folder],
            environment={"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=0"} if sanitized else {},
            sanitized=sanitized,
        )


def _cpp_build(
    task: Task, sandbox: Sandbox, builds: Builds, kind: Sequence[str], flags: Sequence[str]
) -> tuple[Built, str]:
    """The program, or the first attempt's error.

    With the harness's headers in front an answer may leave out its own; without them none of its names clash. A name
    that clashes with headers that come after it, which the answer alone does not include, gets another one.
    """
    error = ""
    renamed: list[str] = []
    is_program = isinstance(task.tests, ProgramTests)
    header = "everything.hpp" if _MORE.search(_cpp_source(task, "", False, ())) else "judged.hpp"
    attempts = [("", False), (header, False)] if is_program else [(header, False), (header, True), ("", False)]
    for first, called in attempts:
        if called and not any(words in error for words in _NO_ADDRESS):
            continue
        source = _cpp_source(task, first, called, renamed)
        built = builds.cpp(sandbox, source, kind, flags, first)
        error = error or built.error
        if not built.error or built.timed_out:
            break
        if is_program:
            if not any(words in built.error for words in _UNKNOWN):
                break
            continue
        if any(words in built.error for words in _LACKS):
            break
        name = "" if first else _clashing(built.error)
        if name and name not in renamed and re.search(rf"\b{name}\b", task.answer):
            renamed.append(name)
            attempts.append(("", False))
    return built, error


def _clashing(error: str) -> str:
    """The name that a header declares again, if that is what the compiler says."""
    if error.startswith("answer.cpp") or not (found := _QUOTED.search(error)):
        return ""
    words = _CALLED.findall(found[1]) or _WORD.findall(found[1].partition("(")[0]) or [""]
    return words[-1 if "(" not in found[1] else 0]


def _cpp_source(task: Task, first: str, called: bool, renamed: Sequence[str]) -> str:
    """``first``: the header at the top, if any. ``called``: the function is called, not its address taken."""
    tests, header = task.tests, '#include "judged.hpp"\n'
    top = f'#include "{first}"\n' if first else ""
    if isinstance(tests, ProgramTests):
        answer = without_main(task.answer) if cpp(tests.after).main else task.answer
        return top + tests.before + answer + _ASSERTS_ON + tests.after
    answer = task.answer.removeprefix("\ufeff")
    file = cpp(answer)
    undefine = "".join(f"#undef {name}\n" for name in (*file.macros, *renamed))
    rename = "".join(f"#define {name} judged_{name}\n" for name in renamed)
    function = _instance(file.find(tests.function, len(tests.parameters)), tests)
    name = f"::{function.name}"
    if (
        function.kind == "generic"
        or called
        or (function.kind != "generic" and function.parameters != len(tests.parameters))
    ):
        own = len(function.types) >= len(tests.parameters)
        types = ", ".join(
            f"std::decay_t<{function.types[i]}>" if own else _cpp_type(tests, i) for i in range(len(tests.parameters))
        )
        if function.owner:
            name = f"::judged::kept<::{function.owner}>().emplace_back().{function.name.rpartition('::')[2]}"
        call = f"[](auto&... values) -> decltype(auto) {{ return {name}(values...); }}"
        entry = f"static auto judged_entry = ::judged::Entry::generic<{types}>({call});\n"
    else:
        entry = f"static ::judged::Entry judged_entry(&{name});\n"
    return top + rename + answer + "\n" + undefine + header + rename + entry


def _instance(function: Function, tests: CaseTests) -> Function:
    """A method of a class template as that of the class for the test's types, one after the other."""
    scalars = [name for type_ in (*(t for _, t in tests.parameters), tests.returns) for name in _scalars(type_)]
    types = [_CPP_TYPES.get(name, _integer(tests)) for name in dict.fromkeys(scalars)]
    name, owner = function.name, function.owner
    for index in range(owner.count(ARGUMENT)):
        type_ = types[min(index, len(types) - 1)]
        name, owner = name.replace(ARGUMENT, type_, 1), owner.replace(ARGUMENT, type_, 1)
    return replace(function, name=name, owner=owner)


def _scalars(type_: Type) -> Iterator[str]:
    if not type_.parts:
        yield type_.head
    for part in type_.parts:
        yield from _scalars(part)


def _cpp_type(tests: CaseTests, index: int) -> str:
    """The type of an argument of a function whose own types the compiler must choose."""
    integer = _integer(tests, index)

    def name(part: Type) -> str:
        match part.head:
            case "list":
                return f"std::vector<{name(part.parts[0])}>"
            case "matrix":
                return f"std::vector<std::vector<{name(part.parts[0])}>>"
            case "map":
                return f"std::map<{name(part.parts[0])}, {name(part.parts[1])}>"
        return _CPP_TYPES.get(part.head, integer)

    return name(tests.parameters[index][1])


def _integer(tests: CaseTests, index: int | None = None) -> str:
    """The type that holds the integers of an argument, or of all."""

    def is_wide(value: object) -> bool:
        if isinstance(value, list):
            return any(map(is_wide, value))
        return isinstance(value, int) and not -(1 << 31) <= value < 1 << 31

    values = (case.arguments if index is None else case.arguments[index : index + 1] for case in tests.cases)
    return "long long" if any(map(is_wide, values)) else "int"


@cache
def _tool(name: str) -> str:
    return str(shutil.which(name))
