"""The solutions of the synthetic tasks really run and pass their tests, in all four languages."""

import json
from collections import defaultdict

import pytest

from eval.execution import CaseTests, Limits, judge_many, missing_tools
from moe.data.synthetic import TASK_LANGUAGES
from moe.data.synthetic.families import ALL
from moe.data.synthetic.types import parse_type, to_json


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
    """Whether each solution passes. Limits alone do: the solutions are ours."""
    limits = Limits(seconds=60, unsafe=True, sanitize=False)
    return judge_many([(language, code, CaseTests.parse(tests, language)) for code, tests in suite], limits, 2)


@pytest.mark.slow
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
    verdicts = list(_verdicts(language, right + wrong))
    for (code, _), verdict in zip(right, verdicts):
        assert verdict.passed, (code, verdict)
    for (code, _), verdict in zip(wrong, verdicts[len(right) :]):
        assert verdict.status in ("failed", "runtime_error"), (code, verdict)


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
def test_the_judge_takes_answers_in_other_styles(language):
    """Another name, a class around it, imports, arguments changed in place, other map types, nearly equal floats."""
    if missing := missing_tools(language):
        pytest.skip(f"{language} needs {' and '.join(missing)} on the path")
    sort, halve = ANSWERS[language]
    worse = {**BY_NAME, "cases": [{**BY_NAME["cases"][0], "expected": [[QUOTED, 0.5], ["é", 1.501]]}]}
    verdicts = _verdicts(language, [(sort, SORT), (halve, BY_NAME), (halve, worse)])
    assert [verdict.status for verdict in verdicts] == ["passed", "passed", "failed"]


def test_types():
    assert parse_type("map[str, list[int]]") == ("map", ("str", "list[int]"))
    assert to_json({2: [1], 1: []}, "map[int, list[int]]") == [[1, []], [2, [1]]]
    for unknown in ("set[int]", "char"):
        with pytest.raises(ValueError, match="unknown type"):
            parse_type(unknown)
