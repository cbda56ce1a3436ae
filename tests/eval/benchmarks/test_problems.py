"""Reading benchmarks: every layout, which problems are kept, and what is wrong with a file."""

from __future__ import annotations

import gzip
import json

import pytest

from eval.benchmarks.problems import LAYOUTS, read_problems
from moe.errors import Notice, UserError
from tests.eval.benchmarks.embedded import (
    HUMANEVAL,
    HUMANEVAL_X,
    MBPP,
    MBPP_SANITIZED,
    MBXP,
    MULTIPL_E,
    PAIR,
    problems,
)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "rows", "ids", "numbers"),
    [
        ("humaneval", [HUMANEVAL], ["HumanEval/7"], [7]),
        ("humaneval-x", list(HUMANEVAL_X.values()), ["Python/7", "Java/7", "JavaScript/7", "CPP/7"], [7] * 4),
        ("mbpp", [MBPP, MBPP_SANITIZED], ["11", "12"], [11, 12]),
        ("mbxp", list(MBXP.values()), ["MBPP/3", "MBJP/3", "MBJSP/3", "MBCPP/3"], [3] * 4),
        ("multipl-e", list(MULTIPL_E.values()), ["HumanEval_7_sum_above"] * 4, [7] * 4),
        ("pairs", [PAIR, {**PAIR, "id": None}], ["sum-above", "python-1"], [0, 1]),
    ],
)
def test_every_layout_is_read(name, rows, ids, numbers, tmp_path):
    found = problems(name, rows, tmp_path)
    assert [problem.id for problem in found] == ids
    assert [problem.number for problem in found] == numbers
    languages = ["python", "java", "javascript", "cpp"] if len(rows) == 4 else ["python"] * len(rows)
    assert [problem.language for problem in found] == languages


def test_mbpp_shows_its_tests_and_keeps_its_setup_code(tmp_path):
    plain, sanitized = problems("mbpp", [MBPP, MBPP_SANITIZED], tmp_path)
    assert plain.prompt == f'"""\n{MBPP["text"]}\n' + "\n".join(MBPP["test_list"]) + '\n"""\n'
    assert plain.tests.index("four = [4]") < plain.tests.index("sum_above(four, 4)")
    assert sanitized.tests.startswith("import math\n")
    assert MBPP_SANITIZED["prompt"] in sanitized.description


def test_stop_strings_are_the_benchmarks_own(tmp_path):
    stops = {p.language: p.stop for p in problems("humaneval-x", list(HUMANEVAL_X.values()), tmp_path)}
    assert stops.pop("python")[:5] == ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
    assert set(stops.values()) == {None}
    for problem in problems("multipl-e", list(MULTIPL_E.values()), tmp_path):
        assert list(problem.stop) == MULTIPL_E[problem.language]["stop_tokens"]


def test_a_directory_is_read_at_any_depth_compressed_or_as_one_list(tmp_path):
    (tmp_path / "python" / "data").mkdir(parents=True)
    with gzip.open(tmp_path / "python" / "data" / "humaneval_python.jsonl.gz", "wt") as file:
        file.write(json.dumps(HUMANEVAL_X["python"]))
    (tmp_path / "java.json").write_text("﻿" + json.dumps([HUMANEVAL_X["java"]]), encoding="utf-8")
    write(tmp_path / "go.jsonl", [{**HUMANEVAL_X["java"], "task_id": "Go/7"}])
    assert list(read_problems("humaneval-x", tmp_path, [])) == ["python", "java"]
    assert list(read_problems("humaneval-x", tmp_path, ["java"])) == ["java"]


def test_rows_that_cannot_be_run_are_skipped_with_a_notice(tmp_path):
    rows = [PAIR, {**PAIR, "id": "b", "tests": None}, {**PAIR, "id": "c", "language": "rust"}]
    with pytest.warns(Notice, match="2 rows have no tests or a language that cannot be run"):
        assert len(problems("pairs", rows, tmp_path)) == 1


def test_problems_are_chosen_by_number(tmp_path):
    path = write(tmp_path / "x.jsonl", [{**MBPP, "task_id": number} for number in range(1, 20)])
    chosen = read_problems("mbpp", path, [], (11, 13))["python"]
    assert [problem.number for problem in chosen] == [11, 12, 13]
    with pytest.raises(UserError, match="no Python problems numbered 90 to 99; languages there: python"):
        read_problems("mbpp", path, [], (90, 99))


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("humaneval", {**HUMANEVAL, "prompt": None}, "line 1, HumanEval/7: 'prompt' is null; expected a string"),
        ("humaneval", {**HUMANEVAL, "test": " "}, "HumanEval/7: 'test' is empty"),
        ("humaneval", {**HUMANEVAL, "prompt": "\ud800"}, "lone surrogate at character 1"),
        ("humaneval", {"task_id": "HumanEval/7"}, "lacks the key 'prompt'; found 'task_id'; HumanEval has"),
        ("humaneval", MBPP, "this is MBPP's layout; type: python -m eval benchmark mbpp"),
        ("humaneval-x", MBXP["java"], "this is MBXP's layout"),
        ("mbpp", {**MBPP, "test_list": "assert True"}, "'test_list' is a string; expected a list of strings"),
        ("mbpp", {**MBPP, "test_list": []}, "'test_list' is empty"),
        ("multipl-e", {**MULTIPL_E["cpp"], "stop_tokens": [""]}, "'stop_tokens' is a list"),
        ("mbxp", {**MBXP["cpp"], "language": 3}, "'language' is a number"),
        ("pairs", {**PAIR, "tests": 3}, "'tests' is a number"),
        ("pairs", [PAIR], "found a list; expected an object"),
    ],
)
def test_mistakes_in_a_file_name_file_line_and_id(name, row, message, tmp_path):
    path = write(tmp_path / "x.jsonl", [row])
    with pytest.raises(UserError) as error:
        read_problems(name, path, [])
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_unusable_structured_tests_are_the_files_fault(tmp_path):
    tests = {**json.loads(PAIR["tests"]), "cases": [{"arguments": [[1], 4], "expected": "x"}]}
    with pytest.raises(UserError, match=r"line 1, sum-above: case 0, expected: \"x\" is not int"):
        read_problems("pairs", write(tmp_path / "x.jsonl", [{**PAIR, "tests": json.dumps(tests)}]), [])


def test_ids_are_unique_and_languages_are_there(tmp_path):
    path = write(tmp_path / "x.jsonl", [HUMANEVAL, HUMANEVAL])
    with pytest.raises(UserError, match="line 2: the id 'HumanEval/7' is also in"):
        read_problems("humaneval", path, [])
    path = write(tmp_path / "x.jsonl", [HUMANEVAL])
    with pytest.raises(UserError, match="no Java problems; languages there: python"):
        read_problems("humaneval", path, ["java"])
    with pytest.raises(UserError, match="no such file or directory"):
        read_problems("humaneval", tmp_path / "none", [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no"):
        read_problems("humaneval", tmp_path / "empty", [])


def test_layouts_do_not_hide_each_other(tmp_path):
    """Each layout's rows are recognized as their own, whatever other layouts' keys they have, too."""
    rows = {"humaneval": HUMANEVAL, "humaneval-x": HUMANEVAL_X["cpp"], "mbpp": MBPP, "mbxp": MBXP["cpp"]}
    rows |= {"multipl-e": MULTIPL_E["cpp"], "pairs": PAIR}
    assert rows.keys() == LAYOUTS.keys()
    for name in rows:
        for other, row in rows.items():
            path = write(tmp_path / "x.jsonl", [row])
            if other == name or (name, other) == ("humaneval", "mbxp"):  # MBXP's rows have all that HumanEval's have
                assert read_problems(name, path, [])
            else:
                with pytest.raises(UserError):
                    read_problems(name, path, [])
