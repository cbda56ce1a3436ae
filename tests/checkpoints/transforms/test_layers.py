"""Experts in some layers only: every command, both forms, and what other readers make of the directory."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model, save_model
from checkpoints.proof import prove
from checkpoints.storage.writer import MANIFEST
from checkpoints.streamed_proof import prove_streamed
from checkpoints.transforms.gptq import InputMoments, gptq, gptq_rounder
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.quantize import quantized_tensors
from checkpoints.transforms.upcycle import upcycle_model
from kernels.int4 import pack, unpack
from moe.data.synthetic import generate_pairs
from moe.experts import MoEFeedForward
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java", "cpp")
MIXED = (0, 2)  # of three layers
FORMS = {"full": {"expert_form": "full"}, "delta": {"expert_form": "delta", "expert_rank": 2, "shared_rank": 3}}


@pytest.fixture
def config(tiny_config):
    return replace(tiny_config, n_layers=3, dim=128, hidden_dim=128)


@pytest.fixture
def base(tmp_path, config, make_model):
    return save_model(make_model(config, dtype=torch.float32, std=0.08), None, tmp_path / "base")


@pytest.fixture
def trained(tmp_path, base):
    """Saves a mixture whose experts differ, as training leaves it: ``trained("delta")`` or ``trained("full")``."""

    def make(form: str):
        mixture = upcycle_model(load_model(base).model, LANGUAGES, moe_layers=MIXED, **FORMS[form])
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in mixture.named_parameters():
                if ".experts." in name or "_delta" in name or ".gate." in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        save_model(mixture, None, tmp_path / form, base=base if form == "delta" else None)
        return tmp_path / form, mixture

    return make


def upcycle(base, out, form, layers="0,2", *more) -> int:
    return run_main(
        "upcycle", base, out, "--expert-form", form, "--languages", *LANGUAGES, "--moe-layers", layers, *more
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_at_step_0_the_mixture_is_the_dense_model(config, make_model, form, dtype, bound):
    dense = make_model(config, dtype=dtype, std=0.08)
    mixture = upcycle_model(dense, LANGUAGES, moe_layers=MIXED, **FORMS[form])
    proof = prove(dense, mixture, greedy_tokens=8)
    assert proof.holds and proof.max_abs_logit_difference <= bound


@pytest.mark.parametrize("form", FORMS)
def test_the_command_writes_what_it_promises(tmp_path, base, form, capsys):
    assert upcycle(base, tmp_path / "out", form, "2,0", "--router", "random") == 0
    printed = capsys.readouterr().out
    assert "in layers 0, 2 of 3" in printed and "same greedy text: yes" in printed
    loaded = load_model(tmp_path / "out").model
    assert loaded.config.moe_layers == MIXED
    assert len(loaded(torch.tensor([[1, 2, 3]])).routing) == 2
    assert run_main("verify", tmp_path / "out") == 0
    assert run_main("inspect", tmp_path / "out") == 0
    assert "0, 2 of 3; the rest is dense" in capsys.readouterr().out
    assert "0, 2" in (tmp_path / "out" / "README.md").read_text()


def test_transformers_computes_the_same_from_equal_copies(tmp_path, trained, our_logits, hf_logits):
    from transformers import MixtralForCausalLM

    path, mixture = trained("full")
    theirs = MixtralForCausalLM.from_pretrained(path).eval()
    expected = our_logits(mixture)
    assert (hf_logits(theirs) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (our_logits(load_model(path).model) - expected).abs().max() == 0
    stored = load_file(path / "model.safetensors")
    gate = stored["model.layers.1.block_sparse_moe.gate.weight"]
    assert gate.shape == (3, 128) and not gate.any()
    copies = [stored[f"model.layers.1.block_sparse_moe.experts.{e}.w2.weight"] for e in range(3)]
    assert all(torch.equal(copy, copies[0]) for copy in copies)


def test_a_reader_without_moe_layers_sees_a_mixture_that_computes_the_same(tmp_path, trained, our_logits):
    path, mixture = trained("full")
    settings = json.loads((path / "config.json").read_text())
    assert settings.pop("moe_layers") == list(MIXED)
    (path / "config.json").write_text(json.dumps(settings))
    plain = load_model(path).model
    assert plain.config.moe_layers is None and isinstance(plain.layers[1].feed_forward, MoEFeedForward)
    assert (our_logits(plain) - our_logits(mixture)).abs().max() <= 1e-5


def test_deltas_merge_into_a_mixture_with_the_same_dense_layers(tmp_path, trained, our_logits, capsys):
    path, mixture = trained("delta")
    assert run_main("merge", path, tmp_path / "merged") == 0
    assert "same greedy text: yes" in capsys.readouterr().out
    merged = load_model(tmp_path / "merged").model
    assert merged.config.moe_layers == MIXED and merged.config.expert_form == "full"
    expected = our_logits(mixture)
    assert (our_logits(merged) - expected).abs().max() <= 1e-5 * expected.abs().max()
    dense = load_model(tmp_path / "base").model
    for weight in ("w1", "w2", "w3"):
        ours, theirs = (getattr(m.layers[1].feed_forward, weight).weight for m in (merged, dense))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("form", FORMS)
def test_collapse_leaves_dense_layers_as_they_are(tmp_path, trained, form):
    path, mixture = trained(form)
    assert run_main("collapse", path, tmp_path / "dense") == 0
    collapsed = load_model(tmp_path / "dense").model
    assert not collapsed.config.is_moe and collapsed.config.moe_layers is None
    assert torch.equal(collapsed.layers[1].feed_forward.w1.weight, mixture.layers[1].feed_forward.w1.weight)
    if form == "full":
        mean = mixture.layers[2].feed_forward.experts.w1.mean(0)
        assert (collapsed.layers[2].feed_forward.w1.weight - mean).abs().max() <= 1e-6


def test_convert_and_quantize_keep_the_layers(tmp_path, trained, our_logits, capsys):
    path, mixture = trained("full")
    assert run_main("convert", path, tmp_path / "converted", "--dtype", "float32") == 0
    assert run_main("diff", path, tmp_path / "converted") == 0
    assert run_main("quantize", path, tmp_path / "int4", "--no-perplexity") == 0
    assert run_main("verify", tmp_path / "int4") == 0
    loaded = load_model(tmp_path / "int4").model
    assert loaded.config.moe_layers == MIXED
    for name, parameter in loaded.named_parameters():
        original = mixture.get_parameter(name)
        rounded = ".feed_forward.w" in name or ".experts." in name
        assert torch.equal(parameter, unpack(pack(original)).view_as(parameter) if rounded else original), name


def test_each_matrix_of_a_dense_layer_is_calibrated_once(trained):
    path, mixture = trained("full")
    moments = InputMoments(mixture, [[1, 2, 3, 4] * 8, [5, 6, 7] * 9])
    calibrated, calls = gptq_rounder(moments), []

    def rounder(name, weight):
        calls.append(name)
        return calibrated(name, weight)

    stored = {tensor.name: tensor.read() for tensor in quantized_tensors(open_checkpoint(path), rounder)}
    assert len(calls) == len(set(calls)) == 3 * (3 + 1 + 3)  # three matrices of two times three experts and one dense
    copies = [stored[f"model.layers.1.block_sparse_moe.experts.{e}.w1.int4_packed"] for e in range(3)]
    expected = gptq(mixture.layers[1].feed_forward.w1.weight, moments.of("layers.1.feed_forward.w1.weight"))
    assert all(torch.equal(copy, expected.packed[0]) for copy in copies)


def test_the_proof_layer_by_layer_knows_dense_layers(tmp_path, base, trained):
    sources = [open_any(base), open_any(trained("full")[0]), open_any(trained("delta")[0])]
    for mixture in sources[1:]:
        assert not prove_streamed(sources[0], mixture, None, torch.float64).holds
        in_memory = load_model(mixture.path, torch.float64).model
        again = prove(load_model(base, torch.float64).model, in_memory)
        assert not again.holds
    upcycle(base, tmp_path / "same", "delta", "1-")
    assert prove_streamed(sources[0], open_any(tmp_path / "same"), None, torch.float64).holds


def test_copies_that_differ_are_found(tmp_path, trained, capsys):
    path, _ = trained("full")
    stored = load_file(path / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    stored[name] = stored[name] + 1.0
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    (path / MANIFEST).unlink()
    assert run_main("verify", path, "--write") == 2
    assert f"tensor '{name}' is not the same for all experts" in capsys.readouterr().err


def test_a_dense_layer_with_a_router_that_learnt_is_refused(tmp_path, trained, capsys):
    path, _ = trained("full")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "moe_layers": [0]}))
    assert run_main("inspect", path) == 2
    assert "says that layer 2 is dense" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [[3], [], "all", {"0": 1}, [0, "1"]])
def test_a_damaged_moe_layers_is_one_clear_line(tmp_path, trained, wrong, capsys):
    path, _ = trained("full")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "moe_layers": wrong}))
    assert run_main("inspect", path) == 2
    error = capsys.readouterr().err.strip()
    assert "moe_layers" in error and "config.json" in error and "\n" not in error


@pytest.mark.parametrize("layers", ["3", "2-1", "", "x"])
def test_layers_that_the_model_lacks_are_refused_before_anything_is_written(tmp_path, base, layers, capsys):
    assert upcycle(base, tmp_path / "out", "full", layers) == 2
    assert "layer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_fitted_routers_go_to_the_layers_named(tmp_path, tiny_config, make_model, capsys):
    texts = [f"{pair.text}\n{pair.code}" for name in LANGUAGES for pair in generate_pairs(name, 20)]
    tokenizer = train_sentencepiece(texts, 400, tmp_path / "tokenizer")
    config = replace(tiny_config, n_layers=3, dim=64, vocab_size=tokenizer.vocab_size, max_seq_len=1024)
    save_model(make_model(config, dtype=torch.float32), tokenizer, tmp_path / "base", template="plain")
    options = ("--router", "fitted", "--router-prompts", 16, "--num-experts-per-tok", 1)
    assert upcycle(tmp_path / "base", tmp_path / "out", "delta", "2", *options) == 0
    assert "held-out tokens to their language" in capsys.readouterr().out
    stored = load_file(tmp_path / "out" / "experts.safetensors")
    assert [name for name in stored if ".gate." in name] == ["layers.2.feed_forward.gate.weight"]
    assert stored["layers.2.feed_forward.gate.weight"].abs().max() > 0
