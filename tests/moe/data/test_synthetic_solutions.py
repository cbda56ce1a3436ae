"""The solutions of the synthetic tasks really run and pass their tests, in all four languages."""

import json
from collections import defaultdict

import pytest

from eval.execution import CaseTests, Limits, judge_many, missing_tools
from moe.data.synthetic import TASK_LANGUAGES
from moe.data.synthetic.families import ALL
from moe.data.synthetic.types import cpp_parameter, cpp_type, java_type, parse_type, to_json


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


def _together(language, suite):
    """Solutions of one signature as one: its first argument chooses. A program for each would take minutes."""
    names = [tests["function"] for _, tests in suite]
    first = suite[0][1]
    types = [type_ for _, type_ in first["parameters"]]
    given = ", ".join(f"a{i}" for i in range(len(types)))
    if language == "python":
        answer = f"spaces = []\nfor code in {[code for code, _ in suite]!r}:\n    spaces.append(dict(globals()))\n"
        answer += f"    exec(code, spaces[-1])\ndef choose(which, {given}):\n"
        answer += f"    return spaces[which][{names!r}[which]]({given})\n"
    elif language == "javascript":
        closed = ", ".join(f"(() => {{\n{code}\nreturn {name}; }})()" for (code, _), name in zip(suite, names))
        answer = f"const all = [{closed}];\nconst choose = (which, {given}) => all[which]({given});\n"
    else:
        is_java = language == "java"
        room, dot, type_of = ("class", ".", java_type) if is_java else ("namespace", "::", cpp_parameter)
        returns = (java_type if is_java else cpp_type)(first["returns"])
        parameters = ", ".join(["int which", *(f"{type_of(type_)} a{i}" for i, type_ in enumerate(types))])
        answer = "".join(f"{room} S{i} {{\n{code}\n}}\n" for i, (code, _) in enumerate(suite))
        cases = " ".join(f"case {i}: return S{i}{dot}{name}({given});" for i, name in enumerate(names))
        answer += f"{'static ' * is_java}{returns} choose({parameters}) {{ switch (which) {{ {cases} }} "
        answer += f"throw {'new RuntimeException()' if is_java else 0}; }}\n"
    cases = [
        {**case, "arguments": [which, *case["arguments"]]}
        for which, (_, tests) in enumerate(suite)
        for case in tests["cases"]
    ]
    return answer, {
        **first,
        "function": "choose",
        "parameters": [["which", "int"], *first["parameters"]],
        "cases": cases,
    }


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
    groups = defaultdict(list)
    for code, tests in right:
        groups[(*(type_ for _, type_ in tests["parameters"]), tests["returns"])].append((code, tests))
    together = [_together(language, suite) for suite in groups.values()]
    verdicts = list(_verdicts(language, together + wrong))
    for (code, _), verdict in zip(together, verdicts):
        assert verdict.passed, (code, verdict)
    for (code, _), verdict in zip(wrong, verdicts[len(together) :]):
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
