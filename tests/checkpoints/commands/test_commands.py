"""merge, collapse, convert, diff, inspect and verify, on tiny models of every format."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.commands.inspect import memory_to_run
from checkpoints.commands.merge import merge_bound
from checkpoints.model_io import load_model, save_model
from checkpoints.storage.files import sha256_file
from checkpoints.transforms.merge import expert_shares
from checkpoints.transforms.upcycle import upcycle_model
from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.errors import UserError
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java", "cpp")


@pytest.fixture
def trained(tmp_path, tiny_config, make_model):
    """Saves a mixture whose experts differ, as training leaves it: ``trained("delta")`` or ``trained("full")``."""

    def make(form: str, **settings):
        dense = make_model(tiny_config, dtype=torch.float32)
        if not (tmp_path / "base").exists():
            save_model(dense, None, tmp_path / "base", template="chatml")
        mixture = upcycle_model(dense, LANGUAGES, form, **settings)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in mixture.named_parameters():
                if ".experts." in name or "_delta" in name or ".gate." in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            mixture.norm.weight[0] += 0.5
        base = tmp_path / "base" if form == "delta" else None
        save_model(mixture, None, tmp_path / form, template="chatml", base=base)
        return tmp_path / form, mixture

    return make


@pytest.mark.parametrize("shared_rank", [0, 3])
def test_merged_experts_compute_what_the_deltas_do(tmp_path, trained, our_logits, hf_logits, capsys, shared_rank):
    from transformers import AutoModelForCausalLM

    delta, mixture = trained("delta", expert_rank=2, shared_rank=shared_rank)
    assert run_main("merge", delta, tmp_path / "merged") == 0
    assert "same greedy text: yes" in capsys.readouterr().out
    assert json.loads((tmp_path / "merged" / "proof.json").read_text())["holds"]
    merged = load_model(tmp_path / "merged")
    assert merged.config.expert_form == "full" and merged.config.expert_languages == LANGUAGES
    assert merged.template == "chatml"
    expected = our_logits(mixture)
    assert (our_logits(merged.model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert (hf_logits(theirs) - expected).abs().max() <= 1e-5 * expected.abs().max()
    card = (tmp_path / "merged" / "README.md").read_text()
    assert card.startswith("---\n") and "| expert 2 | C++ |" in card and 'base_model: "base"' in card
    assert run_main("merge", tmp_path / "merged", tmp_path / "again") == 2


def test_a_merged_model_may_differ_by_rounding_alone():
    """Measured: 2.9e-4 at logits up to 44 on SmolLM2 with trained deltas, merged in float32."""
    assert 2.9e-4 < merge_bound(torch.float32, 44.3) < 1e-3
    assert merge_bound(torch.float64, 10.0) == merge_bound(torch.float32, 10.0) < merge_bound(torch.bfloat16, 10.0)


def test_a_lone_adapter_merges_into_a_dense_model(tmp_path, tiny_config, make_model, our_logits):
    adapter = upcycle_model(make_model(tiny_config, dtype=torch.float32), (), shared_rank=3)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "shared_delta.b" in name:
                parameter.normal_(0, 0.1)
    save_model(adapter, None, tmp_path / "adapter")
    assert run_main("merge", tmp_path / "adapter", tmp_path / "dense", "--no-proof") == 0
    merged = load_model(tmp_path / "dense")
    assert not merged.config.is_moe and not merged.config.is_delta
    expected = our_logits(adapter)
    assert (our_logits(merged.model) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("form", ["full", "delta"])
def test_collapse_is_the_weighted_mean(tmp_path, trained, our_logits, form):
    settings = {"expert_rank": 2, "shared_rank": 2} if form == "delta" else {}
    source, mixture = trained(form, **settings)
    assert run_main("collapse", source, tmp_path / "one", "--weights", "java=2") == 0
    one = load_model(tmp_path / "one")
    assert not one.config.is_moe
    tokens = torch.randint(0, 97, (1, 20))
    with torch.no_grad():
        forced = mixture(tokens, forced_experts=torch.ones(20, dtype=torch.int64)).logits
        assert (one.model(tokens).logits - forced).abs().max() <= 1e-5 * forced.abs().max()
    assert run_main("collapse", source, tmp_path / "mean", "--weights", "python=3", "cpp=1") == 0
    assert run_main("merge" if form == "delta" else "convert", source, tmp_path / "full2") == 0
    stored, mean = (load_file(tmp_path / name / "model.safetensors") for name in ("full2", "mean"))
    for weight, theirs in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        experts = [stored[f"model.layers.1.block_sparse_moe.experts.{e}.{weight}.weight"] for e in range(3)]
        expected = 0.75 * experts[0] + 0.25 * experts[2]
        assert (mean[f"model.layers.1.mlp.{theirs}.weight"] - expected).abs().max() < 1e-6


def test_an_upcycled_mixture_collapses_to_its_base(tmp_path, mistral_directory):
    assert run_main("upcycle", mistral_directory, tmp_path / "moe", "--expert-form", "full", "--no-proof") == 0
    assert run_main("collapse", tmp_path / "moe", tmp_path / "dense") == 0
    assert run_main("diff", mistral_directory, tmp_path / "dense") == 0
    assert run_main("diff", mistral_directory, tmp_path / "moe") == 1


def test_shares(tiny_config):
    config = replace(tiny_config, num_experts=3, expert_languages=LANGUAGES)
    assert expert_shares(config, None) == {0: 1 / 3, 1: 1 / 3, 2: 1 / 3}
    assert expert_shares(config, {"cpp": 3, "python": 1, "java": 0}) == {2: 0.75, 0: 0.25}
    for weights, message in (
        ({"rust": 1}, "no expert is named 'rust'"),
        ({"java": -1}, "at least 0"),
        ({"java": float("nan")}, "at least 0"),
        ({"java": 0}, "all weights are 0"),
    ):
        with pytest.raises(UserError, match=message):
            expert_shares(config, weights)
    with pytest.raises(UserError, match="dense already"):
        expert_shares(tiny_config, None)


def test_convert_keeps_the_bits_and_the_small_files(tmp_path, mistral_directory, capsys):
    (mistral_directory / "tokenizer_config.json").write_text('{"chat_template": "[INST] {{ m }} [/INST]"}')
    (mistral_directory / "LICENSE").write_text("yes")
    assert run_main("convert", mistral_directory, tmp_path / "out", "--max-shard", "20kb") == 0
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 2
    assert run_main("diff", mistral_directory, tmp_path / "out") == 0
    assert "0 differ" in capsys.readouterr().out
    assert (tmp_path / "out" / "LICENSE").read_text() == "yes"
    assert load_model(tmp_path / "out").template == "mistral-instruct"
    assert run_main("convert", mistral_directory, tmp_path / "half", "--dtype", "bfloat16") == 0
    assert run_main("diff", mistral_directory, tmp_path / "half") == 1
    assert "float32 and bfloat16" in capsys.readouterr().out
    assert run_main("convert", mistral_directory, tmp_path / "half2", "--dry-run") == 0
    assert not (tmp_path / "half2").exists()


def test_diff_names_what_differs(tmp_path, mistral_directory, tiny_config, make_model, capsys):
    save_model(make_model(replace(tiny_config, n_layers=1, norm_eps=1e-3)), None, tmp_path / "other")
    assert run_main("diff", mistral_directory, tmp_path / "other") == 1
    printed = capsys.readouterr().out
    assert "config n_layers: 2 and 1" in printed and "config norm_eps" in printed
    assert "layers.1.attention.wq.weight" in printed and "only in the first" in printed


@pytest.mark.parametrize("form", ["full", "delta"])
def test_inspect_tells_what_is_there(trained, capsys, form):
    directory, mixture = trained(form)
    assert run_main("inspect", directory) == 0
    printed = capsys.readouterr().out
    total = sum(p.numel() for p in mixture.parameters())
    assert f"{total / 1e6:,.1f} M" in printed and "python, java, cpp" in printed and "float32" in printed
    assert ("low-rank deltas (rank 16" in printed) == (form == "delta")


def test_memory_to_run_mistral_7b_with_four_experts():
    """24.15 B parameters, of them 22.55 B in feed-forwards; 4,096 tokens of cache are 0.5 GiB."""
    config = ModelConfig(**MISTRAL_7B._asdict(), num_experts=4)
    inner, rest = 4 * 32 * 3 * 4096 * 14336, 1_606_000_000
    cache = 2 * 32 * 8 * 128 * 4096 * 2
    for sizes, expected in (((2.0, 2.0), 2 * (inner + rest)), ((0.515625, 2.0), 0.515625 * inner + 2 * rest)):
        assert memory_to_run(config, *sizes) == pytest.approx(expected + cache, rel=1e-3)


@pytest.fixture
def written(tmp_path, mistral_directory):
    out = tmp_path / "out"
    assert (
        run_main("upcycle", mistral_directory, out, "--expert-form", "full", "--no-proof", "--max-shard", "60kb") == 0
    )
    return out


def test_verify_finds_every_kind_of_damage(written, tmp_path, capsys):
    assert run_main("verify", written) == 0
    assert "is complete" in capsys.readouterr().out
    shard = sorted(written.glob("*.safetensors"))[1]
    content = bytearray(shard.read_bytes())

    def complaint(change) -> str:
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(written, tmp_path / "copy")
        change(tmp_path / "copy")
        assert run_main("verify", tmp_path / "copy") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    def flip(directory, position):
        changed = bytearray(content)
        changed[position] ^= 16
        (directory / shard.name).write_bytes(changed)

    last = list(load_file(shard))[-1]
    header = int.from_bytes(content[:8], "little")
    names = json.loads(content[8 : 8 + header])
    names.pop("__metadata__")
    last = max(names, key=lambda name: names[name]["data_offsets"])
    assert f"{shard.name} does not have the SHA-256 of the manifest: tensor '{last}'" in complaint(
        lambda d: flip(d, -1)
    )
    assert shard.name in complaint(lambda d: flip(d, 20))
    assert "is missing" in complaint(lambda d: (d / shard.name).unlink())
    assert f"{len(content) - 3} bytes" in complaint(lambda d: (d / shard.name).write_bytes(content[:-3]))
    assert "config.json" in complaint(lambda d: (d / "config.json").write_text("{}"))
    assert "manifest.json" in complaint(lambda d: (d / "manifest.json").write_text('{"files": [1]}'))
    outside = {"files": {"../mine": {"bytes": 1, "sha256": sha256_file(written / "config.json")}}}
    assert "plain file name" in complaint(lambda d: (d / "manifest.json").write_text(json.dumps(outside)))
    assert "verify" in complaint(lambda d: (d / "manifest.json").unlink())


def test_a_manifest_can_be_written_for_any_model(mistral_directory, capsys):
    (mistral_directory / "manifest.json").unlink()
    assert run_main("verify", mistral_directory) == 2
    assert run_main("verify", mistral_directory, "--write") == 0
    assert run_main("verify", mistral_directory) == 0
    path = mistral_directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert run_main("verify", mistral_directory) == 2
    assert "tensor 'lm_head.weight' is damaged" in capsys.readouterr().err


def test_verify_checks_the_base_of_deltas(trained, tmp_path, capsys):
    directory, _ = trained("delta")
    assert run_main("verify", directory) == 0
    path = tmp_path / "base" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert run_main("verify", directory) == 2
    assert "is not the base" in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    assert run_main("--help") == 0
    printed = capsys.readouterr().out
    for command in ("inspect", "upcycle", "merge", "collapse", "convert", "diff", "verify", "relink"):
        assert command in printed
        assert run_main(command, "--help") == 0
    assert run_main("upcicle") == 2
