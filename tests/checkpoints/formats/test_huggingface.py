"""Hugging Face directories: the same logits as transformers both ways, and one line for what is wrong."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoints.formats import open_checkpoint
from checkpoints.formats.names import expected_tensors, from_huggingface, to_huggingface
from checkpoints.formats.parameters import flat_tensors, meta_model
from checkpoints.model_io import load_model, read_config, save_model
from checkpoints.storage.safetensors_file import load_tensors
from moe.config import ModelConfig
from moe.errors import UserError

VARIANTS = [
    ("mistral", {"sliding_window": None}),
    ("mistral", {"sliding_window": 7, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    ("mistral", {"tie_word_embeddings": True, "sliding_window": None, "num_key_value_heads": 4}),
    ("llama", {"rms_norm_eps": 1e-4, "num_key_value_heads": 1}),
    ("llama", {"tie_word_embeddings": True, "head_dim": 16}),
    ("mixtral", {}),
    ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 9}),
    ("mixtral", {"tie_word_embeddings": True}),
]
IDS = [f"{kind}-{i}" for i, (kind, _) in enumerate(VARIANTS)]


@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=IDS)
def test_reads_and_writes_what_transformers_does(tmp_path, hf_model, hf_logits, our_logits, kind, settings):
    from transformers import AutoModelForCausalLM

    theirs = hf_model(kind, **settings)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    loaded = load_model(tmp_path / "theirs")
    expected = hf_logits(theirs)
    assert (our_logits(loaded.model) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    for shard_bytes in (1 << 30, 20_000):
        out = tmp_path / f"ours-{shard_bytes}"
        save_model(loaded.model, None, out, template="plain", max_shard_bytes=shard_bytes)
        again, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert again.config.model_type == ("mixtral" if kind == "mixtral" else "mistral")
        again.eval()
        again.set_attn_implementation(theirs.config._attn_implementation)
        assert torch.equal(hf_logits(again), expected)
        assert torch.equal(our_logits(load_model(out).model), our_logits(loaded.model))


@pytest.mark.parametrize("kind", ["mistral", "mixtral"])
def test_dtypes_are_kept_or_converted(tmp_path, hf_model, kind):
    theirs = hf_model(kind).to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    kept = load_model(tmp_path / "theirs", dtype=None)
    assert kept.model.dtype == torch.bfloat16
    save_model(kept.model, None, tmp_path / "kept")
    save_model(kept.model, None, tmp_path / "wide", dtype=torch.float32)
    source = load_file(tmp_path / "theirs" / "model.safetensors")
    for name, value in load_file(tmp_path / "kept" / "model.safetensors").items():
        assert torch.equal(value, source[name])
    wide = load_file(tmp_path / "wide" / "model.safetensors")
    assert wide.keys() == source.keys()
    assert all(value.dtype == torch.float32 and torch.equal(value, source[n].float()) for n, value in wide.items())
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_names_go_both_ways():
    sizes = {"vocab_size": 10, "dim": 8, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 12}
    for experts in (0, 3):
        config = ModelConfig(**sizes, num_experts=experts)
        names = [name for name, _ in expected_tensors(config)]
        assert len(set(names)) == len(names)
        assert [from_huggingface(to_huggingface(name)) for name in names] == names
    for name in ("model.layers.01.mlp.up_proj.weight", "model.layers.٣.mlp.up_proj.weight", "model.extra", "x", ""):
        assert from_huggingface(name) is None


@pytest.mark.parametrize(
    "form", [{}, {"tie_embeddings": True}, {"num_experts": 3}, {"num_experts": 3, "moe_layers": (1,)}], ids=str
)
def test_expected_tensors_are_those_of_the_model(form):
    sizes = {"vocab_size": 10, "dim": 8, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 12, "head_dim": 6}
    config = ModelConfig(**sizes, **form)
    model = {tensor.name: tensor.shape for tensor in flat_tensors(meta_model(config))}
    assert dict(expected_tensors(config)) == model


def change_config(directory, **changes):
    path = directory / "config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value != "ABSENT"}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2'.*supported: mistral, ministral, llama, mixtral"),
        ({"model_type": "mistrall"}, "did you mean 'mistral'"),
        ({"model_type": "ABSENT"}, "model_type is 'None'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_parameters": {"rope_type": "su", "rope_theta": 1e4, "factor": 4}}, "rope_parameters.rope_type is 'su'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling and rope_parameters say different things"),
        ({"hidden_size": "32"}, "hidden_size is '32'; expected a positive whole number"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"num_key_value_heads": 3}, "n_kv_heads"),
        ({"num_hidden_layers": 2_000_000_000}, r"model\.layers\.2\.input_layernorm\.weight' is missing"),
        ({"num_hidden_layers": 1}, "is not one that the config describes"),
        ({"vocab_size": 98}, r"'model\.embed_tokens\.weight' has shape \[97, 32\], the config asks for \[98, 32\]"),
        ({"intermediate_size": 49}, "has shape"),
    ],
)
def test_an_unsupported_config_is_one_line_that_names_it(mistral_directory, changes, message):
    change_config(mistral_directory, **changes)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(mistral_directory)
    assert str(mistral_directory) in str(caught.value) and "\n" not in str(caught.value)


def test_older_configs_say_rope_theta(mistral_directory):
    change_config(mistral_directory, rope_parameters="ABSENT", rope_theta=12345.0, head_dim="ABSENT", rope_scaling=None)
    config = read_config(mistral_directory)
    assert config.rope_theta == 12345.0 and config.head_dim == 8


@pytest.mark.parametrize("content", ["", "{", "[]", "nan", '{"a"', "[" * 100_000])
def test_a_damaged_config_json(mistral_directory, content):
    (mistral_directory / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(mistral_directory)


def sharded(directory, hf_model, kind="mistral"):
    hf_model(kind).save_pretrained(directory, max_shard_size="30KB")
    return sorted(directory.glob("model-*.safetensors"))


def test_missing_truncated_and_flipped_shards(tmp_path, hf_model):
    shards = sharded(tmp_path, hf_model)
    content = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"{shards[1].name} is missing.*download"):
        load_model(tmp_path)
    shards[1].write_bytes(content[:-5])
    with pytest.raises(UserError, match=rf"{shards[1].name}.*cut"):
        load_model(tmp_path)
    shards[1].write_bytes(b"\xff" + content[1:])
    with pytest.raises(UserError, match=shards[1].name):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", "x.bin"])
def test_shard_names_stay_inside(tmp_path, hf_model, name):
    sharded(tmp_path, hf_model)
    index = tmp_path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(document))
    words = "only .safetensors files are read" if name == "x.bin" else "expected a plain file name inside"
    with pytest.raises(UserError, match=rf"{re.escape(index.name)} names.*{words}"):
        load_model(tmp_path)


def test_a_whole_shard_outside_of_the_directory_is_not_read(tmp_path, hf_model):
    (tmp_path / "model").mkdir()
    shards = sharded(tmp_path / "model", hf_model)
    shards[0].rename(tmp_path / shards[0].name)
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shards[0].name, f"../{shards[0].name}"))
    with pytest.raises(UserError, match="expected a plain file name inside"):
        load_model(tmp_path / "model")


def test_a_tensor_in_two_shards_or_in_another_or_in_none(tmp_path, hf_model):
    shards = sharded(tmp_path, hf_model)
    index = tmp_path / "model.safetensors.index.json"
    original = index.read_text()
    first, second = load_tensors(shards[0]), load_tensors(shards[1])
    name = next(iter(first))
    save_file({**second, name: first[name]}, shards[1])
    with pytest.raises(UserError, match=rf"'{re.escape(name)}' is both in"):
        load_model(tmp_path)
    save_file(second, shards[1])
    document = json.loads(original)
    document["weight_map"][name] = shards[1].name
    index.write_text(json.dumps(document))
    with pytest.raises(UserError, match="it is in"):
        load_model(tmp_path)
    document["weight_map"]["more"] = shards[1].name
    document["weight_map"][name] = shards[0].name
    index.write_text(json.dumps(document))
    with pytest.raises(UserError, match="'more' is missing"):
        load_model(tmp_path)
    for content in ("[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "x"):
        index.write_text(content)
        with pytest.raises(UserError, match=re.escape(index.name)):
            load_model(tmp_path)


def test_missing_extra_and_integer_tensors(mistral_directory):
    path = mistral_directory / "model.safetensors"
    (mistral_directory / "manifest.json").unlink(missing_ok=True)  # its checksums are of what was written
    tensors = load_tensors(path)
    missing = {name: value for name, value in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    extra = {**tensors, "model.layers.1.self_attn.q_proj.bias": torch.zeros(32)}
    integer = {**tensors, "model.norm.weight": torch.ones(32, dtype=torch.int8)}
    for changed, message in (
        (missing, r"model\.safetensors: tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        (extra, r"q_proj\.bias' is not one that the config describes"),
        (integer, "'model.norm.weight' has dtype int8"),
    ):
        save_file(changed, path)
        with pytest.raises(UserError, match=message):
            load_model(mistral_directory)
    save_file({**tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, path)
    load_model(mistral_directory)


def test_paths_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_model(tmp_path / "nothing")
    with pytest.raises(UserError, match="not in a known format"):
        load_model(tmp_path)
    (tmp_path / "file.bin").write_bytes(b"x")
    with pytest.raises(UserError, match="not in a known format"):
        load_model(tmp_path / "file.bin")


def test_pickles_are_never_read(mistral_directory):
    (mistral_directory / "model.safetensors").rename(mistral_directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="never read"):
        load_model(mistral_directory)
