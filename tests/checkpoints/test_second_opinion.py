"""A second reading by transformers: it agrees with what is right, and notices what our own proof cannot."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model
from checkpoints.second_opinion import compare_with_transformers
from moe.errors import UserError
from tests.checkpoints.command_line import run_main

LANGUAGES = ("--languages", "python", "java")


@pytest.mark.parametrize("form", ["full", "delta"])
def test_upcycle_is_compared_with_what_transformers_reads(tmp_path, hf_model, capsys, form):
    hf_model("mistral", sliding_window=9).save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    command = ["upcycle", tmp_path / "base", out, *LANGUAGES, "--expert-form", form, "--verify-with", "transformers"]
    assert run_main(*command) == 0
    assert "read by transformers" in (said := capsys.readouterr().out) and ": the same model" in said
    stored = json.loads((out / "proof.json").read_text())
    assert stored["holds"] and stored["transformers"]["holds"] and stored["transformers"]["positions"] > 100


def test_a_mistake_of_our_reader_is_noticed(tmp_path, hf_model, monkeypatch, capsys):
    """The matrices of case 12: with a reader that trusts the config our own proof holds, transformers' does not."""
    hf_model("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    stored = load_file(path)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].flip(0)}, path, {"format": "pt"})

    def trusting(config, tensors, source):
        return config, {name: tensor for name, tensor in tensors.items() if name != "output.weight"}

    command = ["upcycle", tmp_path / "base", "", *LANGUAGES, "--expert-form", "full", "--verify-with", "transformers"]
    command[2] = tmp_path / "right"
    assert run_main(*command) == 0
    capsys.readouterr()
    monkeypatch.setattr("checkpoints.formats.huggingface.resolve_tied", trusting)
    command[2] = tmp_path / "wrong"
    assert run_main(*command) == 1
    said = capsys.readouterr().out
    assert "same greedy text: yes" in said and "NOT the same model" in said
    proof = json.loads((tmp_path / "wrong" / "proof.json").read_text())
    assert proof["holds"] and not proof["transformers"]["holds"]


def test_verify_reads_a_directory_twice(tmp_path, hf_model, capsys):
    hf_model("mixtral").save_pretrained(tmp_path / "model")
    assert run_main("verify", tmp_path / "model", "--verify-with", "transformers") == 0
    assert "the same model" in capsys.readouterr().out
    assert run_main("verify", tmp_path / "model") == 2, "its bytes still need a manifest"
    assert run_main("upcycle", tmp_path / "model", tmp_path / "no") == 2
    hf_model("mistral").save_pretrained(tmp_path / "base")
    assert run_main("upcycle", tmp_path / "base", tmp_path / "delta", *LANGUAGES) == 0
    assert run_main("verify", tmp_path / "delta", "--verify-with", "transformers") == 2
    assert "delta experts, which no other program reads" in capsys.readouterr().err


def test_what_transformers_cannot_read_is_one_line(tmp_path, hf_model, monkeypatch):
    hf_model("mistral").save_pretrained(tmp_path)
    checkpoint, model = open_checkpoint(tmp_path), load_model(tmp_path).model
    assert compare_with_transformers(model, checkpoint, None).holds
    with torch.no_grad():
        model.norm.weight.mul_(1.0001)
    assert not compare_with_transformers(model, checkpoint, None).holds
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"mistral"', '"unheard_of"'))
    with pytest.raises(UserError, match="transformers cannot read") as caught:
        compare_with_transformers(model, checkpoint, None)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        compare_with_transformers(model, checkpoint, None)
