"""``python -m eval execution``: rates, results, rows that cannot be used, and pass@k."""

import argparse
import itertools
import json

import pytest

from eval.execution import STATUSES, toolchains
from eval.execution.cli import add_parser, main
from eval.execution.pass_at_k import mean_pass_at_k, pass_at_k
from moe.data.pairs import Pair
from moe.errors import UserError
from tests.pair_files import write_pairs

TESTS = {
    "function": "double",
    "parameters": [["x", "int"]],
    "returns": "int",
    "cases": [{"arguments": [2], "expected": 4}, {"arguments": [-3], "expected": -6}],
}
CODE = "def double(x):\n    return BODY\n"


def test_missing_tool_is_unavailable_and_does_not_count(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(toolchains.shutil, "which", lambda tool: None if tool == "java" else tool)
    java = Pair("java", "Double.", "static int twice(int n) { return 2 * n; }", id="j", tests=json.dumps(TESTS))
    write_pairs([_pair("a", "x * 2"), java], tmp_path / "pairs.jsonl")
    output = tmp_path / "results.jsonl"
    assert main(_arguments("--pairs", tmp_path / "pairs.jsonl", "--workers", 1, "--output", output)) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == "java not found on the path; install a JDK 17 or later"
    result = json.loads(output.read_text().splitlines()[1])
    assert (result["status"], result["detail"]) == ("unavailable", "java not found on the path")
    _, python, java = printed.out.splitlines()
    assert python.split() == ["python", "1", "0", "0", "0", "0", "0", "1.0000"]
    assert java.split() == ["java", "0", "0", "0", "0", "0", "1", "too", "few"]


def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample():
    for samples, correct, k in [(1, 0, 1), (1, 1, 1), (5, 2, 1), (5, 2, 3), (6, 1, 4), (6, 5, 2), (4, 4, 4)]:
        subsets = list(itertools.combinations([i < correct for i in range(samples)], k))
        assert pass_at_k(samples, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    assert mean_pass_at_k([(5, 0), (5, 5), (5, 2)], 1) == pytest.approx((0 + 1 + 0.4) / 3)
    for samples, correct, k in [(3, 4, 1), (3, 1, 4), (3, 1, 0), (3, -1, 1)]:
        with pytest.raises(ValueError, match="1 <= k <= samples"):
            pass_at_k(samples, correct, k)


def _arguments(*words):
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["execution", "--unsafe", *map(str, words)])


def _pair(name, body, tests=TESTS):
    code = CODE.replace("BODY", body)
    return Pair("python", "Double a number.", code, id=name, tests=json.dumps(tests) if tests else None)


def test_command_line_prints_rates_and_writes_results(tmp_path, capsys):
    pairs = [_pair("a", "x * 2"), _pair("a", "x"), _pair("b", "x + x"), _pair("b", "2 * x"), _pair("c", "0", None)]
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    output = tmp_path / "results.jsonl"
    arguments = _arguments("--pairs", tmp_path / "pairs.jsonl", "--k", 1, 2, 3, "--output", output, "--workers", 1)
    assert main(arguments) == 0
    first, header, row = capsys.readouterr().out.splitlines()
    assert first == "1 of 5 pairs have no tests and were not run"
    assert header.split() == ["language", *STATUSES, "pass@1", "pass@2", "pass@3"]
    assert row.split() == ["python", "3", "1", "0", "0", "0", "0", "0.7500", "1.0000", "too", "few"]
    statuses = [json.loads(line)["status"] for line in output.read_text().splitlines()]
    assert statuses == ["passed", "failed", "passed", "passed"]
    with pytest.raises(UserError, match="exists; give another --output"):
        main(arguments)


FENCE = "```"


def test_a_fenced_answer_is_judged_by_its_code_and_a_reference_as_it_is(tmp_path, capsys):
    fenced = f"Here:\n\n{FENCE}python\n{CODE.replace('BODY', 'x * 2')}{FENCE}\n"
    rows = [{"language": "python", "tests": TESTS, key: fenced} for key in ("answer", "reference")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(_arguments("--pairs", tmp_path / "rows.jsonl", "--workers", 1)) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[1:4] == ["1", "0", "1"]


def test_command_line_mistakes(tmp_path):
    write_pairs([_pair("a", "x", None)], tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match="none of its 1 pairs has usable tests"):
        main(_arguments("--pairs", tmp_path / "pairs.jsonl"))
    for seconds in (0, "nan", "inf"):
        with pytest.raises(UserError, match=f"--timeout is {seconds}"):
            main(_arguments("--pairs", tmp_path / "pairs.jsonl", "--timeout", seconds))
    with pytest.raises(UserError, match="no such file"):
        main(_arguments("--pairs", tmp_path / "absent.jsonl"))


ROWS = {
    "arity": ({**TESTS, "cases": [{"arguments": [1, 2], "expected": 3}]}, "case 0 has 2 arguments"),
    "text": ({**TESTS, "cases": [{"arguments": ["2"], "expected": 4}]}, "argument 'x': \"2\" is not int"),
    "expected": ({**TESTS, "cases": [{"arguments": [2], "expected": [4]}]}, "expected: [4] is not int"),
    "type": ({**TESTS, "returns": "tree"}, "unknown type 'tree'"),
}


@pytest.mark.parametrize("name", [*ROWS, "asserts", "language"])
def test_a_row_that_cannot_be_used_is_named_before_anything_runs(tmp_path, capsys, name):
    tests, message = ROWS.get(name, (None, "cannot run 'go'" if name == "language" else "tests are not JSON"))
    bad = json.dumps(tests) if tests else "assert double(2) == 4" if name == "asserts" else json.dumps(TESTS)
    row = Pair("go" if name == "language" else "python", "Double.", "x", id="bad", tests=bad)
    write_pairs([_pair("a", "x * 2"), row, _pair("c", "x")], tmp_path / "pairs.jsonl")
    output = tmp_path / "results.jsonl"
    with pytest.raises(UserError) as caught:
        main(_arguments("--pairs", tmp_path / "pairs.jsonl", "--output", output))
    assert "pairs.jsonl, line 2, id 'bad': " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not output.exists()
    assert main(_arguments("--pairs", tmp_path / "pairs.jsonl", "--output", output, "--skip-bad-tests")) == 0
    printed = capsys.readouterr()
    assert "1 of 3 pairs have unusable tests and were not run" in printed.out
    assert "line 2, id 'bad'" in printed.err
    results = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in results] == [("a", "passed"), ("c", "failed"), ("bad", "unusable")]
