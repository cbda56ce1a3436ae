"""Running generated code: every way in which it can end, limits, pass@k, and the command line."""

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import pytest

from eval.execution import programs as execution
from eval.execution.cli import add_parser, main
from eval.execution.pass_at_k import mean_pass_at_k, pass_at_k
from eval.execution.programs import (
    ExecutionResult,
    missing_tools,
    run_many,
    run_program,
    run_tests,
)
from moe.data.pairs import Pair
from moe.errors import UserError
from tests.pair_files import write_pairs

TESTS = {
    "function": "double",
    "parameters": [["x", "int"]],
    "returns": "int",
    "cases": [{"arguments": [2], "expected": 4}, {"arguments": [-3], "expected": -6}],
}
CODE = {
    "python": "def double(x):\n    return BODY\n",
    "java": "static int doubled(int x) {\n    return BODY;\n}\n",
    "javascript": "function double(x) {\n  return BODY;\n}\n",
    "cpp": "int doubled(int x) {\n    return BODY;\n}\n",
}


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        ("x * 2", "passed", ""),
        ("x ** 2", "failed", "case 1 got 9"),
        ("x / 0", "runtime_error", "case 0 raised ZeroDivisionError"),
        ("undefined", "runtime_error", "raised NameError"),
        ("x *", "compile_error", "SyntaxError"),
        ("__import__('os')._exit(0)", "runtime_error", "ended after 0 of 2 cases"),
        ("__import__('sys').exit()", "runtime_error", "ended after 0 of 2 cases"),
        ("print('case-0 PASS 0.0') or 0", "failed", "case 0 got 0"),
        ("[0] * 10**10", "runtime_error", "MemoryError"),
        ("float(x) * 2", "passed", ""),
        ("str(x * 2)", "failed", "got '4'"),
    ],
)
def test_every_way_to_end_in_python(body, status, detail):
    result = run_tests("python", CODE["python"].replace("BODY", body), TESTS)
    assert (result.status, result.passed) == (status, status == "passed")
    assert detail in result.detail
    assert "\n" not in result.detail


@pytest.mark.parametrize("language", ["java", "javascript", "cpp"])
def test_passing_failing_and_not_compiling_in_the_other_languages(language):
    if missing := missing_tools(language):
        pytest.skip(f"{language} needs {' and '.join(missing)} on the path")
    bodies = {"x * 2": "passed", "x + 2": "failed", "x +": "compile_error"}
    jobs = [(language, CODE[language].replace("BODY", body), TESTS) for body in bodies]
    results = run_many(jobs, timeout_s=60, workers=2)
    assert [result.status for result in results] == list(bodies.values())
    assert "case 1 got" in results[1].detail
    assert "rror" in results[2].detail


def test_crash_of_a_compiled_program_is_a_runtime_error():
    if missing := missing_tools("cpp"):
        pytest.skip(f"cpp needs {' and '.join(missing)} on the path")
    assert run_tests("cpp", CODE["cpp"].replace("BODY", "std::abort(), x"), TESTS).status == "runtime_error"


def test_timeout_kills_the_program_and_what_it_started(tmp_path):
    note = tmp_path / "child"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "def double(x):\n    time.sleep(600)\n"
    )
    started = time.monotonic()
    result = run_tests("python", code, TESTS, timeout_s=5.0)
    assert result.status == "timeout"
    assert time.monotonic() - started < 300  # far below the 600 seconds of both sleeps, even on a busy machine
    if note.exists() and note.read_text():
        pid = int(note.read_text())
        for _ in range(1000):
            if not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text():
                break
            time.sleep(0.01)
        else:
            pytest.fail("the child lives on")


def test_endless_loop_ends_at_the_limit():
    assert (
        run_tests("python", "def double(x):\n    while True:\n        pass\n", TESTS, timeout_s=1.0).status == "timeout"
    )


def test_environment_is_clean_and_the_folder_is_removed(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hidden")
    output = run_program("python", "import os; print(os.getcwd(), sorted(os.environ), os.environ['HOME'])")
    folder = output.stdout.split()[0]
    assert "SECRET_TOKEN" not in output.stdout
    assert output.stdout.split()[-1] == folder
    assert not os.path.exists(folder)


def test_output_without_end_is_cut():
    output = run_program("python", "while True:\n    print('x' * 10**6)\n", timeout_s=30)
    assert output.status in ("runtime_error", "timeout")  # the file's size limit is reached, or the time is over
    assert len(output.stdout) <= 4 << 20


def test_missing_tool_is_unavailable_and_does_not_count(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(execution.shutil, "which", lambda tool: None)
    result = run_tests("java", CODE["java"].replace("BODY", "0"), TESTS)
    assert result == ExecutionResult("unavailable", "javac and java not found on the path")
    java = Pair("java", "Double.", CODE["java"].replace("BODY", "0"), id="j", tests=json.dumps(TESTS))
    write_pairs([_pair("a", "x * 2"), java], tmp_path / "pairs.jsonl")
    assert main(_arguments("--pairs", tmp_path / "pairs.jsonl", "--workers", 1)) == 0
    _, python, java = capsys.readouterr().out.splitlines()
    assert python.split() == ["python", "1", "0", "0", "0", "0", "0", "1.0000"]
    assert java.split() == ["java", "0", "0", "0", "0", "0", "1", "too", "few"]


@pytest.mark.parametrize(
    ("language", "tests", "message"),
    [
        ("pyhton", TESTS, "did you mean 'python'"),
        ("python", "{", "not JSON"),
        ("python", "[]", "must be an object with function, parameters, returns, cases"),
        ("python", {**TESTS, "cases": []}, "at least one case"),
        ("python", {**TESTS, "cases": [{"arguments": [], "expected": 1}]}, "do not fit their types"),
        ("python", {**TESTS, "returns": "tree"}, "unknown type 'tree'"),
    ],
)
def test_unusable_requests_get_one_line(language, tests, message):
    with pytest.raises(UserError, match=message) as caught:
        run_tests(language, CODE["python"], tests)
    assert "\n" not in str(caught.value)


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
    return parser.parse_args(["execution", *map(str, words)])


def _pair(name, body, tests=TESTS):
    code = CODE["python"].replace("BODY", body)
    return Pair("python", "Double a number.", code, id=name, tests=json.dumps(tests) if tests else None)


def test_command_line_prints_rates_and_writes_results(tmp_path, capsys):
    pairs = [_pair("a", "x * 2"), _pair("a", "x"), _pair("b", "x + x"), _pair("b", "2 * x"), _pair("c", "0", None)]
    write_pairs(pairs, tmp_path / "pairs.jsonl")
    output = tmp_path / "results.jsonl"
    arguments = _arguments("--pairs", tmp_path / "pairs.jsonl", "--k", 1, 2, 3, "--output", output, "--workers", 1)
    assert main(arguments) == 0
    first, header, row = capsys.readouterr().out.splitlines()
    assert first == "1 of 5 pairs have no tests and were not run"
    assert header.split() == ["language", *execution.STATUSES, "pass@1", "pass@2", "pass@3"]
    assert row.split() == ["python", "3", "1", "0", "0", "0", "0", "0.7500", "1.0000", "too", "few"]
    statuses = [json.loads(line)["status"] for line in output.read_text().splitlines()]
    assert statuses == ["passed", "failed", "passed", "passed"]
    with pytest.raises(UserError, match="exists; give another --output"):
        main(arguments)


def test_command_line_mistakes(tmp_path):
    write_pairs([_pair("a", "x", None)], tmp_path / "pairs.jsonl")
    with pytest.raises(UserError, match="none of its 1 pairs has tests"):
        main(_arguments("--pairs", tmp_path / "pairs.jsonl"))
    for seconds in (0, "nan", "inf"):
        with pytest.raises(UserError, match=f"--timeout is {seconds}"):
            main(_arguments("--pairs", tmp_path / "pairs.jsonl", "--timeout", seconds))
    with pytest.raises(UserError, match="no such file"):
        main(_arguments("--pairs", tmp_path / "absent.jsonl"))
