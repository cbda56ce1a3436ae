"""Models whose routers see context, on disk: they come back whole and never pass for Mixtral."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from checkpoints.model_io import load_model, read_config, save_model
from checkpoints.streamed_proof import prove_streamed, streamed_logits
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.upcycle import upcycle_model
from moe.errors import UserError
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "cpp")
CONTEXTS = [("mean", "first"), ("ema", "each")]


@pytest.fixture(params=CONTEXTS, ids="-".join)
def saved(request, tmp_path, tiny_config, make_model):
    """Makes a trained mixture of a form and writes it: the model and its directory."""
    context, layers = request.param
    config = replace(tiny_config, hidden_dim=128)  # wide enough for int4
    base = save_model(make_model(config, dtype=torch.float32), None, tmp_path / "base")

    def make(form: str):
        settings = {"router_context": context, "router_layers": layers, "router_half_life": 7.0}
        ranks = {"expert_rank": 2, "shared_rank": 2} if form == "delta" else {}
        model = upcycle_model(load_model(base).model, LANGUAGES, form, 1, **ranks, **settings)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        reference = base if form == "delta" else None
        return model, save_model(model, None, tmp_path / form, base=reference)

    return make


@pytest.mark.parametrize("form", ["full", "delta"])
def test_a_context_routed_model_comes_back(saved, form):
    model, directory = saved(form)
    loaded = load_model(directory)
    assert loaded.config == model.config == read_config(directory)
    tokens = torch.randint(0, 97, (2, 20))
    torch.testing.assert_close(loaded.model(tokens).logits, model(tokens).logits)
    assert run_main("verify", directory) == 0


def test_full_experts_do_not_claim_to_be_mixtral(saved):
    _, directory = saved("full")
    document = json.loads((directory / "config.json").read_text())
    assert document["model_type"] == "context_mixtral" and document["architectures"] == ["ContextMixtralForCausalLM"]
    transformers = pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="trust_remote_code"):  # test_modeling.py loads it
        transformers.AutoConfig.from_pretrained(directory)


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_what_is_made_of_it_does_not_claim_to_be_mixtral(saved, tmp_path, command):
    _, directory = saved("full")
    assert run_main(command, directory, tmp_path / "out", *(["--no-perplexity"] if command == "quantize" else [])) == 0
    document = json.loads((tmp_path / "out" / "config.json").read_text())
    assert document["model_type"] == "context_mixtral" and (tmp_path / "out" / "modeling_context_mixtral.py").is_file()
    assert read_config(tmp_path / "out") == read_config(directory) and run_main("verify", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code" in card and "- mixtral" not in card
    assert run_main("collapse", directory, tmp_path / "dense") == 0
    assert "auto_map" not in json.loads((tmp_path / "dense" / "config.json").read_text())


@torch.no_grad()
@pytest.mark.parametrize("form", ["full", "delta"])
def test_a_model_on_disk_runs_layer_by_layer_with_its_context(saved, form):
    model, directory = saved(form)
    tokens = torch.randint(0, 97, (70,)).tolist()
    found = next(streamed_logits(open_any(directory), [tokens], torch.float64))
    torch.testing.assert_close(found, model.double()(torch.tensor([tokens])).logits[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["full", "delta"])
@pytest.mark.parametrize("layers", ["all", "1"])
def test_upcycling_with_context_is_proved(saved, tmp_path, capsys, form, layers):
    saved("delta")
    flags = ["--expert-form", form, "--rank", "4", "--moe-layers", layers, "--router-context", "ema"]
    assert run_main("upcycle", tmp_path / "base", tmp_path / "new", *flags) == 0
    assert "same greedy text: yes" in capsys.readouterr().out
    config = read_config(tmp_path / "new")
    assert (config.router_context, config.router_layers) == ("ema", "first")
    dense, mixture = (open_any(tmp_path / name) for name in ("base", "new"))
    assert prove_streamed(dense, mixture, None, torch.float32).holds


@torch.no_grad()
def test_a_merged_model_may_keep_its_context(saved, tmp_path, capsys, monkeypatch):
    transformers = pytest.importorskip("transformers", minversion="5")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    model, directory = saved("delta")
    assert run_main("merge", directory, tmp_path / "merged", "--keep-context") == 0
    assert "same greedy text: yes" in capsys.readouterr().out
    expected = replace(model.config, expert_form="full", shared_rank=0, expert_rank=0)
    assert read_config(tmp_path / "merged") == expected
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True).eval()
    tokens = torch.randint(0, 97, (2, 40))
    torch.testing.assert_close(theirs(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-4)
    assert run_main("merge", directory, tmp_path / "no", "--keep-context", "--refit-router") == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_context_routed_model_is_not_merged(saved, tmp_path, capsys):
    _, directory = saved("delta")
    assert run_main("merge", directory, tmp_path / "merged") == 2
    assert "routes by document context" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_gptq_refuses_a_router_that_its_calibration_does_not_follow(saved, tmp_path, capsys):
    _, directory = saved("full")
    assert run_main("quantize", directory, tmp_path / "int4", "--method", "gptq") == 2
    assert "--method nearest" in capsys.readouterr().err and not (tmp_path / "int4").exists()


def test_a_damaged_context_is_named(saved):
    _, directory = saved("full")
    document = json.loads((directory / "config.json").read_text())
    for key, value in (("router_context", "max"), ("router_layers", None), ("router_half_life", -1)):
        (directory / "config.json").write_text(json.dumps(document | {key: value}))
        with pytest.raises(UserError, match=key):
            read_config(directory)


def test_inspect_says_how_a_model_routes(saved, capsys):
    model, directory = saved("delta")
    assert run_main("inspect", directory) == 0
    assert f"by {model.config.router_context} of the document" in capsys.readouterr().out


def test_the_dense_config_has_no_router(tiny_config):
    sparse = replace(tiny_config, num_experts=2, router_context="mean", router_layers="first")
    assert not sparse.is_mixtral and sparse.dense() == tiny_config
