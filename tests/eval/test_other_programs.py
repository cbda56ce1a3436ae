"""Greedy text beside that of transformers and llama.cpp: the count, and the programs themselves on a small model."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.__main__ import main as checkpoints
from checkpoints.model_io import load_model, save_model
from eval import other_programs
from moe.tokenizer import train_sentencepiece

SCRIPT = os.environ.get("CONVERT_HF_TO_GGUF", "")
TASKS = ["Add two numbers.", "Reverse a list.", "Return the largest value."]


@pytest.fixture
def files(tmp_path, tiny_config, make_model):
    """A mixture of deltas, the same as a Mixtral directory, and prompts."""
    tokenizer = train_sentencepiece([*TASKS, "def f(a):\n    return a\n"] * 3, 400, None)
    dense = replace(tiny_config, vocab_size=tokenizer.vocab_size, max_seq_len=256, dim=64, hidden_dim=96)
    base = save_model(make_model(dense, dtype=torch.float32, std=0.1), tokenizer, tmp_path / "base", template="plain")
    config = replace(dense, num_experts=2, expert_form="delta", shared_rank=2, expert_rank=2)
    config = replace(config, num_experts_per_tok=1, expert_languages=("python", "java"))
    model = make_model(config, dtype=torch.float32)
    model.load_state_dict(load_model(base).model.state_dict(), strict=False)
    for name, value in load_model(base).model.state_dict().items():
        if ".feed_forward.w" in name:
            model.get_parameter(name.replace("feed_forward.w", "feed_forward.base.w")).data.copy_(value)
    mixture = save_model(model, tokenizer, tmp_path / "mixture", base=base, template="plain")
    assert checkpoints(["merge", str(mixture), str(tmp_path / "mixtral"), "--no-proof"]) == 0
    rows = [{"text": text, "language": ("python", "java")[place % 2]} for place, text in enumerate(TASKS)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def compare(files: Path, *flags: str) -> int:
    words = [str(files / "mixture"), str(files / "prompts.jsonl"), str(files / "work"), "--tokens", "5", *flags]
    return other_programs.main(other_programs.build_parser().parse_args(words))


def test_answers_that_differ_are_counted(files, capsys, monkeypatch):
    model = load_model(files / "mixtral").model

    def theirs(path, prompts, new, site):
        found = other_programs.greedy(model, prompts, new)
        return f"site {site}", [*found[:-1], [1, 2, 3]] if site else found

    monkeypatch.setattr(other_programs, "by_transformers", theirs)
    assert compare(files, "--mixtral", str(files / "mixtral")) == 0
    assert "mixtral, in site None: 3 of 3 answers equal" in capsys.readouterr().out
    assert compare(files, "--mixtral", str(files / "mixtral"), "--site", "old") == 1
    assert "mixtral, in site old: 2 of 3 answers equal" in capsys.readouterr().out


@pytest.mark.slow
def test_transformers_writes_the_same(files, capsys):
    pytest.importorskip("transformers")
    assert compare(files, "--mixtral", str(files / "mixtral")) == 0
    assert "3 of 3 answers equal" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT, reason="CONVERT_HF_TO_GGUF does not name llama.cpp's converter")
def test_llamacpp_writes_the_same_with_an_adapter_for_each_request(files, capsys):
    pytest.importorskip("llama_cpp")
    assert compare(files, "--converter", SCRIPT) == 0
    assert capsys.readouterr().out.count("3 of 3 answers equal") == 2


def test_mistakes(files, capsys):
    words = [str(files / "mixtral"), str(files / "prompts.jsonl"), str(files / "work")]
    with pytest.raises(SystemExit, match="2"):
        other_programs.run(other_programs.build_parser(), other_programs.main, words)
    assert "expected a model made of deltas" in capsys.readouterr().err
    assert not (files / "work").exists()
