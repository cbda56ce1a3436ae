"""Pass@1 of a run: which answers are run, and what happens to those that cannot be."""

from __future__ import annotations

import importlib
import json

import pytest

from eval.verdicts import add_verdicts, pass_at_1, run_all
from moe.data.rows import Row
from moe.files import write_json_lines

TESTS = json.dumps(
    {
        "function": "double",
        "parameters": [["x", "int"]],
        "returns": "int",
        "cases": [{"arguments": [2], "expected": 4}],
    }
)
GOOD, WRONG = "def double(x):\n    return 2 * x", "def double(x):\n    return x"


def row(answer, tests=TESTS, language="python", **more):
    return {"id": "d", "language": language, "reference": GOOD, "tests": tests, "answer": answer, **more}


def test_verdicts_go_into_the_rows_and_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [row(GOOD, codebleu=1.0), row(WRONG), row(""), row(GOOD, None), row(GOOD, "assert double(1) == 2")]
    write_json_lines(path, [*rows, row("x", language="go")])
    seen = []
    found = add_verdicts(path, 0, 0, lambda done, total: seen.append((done, total)))
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert [x.get("verdict") for x in written] == [
        "passed", "failed", "runtime_error", None, "unusable", "unusable",
    ]  # fmt: skip
    assert written[0] == {**rows[0], "verdict": "passed"} and written[3] == rows[3]
    assert "case 0" in written[1]["detail"] and "not JSON" in written[4]["detail"]
    python = found["python"]
    assert (python["tested"], python["passed"]) == (3, 1) and pass_at_1(python) == pytest.approx(1 / 3)
    assert python["verdicts"] == {"passed": 1, "failed": 1, "runtime_error": 1, "unusable": 1}
    assert found["go"]["tested"] == 0 and "cannot run 'go'" in found["go"]["why"] and pass_at_1(found["go"]) is None
    assert sorted(seen)[-1] == (5, 5)


def test_the_reference_is_never_run_in_the_place_of_an_empty_answer():
    assert run_all([Row(language="python", references=(GOOD,), tests=TESTS, answer="")])[0][0] == "runtime_error"


def test_some_of_each_language_are_run(tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [row(GOOD, name=i) for i in range(6)] + [row(GOOD, None)]
    drawn = []
    for _ in range(2):
        write_json_lines(path, rows)
        assert add_verdicts(path, 2, seed=3)["python"]["tested"] == 2
        written = [json.loads(line) for line in path.read_text().splitlines()]
        drawn.append([x["name"] for x in written if "verdict" in x])
    assert add_verdicts(path, 1, seed=3)["python"]["tested"] == 1, "verdicts of an earlier try are gone"
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2, "the same ones for each model of a run"
    assert len(written) == 7


def test_a_file_without_tests_stays_as_it_is(tmp_path):
    path = tmp_path / "a.jsonl"
    write_json_lines(path, [row(GOOD, None)])
    before = path.read_bytes()
    assert add_verdicts(path, 0, 0) == {} and path.read_bytes() == before


def test_verdicts_go_on_behind_those_that_are_noted(tmp_path, monkeypatch):
    jobs = [Row(language="python", references=(GOOD,), tests=TESTS, answer=answer) for answer in (GOOD, WRONG, "")]
    judge = importlib.import_module("eval.execution.judge")  # the package has a function of this name
    judge_many, judged = judge.judge_many, []

    def killed_after_one(listed):
        listed = list(listed)
        judged.append(len(listed))
        for place, verdict in enumerate(judge_many(listed)):
            if len(judged) == 1 and place == 1:
                raise KeyboardInterrupt
            yield verdict

    monkeypatch.setattr(judge, "judge_many", killed_after_one)
    with pytest.raises(KeyboardInterrupt):
        run_all(jobs, journal=tmp_path / "a.untested")
    found = run_all(jobs, journal=tmp_path / "a.untested")
    assert judged == [3, 2] and [verdict for verdict, _ in found] == ["passed", "failed", "runtime_error"]
