"""extract: one language's expert as a dense model computes what the mixture does for text sent to that expert."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model, save_model
from checkpoints.transforms.upcycle import upcycle_model
from moe.data.synthetic import generate_pairs
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java", "cpp")
FORMS = {"full": {"expert_form": "full"}, "delta": {"expert_form": "delta", "expert_rank": 2, "shared_rank": 3}}
FORMS["attention"] = {**FORMS["delta"], "attention_experts": ("q", "k", "v", "o")}


@pytest.fixture
def mixture(tmp_path, hf_model):
    """Writes a mixture whose experts differ, in ``tmp_path / "mixture"``, and its base; returns it in float32."""

    def make(form: str, kind: str = "mistral", dtype=torch.float32, base=None, languages=LANGUAGES, **settings):
        if base is None:
            hf_model(kind, **base_settings).to(dtype).save_pretrained(tmp_path / "base")
        found = {**FORMS[form], "num_experts_per_tok": 1, **settings}
        model = upcycle_model(load_model(tmp_path / "base").model, languages, **found)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".experts." in name or "_delta" in name or ".gate." in name or name == "norm.weight":
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        tokenizer = load_model(tmp_path / "base").tokenizer
        reference = None if form == "full" else tmp_path / "base"
        save_model(model, tokenizer, tmp_path / "mixture", base=reference, template="plain" if tokenizer else None)
        return model

    base_settings: dict = {}
    make.base = base_settings
    return make


@torch.no_grad()
def check_logits(directory, model, expert: int) -> None:
    """transformers and our own loader agree with the mixture whose tokens all go to one expert."""
    from transformers import AutoModelForCausalLM

    tokens = torch.randint(0, model.config.vocab_size, (2, 30), generator=torch.Generator().manual_seed(3))
    expected = model(tokens, forced_experts=torch.full((60,), expert)).logits
    other = model(tokens, forced_experts=torch.full((60,), (expert + 1) % 3)).logits
    assert (expected - other).abs().max() > 1e-2, "the experts are alike, so this shows nothing"
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for found in (theirs(tokens).logits, load_model(directory).model(tokens).logits):
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("layers", [None, (1,)], ids=["all layers", "layer 1"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "tied"), [("mistral", False), ("llama", True)])
def test_an_expert_computes_what_the_mixture_does(tmp_path, mixture, form, layers, kind, tied):
    mixture.base["tie_word_embeddings"] = tied
    model = mixture(form, kind, moe_layers=layers, router_context="ema", router_layers="first")
    for expert, language in enumerate(LANGUAGES):
        out = tmp_path / language
        assert run_main("extract", tmp_path / "mixture", out, "--language", language) == 0
        assert run_main("verify", out) == 0
        check_logits(out, model, expert)
        settings = json.loads((out / "config.json").read_text())
        kept = "mistral" if form == "full" else kind  # a full mixture does not know its base
        assert settings["model_type"] == kept and settings["tie_word_embeddings"] == tied
        assert "expert_languages" not in settings and "auto_map" not in settings


def test_a_mixture_with_experts_in_attention_is_not_merged_and_says_what_it_is(tmp_path, mixture, capsys):
    mixture("attention", router_context="ema")
    for flags in ((), ("--keep-context",), ("--refit-router",)):
        capsys.readouterr()
        assert run_main("merge", tmp_path / "mixture", tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert "extract" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert run_main("inspect", tmp_path / "mixture") == 0
    assert "also of attention's q, k, v, o" in capsys.readouterr().out
    assert "| changed in attention, too | q, k, v, o |" in (tmp_path / "mixture" / "README.md").read_text()


@torch.no_grad()
def test_float32_keeps_what_a_16_bit_base_cannot_hold(tmp_path, mixture):
    """The sum of a bfloat16 matrix and a float32 delta is rounded to the dtype asked for, and to no other before."""
    model = mixture("delta", dtype=torch.bfloat16)
    assert run_main("extract", tmp_path / "mixture", tmp_path / "wide", "--language", "java", "--dtype", "float32") == 0
    check_logits(tmp_path / "wide", model, 1)
    assert run_main("extract", tmp_path / "mixture", tmp_path / "kept", "--language", "java") == 0
    kept = open_checkpoint(tmp_path / "kept").tensors
    assert {tensor.dtype for name, tensor in kept.items() if name != "norm.weight"} == {torch.bfloat16}
    assert run_main("merge", tmp_path / "mixture", tmp_path / "merged", "--dtype", "float32", "--no-proof") == 0
    wide, merged = (open_checkpoint(tmp_path / name).tensors for name in ("wide", "merged"))
    expert = merged["layers.1.feed_forward.experts.1.w2.weight"].read()
    assert torch.equal(wide["layers.1.feed_forward.w2.weight"].read(), expert)


def test_what_lies_beside_the_weights_comes_along(tmp_path, hf_model, mixture):
    from transformers import AutoTokenizer

    pairs = [pair for name in ("python", "java") for pair in generate_pairs(name, 20)]
    tokenizer = train_sentencepiece([f"{pair.text}\n{pair.code}" for pair in pairs], 400, tmp_path / "tokenizer")
    hf_model("mistral", vocab_size=tokenizer.vocab_size).save_pretrained(tmp_path / "small")
    base = load_model(tmp_path / "small").model
    save_model(base, tokenizer, tmp_path / "base", template="plain", files={"LICENSE": b"yes"})
    mixture("delta", base=tmp_path / "base")
    assert run_main("extract", tmp_path / "mixture", tmp_path / "out", "--language", "cpp") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"generation_config.json", "prompt_template.json", "manifest.json", "LICENSE", "README.md"}
    text = pairs[0].code
    assert AutoTokenizer.from_pretrained(tmp_path / "out").encode(text, add_special_tokens=False) == tokenizer.encode(
        text
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The expert for C++ was taken out of a mixture" in card and "| expert | cpp |" in card
    assert load_model(tmp_path / "out").template == "plain"


def test_experts_without_names_are_numbered(tmp_path, hf_model):
    hf_model("mixtral").save_pretrained(tmp_path / "mixtral")
    assert run_main("extract", tmp_path / "mixtral", tmp_path / "out", "--language", "2") == 0
    source, out = (open_checkpoint(tmp_path / name).tensors for name in ("mixtral", "out"))
    name = "layers.1.feed_forward.experts.2.w3.weight"
    assert torch.equal(out["layers.1.feed_forward.w3.weight"].read(), source[name].read())


def test_what_cannot_be_extracted_is_told(tmp_path, mixture, capsys):
    mixture("delta")
    capsys.readouterr()

    def refused(source, *flags) -> str:
        assert run_main("extract", tmp_path / source, tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and not (tmp_path / "out").exists()
        return error

    assert "did you mean 'python'" in refused("mixture", "--language", "pyton")
    assert "experts here: python, java, cpp" in refused("mixture", "--language", "Rust")
    assert "--language" in refused("mixture")
    assert "dense already" in refused("base", "--language", "python")
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    assert "python -m checkpoints relink" in refused("mixture", "--language", "python")


def test_another_language_is_another_job(tmp_path, mixture, capsys):
    mixture("full")
    for _ in range(2):  # the same job again is done already
        assert run_main("extract", tmp_path / "mixture", tmp_path / "out", "--language", "java") == 0
    assert run_main("extract", tmp_path / "mixture", tmp_path / "out", "--language", "cpp") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_run_is_named_like_its_model(tmp_path, mixture):
    mixture("delta")
    (tmp_path / "mixture").rename(tmp_path / "model")
    (tmp_path / "run.json").write_text("{}")
    assert run_main("extract", tmp_path, tmp_path / "out", "--language", "java") == 0


def test_a_run_is_inspected_and_compared_as_its_model(mixture, tmp_path, capsys):
    mixture("full")
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    (tmp_path / "mixture").rename(run / "model")
    capsys.readouterr()
    for command in (["inspect", run], ["diff", run, run / "model"]):
        assert run_main(*command) == 0, capsys.readouterr().err
    assert str(run / "model") in capsys.readouterr().out
