"""merge --refit-router: token gates for a model whose routers saw the document, and what they cost."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model, save_model
from checkpoints.transforms.upcycle import upcycle_model
from moe.data.packing import encode_pairs
from moe.data.pairs import load_split
from moe.data.synthetic import generate_pairs
from moe.tokenizer import train_sentencepiece
from moe.training.held_out_loss import held_out_loss
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java")


@pytest.fixture
def data(tmp_path):
    for language in LANGUAGES:
        for split, count in (("train", 60), ("test", 10)):
            folder = tmp_path / "data" / split
            folder.mkdir(parents=True, exist_ok=True)
            rows = [
                {"language": language, "text": pair.text, "code": pair.code}
                for pair in generate_pairs(language, count, split=split)
            ]
            (folder / f"{language}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data"


@pytest.fixture
def mixture(tmp_path, tiny_config, make_model):
    """Writes a mixture of two languages with a tokenizer: ``mixture("delta", router_context="ema")``."""

    def make(form: str, **settings):
        texts = [f"{pair.text}\n{pair.code}" for name in LANGUAGES for pair in generate_pairs(name, 30)]
        tokenizer = train_sentencepiece(texts, 400, tmp_path / "tokenizer")
        config = replace(tiny_config, dim=64, vocab_size=tokenizer.vocab_size, max_seq_len=1024)
        base = make_model(config, dtype=torch.float32, std=0.05)
        save_model(base, tokenizer, tmp_path / "base", template="plain")
        ranks = {"expert_rank": 2, "shared_rank": 2} if form == "delta" else {}
        model = upcycle_model(base, LANGUAGES, form, 1, **ranks, **settings)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "_delta" in name or ".experts." in name:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
        reference = tmp_path / "base" if form == "delta" else None
        return save_model(model, tokenizer, tmp_path / "mixture", base=reference, template="plain")

    return make


def mean_loss(directory, data) -> float:
    loaded = load_model(directory)
    pairs = load_split(data, "test", LANGUAGES)
    examples = encode_pairs(pairs, loaded.tokenizer, loaded.template, 1024).examples
    losses = held_out_loss(loaded.model, examples)
    return sum(loss.loss for loss in losses.values()) / len(losses)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("delta", {"router_context": "ema", "router_layers": "first"}),
        ("delta", {"router_context": "mean", "router_layers": "each", "moe_layers": (1,)}),
        ("full", {"router_context": "mean", "router_layers": "first"}),
        ("full", {"router_context": "none", "router_layers": "first"}),
    ],
)
def test_token_gates_make_a_mixtral_and_the_loss_is_told(tmp_path, mixture, data, capsys, form, settings):
    from transformers import AutoModelForCausalLM

    source, out = mixture(form, **settings), tmp_path / "out"
    flags = ["--refit-router", "--data", data, "--steps", "3", "--num-experts-per-tok", "2"]
    assert run_main("merge", source, out, *flags) == 0
    printed = capsys.readouterr().out
    before, after = map(float, re.search(r"mean +([\d.]+) +([\d.]+)", printed).groups())
    assert abs(before - mean_loss(source, data)) < 1e-3 and abs(after - mean_loss(out, data)) < 1e-3
    assert re.search(r"python +[\d.]+ +[\d.]+\njava +[\d.]+", printed) and json.loads((out / "proof.json").read_text())
    card = (out / "README.md").read_text()
    assert f"| held-out loss, mean | {before:.4f} before, {after:.4f} here |" in card and "token gates" in card
    loaded = load_model(out)
    assert loaded.config.is_mixtral and loaded.config.num_experts_per_tok == 2
    document = json.loads((out / "config.json").read_text())
    assert document["model_type"] == "mixtral" and "router_context" not in document and "auto_map" not in document
    theirs = AutoModelForCausalLM.from_pretrained(out).eval()
    tokens = torch.tensor([loaded.tokenizer.encode(generate_pairs("java", 1)[0].code)])
    with torch.no_grad():
        expected = loaded.model(tokens).logits
        assert (theirs(tokens).logits - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_steps_train_the_gates_and_nothing_else(tmp_path, mixture, data):
    source = mixture("delta", router_context="ema", router_layers="first")
    flags = ["--refit-router", "--data", data, "--no-proof"]
    assert run_main("merge", source, tmp_path / "fitted", *flags) == 0
    assert run_main("merge", source, tmp_path / "trained", *flags, "--steps", "4") == 0
    assert run_main("merge", source, tmp_path / "fitted2", *flags) == 0
    fitted, trained, again = (open_checkpoint(tmp_path / x).tensors for x in ("fitted", "trained", "fitted2"))
    for name in fitted:
        same = torch.equal(fitted[name].read(), trained[name].read())
        assert same != name.endswith(".gate.weight"), name
        assert torch.equal(fitted[name].read(), again[name].read())
    right = total = 0
    loaded = load_model(tmp_path / "fitted")
    for index, language in enumerate(LANGUAGES):
        for pair in generate_pairs(language, 8, split="test"):
            ids = torch.tensor([loaded.tokenizer.encode(pair.code)])
            right += int((loaded.model(ids).routing[-1].expert_ids == index).sum())
            total += ids.numel()
    assert right > 0.55 * total, (right, total)


def test_what_cannot_be_refitted_is_told(tmp_path, mixture, data, capsys):
    source, out = mixture("delta", router_context="ema", router_layers="first"), tmp_path / "out"

    def refused(*flags) -> str:
        capsys.readouterr()
        assert run_main("merge", source, out, *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not out.exists()
        return error

    assert "--refit-router --data DIR" in refused()
    assert "no such directory" in refused("--refit-router", "--data", tmp_path / "gone")
    (data / "test" / "java.jsonl").unlink()
    assert "no data for language 'java'" in refused("--refit-router", "--data", data)
    assert "expected 1 to num_experts" in refused("--refit-router", "--num-experts-per-tok", "3")
    assert "at least 0" in refused("--refit-router", "--steps", "-1")
    assert run_main("merge", source, out, "--refit-router", "--dry-run") == 0 and not out.exists()
    config = json.loads((source / "config.json").read_text())
    config["model"] |= {"router_context": "none", "router_layers": "first"}
    (source / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.model", "tokenizer.json"):
        for folder in (source, tmp_path / "base"):
            (folder / name).unlink(missing_ok=True)
    assert "has no tokenizer" in refused("--refit-router")


def test_a_token_routed_model_needs_no_refit(tmp_path, mixture, data, capsys):
    source = mixture("delta")
    assert run_main("merge", source, tmp_path / "out", "--refit-router", "--data", data) == 2
    assert "routes each token by itself already" in capsys.readouterr().err
    assert run_main("merge", source, tmp_path / "out", "--steps", "3", "--no-proof") == 0
    assert "--steps is ignored" in capsys.readouterr().err
