"""GGUF metadata: every key that changes the model is honored as llama.cpp does, or refused by name."""

from __future__ import annotations

import math

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model, read_config
from moe.errors import UserError
from moe.rope import RopeScaling
from tests.checkpoints.formats.test_config_keys import close, logits_of_transformers, our_logits
from tests.checkpoints.formats.test_gguf import Kind, to_interleaved_rotary, write_gguf

gguf = pytest.importorskip("gguf")
THETA = {"rope_theta": 1e4}


def with_keys(**keys):
    """Adds metadata keys under ``llama.``; dots are written as two underscores."""

    def extra(writer):
        for name, value in keys.items():
            key = "llama." + name.replace("__", ".")
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, float):
                writer.add_float32(key, value)
            elif isinstance(value, list):
                writer.add_array(key, value)
            else:
                writer.add_string(key, value)

    return extra


LINEAR = {"rope_type": "linear", "factor": 4.0, **THETA}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **THETA}
SAME = [  # keys of a file, and what transformers calls them
    ({"rope__scale_linear": 4.0}, LINEAR),
    ({"rope__scaling__factor": 4.0}, LINEAR),
    ({"rope__scaling__factor": 4.0, "rope__scale_linear": 2.0}, LINEAR),
    ({"rope__scaling__type": "linear", "rope__scale_linear": 4.0, "rope__scaling__finetuned": True}, LINEAR),
    ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, LINEAR),
    ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, {"rope_type": "default", **THETA}),
    ({"rope__scaling__type": "linear"}, {"rope_type": "default", **THETA}),
    (
        {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 16},
        YARN,
    ),
    (
        {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 16}
        | {"rope__scaling__yarn_beta_fast": 6.0, "rope__scaling__yarn_beta_slow": 2.0},
        {**YARN, "beta_fast": 6.0, "beta_slow": 2.0},
    ),
    (
        {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 16}
        | {"rope__scaling__attn_factor": 1.5},
        {**YARN, "attention_factor": 1.5 * (1 + 0.1 * math.log(4))},
    ),
]


@pytest.mark.parametrize(("keys", "rope"), SAME, ids=lambda value: " ".join(map(str, value)))
def test_scaled_rotary_embeddings(tmp_path, hf_model, keys, rope):
    theirs = hf_model("llama", rope_parameters=dict(rope))
    path = tmp_path / "model.gguf"
    write_gguf(path, theirs, extra=with_keys(**keys))
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits_of_transformers(tmp_path / "theirs")
    assert close(our_logits(path), expected)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert close(logits_of_transformers(tmp_path / "out"), expected)
    assert read_config(tmp_path / "out") == read_config(path)


@pytest.mark.parametrize("linear", [1.0, 2.0])
def test_frequency_factors_of_llama_3_files(tmp_path, hf_model, linear):
    """llama.cpp's converter computes these from the settings of ``llama3`` and stores them as a tensor."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 32, **THETA}
    theirs = hf_model("llama", rope_parameters=rope)
    plain = 1 / 1e4 ** (torch.arange(0, 8, 2) / 8)
    factors = plain / theirs.model.rotary_emb.inv_freq
    assert factors.max() == 8 and factors.min() == 1
    path = tmp_path / "model.gguf"

    def extra(writer):
        writer.add_tensor("rope_freqs.weight", (factors / linear).numpy(), raw_dtype=Kind.F32)
        writer.add_float32("llama.rope.scaling.factor", linear)

    write_gguf(path, theirs, extra=extra)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits_of_transformers(tmp_path / "theirs")
    assert close(our_logits(path), expected)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert close(logits_of_transformers(tmp_path / "out"), expected)
    assert read_config(tmp_path / "out").rope_scaling.kind == "factors"


def test_biases_and_a_pattern_of_windows(tmp_path, hf_model):
    theirs = hf_model("llama", attention_bias=True)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
    path = tmp_path / "model.gguf"
    write_with_biases(path, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    assert close(our_logits(path), logits_of_transformers(tmp_path / "theirs"))
    plain = hf_model("mistral", sliding_window=6)
    keys = {"attention__sliding_window": 6, "attention__sliding_window_pattern": [True, False]}
    write_gguf(path, plain, extra=with_keys(**keys))
    assert read_config(path).sliding_layers == (0,)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 0
    assert close(our_logits(path), logits_of_transformers(tmp_path / "out"))
    write_gguf(path, plain, extra=with_keys(attention__sliding_window=0))
    assert read_config(path).sliding_window is None


def write_with_biases(path, model):
    """The converter interleaves the biases of q and k as it does their rows."""
    heads = {"q": model.config.num_attention_heads, "k": model.config.num_key_value_heads}
    ours = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output"}
    biases = {}
    for name, value in model.state_dict().items():
        if name.endswith("bias"):
            layer, kind = name.split(".")[2], name.split(".")[4][0]
            value = value.detach()
            if kind in heads:
                value = to_interleaved_rotary(value[:, None], heads[kind])[:, 0]
            biases[f"blk.{layer}.{ours[kind]}.bias"] = value.contiguous().numpy()

    def extra(writer):
        for name, value in biases.items():
            writer.add_tensor(name, value, raw_dtype=Kind.F32)

    state = model.state_dict

    def without_biases(*args, **kwargs):
        return {name: value for name, value in state(*args, **kwargs).items() if not name.endswith("bias")}

    model.state_dict = without_biases
    write_gguf(path, model, extra=extra)
    del model.state_dict


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope__scaling__type": "longrope"}, "llama.rope.scaling.type is 'longrope'"),
        ({"rope__scaling__attn_factor": 1.5}, "llama.rope.scaling.attn_factor"),
        ({"rope__scaling__alpha": 100.0}, "llama.rope.scaling.alpha"),
        ({"rope__scaling__factor": -2.0}, "llama.rope.scaling.factor"),
        ({"rope__scaling__yarn_ext_factor": 1.0}, "llama.rope.scaling.yarn_ext_factor"),
        ({"rope__scaling__type": "yarn", "rope__scaling__yarn_log_multiplier": 0.1}, "yarn_log_multiplier"),
        ({"rope__freq_base_swa": 1e6}, "llama.rope.freq_base_swa"),
        ({"rope__dimension_sections": [4, 4]}, "llama.rope.dimension_sections"),
        ({"logit_scale": 0.5}, "llama.logit_scale is '0.5'; expected 0 or 1 or nothing"),
        ({"residual_scale": 0.22}, "llama.residual_scale"),
        ({"embedding_scale": 12.0}, "llama.embedding_scale"),
        ({"attn_logit_softcapping": 50.0}, "llama.attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "llama.final_logit_softcapping"),
        ({"attention__scale": 0.25}, "llama.attention.scale"),
        ({"attention__clamp_kqv": 8.0}, "llama.attention.clamp_kqv"),
        ({"attention__causal": False}, "llama.attention.causal is 'False'; expected True"),
        ({"attention__temperature_length": 8192}, "llama.attention.temperature_length"),
        ({"attention__sliding_window": 6, "attention__sliding_window_pattern": 4}, "sliding_window_pattern is '4'"),
        ({"expert_gating_func": 2}, "llama.expert_gating_func"),
        ({"expert_weights_scale": 2.5}, "llama.expert_weights_scale"),
        ({"expert_weights_norm": False}, "llama.expert_weights_norm"),
        ({"expert_shared_count": 1}, "llama.expert_shared_count"),
        ({"leading_dense_block_count": 1}, "llama.leading_dense_block_count"),
        ({"use_parallel_residual": True}, "llama.use_parallel_residual"),
        ({"a_key_of_tomorrow": 1}, "llama.a_key_of_tomorrow is '1'; expected nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_keys_that_are_not_read_are_refused_by_name(tmp_path, hf_model, keys, message):
    write_gguf(tmp_path / "model.gguf", hf_model("llama"), extra=with_keys(**keys))
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(tmp_path / "model.gguf")
    assert "\n" not in str(caught.value)


def test_keys_at_their_neutral_values(tmp_path, hf_model):
    theirs = hf_model("llama")
    write_gguf(tmp_path / "plain.gguf", theirs)
    keys = {"logit_scale": 1.0, "expert_gating_func": 1, "attention__causal": True, "vocab_size": 97}
    keys |= {"attn_logit_softcapping": 0.0, "tensor_data_layout": "Meta AI original pth", "rope__scaling__factor": 0.0}
    write_gguf(tmp_path / "keys.gguf", theirs, extra=with_keys(**keys))
    assert torch.equal(our_logits(tmp_path / "keys.gguf"), our_logits(tmp_path / "plain.gguf"))


def test_every_key_of_the_gguf_library_is_known_or_refused(tmp_path, hf_model):
    """Walks the keys of the installed library: none passes unseen with a value that no model of ours has."""
    theirs = hf_model("llama")
    groups = (gguf.Keys.LLM, gguf.Keys.Attention, gguf.Keys.Rope, gguf.Keys.SSM)
    keys = {
        key for group in groups for key in vars(group).values() if isinstance(key, str) and key.startswith("{arch}")
    }
    write_gguf(tmp_path / "plain.gguf", theirs)
    known = set(open_checkpoint(tmp_path / "plain.gguf").settings)
    expected = our_logits(tmp_path / "plain.gguf")
    accepted = []
    for key in sorted(key.format(arch="llama", dense="dense") for key in keys):
        if key in known or key == "llama.expert_count":  # which needs tensors of experts
            continue
        write_gguf(tmp_path / "one.gguf", theirs, extra=lambda writer, key=key: writer.add_uint32(key, 3))
        try:
            found = our_logits(tmp_path / "one.gguf")
        except UserError as error:
            assert key in str(error)
        else:
            accepted.append(key.removeprefix("llama.") if torch.equal(found, expected) else f"{key} changes logits")
    honored = {"rope.scaling.factor changes logits", "attention.sliding_window changes logits"}
    harmless = {"vocab_size", "tensor_data_layout", "attention.layer_norm_epsilon", "rope.scaling.finetuned"}
    unused = {"rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
    unused |= {"expert_used_count", "attention.sliding_window_pattern"}  # without yarn, experts, a window
    assert {name.removeprefix("llama.") for name in accepted} <= honored | harmless | unused, accepted


def test_a_scaling_says_what_is_wrong():
    with pytest.raises(UserError, match="kind of rope_scaling is 'su'"):
        RopeScaling("su")
    for values in ({"kind": "linear", "factor": "4"}, {"kind": "linear", "other": 1}, [], {"factor": 2.0}):
        with pytest.raises(UserError, match="rope_scaling"):
            RopeScaling.from_dict(values)
    scaling = RopeScaling("factors", frequency_factors=(1.0, 2.0))
    assert RopeScaling.from_dict({"kind": "factors", "frequency_factors": [1.0, 2.0]}) == scaling
    for wrong in ({"factor": 0.0}, {"original_max_position": 0}, {"factor": math.inf}, {"frequency_factors": (1.0,)}):
        with pytest.raises(UserError):
            RopeScaling(**{"kind": "yarn", "factor": 2.0, "original_max_position": 8, **wrong})


def test_a_delta_of_a_scaled_base_keeps_its_settings(tmp_path, hf_model):
    hf_model("llama", rope_parameters=dict(YARN)).save_pretrained(tmp_path / "base")
    assert main(["upcycle", str(tmp_path / "base"), str(tmp_path / "moe"), "--languages", "python", "java"]) == 0
    assert load_model(tmp_path / "moe").config.rope_scaling == read_config(tmp_path / "base").rope_scaling
    assert close(our_logits(tmp_path / "moe"), logits_of_transformers(tmp_path / "base"))
