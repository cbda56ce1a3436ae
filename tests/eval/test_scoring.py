"""How answers are asked for, read and scored, with a stand-in for the model's writing."""

from __future__ import annotations

import json
from types import SimpleNamespace

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
MODEL = SimpleNamespace(config=SimpleNamespace(max_seq_len=400))
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
    found = write_answers(MODEL, tokenizer, "plain", PAIRS, AnswerSettings(64, 4, chat))
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
    """Killed after three of five: a batch that is noted whole is not written again, unless something changed."""
    pairs = {"python": [Pair("python", f"Adds {'the ' * (9 - n)}numbers.", CODE) for n in range(5)]}
    asked, left = [], [3]

    def writes(model, prompts, *, on_progress, **_):
        asked.append(len(prompts))
        answers = []
        for row, prompt in enumerate(prompts):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            answers.append(Generation(prompt[-9:], "length", len(prompt)))
            on_progress(row, answers[-1])
        return answers

    monkeypatch.setattr(scoring, "generate_many", writes)

    def score(tokens, pairs=pairs):
        asked.clear()
        return write_answers(MODEL, tokenizer, "plain", pairs, AnswerSettings(tokens, 2), journal=tmp_path / "a")

    with pytest.raises(KeyboardInterrupt):
        score(64)
    left[0] = 99
    resumed = score(64)
    assert asked == [2, 1]
    assert score(64) == resumed and asked == []
    assert score(32) == resumed and asked == [2, 2, 1]
    score(32, {"python": pairs["python"][:2]})
    assert asked == [2]


def test_a_text_longer_than_the_context_has_an_empty_answer(tokenizer, monkeypatch):
    asked = []

    def writes(model, prompts, *, on_progress, **_):
        asked.extend(map(len, prompts))
        found = [Generation(tokenizer.encode(CODE), "stop", len(prompt)) for prompt in prompts]
        for row, answer in enumerate(found):
            on_progress(row, answer)
        return found

    monkeypatch.setattr(scoring, "generate_many", writes)
    texts = ("Adds two numbers.", "add " * 900, "Adds a and b.")
    pairs = {"python": [Pair("python", text, CODE, id=text[:5]) for text in texts]}
    progress = []
    settings = AnswerSettings(64, 4)
    found = write_answers(MODEL, tokenizer, "plain", pairs, settings, lambda *counts: progress.append(counts))
    assert [answer.code for answer in found["python"]] == [CODE, "", CODE] and progress == [(2, 3), (3, 3)]
    assert found["python"][1].finished == "length" and len(asked) == 2 and max(asked) < 400
    assert 0 < score_answers(found)["python"].codebleu < 1
