"""The solutions of the synthetic tasks really run and pass their tests, in all four languages."""

import json
from collections import defaultdict

import pytest

from eval.execution.programs import missing_tools, run_program
from moe.data.synthetic import TASK_LANGUAGES, render_program
from moe.data.synthetic.families import ALL
from moe.data.synthetic.program import entry_point, render_suite
from moe.data.synthetic.types import literal, parse_type, to_json


def _tests(blueprint, language, surface):
    signature = blueprint.signature(language, surface)
    cases = [{"arguments": case.arguments, "expected": case.expected} for case in blueprint.cases()]
    return {
        "function": signature.name,
        "parameters": signature.parameters,
        "returns": signature.returns,
        "cases": json.loads(json.dumps(cases)),
    }


def _verdicts(language, suite):
    """Runs all solutions in one program; returns for each solution the set of its cases' verdicts."""
    output = run_program(language, render_suite(language, suite), timeout_s=300, compile_timeout_s=900)
    assert output.status == "passed", output.stderr[:2000]
    found = defaultdict(list)
    for line in output.stdout.splitlines():
        _, verdict, label = line.split(" ")[:3]
        found[int(label.split(".")[0])].append((verdict, line))
    assert all(len(found[i]) == len(tests["cases"]) for i, (_, tests) in enumerate(suite))
    return [found[i] for i in range(len(suite))]


@pytest.mark.parametrize("language", TASK_LANGUAGES)
def test_solutions_of_every_family_pass_and_wrong_ones_fail(language):
    if missing := missing_tools(language):
        pytest.skip(f"{language} needs {' and '.join(missing)} on the path")
    right, wrong = [], []
    for index, family in enumerate(ALL):
        # Other points of the grid and another surface in each language, so that the languages test more together.
        points = list(family.points())
        start = (7 * index + 13 * TASK_LANGUAGES.index(language)) % len(points)
        points = points[start:] + points[:start]
        for point in _covering(points):
            blueprint = family.build(**point)
            surface = (index + 5 * TASK_LANGUAGES.index(language)) % blueprint.surfaces
            tests = _tests(blueprint, language, surface)
            right.append((blueprint.solution(language, surface), tests))
        if index % 8:
            continue
        # A wrong solution: that of another problem of the family whose answers differ, with this problem's cases.
        for other in map(lambda point: family.build(**point), points):
            if _same_types(other, blueprint) and _answers(other, blueprint) != _answers(blueprint, blueprint):
                function = other.signature(language, 0).name
                wrong.append((other.solution(language, 0), {**tests, "function": function}))
                break
    assert len(right) >= 2 * len(ALL)
    assert len(wrong) >= 8
    verdicts = _verdicts(language, right + wrong)
    for (code, _), found in zip(right, verdicts):
        assert all(verdict == "PASS" for verdict, _ in found), (code, found)
    for (code, _), found in zip(wrong, verdicts[len(right) :]):
        assert any(verdict == "FAIL" for verdict, _ in found), code


def _covering(points):
    """The first point and those after it with a new word or flag for a parameter: these choose the solution's form."""
    seen = defaultdict(set)
    for index, point in enumerate(points):
        form = {name: value for name, value in point.items() if isinstance(value, str | bool)}
        if index == 0 or any(value not in seen[name] for name, value in form.items()):
            for name, value in form.items():
                seen[name].add(value)
            yield point


def _same_types(one, other):
    return one.returns == other.returns and list(one.arguments.values()) == list(other.arguments.values())


def _answers(blueprint, asked):
    """What one problem's oracle says to another problem's inputs."""
    return [repr(to_json(blueprint.oracle(*arguments), asked.returns)) for arguments in asked.inputs]


def test_oracles_tell_the_problems_of_a_family_apart():
    """Test cases are worth something only if a neighboring problem's solution fails them."""
    apart = together = 0
    for family in ALL:
        points = list(family.points())
        for first, second in zip(points[::5], points[1::5]):
            one, other = family.build(**first), family.build(**second)
            if _same_types(one, other):
                try:
                    differs = _answers(one, one) != _answers(other, one)
                except (ArithmeticError, LookupError, ValueError, TypeError):  # not an input of the other problem
                    differs = True
                apart += differs
                together += not differs
    assert apart > 1000
    assert together < 0.03 * apart


CASES = [{"arguments": [[3, 1, 2]], "expected": [1, 2, 3]}, {"arguments": [[]], "expected": []}]
SORT = {"function": "sortAll", "parameters": [["xs", "list[int]"]], "returns": "list[int]", "cases": CASES}
QUOTED = 'say "\\n"'
BY_NAME = {
    "function": "halve",
    "parameters": [["m", "map[str, float]"], ["flag", "bool"]],
    "returns": "map[str, float]",
    "cases": [{"arguments": [[[QUOTED, 1.0], ["é", 3.0]], True], "expected": [[QUOTED, 0.5], ["é", 1.5000001]]}],
}
ANSWERS = {
    "python": (
        "def other(xs):\n    return sorted(xs)",
        "def halve(m, flag):\n    return {k: v / 2 for k, v in m.items()}",
    ),
    "java": (
        """import java.util.ArrayList;
public class Solution {
    public static List<Integer> other(List<Integer> xs) {
        List<Integer> ys = new ArrayList<>(xs);
        Collections.sort(ys);
        return ys;
    }
}""",
        """static Map<String, Double> halve(Map<String, Double> m, boolean flag) {
    m.replaceAll((k, v) -> v / 2);
    return m;
}""",
    ),
    "javascript": (
        "const other = (xs) => xs.sort((a, b) => a - b);",
        "function halve(m, flag) {\n  return Object.fromEntries([...m].map(([k, v]) => [k, v / 2]));\n}",
    ),
    "cpp": (
        """#include <vector>
using namespace std;
vector<int> other(vector<int>& xs) {
    sort(xs.begin(), xs.end());
    return xs;
}""",
        """std::unordered_map<std::string, double> halve(std::map<std::string, double> m, bool flag) {
    std::unordered_map<std::string, double> halves;
    for (const auto& [k, v] : m) halves[k] = v / 2;
    return halves;
}""",
    ),
}


@pytest.mark.parametrize("language", TASK_LANGUAGES)
def test_harness_takes_answers_in_other_styles(language):
    """Another name, a class around it, imports, arguments changed in place, other map types, nearly equal floats."""
    if missing := missing_tools(language):
        pytest.skip(f"{language} needs {' and '.join(missing)} on the path")
    sort, halve = ANSWERS[language]
    worse = {**BY_NAME, "cases": [{**BY_NAME["cases"][0], "expected": [[QUOTED, 0.5], ["é", 1.501]]}]}
    verdicts = _verdicts(language, [(sort, SORT), (halve, BY_NAME), (halve, worse)])
    assert [[verdict for verdict, _ in found] for found in verdicts] == [["PASS", "PASS"], ["PASS"], ["FAIL"]]


def test_entry_point_prefers_the_wanted_name_and_ignores_inner_functions():
    helper = "def helper(x):\n    def inner(y):\n        return y\n    return inner(x)\n\n"
    code = f"{helper}def answer(x):\n    return helper(x)\n"
    assert entry_point("python", code, "helper") == "helper"
    assert entry_point("python", code, "absent") == "answer"
    assert entry_point("python", "x = 1", "absent") == "absent"
    assert entry_point("cpp", "int twice(int x) {\n    return 2 * x;\n}\n", "absent") == "twice"
    assert entry_point("java", "public static List<int[]> pairs(Map<String, Integer> m) {\n}", "absent") == "pairs"
    assert entry_point("javascript", "const go = async (a, b) => a;\n", "absent") == "go"


def test_program_prints_one_line_per_case_with_the_marker():
    source = render_program("python", "def sortAll(xs):\n    return xs\n", SORT, marker="secret")
    assert run_program("python", source).stdout == "secret FAIL 0.0 got [3, 1, 2]\nsecret PASS 0.1\n"


def test_types():
    assert parse_type("map[str, list[int]]") == ("map", ("str", "list[int]"))
    assert to_json({2: [1], 1: []}, "map[int, list[int]]") == [[1, []], [2, [1]]]
    assert literal("cpp", [[1, 2]], "matrix[int]") == "std::vector<std::vector<int>>{std::vector<int>{1, 2}}"
    assert literal("java", [[1, 2]], "matrix[int]") == "new int[][] {{1, 2}}"
    assert literal("javascript", [["a", True]], "map[str, bool]") == 'new Map([["a", true]])'
    assert literal("python", [["a", 2]], "map[str, float]") == "{'a': 2.0}"
    for unknown in ("set[int]", "char"):
        with pytest.raises(ValueError, match="unknown type"):
            parse_type(unknown)
