"""Files of answers that grow: what a kill leaves, what may continue them."""

from __future__ import annotations

import json

import pytest

from checkpoints.answers_file import AnswersFile
from moe.errors import UserError


def test_an_answers_file_continues_after_a_kill(tmp_path):
    path, settings = tmp_path / "a.jsonl", {"seed": 1, "stop": ["x"]}
    file = AnswersFile(path, settings)
    file.add(2, {"answer": "two"})
    file.add(0, {"answer": "é"})
    with path.open("ab") as cut:
        cut.write(b'{"answer": "on')
    again = AnswersFile(path, settings)
    assert again.rows == {2: {"answer": "two"}, 0: {"answer": "é"}}
    again.add(1, {"answer": "one"})
    with pytest.raises(UserError, match="begun with other prompts, settings or another model"):
        AnswersFile(path, {**settings, "seed": 2})
    again.finish()
    assert [json.loads(line)["answer"] for line in path.read_text().splitlines()] == ["é", "one", "two"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"] and "number" not in path.read_text()
    with pytest.raises(UserError, match="exists; give another --output or --force"):
        AnswersFile(path, settings)
    note = path.with_name("a.jsonl.unfinished")
    note.write_text(json.dumps(settings))  # as after a kill between both steps of finish()
    done = AnswersFile(path, settings)
    assert [done.rows[place]["answer"] for place in range(3)] == ["é", "one", "two"]
    done.finish()
    note.write_text("{")
    with pytest.raises(UserError, match=r"a.jsonl.unfinished is not valid JSON"):
        AnswersFile(path, settings)
    note.unlink()
    assert AnswersFile(path, settings, force=True).rows == {} and path.read_bytes() == b""
