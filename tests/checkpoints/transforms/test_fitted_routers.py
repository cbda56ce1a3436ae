"""Routers fitted to labeled prompts go to disk like random ones, and leave the model's function as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.model_io import load_model, save_model
from moe.data.synthetic import generate_pairs
from moe.tokenizer import train_sentencepiece

LANGUAGES = ("python", "java")


@pytest.fixture
def base(tmp_path, tiny_config, make_model):
    """A random dense model with a tokenizer trained on generated code."""
    texts = [f"{pair.text}\n{pair.code}" for name in LANGUAGES for pair in generate_pairs(name, 20)]
    tokenizer = train_sentencepiece(texts, 400, tmp_path / "tokenizer")
    config = replace(tiny_config, dim=64, vocab_size=tokenizer.vocab_size, max_seq_len=1024)
    model = make_model(config, dtype=torch.float32)
    return save_model(model, tokenizer, tmp_path / "base", template="plain")


@pytest.mark.parametrize("form", ["full", "delta"])
def test_fitted_routers_tell_languages_apart(tmp_path, base, capsys, form):
    out = tmp_path / "out"
    languages = ["--languages", *LANGUAGES, "--num-experts-per-tok", "1"]
    assert (
        main(
            [
                "upcycle",
                str(base),
                str(out),
                "--expert-form",
                form,
                *languages,
                "--router",
                "fitted",
                "--router-prompts",
                "24",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "same greedy text: yes" in printed and "held-out tokens to their language" in printed
    loaded = load_model(out)
    assert loaded.template == "plain" and loaded.tokenizer is not None
    right = total = 0
    for index, language in enumerate(LANGUAGES):
        for pair in generate_pairs(language, 6, split="validation"):
            ids = loaded.tokenizer.encode(pair.code)
            routing = loaded.model(torch.tensor([ids])).routing[-1]
            right += (routing.expert_ids[:, 0] == index).sum().item()
            total += len(ids)
    assert right > 0.55 * total, (right, total)


def test_a_base_without_tokenizer_cannot_be_calibrated(tmp_path, mistral_directory, capsys):
    with pytest.raises(SystemExit):
        main(["upcycle", str(mistral_directory), str(tmp_path / "out"), "--router", "fitted"])
    assert "has no tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
