"""A run without tree-sitter leaves answers that are scored elsewhere, to the scores it would have had."""

from __future__ import annotations

import json

import pytest

from eval import scoring
from eval.__main__ import main
from eval.scoring import PARTS, ScoredAnswer, save_answers
from moe.data.rows import Row
from moe.files import json_bytes, read_json_lines, write_json_lines
from tests.eval.run_files import write_run


def strip_scores(run) -> None:
    """The run as a machine without tree-sitter would have left it."""
    results = json.loads((run / "results.json").read_text())
    for name, found in results.items():
        if name.startswith("scores of"):
            for score in found["scores"]["test"].values():
                for part in PARTS:
                    del score[part]
    (run / "results.json").write_bytes(json_bytes(results))
    for path in (run / "answers").iterdir():
        rows = [row for _, row in read_json_lines(path, "a row")]
        known = {"id", "language", "text", "reference", "tests", "answer", "raw", "finished", "verdict"}
        write_json_lines(path, [{key: value for key, value in row.items() if key in known} for row in rows])


def test_scores_are_those_that_the_run_would_have_had(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    files = [run / "results.json", *sorted((run / "answers").iterdir())]
    whole = [path.read_text() for path in files]
    strip_scores(run)
    assert "codebleu" not in files[1].read_text()
    with pytest.raises(SystemExit, match="2"):
        main(["report", str(run)])
    assert f"python -m eval score-answers {run}" in capsys.readouterr().err
    assert main(["score-answers", str(run)]) == 0

    def values(texts: list[str]) -> list[object]:
        return [json.loads(texts[0]), *([json.loads(line) for line in text.splitlines()] for text in texts[1:])]

    assert values([path.read_text() for path in files]) == values(whole)
    assert (run / "report.md").is_file()
    before = [path.read_text() for path in files]
    assert main(["score-answers", str(run)]) == 0 and before == [path.read_text() for path in files]


def test_code_is_taken_out_of_what_a_chat_model_wrote(tmp_path):
    run = write_run(tmp_path / "run")
    strip_scores(run)
    settings = json.loads((run / "run.json").read_text())
    settings["config"]["chat_base"] = True
    (run / "run.json").write_bytes(json_bytes(settings))
    path = run / "answers" / "base-test.jsonl"
    rows = [row for _, row in read_json_lines(path, "a row")]
    codes = [row["answer"] for row in rows]
    write_json_lines(path, [{**row, "answer": f"Sure:\n```\n{row['answer']}\n```\nDone."} for row in rows])
    assert main(["score-answers", str(run)]) == 0
    assert [row["answer"] for _, row in read_json_lines(path, "a row")] == codes


def test_missing_answers_change_nothing(tmp_path, capsys):
    run = write_run(tmp_path / "run")
    strip_scores(run)
    path = run / "answers" / "mixture-test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(SystemExit, match="2"):
        main(["score-answers", str(run)])
    assert f"{path} has 11 cpp answers, expected 12" in capsys.readouterr().err
    assert "codebleu" not in (run / "results.json").read_text()


def test_answers_are_written_without_the_parser(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "can_score", lambda: False)
    row = Row("a", "python", "Adds.", ("x = 1",), "{}", "x = 2")
    save_answers({"python": [ScoredAnswer(row, "x = 2", "stop")]}, tmp_path / "a.jsonl")
    (found,) = (row for _, row in read_json_lines(tmp_path / "a.jsonl", "a row"))
    assert found["answer"] == "x = 2" and "codebleu" not in found
