"""Upcycled mixtures compute what the dense model does, in memory and on disk, and say clearly what they cannot do."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.formats import open_checkpoint
from checkpoints.formats.parameters import flat_tensors
from checkpoints.model_io import load_model, read_config, save_model
from checkpoints.proof import prompt_ids, prove
from checkpoints.storage.safetensors_file import load_tensors, save_tensors
from checkpoints.streamed_proof import prove_directories, prove_streamed, streamed_logits
from checkpoints.transforms.initialize import Initialization
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.rewrite import OutputOptions
from checkpoints.transforms.upcycle import parameter_counts, upcycle_directory, upcycle_model, upcycled_config
from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.errors import UserError
from moe.layers import FeedForward
from tests.checkpoints.command_line import run_main

LANGUAGES = ("python", "java", "javascript", "cpp")
FORMS = {
    "full": {"expert_form": "full"},
    "full top-1": {"expert_form": "full", "num_experts_per_tok": 1},
    "full top-3": {"expert_form": "full", "num_experts_per_tok": 3},
    "delta": {"expert_form": "delta", "expert_rank": 4},
    "delta shared": {"expert_form": "delta", "expert_rank": 2, "shared_rank": 3},
}
FORMS["attention"] = {**FORMS["delta shared"], "attention_experts": ("q", "k", "v", "o"), "router_layers": "first"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["f64", "f32"])
def test_at_step_0_the_mixture_is_the_dense_model(tiny_config, make_model, form, dtype, bound):
    dense = make_model(tiny_config, dtype=dtype)
    mixture = upcycle_model(dense, LANGUAGES, **FORMS[form])
    assert mixture.config.expert_languages == LANGUAGES and mixture.config.is_moe
    proof = prove(dense, mixture, greedy_tokens=8)
    assert proof.max_abs_logit > 1
    assert proof.max_abs_logit_difference <= bound
    assert proof.same_greedy_text and proof.holds
    for name, parameter in mixture.named_parameters():
        assert parameter.requires_grad and parameter.dtype == dtype, name


@pytest.mark.parametrize("form", ["full", "delta shared", "attention"])
def test_models_too_large_for_memory_are_compared_layer_by_layer(tmp_path, tiny_config, make_model, form):
    from dataclasses import replace

    config = replace(tiny_config, sliding_window=30, tie_embeddings=form == "full")
    dense = make_model(config)
    save_model(dense, None, tmp_path / "base")
    mixture = upcycle_model(dense, LANGUAGES, **FORMS[form])
    save_model(mixture, None, tmp_path / "same", base=tmp_path / "base")
    with torch.no_grad():
        ffn = mixture.layers[1].feed_forward
        (ffn.experts.w2 if form == "full" else ffn.expert_deltas.b2)[1] += 0.05
        mixture.norm.weight[0] += 0.1
    save_model(mixture, None, tmp_path / "changed", base=tmp_path / "base")
    sources = [open_any(tmp_path / name) for name in ("base", "same", "changed")]
    proof, how = prove_directories(sources[0], sources[1], None, torch.float64, memory=0)
    assert how.startswith("layer by layer") and proof.holds and proof.max_abs_logit_difference <= 1e-12
    changed = prove_streamed(sources[0], sources[2], None, torch.float64)
    assert not changed.holds
    prompt = prompt_ids(None, 97)[0]
    with torch.no_grad():
        expected = mixture(torch.tensor([prompt])).logits[0]
    assert (next(streamed_logits(sources[2], [prompt], torch.float64)) - expected).abs().max() <= 1e-12


def test_a_changed_mixture_fails_the_proof(tiny_config, make_model):
    dense = make_model(tiny_config)
    mixture = upcycle_model(dense, LANGUAGES, expert_form="full")
    with torch.no_grad():
        mixture.layers[1].feed_forward.experts.w2[2] += 0.05
    proof = prove(dense, mixture, greedy_tokens=4)
    assert proof.max_abs_logit_difference > 1e-4 and not proof.holds


def test_in_bf16_the_feed_forward_is_bit_equal_to_the_dense_one():
    """Equal experts, gates that sum to one in float32 and a single cast give back the dense bits."""
    from kernels import reference
    from moe.router import select_top_k

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 32, generator=generator).bfloat16()
    w1, w3 = (torch.randn(48, 32, generator=generator).bfloat16() / 6 for _ in range(2))
    w2 = torch.randn(32, 48, generator=generator).bfloat16() / 6
    dense = reference.swiglu_ffn(x, w1, w2, w3)
    for k in (1, 2):
        gates, expert_ids = select_top_k(torch.randn(200, 4, generator=generator).bfloat16(), k)
        stacks = [w.expand(4, *w.shape) for w in (w1, w2, w3)]
        mixed = reference.experts_forward(x, *stacks, gates, expert_ids)
        assert mixed.dtype == torch.bfloat16
        assert torch.equal(mixed, dense.to(torch.bfloat16))


def test_experts_train_apart_and_the_dense_model_stays(tiny_config, make_model):
    dense = make_model(tiny_config)
    before = {name: p.detach().clone() for name, p in dense.named_parameters()}
    mixture = upcycle_model(dense, LANGUAGES, expert_form="full")
    tokens = torch.randint(0, 97, (2, 16))
    mixture(tokens, forced_experts=torch.ones(32, dtype=torch.int64)).logits.square().mean().backward()
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if ".experts." in name:
                assert parameter.grad[1].abs().max() > 0 and parameter.grad[[0, 2, 3]].abs().max() == 0
                parameter -= parameter.grad
    assert all(torch.equal(before[name], p) for name, p in dense.named_parameters())


def test_without_languages_the_delta_form_is_a_dense_adapter(tiny_config, make_model):
    dense = make_model(tiny_config)
    adapter = upcycle_model(dense, (), shared_rank=8)
    assert adapter.config.num_experts == 0 and adapter.config.is_delta
    assert prove(dense, adapter, greedy_tokens=4).holds
    assert not any("gate" in name for name, _ in adapter.named_parameters())


def test_the_seed_decides_routers_and_deltas(tiny_config, make_model):
    dense = make_model(tiny_config)
    first, second, other = (upcycle_model(dense, LANGUAGES, shared_rank=2, seed=seed) for seed in (1, 1, 2))
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), other.parameters()):
        assert torch.equal(a, b)
        if ".gate." in name or ".a" in name[-3:]:
            assert not torch.equal(a, c) and a.std() > 0
    gates = torch.stack([block.feed_forward.gate.weight for block in first.layers])
    assert 0.01 < gates.std() < 0.03
    assert not torch.equal(gates[0], gates[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": ("python", "pyhton")}, "unknown language 'pyhton'.*did you mean 'python'"),
        ({"languages": ("python", "python")}, "once"),
        ({"languages": (), "expert_form": "full"}, "at least one language"),
        ({"languages": LANGUAGES, "num_experts_per_tok": 5}, "5 experts per token, of"),
        ({"languages": LANGUAGES, "expert_rank": 0}, "expert_rank"),
        ({"languages": LANGUAGES, "expert_form": "half"}, "expert_form"),
    ],
)
def test_what_cannot_be_upcycled(tiny_config, settings, message):
    with pytest.raises(UserError, match=message):
        upcycled_config(tiny_config, **settings)


def test_a_mixture_is_not_upcycled_again(tiny_config):
    for form in ("full", "delta"):
        with pytest.raises(UserError, match="mixture already"):
            upcycled_config(upcycled_config(tiny_config, LANGUAGES, form), LANGUAGES)


@pytest.mark.parametrize("form", FORMS)
def test_disk_and_memory_give_the_same_bits(tmp_path, mistral_directory, form):
    base = open_checkpoint(mistral_directory)
    config = upcycled_config(base.config, LANGUAGES, **FORMS[form])
    upcycle_directory(
        base, tmp_path / "out", config, Initialization(seed=3), options=OutputOptions(max_shard_bytes=50_000)
    )
    loaded = load_model(tmp_path / "out")
    expected = upcycle_model(load_model(mistral_directory).model, LANGUAGES, seed=3, **FORMS[form])
    assert loaded.config == expected.config
    theirs = dict(expected.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in loaded.model.named_parameters())


@pytest.mark.parametrize("form", ["full", "delta shared"])
def test_saved_mixtures_come_back(tmp_path, tiny_config, make_model, form, our_logits):
    dense = make_model(tiny_config, dtype=torch.float32)
    save_model(dense, None, tmp_path / "base", template="plain")
    mixture = upcycle_model(dense, LANGUAGES, **FORMS[form])
    with torch.no_grad():
        for name, parameter in mixture.named_parameters():
            if ".feed_forward." in name and ".base." not in name:
                parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
    save_model(mixture, None, tmp_path / "out", template="chatml", base=tmp_path / "base")
    loaded = load_model(tmp_path / "out")
    assert loaded.template == "chatml" and loaded.config == mixture.config == read_config(tmp_path / "out")
    assert torch.equal(our_logits(loaded.model), our_logits(mixture))


def test_a_delta_directory_is_small_and_keeps_other_changes(tmp_path, tiny_config, make_model, our_logits):
    dense = make_model(tiny_config, dtype=torch.float32)
    save_model(dense, None, tmp_path / "base")
    mixture = upcycle_model(load_model(tmp_path / "base").model, LANGUAGES, expert_rank=2)
    save_model(mixture, None, tmp_path / "plain", base=tmp_path / "base")
    stored = load_file(tmp_path / "plain" / "experts.safetensors")
    assert all(".gate." in name or ".expert_deltas." in name for name in stored)
    with torch.no_grad():
        mixture.layers[0].attention_norm.weight[3] += 1
    save_model(mixture, None, tmp_path / "changed", base=tmp_path / "base")
    extra = set(load_file(tmp_path / "changed" / "experts.safetensors")) - set(stored)
    assert extra == {"layers.0.attention_norm.weight"}
    assert torch.equal(our_logits(load_model(tmp_path / "changed").model), our_logits(mixture))


def test_without_a_base_the_delta_directory_holds_a_copy(tmp_path, tiny_config, make_model, our_logits):
    mixture = upcycle_model(make_model(tiny_config, dtype=torch.float32), LANGUAGES, expert_rank=2)
    save_model(mixture, None, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    assert torch.equal(our_logits(load_model(tmp_path / "moved").model), our_logits(mixture))
    assert isinstance(load_model(tmp_path / "moved" / "base").model.layers[0].feed_forward, FeedForward)


@pytest.fixture
def delta_directory(tmp_path, mistral_directory):
    base = open_checkpoint(mistral_directory)
    upcycle_directory(base, tmp_path / "delta", upcycled_config(base.config, LANGUAGES, expert_rank=2))
    return tmp_path / "delta"


def test_a_moved_base_is_found_again(tmp_path, mistral_directory, delta_directory, capsys):
    shutil.copytree(tmp_path, tmp_path.parent / f"{tmp_path.name}-copy")
    moved = tmp_path / "elsewhere"
    mistral_directory.rename(moved)
    with pytest.raises(UserError, match=r"python -m checkpoints relink .*delta PATH-OF-THE-BASE"):
        load_model(delta_directory)
    assert run_main("relink", delta_directory, moved) == 0
    expected = load_model(delta_directory).model.state_dict()
    together = load_model(tmp_path.parent / f"{tmp_path.name}-copy" / "delta").model.state_dict()
    assert all(torch.equal(expected[name], together[name]) for name in expected)


def test_another_base_is_refused(delta_directory, mistral_directory, tiny_config, make_model):
    from dataclasses import replace

    save_model(make_model(replace(tiny_config, max_seq_len=256), 1, torch.float32), None, mistral_directory, force=True)
    with pytest.raises(UserError, match=r"is not the base of .* another SHA-256"):
        load_model(delta_directory)
    save_model(make_model(replace(tiny_config, vocab_size=33)), None, mistral_directory, force=True)
    with pytest.raises(UserError, match=r"is not the base of .* bytes, expected"):
        load_model(delta_directory)


def change(path, **changes):
    document = json.loads(path.read_text())
    for dotted, value in changes.items():
        owner = document
        *parents, last = dotted.split("__")
        for key in parents:
            owner = owner[key]
        owner[last] = value
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": 3}, "no 'model' object"),
        ({"model__dim": 64}, "disagree in sizes"),
        ({"model__dim": "64"}, r"config\.json"),
        ({"model__colour": "red"}, "unknown model setting 'colour'"),
        ({"model__expert_form": "full"}, "no delta experts"),
        ({"model__expert_rank": 3}, r"experts\.safetensors: tensor 'layers\.0.*shape"),
        ({"base": 1}, "no usable 'base' entry"),
        ({"base__files": [1]}, "no usable 'base' entry"),
    ],
)
def test_a_damaged_delta_config(delta_directory, changes, message):
    change(delta_directory / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_model(delta_directory)


def test_damaged_delta_tensors(delta_directory):
    path = delta_directory / "experts.safetensors"
    tensors = load_tensors(path)  # a memory map would not survive the rewriting below
    name = "layers.1.feed_forward.expert_deltas.b2"
    for changed, message in (
        ({key: value for key, value in tensors.items() if key != name}, f"'{name}' is missing"),
        ({**tensors, "layers.9.norm.weight": torch.ones(2)}, "'layers.9.norm.weight' is not one of this model"),
        ({**tensors, name: torch.ones(4)}, f"'{name}' is"),
        ({**tensors, name: tensors[name].to(torch.int8)}, "floating-point"),
    ):
        save_tensors(path, changed)
        with pytest.raises(UserError, match=message):
            load_model(delta_directory)


def test_saving_over_the_wrong_base(tmp_path, tiny_config, make_model, mistral_directory):
    from dataclasses import replace

    mixture = upcycle_model(make_model(replace(tiny_config, hidden_dim=64)), LANGUAGES)
    with pytest.raises(UserError, match="is not the base of this model"):
        save_model(mixture, None, tmp_path / "out", base=mistral_directory)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["full", "delta"])
def test_the_command_writes_the_mixture_and_its_proof(tmp_path, mistral_directory, hf_logits, capsys, form):
    from transformers import AutoModelForCausalLM

    out = tmp_path / "out"
    options = ["--expert-form", form, "--rank", 4, "--shared-rank", 2, "--languages", "python", "cpp"]
    assert run_main("upcycle", mistral_directory, out, *options, "--proof-dtype", "float64") == 0
    printed = capsys.readouterr().out
    assert "same greedy text: yes, 8 of 8 prompts" in printed
    proof = json.loads((out / "proof.json").read_text())
    assert proof["holds"] and proof["max_abs_logit_difference"] <= 1e-12 and proof["dtype"] == "float64"
    assert {entry["language"] for entry in proof["greedy"]} == set(LANGUAGES)
    assert load_model(out).config.expert_languages == ("python", "cpp")
    if form == "full":
        dense, mixture = (AutoModelForCausalLM.from_pretrained(p).eval() for p in (mistral_directory, out))
        assert mixture.config.expert_languages == ["python", "cpp"]
        assert (hf_logits(dense) - hf_logits(mixture)).abs().max() <= 1e-5


def test_the_command_refuses_in_one_line(tmp_path, mistral_directory, capsys):
    (tmp_path / "there").mkdir()
    for arguments, message in (
        ((mistral_directory, tmp_path / "there"), "exists already.*--force"),
        ((tmp_path / "nothing", tmp_path / "out"), "does not exist"),
        ((mistral_directory, tmp_path / "out", "--languages", "pascal"), "unknown language"),
        ((mistral_directory, tmp_path / "out", "--expert-form", "half"), "invalid choice"),
        ((mistral_directory, tmp_path / "out", "--rnk", "3"), "did you mean '--rank'"),
        ((mistral_directory, tmp_path / "out", "--max-shard", "big"), "is not a size"),
    ):
        assert run_main("upcycle", *arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("error: ")
        assert re.search(message, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mistral", "there"]


def test_a_dry_run_writes_nothing(tmp_path, mistral_directory, capsys):
    for form in ("full", "delta"):
        assert run_main("upcycle", mistral_directory, tmp_path / "out", "--expert-form", form, "--dry-run") == 0
        assert "would write" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["mistral"]


def test_parameter_counts_of_mistral_7b():
    config = ModelConfig(**MISTRAL_7B._asdict())
    total, active = parameter_counts(config)
    assert total == active == 7_241_732_096
    total, active = parameter_counts(upcycled_config(config, LANGUAGES, "full"))
    assert round(total / 1e9, 2) == 24.15 and round(active / 1e9, 2) == 12.88


def test_flat_tensors_cover_the_model(tiny_config, make_model):
    model = upcycle_model(make_model(tiny_config), LANGUAGES, expert_form="full")
    flat = list(flat_tensors(model))
    assert sum(t.nbytes for t in flat) == sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("form", ["full", "delta"])
def test_the_proof_holds_for_converted_tensors(tmp_path, mistral_directory, form):
    out, flags = tmp_path / form, ["--expert-form", form, "--rank", "2", "--dtype", "bfloat16"]
    assert run_main("upcycle", mistral_directory, out, *flags) == 0
    assert json.loads((out / "proof.json").read_text())["max_abs_logit_difference"] < 1e-5
