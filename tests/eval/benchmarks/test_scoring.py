"""Answers against the tests of every layout, in every language; libraries; resuming; pass@k with intervals."""

from __future__ import annotations

import json

import pytest

from eval.benchmarks import libraries, scoring
from eval.benchmarks.answer_files import read_answers
from eval.benchmarks.libraries import find_libraries
from eval.benchmarks.programs import answer_code, canonical_code
from eval.benchmarks.scoring import Answer, score
from eval.benchmarks.source import function_end, prompt_parts
from eval.benchmarks.table import rate, summarize
from eval.execution import Limits, Verdict, missing_tools
from moe.errors import UserError
from tests.eval.benchmarks.embedded import (
    HUMANEVAL,
    HUMANEVAL_X,
    MBPP,
    MBPP_SANITIZED,
    MBXP,
    MULTIPL_E,
    MULTIPL_E_COMPLETIONS,
    PAIR,
    problems,
)
from tests.eval.benchmarks.independent import passes
from tests.eval.benchmarks.mutants import KINDS, choose, mutants

LAYOUTS = {
    "humaneval": [HUMANEVAL],
    "humaneval-x": list(HUMANEVAL_X.values()),
    "mbpp": [MBPP, MBPP_SANITIZED],
    "mbxp": list(MBXP.values()),
    "pairs": [PAIR],
}


PLAIN = Limits(sanitize=False)


def statuses(answers, limits=PLAIN):
    """Of all samples 0, and of all samples 1."""
    verdicts = score(answers, None, limits, 2)
    return [{verdict.status for key, verdict in verdicts.items() if key[2] == sample} for sample in (0, 1)]


def runnable(found):
    kept = [problem for problem in found if not missing_tools(problem.language)]
    if not kept:
        pytest.skip("no toolchain for its languages")
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_own_solutions_pass_and_wrong_ones_fail(name, tmp_path):
    found = runnable(problems(name, LAYOUTS[name], tmp_path))
    right = [Answer(problem, 0, canonical_code(problem), "completion", own=True) for problem in found]
    wrong = [Answer(a.problem, 1, a.code.replace("> limit", "< limit"), "completion", own=True) for a in right]
    passed, failed = statuses(right + wrong, Limits())
    assert passed == {"passed"} and failed and failed <= {"failed", "runtime_error"}


@pytest.mark.slow
@pytest.mark.parametrize("style", ["completion", "instruction"])
@pytest.mark.parametrize("name", ["humaneval", "humaneval-x", "mbxp", "multipl-e"])
def test_answers_in_both_styles_pass_when_right_and_fail_when_wrong(name, style, tmp_path):
    rows = list(MULTIPL_E.values()) if name == "multipl-e" else LAYOUTS[name]
    answers = []
    for problem in runnable(problems(name, rows, tmp_path)):
        text = problem.solution or MULTIPL_E_COMPLETIONS[problem.language]
        if problem.language == "java" and function_end(text):
            text = text[: function_end(text)]
        if style == "instruction":
            is_open = name == "multipl-e" and problem.language in ("java", "cpp")
            signature = prompt_parts(problem.prompt, problem.language).signature
            text = f"Here:\n```{problem.language}\n{signature}\n{text}{'}' if is_open else ''}\n```\nDone."
        answers.append(Answer(problem, 0, answer_code(problem, text, style), style))
        text = text.replace("total += x", "total -= x")
        answers.append(Answer(problem, 1, answer_code(problem, text, style), style))
    right, wrong = statuses(answers)
    assert right == {"passed"} and wrong and "passed" not in wrong


_SUM = "int total = 0; for (int x : numbers) if (x > limit) total += x; return total; }"
_JAVASCRIPT = "(numbers, limit) => numbers.filter(x => x > limit).reduce((a, b) => a + b, 0)"
_PYTHON = "def sum_above(numbers, limit):\n    return sum(x for x in numbers if x > limit)\n"
FORMS = [
    ("java", f"package a;\npublic final class Solution {{ int sumAbove(List<Integer> numbers, int limit) {{ {_SUM} }}"),
    ("java", f"/** Doc. */\npublic static int sumAbove(List<Integer> numbers, int limit) {{ {_SUM}"),
    ("java", f"class Solution {{ int sumAbove(List<Integer> numbers, int limit) {{ {_SUM} }}\npublic class Main {{ }}"),
    ("python", f"from __future__ import annotations\nimport os\n{_PYTHON}if __name__ == '__main__':\n    input()\n"),
    ("javascript", f"export const sumAbove = {_JAVASCRIPT};\nconsole.log(sumAbove([1], 0))\n"),
    ("javascript", f"const sumAbove = {_JAVASCRIPT}\nconst half = x => x >> 1\nmodule.exports = {{ sumAbove }}\n"),
    ("cpp", f"#include <iostream>\nint sum_above(const std::vector<int>& numbers, int limit) {{ {_SUM}\n"
            "int half(int x) { return x / 2; }\nint main() { std::cout << 1; return 0; }\n"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code"), FORMS)
def test_chat_answers_of_many_forms_pass(language, code, tmp_path):
    (problem,) = runnable(problems("humaneval-x", [HUMANEVAL_X[language]], tmp_path))
    code = answer_code(problem, f"Here:\n```{language}\n{code}\n```", "instruction")
    assert statuses([Answer(problem, 0, code, "instruction")])[0] == {"passed"}


@pytest.mark.slow
def test_a_class_with_its_own_main_meets_multipl_e(tmp_path, answer_file):
    (problem,) = runnable(problems("multipl-e", [MULTIPL_E["java"]], tmp_path))
    method = "public static long sumAbove(ArrayList<Long> numbers, long limit) {" + _SUM.replace("int ", "long ")
    whole = f"import java.util.*;\npublic class Problem {{ {method} public static void main(String[] a) {{ }} }}"
    name = {"name": problem.id, "language": "java"}
    path = answer_file({**name, "solution": whole}, {**name, "completion": MULTIPL_E_COMPLETIONS["java"]})
    for style in ("completion", "instruction"):
        verdicts = score(read_answers(path, [problem], style), None, PLAIN, 2)
        assert [verdict.status for verdict in verdicts.values()] == ["passed", "passed"]


@pytest.mark.slow
@pytest.mark.parametrize("language", HUMANEVAL_X)
def test_mutants_fail_where_a_plain_run_fails(language, tmp_path):
    (problem,) = runnable(problems("humaneval-x", [HUMANEVAL_X[language]], tmp_path))
    code = canonical_code(problem)
    found = mutants(code, language, len(problem.prompt.encode()))
    assert {mutant.kind for mutant in found} == set(KINDS)
    assert passes(problem, code)
    answers = [Answer(problem, i, mutant.code, "completion", own=True) for i, mutant in enumerate(found)]
    for answer, verdict in zip(answers, score(answers, None, PLAIN, 2).values(), strict=True):
        assert verdict.passed == passes(problem, answer.code), found[answer.sample].change
        assert not verdict.passed


def test_mutants_are_chosen_by_seed():
    found = mutants("def f(x):\n    if x < 1 and x != 3:\n        return x + 1\n    return 2\n", "python")
    assert [(m.kind, m.change) for m in found] == [
        ("branch", "line 2: 'if x < 1 and x != 3: return x + 1' -> 'pass'"),
        ("operator", "line 2: 'and' -> 'or'"),
        ("operator", "line 2: '<' -> '<='"),
        ("operator", "line 2: '!=' -> '=='"),
        ("return", "line 3: 'return x + 1' -> 'pass'"),
        ("operator", "line 3: '+' -> '-'"),
        ("return", "line 4: 'return 2' -> 'pass'"),
    ]
    assert choose(found, "0", "operator") == choose(found, "0", "operator")
    assert len({choose(found, str(seed)).change for seed in range(50)}) == len(found)


def test_scoring_continues_and_runs_equal_code_once(tmp_path, monkeypatch):
    (problem,) = problems("humaneval", [HUMANEVAL], tmp_path)
    right, wrong = canonical_code(problem), problem.prompt + "    return 0\n"
    answers = [Answer(problem, i, code, "completion") for i, code in enumerate((right, wrong, right, right))]
    ran = []

    def judge_many(jobs, limits, workers):
        for _, code, _ in jobs:
            ran.append(code)
            yield Verdict("passed" if code == right else "failed", "é")

    monkeypatch.setattr(scoring, "judge_many", judge_many)
    path = tmp_path / "verdicts.jsonl"
    first = score(answers[:2], path, Limits(), 1)
    assert ran == [right, wrong]
    with path.open("ab") as file:
        file.write(b'{"id": "HumanEval/7", "lang')  # a kill in the middle of a line
    verdicts = score(answers, path, Limits(), 1)
    assert ran == [right, wrong, right]
    assert [verdicts[a.key].status for a in answers] == ["passed", "failed", "passed", "passed"]
    assert first.items() <= verdicts.items()
    assert [json.loads(line)["sample"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_what_could_not_run_is_run_when_it_can(tmp_path, monkeypatch):
    row = {**HUMANEVAL, "test": "import no_such_library\n" + HUMANEVAL["test"]}
    (problem,) = problems("humaneval", [row], tmp_path)
    answer = Answer(problem, 0, canonical_code(problem), "completion", own=True)
    path = tmp_path / "verdicts.jsonl"
    verdict = score([answer], path, Limits(), 1)[answer.key]
    assert verdict == Verdict("unavailable", "needs no_such_library (pip install no_such_library)")
    assert not path.exists()
    monkeypatch.setattr(libraries, "has_module", lambda name: True)
    assert score([answer], path, Limits(), 1)[answer.key].status == "runtime_error"


def test_missing_toolchains_are_named_with_their_package(tmp_path, monkeypatch):
    (problem,) = problems("humaneval-x", [HUMANEVAL_X["java"]], tmp_path)
    monkeypatch.setattr(libraries, "missing_tools", lambda language: ("javac", "java"))
    answer = Answer(problem, 0, canonical_code(problem), "completion")
    verdict = score([answer], None, Limits(), 1)[answer.key]
    assert verdict.status == "unavailable"
    assert "needs javac and java; install a JDK" in verdict.detail


@pytest.mark.parametrize(
    ("language", "needed", "missing"),
    [
        ("javascript", "const _ = require('no-such-module')", ["no-such-module (npm install no-such-module)"]),
        ("javascript", 'import x from "@me/thing/deep"', ["@me/thing (npm install @me/thing)"]),
        ("javascript", "require('node:fs'); require('assert'); require('./mine')", []),
        ("javascript", "// from 'zero' to 'nine'\n/* words from \"One\" on */", []),
        (
            "python",
            "import json, xml.dom\nfrom no_such import x\ndef f():\n    import no_such.y",
            ["no_such (pip install no_such)"],
        ),
        ("python", "not Python (", []),
    ],
)
def test_libraries_are_found_or_named(language, needed, missing):
    if missing_tools(language):
        pytest.skip(f"no toolchain for {language}")
    assert find_libraries(language, needed, needed).missing == missing
    assert find_libraries(language, needed, "").missing == []  # an answer's own imports are its own affair


def test_headers_bring_their_flags_or_name_their_package(monkeypatch):
    program = "#include<boost/any.hpp>\n# include <openssl/md5.h>\n#include <vector>\n"
    monkeypatch.setattr(libraries, "has_header", lambda name: name.startswith("openssl/"))
    found = find_libraries("cpp", program, program)
    assert found.flags == ("-lcrypto",)
    assert found.missing == ["boost/any.hpp (apt-get install libboost-dev)"]


def test_node_modules_are_found_up_the_tree(tmp_path, monkeypatch):
    (tmp_path / "node_modules" / "no-such-module").mkdir(parents=True)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    libraries.node_folder.cache_clear()
    monkeypatch.setattr(libraries, "_node_builtins", frozenset)
    found = find_libraries("javascript", "require('no-such-module')", "")
    assert found.paths == (tmp_path / "node_modules",)
    libraries.node_folder.cache_clear()


def test_rates_have_intervals_over_problems():
    outcome = {str(i): ["passed" if i < 30 else "failed"] for i in range(100)}
    found = rate(outcome, 1)
    assert found.mean == pytest.approx(0.3)
    assert found.low == pytest.approx(0.21, abs=0.02) and found.high == pytest.approx(0.39, abs=0.02)
    assert rate({"a": ["passed", "failed"]}, 1).mean == 0.5
    assert rate({"a": ["passed", "failed"]}, 2).mean == 1
    assert rate({"a": ["passed", "failed"], "b": ["failed"]}, 2) is None
    assert rate({}, 1) is None


def test_problems_that_could_not_run_are_left_out():
    found = summarize({"cpp": {"a": ["passed"], "b": ["unavailable"], "c": ["timeout"]}}, [1])["cpp"]
    assert (found["problems"], found["run"]) == (3, 2)
    assert found["pass_at_k"]["1"]["mean"] == 0.5
    assert found["statuses"] == {"passed": 1, "timeout": 1, "unavailable": 1}


@pytest.fixture
def answer_file(tmp_path):
    def write(*rows):
        path = tmp_path / "answers.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


def test_answers_of_other_programs_are_read(answer_file, tmp_path):
    found = problems("humaneval", [HUMANEVAL], tmp_path)
    path = answer_file(
        {"task_id": "HumanEval/7", "completion": "    return 1\n"},
        {"task_id": "HumanEval/99", "completion": "of another problem"},
        {"task_id": "HumanEval/7", "solution": "def sum_above(): ..."},
        {"id": "HumanEval/7", "language": "python", "answer": "```python\ndef sum_above(): 3\n```"},
    )
    answers = read_answers(path, found, "instruction")
    assert [answer.sample for answer in answers] == [0, 1, 2]
    assert answers[0].code == HUMANEVAL["prompt"] + "    return 1\n"
    assert answers[1].code == "def sum_above(): ..."
    assert answers[2].code.endswith("def sum_above(): 3\n") and "def half" in answers[2].code


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"task_id": "HumanEval/7"}], "line 1: found 'task_id'; expected task_id and one of completion"),
        ([{"completion": "x"}], "line 1: found 'completion'; expected task_id"),
        ([{"task_id": "HumanEval/7", "completion": None}], "'completion' is null"),
        ([{"task_id": "HumanEval/8", "completion": "x"}], "no problem 'HumanEval/8' (did you mean 'HumanEval/7'?)"),
        ([], "holds no answers"),
        ([{"task_id": "HumanEval/7", "completion": "\ud800"}], "lone surrogate"),
    ],
)
def test_mistakes_in_answers_name_file_and_line(rows, message, answer_file, tmp_path):
    with pytest.raises(UserError) as error:
        read_answers(answer_file(*rows), problems("humaneval", [HUMANEVAL], tmp_path), "completion")
    assert message in str(error.value)


def test_every_problem_needs_an_answer_and_ids_name_one_problem(answer_file, tmp_path):
    found = problems("multipl-e", list(MULTIPL_E.values()), tmp_path)
    with pytest.raises(UserError, match="is a problem in several languages; add 'language'"):
        read_answers(answer_file({"name": "HumanEval_7_sum_above", "completion": ""}), found, "completion")
    row = {"name": "HumanEval_7_sum_above", "language": "python", "completion": ""}
    with pytest.raises(UserError, match="no answer to HumanEval_7_sum_above"):
        read_answers(answer_file(row), found, "completion")
