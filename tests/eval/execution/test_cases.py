"""Tests are checked when they are read, and results are compared by type and value."""

import json
from pathlib import Path

import pytest

from eval.execution import CaseTests, judge, judge_many
from eval.execution.cases import Type
from eval.execution.values import Char, Number, Other, Pairs, decode, encode, same
from moe.errors import UserError
from tests.eval.execution.kinds import LIMITS, TWICE, cases, check, needs

INF, NAN = float("inf"), float("nan")
SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "cases"


def _tests(returns="int", expected=4, type_="int", argument=2, **other):
    case = {"arguments": [argument], "expected": expected}
    return {"function": "f", "parameters": [["x", type_]], "returns": returns, "cases": [case], **other}


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("assert f(2) == 4", "not JSON"),
        ("[]", "not an object with function, parameters, returns, cases"),
        ("[" * 100_000, "not JSON"),
        ({"function": "f"}, "not an object with function"),
        (_tests(function=7), "function is 7"),
        (_tests(function="f; import os"), "function is 'f; import os'"),
        (_tests(parameters=[["x"]]), "parameters are not"),
        (_tests(parameters={"x": "int"}), "parameters are not"),
        (_tests(returns=None), "returns is null"),
        (_tests(returns="list[tree]"), "unknown type 'tree'"),
        (_tests(returns="list[int"), "unknown type"),
        (_tests(returns="map[list[int], int]"), "unknown type"),
        (_tests(cases=[]), "at least one case"),
        (_tests(cases="cases"), "cases are not a list"),
        (_tests(cases=[{"arguments": [1]}]), "case 0 is not an object"),
        (_tests(cases=[{"arguments": "a", "expected": 1}]), "case 0 is not an object"),
        (_tests(cases=[{"arguments": [1, 2], "expected": 1}]), "case 0 has 2 arguments; the function has 1"),
        (_tests(expected="4"), 'case 0, expected: "4" is not int'),
        (_tests(expected=True), "true is not int"),
        (_tests(expected=[4]), r"\[4\] is not int"),
        (_tests("bool", 1), "1 is not bool"),
        (_tests("str", 1), "1 is not str"),
        (_tests("str", "\ud800"), "lone surrogate"),
        (_tests("list[int]", [1, "2"]), '"2" is not int'),
        (_tests("list[int]", "12"), r'"12" is not list\[int\]'),
        (_tests("matrix[int]", [[1, 2], [3]]), r"is not matrix\[int\]"),
        (_tests("map[str, int]", [["a"]]), r"is not map\[str, int\]"),
        (_tests("map[str, int]", [["a", 1], ["a", 2]]), "a key twice"),
        (_tests("map[int, int]", {"1": 1}), r"is not map\[int, int\]"),
        (_tests("map[str, int]", [[None, 1]]), r"is not map\[str, int\]"),
        (_tests(type_="float", argument="x"), "argument 'x': \"x\" is not float"),
    ],
)
def test_tests_that_cannot_be_used_are_refused_in_one_line(tests, message):
    with pytest.raises(UserError, match=message) as caught:
        CaseTests.parse(tests)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_integers_beyond_64_bits_are_refused_where_no_type_holds_them():
    for language in ("java", "cpp"):
        with pytest.raises(UserError, match="does not fit 64 bits"):
            CaseTests.parse(_tests(expected=1 << 63), language)
        assert CaseTests.parse(_tests(expected=-(1 << 63)), language)
    tests = CaseTests.parse(_tests(expected=1 << 100), "python")
    assert judge("python", "def f(x):\n    return x << 99\n", tests, LIMITS).passed
    assert not judge("python", "def f(x):\n    return x << 98\n", tests, LIMITS).passed


def test_what_fits_is_kept_in_one_form():
    text = json.dumps(_tests("map[str, float]", {"a": 1}, "float", 2))
    tests = CaseTests.parse(text)
    assert tests.cases[0].expected == [["a", 1.0]]
    assert isinstance(tests.cases[0].arguments[0], float)
    assert CaseTests.parse(_tests(expected=4.0)).cases[0].expected == 4
    assert CaseTests.parse(_tests("float", INF)).cases[0].expected == INF
    assert CaseTests.parse(_tests("list[matrix[int]]", [[[1], [2]], []], "str", None)).cases[0].arguments == [None]


ROUND_TRIPS = [
    ("int", -(1 << 63)), ("float", 0.1), ("float", -INF), ("bool", False), ("str", ""), ("str", "a b\n\"é🎉\0"),
    ("list[list[str]]", [["", "a"], []]), ("map[int, list[bool]]", [[1, [True]], [2, []]]), ("matrix[float]", [[1.5]]),
    ("list[int]", [None, 1]),
]  # fmt: skip


def test_values_cross_the_pipe_unchanged():
    for type_, value in ROUND_TRIPS:
        parsed = Type.parse(type_)
        assert same(decode(iter(encode(value, parsed).split(" "))), value, parsed)
    tests = {f"{type_} {value!r}": cases("same", [type_], type_, (value, value)) for type_, value in ROUND_TRIPS}
    check("python", {name: ("def same(x):\n    return x\n", test, "passed") for name, test in tests.items()})
    del tests[f"int {-(1 << 63)}"]  # no number of JavaScript
    check("javascript", {name: ("const same = (x) => x;\n", test, "passed") for name, test in tests.items()})


@pytest.mark.parametrize(
    ("type_", "actual", "expected", "equal"),
    [
        ("int", 4, 4, True), ("int", True, 1, False), ("int", 4.0, 4, False), ("int", "4", 4, False),
        ("int", Number(4.0), 4, True), ("int", Number(4.5), 4, False), ("int", None, 0, False),
        ("int", None, None, True), ("int", Number(2.0**53), 2**53 + 1, True), ("int", 2**53, 2**53 + 1, False),
        ("int", 0, None, False), ("int", 2, 2.5, False), ("int", Number(NAN), 4, False),
        ("int", Number(INF), 4, False), ("float", 1.0, 1.0000009, True), ("float", 1.0, 1.00001, False),
        ("float", 1e9, 1e9 + 1, True), ("float", 2, 2.0, True), ("float", True, 1.0, False),
        ("float", INF, INF, True), ("float", -INF, INF, False), ("float", NAN, NAN, True),
        ("float", NAN, 1.0, False), ("float", 1.0, NAN, False), ("float", 1e308, INF, False),
        ("float", INF, 1e308, False), ("float", 10**400, 1.0, False), ("bool", 1, True, False),
        ("bool", True, True, True), ("str", Char("a"), "a", True), ("str", "a", "b", False),
        ("list[int]", [1, 2], [1, 2], True), ("list[int]", [1], [1, 2], False),
        ("list[int]", Other("tuple"), [], False), ("list[int]", "", [], False),
        ("matrix[float]", [[1]], [[1.0]], True), ("map[int, int]", Pairs(((1, 2),), False), [[1, 2]], True),
        ("map[int, int]", Pairs(((True, 2),), False), [[1, 2]], False),
        ("map[int, int]", Pairs((("1", 2),), True), [[1, 2]], True),
        ("map[int, int]", Pairs((("1", 2),), False), [[1, 2]], False),
        ("map[int, int]", Pairs(((1, 2), (1, 2)), False), [[1, 2], [2, 2]], False),
        ("map[str, int]", [["a", 1]], [["a", 1]], False),
        ("map[str, int]", Pairs((("1", 2),), True), [["1", 2]], True),
        ("map[bool, int]", Pairs((("true", 2),), True), [[True, 2]], True),
        ("map[float, int]", Pairs(((1, 2),), False), [[1.0, 2]], True),
    ],
)  # fmt: skip
def test_comparison_is_by_type_and_value(type_, actual, expected, equal):
    assert same(actual, expected, Type.parse(type_)) is equal


def test_many_come_in_order_and_one_at_a_time(tmp_path):
    answers = [f"def twice(n):\n    return 2 * n + {i % 3}\n" for i in range(7)]
    verdicts = judge_many([("python", answer, TWICE) for answer in answers], LIMITS, 2)
    assert next(verdicts).passed
    assert [verdict.passed for verdict in verdicts] == [False, False, True, False, False, True]
    with pytest.raises(UserError, match="did you mean 'python'"):
        judge_many([("python", "", TWICE), ("pyhton", "", TWICE)], LIMITS)


def _shared():
    """(folder, row, statuses that are right) of the cases where wrong verdicts were seen."""
    for folder in sorted(SHARED.glob("*")):
        table = [
            [cell.strip() for cell in line.strip().strip("|").split("|")] for line in (folder / "README.md").open()
        ]
        expected = {row[0]: row[4].split(" or ") for row in table if len(row) == 6}
        for path in sorted(folder.glob("pairs.jsonl")):
            for line in path.open(encoding="utf-8"):
                row = json.loads(line)
                if "tests" in row and (row["id"] in expected or folder.name.startswith("11")):
                    yield folder.name, row, expected.get(row["id"], ["passed"])


@pytest.mark.slow
def test_wrong_verdicts_that_were_seen_are_right_now():
    rows = list(_shared()) if SHARED.is_dir() else []
    if not rows:
        pytest.skip(f"{SHARED} is not there")
    for language in {row["language"] for _, row, _ in rows}:
        needs(language)
    jobs = [(row["language"], row["code"], CaseTests.parse(row["tests"], row["language"])) for _, row, _ in rows]
    verdicts = judge_many(jobs, LIMITS, 2)
    wrong = [(f, row["id"], v, right) for (f, row, right), v in zip(rows, verdicts) if v.status not in right]
    assert not wrong, "\n".join(map(str, wrong))
    assert len(rows) >= 65
