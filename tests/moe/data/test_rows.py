"""One row format: every name of every key, what is judged, and lines that are no rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.__main__ import main
from moe.data.pairs import Pair, read_pairs
from moe.data.rows import Row, describe_judged, parse_row, read_judged, read_rows
from moe.errors import UserError
from moe.files import write_json_lines
from moe.inference.questions import read_questions

ROW = {
    "id": "sum/1",
    "language": "python",
    "text": "Adds two numbers.",
    "reference": "def add(a, b):\n    return a + b",
    "tests": json.dumps(
        {
            "function": "add",
            "parameters": [["a", "int"], ["b", "int"]],
            "returns": "int",
            "cases": [{"arguments": [2, 3], "expected": 5}],
        }
    ),
    "answer": "def add(a, b):\n    return a - b",
}
NAMES = {
    "pairs of version 0.1": {"language": "language", "reference": "code", "answer": "answer"},
    "scored answers of version 0.1": {"language": "lang", "reference": "references", "answer": "hypothesis"},
    "another program's": {"language": "lang", "reference": "reference", "answer": "prediction"},
}
text = st.text(st.characters(exclude_categories=["Cs"]))


def renamed(names: dict[str, str]) -> dict[str, object]:
    row = {names.get(key, key): value for key, value in ROW.items()}
    return {**row, "references": [row["references"]]} if "references" in row else row


@given(
    st.builds(
        Row,
        id=st.none() | st.integers() | text,
        language=st.none() | st.sampled_from(["python", "cobol"]),
        text=st.none() | text,
        references=st.lists(text, max_size=3).map(tuple),
        tests=st.none() | text,
        answer=st.none() | text,
    )
)
def test_a_written_row_comes_back(row):
    assert parse_row(json.loads(json.dumps(row.to_json()))) == row


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_every_command_reads_every_name(tmp_path, capsys, names):
    """One file, unchanged, is data to train on, prompts, answers to score and answers to run."""
    path = tmp_path / "python.jsonl"
    write_json_lines(path, [renamed(names)])
    pair = Pair("python", ROW["text"], ROW["reference"], ROW["id"], ROW["tests"])
    assert read_pairs(path) == [pair]
    (question,) = read_questions(path)
    assert (question.references, question.tests) == ((ROW["reference"],), ROW["tests"])
    assert main(["execution", "--pairs", str(path), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    counts = printed.out.splitlines()[-1]
    assert printed.err.splitlines() == ["judged: 1 answers"] and counts.split()[:3] == ["python", "0", "1"], (
        "the wrong answer was run"
    )
    assert main(["codebleu", "--pairs", str(path)]) == 0
    score = json.loads(capsys.readouterr().out)
    assert score["id"] == "sum/1" and 0.5 < score["codebleu"] < 1


def test_the_reference_is_judged_where_there_is_no_answer(tmp_path, capsys):
    rows = [{k: v for k, v in ROW.items() if k != "answer"}, {**ROW, "answer": ""}, {**ROW, "answer": None}]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    found = read_judged(tmp_path / "rows.jsonl")
    assert [(row.code, row.answer) for row in found] == [
        (ROW["reference"], False),
        ("", True),  # a model that wrote nothing is not given the reference's verdict
        (ROW["reference"], False),
    ]
    assert describe_judged(found) == "judged: 1 answers, and 2 references in rows without an answer"
    assert describe_judged(found[:1]) == "judged: 1 references (no row has an answer)"
    assert main(["execution", "--pairs", str(tmp_path / "rows.jsonl"), "--workers", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["python", "2"]
    write_json_lines(tmp_path / "rows.jsonl", [{"language": "python", "text": "x", "tests": "{}"}])
    with pytest.raises(UserError, match=r"line 1: has no code to run; expected 'answer' or 'reference'"):
        read_judged(tmp_path / "rows.jsonl")


def test_names_that_agree_are_one_and_names_that_differ_are_refused():
    agreeing = {**ROW, "lang": "python", "references": [ROW["reference"]], "hypothesis": ROW["answer"]}
    assert parse_row(agreeing) == parse_row(ROW)
    for other in ({"hypothesis": "x"}, {"references": ["x"]}, {"code": "x"}, {"lang": "java"}):
        with pytest.raises(UserError, match="are two names of the same thing and differ"):
            parse_row({**ROW, **other})


@pytest.mark.parametrize(
    ("given", "key"), [("Python", "python"), ("js", "javascript"), ("C++", "cpp"), ("cobol", "cobol"), ("cpp", "cpp")]
)
def test_languages_go_by_any_of_their_names(given, key):
    assert parse_row({"lang": given}).language == key


def test_several_references_numbers_as_ids_and_tests_as_an_object():
    row = parse_row({"id": 7, "references": ["a", "b"], "tests": {"cases": []}})
    assert row.references == ("a", "b") and row.id == 7 and json.loads(row.tests) == {"cases": []}
    assert row.to_json()["reference"] == ["a", "b"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"reference": 3}, "'reference' is a number; expected a string"),
        ({"references": ["a", None]}, "'references' is null; expected a string"),
        ({"references": ["a", ["b"]]}, "'references' is a list; expected a string"),
        ({"answer": {}}, "'answer' is an object; expected a string"),
        ({"hypothesis": "\ud800"}, "'hypothesis' holds a lone surrogate at character 1"),
        ({"id": True}, "'id' is a boolean; expected a string"),
        ({"weights": "0.25"}, "'weights' is a string; expected a list"),
    ],
)
def test_values_of_another_type_are_named(found, message):
    with pytest.raises(UserError, match=message):
        parse_row(found)


@pytest.mark.parametrize("content", ["[\n {\n  ", '[{"language": "python"},\n', '[{"language": "python"}]'])
def test_an_array_is_one_error(tmp_path: Path, content: str, capsys):
    path = tmp_path / "python.jsonl"
    path.write_text(content)
    for read in (read_questions, read_judged):
        with pytest.raises(UserError, match=r"python.jsonl: holds a JSON array; expected JSON Lines"):
            read(path)
    with pytest.raises(SystemExit):
        main(["codebleu", "--pairs", str(path)])
    assert capsys.readouterr().err.count("\n") == 1


def test_a_limit_leaves_later_lines_unread(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\nnonsense\n')
    assert [place for place, _ in read_rows(tmp_path / "a.jsonl", ("text",), 1)] == [f"{tmp_path}/a.jsonl, line 1"]
    with pytest.raises(UserError, match="line 3: not JSON"):
        list(read_rows(tmp_path / "a.jsonl", ("text",), 2))
