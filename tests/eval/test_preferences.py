"""`python -m eval preferences`: answers are sampled, judged and paired, and nothing is done twice."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.model_io import LoadedModel
from eval.__main__ import main
from eval.preferences import judged, paired, sample_answers
from moe.data.pairs import Pair
from moe.inference.sampling import Sampling
from tests.eval.test_rewards import TASK

GOOD = "def double(n):\n    return 2 * n"
WRONG = "def double(n):\n    return n"
BROKEN = "def double(n) return"


def silent(done, total):
    pass


def test_answers_are_judged_by_the_tests_of_their_task(tmp_path):
    ruby = replace(TASK, language="ruby")
    found = judged([TASK, ruby], [[GOOD, WRONG, BROKEN], ["1"]], tmp_path / "v", silent)
    assert found == [{GOOD: True, WRONG: False, BROKEN: False}, {}]


def test_each_passing_answer_gets_a_failing_one_of_its_task():
    passed = [{"a": True, "b": True, "c": False, "d": False, "e": False}, {"f": True}, {"g": False}]
    tasks = [replace(TASK, id=str(n), text=f"task {n}") for n in range(3)]
    rows = paired(tasks, passed, seed=0)
    assert [row["chosen"] for row in rows] == ["a", "b"] and {row["rejected"] for row in rows} < {"c", "d", "e"}
    assert all(row["prompt"] == "task 0" and row["language"] == "python" and row["id"] == "0" for row in rows)
    assert rows == paired(tasks, passed, seed=0)
    assert any(rows != paired(tasks, passed, seed=seed) for seed in range(1, 9))


@pytest.fixture
def loaded(tiny_config, make_model):
    from moe.tokenizer import tokenizer_from_gguf
    from moe.tokenizer.pipeline import byte_alphabet

    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_alphabet()]
    tokenizer = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 3 + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
        }
    )
    model = make_model(replace(tiny_config, vocab_size=259), dtype=torch.float32)
    return LoadedModel(model, model.config, tokenizer, "plain", Path("model"))


def test_sampling_goes_on_where_it_stopped(loaded, tmp_path, monkeypatch):
    tasks = [Pair("python", f"Add {n}.", "", str(n), "{}") for n in range(3)]
    monkeypatch.setattr("eval.preferences.stop_ids", lambda *_: frozenset(range(100, 259)))  # random models do not end
    arguments = (loaded, tasks, 4, Sampling(1.0, seed=3), (5, 2))
    whole = sample_answers(*arguments, tmp_path / "whole", silent)
    assert any(whole) and all(len(set(found)) == len(found) <= 4 for found in whole)
    noted = []

    def killed(done, total):
        noted.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        sample_answers(*arguments, tmp_path / "part", killed)
    again = sample_answers(*arguments, tmp_path / "part", lambda done, total: noted.append(done))
    assert again == whole and noted == list(range(1, 13))
    assert len((tmp_path / "part").read_text().splitlines()) == 13


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--samples", "1"], "--samples is 1, expected at least 2"),
        (["--tasks", "-1"], "--tasks is -1"),
        (["--temperature", "0"], "--temperature is 0"),
        (["--temperature", "nan"], "temperature is nan"),
        ([], "is not a run"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        main(["preferences", str(tmp_path), *flags])
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_finished_is_named(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(SystemExit, match="2"):
        main(["preferences", str(tmp_path)])
    assert "is not finished" in capsys.readouterr().err
