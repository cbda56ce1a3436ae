"""Python answers: nothing that they define, print, replace or return reaches the judge."""

import pytest

from eval.execution import ProgramTests, judge
from tests.eval.execution.kinds import LIMITS, TWICE, cases, check

WRONG = "def twice(n):\n    return 0\n"
RIGHT = "def twice(n):\n    return 2 * n\n"
GAP = cases("gap", ["float", "float"], "float", (3.0, 5.0, 2.0))


def test_what_an_answer_rebinds_changes_nothing():
    names = ("abs", "len", "type", "isinstance", "str", "int", "list", "print", "repr", "RecursionError", "Exception")
    rebinding = "".join(f"def {name}(*a, **k):\n    return True\n" for name in names)
    in_builtins = "import builtins\n" + "".join(
        f"builtins.{name} = lambda *a, **k: 4\n" for name in names if name != "Exception"
    )
    modules = (
        "import json, os, sys, marshal\n"
        "json.dumps = os.write = sys.stdout.write = marshal.dumps = lambda *a, **k: 4\n"
        "sys.stdout = sys.stderr = sys.__stdout__ = None\nsys.modules.clear()\n"
    )
    check(
        "python",
        {
            "right, names of the module": (rebinding + RIGHT, TWICE, "passed"),
            "wrong, names of the module": (rebinding + WRONG, TWICE, "failed"),
            "right, built-in functions": (in_builtins + RIGHT, TWICE, "passed"),
            "wrong, built-in functions": (in_builtins + WRONG, TWICE, "failed"),
            "right, modules": (modules + RIGHT, TWICE, "passed"),
            "wrong, modules": (modules + WRONG, TWICE, "failed"),
            "own abs": ("def abs(x):\n    return x\n\ndef gap(a, b):\n    return abs(a - b)\n", GAP, "failed"),
        },
    )


def test_results_count_by_exact_type():
    class_of = "class A({base}):\n    def __eq__(self, o):\n        return True\n    __hash__ = {base}.__hash__\n"
    words = cases("words", ["str"], "list[str]", ("a b", ["a", "b"]))
    count = cases("count", ["str"], "map[str, int]", ("aab", [["a", 2], ["b", 1]]))
    flag = cases("flag", ["int"], "bool", (1, True))
    name = cases("name", ["int"], "str", (1, "one"))
    half = cases("half", ["int"], "float", (1, 0.5), (4, 2.0))
    check(
        "python",
        {
            "int subclass": (class_of.format(base="int") + "def twice(n):\n    return A(2 * n)\n", TWICE, "failed"),
            "str subclass": (class_of.format(base="str") + "def name(n):\n    return A('one')\n", name, "failed"),
            "list subclass": (
                class_of.format(base="list") + "def words(s):\n    return A(s.split())\n",
                words,
                "failed",
            ),
            "dict subclass": (
                "class A(dict):\n    def items(self):\n        return [('a', 2)]\ndef count(s):\n    return A()\n",
                count,
                "failed",
            ),
            "metaclass": (
                "class M(type):\n    def __eq__(s, o):\n        return True\n    __hash__ = type.__hash__\n"
                "class A(metaclass=M):\n    pass\ndef twice(n):\n    return A()\n",
                TWICE,
                "failed",
            ),
            "says it is an int": (
                "class A:\n    __class__ = int\n    def __eq__(s, o): return True\ndef twice(n):\n    return A()\n",
                TWICE,
                "failed",
            ),
            "float for int": ("def twice(n):\n    return 2.0 * n\n", TWICE, "failed"),
            "True for 1": ("def twice(n):\n    return n == 2\n", cases("twice", ["int"], "int", (2, 1)), "failed"),
            "1 for True": ("def flag(n):\n    return 1\n", flag, "failed"),
            "int for float": ("def half(n):\n    return n / 2 if n % 2 else n // 2\n", half, "passed"),
            "numpy-like float": ("class F(float):\n    pass\ndef half(n):\n    return F(n / 2)\n", half, "failed"),
            "string of it": ("def twice(n):\n    return str(2 * n)\n", TWICE, "failed"),
            "tuple for list": ("def words(s):\n    return tuple(s.split())\n", words, "failed"),
            "generator": ("def words(s):\n    yield from s.split()\n", words, "failed"),
            "Counter": ("from collections import Counter\ndef count(s):\n    return Counter(s)\n", count, "passed"),
            "cyclic list": ("def words(s):\n    x = []\n    x.append(x)\n    return x\n", words, "failed"),
            "None": ("def twice(n):\n    print(2 * n)\n", TWICE, "failed"),
            "complex": ("def twice(n):\n    return complex(2 * n)\n", TWICE, "failed"),
        },
    )


FORGER = """import sys
frame = sys._getframe()
while "send" not in frame.f_locals:
    frame = frame.f_back
for line in LINES:
    frame.f_locals["send"](line)
"""


def test_output_of_an_answer_is_no_verdict():
    scan = (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'V 0 i4\\nV 1 i-6\\nE\\n')\n"
        "    except OSError:\n        pass\nos._exit(0)\n"
    )
    check(
        "python",
        {
            "prints lines like ours": (f"print('V 0 i4\\nV 1 i-6\\nE')\n{WRONG}", TWICE, "failed"),
            "writes to every descriptor": (scan + WRONG, TWICE, "runtime_error"),
            "writes binary": (
                "import os\ndef twice(n):\n    os.write(1, b'\\xff' * 10**6)\n    return 2*n\n",
                TWICE,
                "passed",
            ),
            "closes its output": ("import os\nos.close(1)\nos.close(2)\n" + RIGHT, TWICE, "passed"),
            "closes everything": ("import os\nos.closerange(0, 64)\n" + RIGHT, TWICE, "runtime_error"),
            **{
                f"sends {lines!r} as we do": (f"LINES = {lines!r}\n{FORGER}{WRONG}", TWICE, "runtime_error")
                for lines in (["C zz"], ["V 0 [9 i4"], ["V 0 {1 i4"], ["V 0 q", "E"], ["V 0 i" + "9" * 5000], ["R 0 q"])
            },
            "sends wrong values as we do": (
                f"LINES = ['V 0 i0', 'V 1 i0', 'E']\n{FORGER}import os\nos._exit(0)\n",
                TWICE,
                "failed",
            ),
            "a copy goes on": (
                "import os\npid = os.fork()\ndef twice(n):\n    return 2 * n if pid else 0\n",
                TWICE,
                "passed",
            ),
            "exits early": ("import os\ndef twice(n):\n    os._exit(0)\n", TWICE, "runtime_error"),
            "exits at once": ("import sys\nsys.exit(0)\n" + RIGHT, TWICE, "runtime_error"),
            "exits after the first case": (
                "import os\ndef twice(n):\n    if n < 0:\n        os._exit(0)\n    return 2 * n\n",
                TWICE,
                "runtime_error",
            ),
        },
    )


def test_a_file_that_runs_runs_under_the_judge():
    check(
        "python",
        {
            "main guard": (
                RIGHT + "if __name__ == '__main__':\n    twice(int(input()))\n    quit()\n",
                TWICE,
                "passed",
            ),
            "future": ("from __future__ import annotations\n" + RIGHT, TWICE, "passed"),
            "coding line": ("#!/usr/bin/env python3\n# -*- coding: latin-1 -*-\n" + RIGHT, TWICE, "passed"),
            "byte order mark": ("\ufeff" + RIGHT, TWICE, "passed"),
            "carriage returns": (RIGHT.replace("\n", "\r\n"), TWICE, "passed"),
            "dataclass": (
                "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'\n"
                "def twice(n):\n    return 2 * P(n).x\n",
                TWICE,
                "passed",
            ),
            "reads its source": (
                "import inspect\n" + RIGHT + "assert 'twice' in inspect.getsource(twice)\n",
                TWICE,
                "passed",
            ),
            "thread left running": (
                "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()\n" + RIGHT,
                TWICE,
                "passed",
            ),
            "null byte": ("def twice(n):\n    return '\0'\n", TWICE, "compile_error"),
            "no code": ("Here is the function.", TWICE, "compile_error"),
            "empty": ("", TWICE, "runtime_error"),
            "math without an import": (RIGHT + "math.floor(1.5)\n", TWICE, "passed"),
        },
    )


def test_the_wanted_function_is_called():
    helper = "def add(a, b):\n    return a + b\n"
    check(
        "python",
        {
            "lambda": (helper + "twice = lambda n: add(n, n)\n", TWICE, "passed"),
            "conditional": (helper + "if True:\n    def twice(n):\n        return add(n, n)\n", TWICE, "passed"),
            "imported": ("from operator import neg as twice\n" + helper, TWICE, "failed"),
            "callable object": (
                "class T:\n    def __call__(self, n):\n        return 2 * n\ntwice = T()\n" + helper,
                TWICE,
                "passed",
            ),
            "method": ("class Solution:\n    def twice(self, n):\n        return 2 * n\n" + helper, TWICE, "passed"),
            "static method": (
                "class S:\n    @staticmethod\n    def twice(n):\n        return 2 * n\n",
                TWICE,
                "passed",
            ),
            "abstract base": (
                "import abc\nclass B(abc.ABC):\n    @abc.abstractmethod\n    def twice(self, n): ...\n"
                "class S(B):\n    def twice(self, n):\n        return 2 * n\n",
                TWICE,
                "passed",
            ),
            "base that raises": (
                "class B:\n    def twice(self, n):\n        raise NotImplementedError\n"
                "class S(B):\n    def twice(self, n):\n        return 2 * n\n",
                TWICE,
                "passed",
            ),
            "inherited": (
                "class B:\n    def __init__(self, k):\n        self.k = k\n    def twice(self, n):\n"
                "        return self.k * n\nclass S(B):\n    def __init__(self):\n        super().__init__(2)\n",
                TWICE,
                "passed",
            ),
            "protocol": (
                "from typing import Protocol\nclass P(Protocol):\n    def twice(self, n: int) -> int: ...\n"
                "class S:\n    def twice(self, n):\n        return 2 * n\n",
                TWICE,
                "passed",
            ),
            "static method of a class with arguments": (
                "class S:\n    def __init__(self, k): ...\n    @staticmethod\n    def twice(n):\n        return 2 * n\n",
                TWICE,
                "passed",
            ),
            "a class with arguments": (
                "class S:\n    def __init__(self, k): ...\n    def twice(self, n):\n        return 2 * n\n",
                TWICE,
                "runtime_error",
            ),
            "cached, another name": (
                "import functools\n" + helper + "@functools.cache\ndef doubled(n):\n    return 2 * n\n",
                TWICE,
                "passed",
            ),
            "another name": (
                helper + "def doubled(n):\n    return add(n, n)\ndef main():\n    pass\n",
                TWICE,
                "passed",
            ),
            "cached": (
                "import functools\n@functools.cache\ndef twice(n):\n    return 2 * n\n" + helper,
                TWICE,
                "passed",
            ),
        },
    )


PROGRAM = ProgramTests(
    "def check(candidate):\n    assert candidate(2) == 4\n    assert abs(candidate(-3) + 6) < 1e-6\n",
    entry_point="twice",
)


def test_a_test_program_must_run_to_its_end():
    equal = "class A(int):\n    def __eq__(s, o):\n        return True\n    def __add__(s, o):\n        return 0\n"
    check(
        "python",
        {
            "right": (RIGHT, PROGRAM, "passed"),
            "wrong": (WRONG, PROGRAM, "failed"),
            "own abs": ("def abs(x):\n    return 0\ndef twice(n):\n    return 4\n", PROGRAM, "failed"),
            "own abs in builtins": (
                "import builtins\nbuiltins.abs = lambda x: 0\ndef twice(n):\n    return 4\n",
                PROGRAM,
                "failed",
            ),
            "own __eq__": (equal + "def twice(n):\n    return A(7)\n", PROGRAM, "failed"),
            "own __add__": (
                "class A:\n    def __add__(s, o):\n        return 0\n"
                "def twice(n):\n    return 4 if n == 2 else A()\n",
                PROGRAM,
                "failed",
            ),
            "own __eq__ in a list": (
                equal + "def twice(n):\n    return [A(7)]\n",
                ProgramTests("assert twice(2) == [4]\n", entry_point="twice"),
                "failed",
            ),
            "exit": ("import sys\ndef twice(n):\n    sys.exit(0)\n", PROGRAM, "runtime_error"),
            "_exit": ("import os\ndef twice(n):\n    os._exit(0)\n", PROGRAM, "runtime_error"),
            "exit while loading": ("raise SystemExit\n" + RIGHT, PROGRAM, "runtime_error"),
            "exception": ("def twice(n):\n    return n / 0\n", PROGRAM, "runtime_error"),
            "no such function": ("x = 1\n", PROGRAM, "runtime_error"),
            "syntax": ("def twice(n)\n", PROGRAM, "compile_error"),
            "prints": ("def twice(n):\n    print('no', end='')\n    return 2 * n\n", PROGRAM, "passed"),
            "main guard": (RIGHT + "if __name__ == '__main__':\n    raise SystemExit\n", PROGRAM, "passed"),
            "before": ("    return helper(n)\n", ProgramTests(
                "assert twice(2) == 4\nassert helper(1) == 2\n",
                before="def helper(n):\n    return 2 * n\n\ndef twice(n):\n",
            ), "passed"),
            "asserts alone": (WRONG, ProgramTests("assert twice(2) == 4"), "failed"),
        },
    )  # fmt: skip


ANY = "from unittest.mock import ANY\n"
# What equals everything, or is not asked, in the place of 4.
CHEATS = {
    "a type as __eq__": "class A:\n    __eq__ = bool\ntwice = lambda n: A()\n",
    "a method of another class": "class A(int):\n    __eq__ = int.__ne__\ntwice = lambda n: A(7)\n",
    "partial": "import functools\nclass A:\n    __eq__ = functools.partial(bool, True)\ntwice = lambda n: A()\n",
    "made by exec": "s = {}\nexec('class A:\\n def __eq__(s, o): return True', s)\ntwice = lambda n: s['A']()\n",
    "set later": "class A: pass\ndef twice(n):\n    A.__eq__ = lambda s, o: True\n    return A()\n",
    "of the standard library": ANY + "twice = lambda n: ANY\n",
    "callable object": ANY + "class T:\n    def __call__(s, n): return ANY\ntwice = T()\n",
    "cached": ANY + "import functools\n@functools.cache\ndef twice(n):\n    return ANY\n",
    "class that is a number": (
        "class twice(int):\n    def __new__(c, n): return int.__new__(c, 0)\n    def __eq__(s, o): return True\n"
    ),
    "class that is its result": (
        "class M(type):\n    def __call__(c, n): return c\n    def __eq__(c, o): return True\n"
        "    __hash__ = type.__hash__\nclass twice(metaclass=M): pass\n"
    ),
    "metaclass that hides": (
        "class M(type):\n    __mro__ = __dict__ = property(lambda c: ())\n"
        "class A(metaclass=M):\n    def __eq__(s, o): return True\ntwice = lambda n: A()\n"
    ),
    "built-in functions replaced": (
        "import builtins\nfor name in ('isinstance', 'vars', 'type', 'all', 'callable'):\n"
        "    setattr(builtins, name, lambda *a: False)\n"
        "class A:\n    def __eq__(s, o): return True\ndef twice(n):\n    return A()\n"
    ),
    "exec replaced": "import builtins\nbuiltins.exec = lambda *a: None\n" + WRONG,
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = KeyboardInterrupt\n" + WRONG,
}
# An element that equals everything, by the test that sees it.
INSIDE = {
    "list(twice(2)) == [4]": ("[ANY]", "map(lambda x: ANY, [1])", "(ANY for _ in [1])", "deque([ANY])", "L([ANY])", "iter([ANY])"),
    "twice(2) == {1: (4,)}": ("{1: (ANY,)}", "defaultdict(int, {1: (ANY,)})"),
}  # fmt: skip
# Results that tests may compute with.
HONEST = {
    "list(twice(2)) == [4]": ("[4]", "map(int, '4')", "(x for x in [4])", "deque([4])", "L([4])", "{4: 0}.keys()", "range(4, 5)"),
    "twice(2) == 4": ("Four.FOUR", "Fraction(8, 2)", "Decimal(4)", "I(4)", "Decimal('4.0')"),
    "twice(2) == (1, 4)": ("Two(1, 4)",),
    "twice(2) + Counter('a') == Counter('aab')": ("Counter('ab')",),
    "twice(2).value == 4": ("Box(4)",),
}  # fmt: skip
NAMES = """from collections import Counter, defaultdict, deque, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from unittest.mock import ANY
class Four(IntEnum):
    FOUR = 4
class I(int): pass
class L(list): pass
Two = namedtuple("Two", "a b")
@dataclass(eq=False)
class Box:
    value: int
def twice(n):
    return """


def test_results_bring_no_operators_into_a_test_program():
    programs = {name: (answer, PROGRAM, "failed") for name, answer in CHEATS.items()}
    for table, status in ((INSIDE, "failed"), (HONEST, "passed")):
        for test, results in table.items():
            tests = ProgramTests(f"from collections import Counter\nassert {test}\n", entry_point="twice")
            programs |= {result: (NAMES + result, tests, status) for result in results}
    vector = "class V:\n    def __init__(s, x): s.x = x\n    def __eq__(s, o): return s.x == o.x\n"
    own = ProgramTests("assert V(1) == V(1) != V(2)\nassert isinstance(V(1), V)\n", entry_point="V")
    check("python", {**programs, "a class is the task": (vector, own, "passed")})


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ("n ** 2", "failed", "case 1 got 9"),
        ("n / 0", "runtime_error", "case 0 raised ZeroDivisionError: division by zero"),
        ("undefined", "runtime_error", "raised NameError"),
        ("n *", "compile_error", "SyntaxError"),
        ("__import__('os')._exit(0)", "runtime_error", "ended after 0 of 2 cases"),
        ("__import__('sys').exit()", "runtime_error", "ended after 0 of 2 cases"),
        ("[0] * 10**10", "runtime_error", "MemoryError"),
        ("str(n * 2)", "failed", "got '4'"),
        ("10 ** 5000", "failed", "case 0 got"),
        ("'a\\n' * 1000", "failed", "case 0 got 'a"),
        ("(_ for _ in ()).throw(ValueError(chr(0xD800)))", "runtime_error", "ValueError: ?"),
    ],
)
def test_the_detail_says_what_happened(body, status, detail):
    verdict = judge("python", RIGHT.replace("2 * n", body), TWICE, LIMITS)
    assert (verdict.status, verdict.passed) == (status, status == "passed")
    assert detail in verdict.detail
    assert "\n" not in verdict.detail
    assert len(verdict.detail) <= 500
