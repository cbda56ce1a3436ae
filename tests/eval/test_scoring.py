"""How answers are asked for, read and scored, with a stand-in for the model's writing."""

from __future__ import annotations

import json

import pytest

import eval.scoring as scoring
from eval.scoring import AnswerSettings, save_answers, score_answers, write_answers
from moe.data.pairs import Pair
from moe.data.prompt import encode_prompt, instruction_for
from moe.data.rows import parse_row
from moe.inference.generation import Generation
from moe.tokenizer import Tokenizer, train_sentencepiece

CODE = "def add(a, b):\n    return a + b"
CHAT = f"Sure, here it is:\n```python\n{CODE}\n```\nIt adds two numbers."
PAIRS = {"python": [Pair("python", "Adds two numbers.", CODE, id="add")]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_sentencepiece([CHAT, *(instruction_for("Adds two numbers.", "python"),) * 20], 400, None)


def answers(tokenizer: Tokenizer, monkeypatch, text: str, chat: bool):
    """The prompt that was asked and the answer that was read, when the model writes ``text`` until it is stopped."""
    asked = []

    def writes(model, prompts, *, on_token, on_progress, **_):
        asked.extend(prompts)
        tokens = []
        for token in tokenizer.encode(text):
            tokens.append(token)
            if on_token is not None and on_token(0, token):
                break
        result = Generation(tokens, "stop", len(prompts[0]))
        on_progress(0, result)
        return [result]

    monkeypatch.setattr(scoring, "generate_many", writes)
    found = write_answers(None, tokenizer, "plain", PAIRS, AnswerSettings(64, 4, chat))
    return asked, found


def test_a_chat_base_is_asked_for_code_only_and_its_code_block_is_scored(tokenizer, monkeypatch, tmp_path):
    asked, found = answers(tokenizer, monkeypatch, CHAT, chat=True)
    instruction = instruction_for("Adds two numbers.", "python", "code-only")
    assert asked == [encode_prompt(tokenizer, "plain", instruction)] and "one ```python code block" in instruction
    answer = found["python"][0]
    assert answer.code.strip() == CODE and answer.row.id == "add"
    assert "It adds" not in answer.raw, "prose after the block was waited for"
    assert score_answers(found)["python"].codebleu == pytest.approx(1.0)
    save_answers(found, tmp_path / "answers" / "base-test.jsonl")
    (row,) = map(json.loads, (tmp_path / "answers" / "base-test.jsonl").read_text().splitlines())
    assert parse_row(row) == answer.row and row["raw"] == answer.raw
    assert row["codebleu"] == pytest.approx(1.0) and row["finished"] == "stop"


def test_a_trained_model_is_asked_as_in_training_and_scored_as_it_wrote(tokenizer, monkeypatch):
    asked, found = answers(tokenizer, monkeypatch, CODE + "\n", chat=False)
    assert asked == [encode_prompt(tokenizer, "plain", instruction_for("Adds two numbers.", "python"))]
    assert found["python"][0].code == CODE
    prose = answers(tokenizer, monkeypatch, CHAT, chat=False)[1]
    assert prose["python"][0].code == CHAT, "a trained model gets no help with fences"


def test_answers_go_on_behind_those_that_are_noted(tokenizer, monkeypatch, tmp_path):
    """Killed after two of three answers: they are passed on as known, unless the prompts or the settings changed."""
    pairs = {"python": [Pair("python", f"Adds {n} numbers.", CODE) for n in range(3)]}
    given = []

    def writes(model, prompts, *, on_progress, known, **_):
        given.append(dict(known))
        for place in range(2):
            on_progress(place, Generation([place + 5], "length", len(prompts[place])))
        raise KeyboardInterrupt

    monkeypatch.setattr(scoring, "generate_many", writes)

    def score(settings, pairs=pairs):
        with pytest.raises(KeyboardInterrupt):
            write_answers(None, tokenizer, "plain", pairs, settings, journal=tmp_path / "a.unfinished")
        return given[-1]

    assert score(AnswerSettings(64, 4)) == {}
    assert [(place, found.tokens, found.finished) for place, found in score(AnswerSettings(64, 4)).items()] == [
        (0, [5], "length"), (1, [6], "length"),
    ]  # fmt: skip
    assert score(AnswerSettings(32, 4)) == {} == score(AnswerSettings(64, 4))
    assert score(AnswerSettings(64, 4), {"python": pairs["python"][:2]}) == {}
