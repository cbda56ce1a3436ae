"""Mistral's own format: the same logits as the Hugging Face layout of the same model."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model
from moe.errors import UserError
from tests.checkpoints.rotary import to_interleaved_rotary

NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers": "layers",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.gate.": "feed_forward.gate.",
}


def write_consolidated(directory, model, parts=1, moe_name="feed_forward", **changes):
    """Writes a transformers model as Mistral publishes its own: reference names, q and k interleaved."""
    config = model.config
    tensors = {}
    for name, value in model.state_dict().items():
        short = name
        for theirs, ours in NAMES.items():
            short = short.replace(theirs, ours)
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
        if match := re.search(r"attention\.w([qk])", short):
            value = to_interleaved_rotary(value, heads[match[1]])
        if "experts.gate_up_proj" in name or "experts.down_proj" in name:
            layer = name.split(".")[2]
            pieces = zip(("w1", "w3"), value.chunk(2, dim=1)) if "gate_up" in name else [("w2", value)]
            for weight, stack in pieces:
                for expert, matrix in enumerate(stack):
                    tensors[f"layers.{layer}.{moe_name}.experts.{expert}.{weight}.weight"] = matrix.contiguous()
        else:
            tensors[short.replace(".feed_forward.gate", f".{moe_name}.gate")] = value.contiguous()
    params = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "hidden_dim": config.intermediate_size,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "norm_eps": config.rms_norm_eps,
        "vocab_size": config.vocab_size,
        "rope_theta": config.rope_parameters["rope_theta"],
        "sliding_window": config.sliding_window,
    }
    if config.model_type == "mixtral":
        experts = {"num_experts": config.num_local_experts, "num_experts_per_tok": config.num_experts_per_tok}
        params["moe"] = experts
    directory.mkdir()
    params = {key: value for key, value in (params | changes).items() if value != "ABSENT"}
    (directory / "params.json").write_text(json.dumps(params))
    names = list(tensors)
    if parts == 1:
        save_file(tensors, directory / "consolidated.safetensors")
    for part in range(parts if parts > 1 else 0):
        group = {name: tensors[name] for name in names[part::parts]}
        save_file(group, directory / f"consolidated-{part + 1:05d}-of-{parts:05d}.safetensors")
    return directory


@pytest.mark.parametrize(
    ("kind", "parts", "settings"),
    [
        ("mistral", 1, {"sliding_window": None, "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
        ("mistral", 1, {"sliding_window": 9, "head_dim": 16}),
        ("mistral", 3, {"sliding_window": None, "num_key_value_heads": 1}),
        ("mixtral", 2, {"sliding_window": None}),
    ],
)
def test_the_same_logits_as_the_hugging_face_layout(tmp_path, hf_model, hf_logits, our_logits, kind, parts, settings):
    theirs = hf_model(kind, **settings)
    moe_name = "block_sparse_moe" if parts == 2 else "feed_forward"
    loaded = load_model(write_consolidated(tmp_path / "own", theirs, parts, moe_name))
    expected = hf_logits(theirs)
    assert (our_logits(loaded.model) - expected).abs().max() <= 1e-5 * expected.abs().max()
    theirs.save_pretrained(tmp_path / "hf")
    assert torch.equal(our_logits(load_model(tmp_path / "hf").model), our_logits(loaded.model))


@pytest.mark.parametrize(("windows", "sliding"), [([6, None], (0, 2)), ([None, None, 6, 6], (2, 3)), ([6], None)])
def test_a_pattern_of_windows(tmp_path, hf_model, windows, sliding):
    from tests.checkpoints.formats.test_config_keys import change, close, logits_of_transformers, our_logits

    theirs = hf_model("mistral", sliding_window=6, num_hidden_layers=4)
    write_consolidated(tmp_path / "own", theirs, sliding_window=windows)
    assert open_checkpoint(tmp_path / "own").config.sliding_layers == sliding
    theirs.save_pretrained(tmp_path / "hf")
    kinds = ["full_attention" if windows[i % len(windows)] is None else "sliding_attention" for i in range(4)]
    change(tmp_path / "hf", layer_types=kinds)
    assert close(our_logits(tmp_path / "own"), logits_of_transformers(tmp_path / "hf"))


def test_old_files_leave_rope_theta_out(tmp_path, hf_model):
    for window, theta in ((None, 1e6), (4096, 1e4)):
        model = hf_model("mistral", sliding_window=window)
        directory = write_consolidated(tmp_path / str(window), model, rope_theta="ABSENT")
        assert open_checkpoint(directory).config.rope_theta == theta


def test_both_layouts_in_one_directory_use_the_hugging_face_one(tmp_path, hf_model):
    model = hf_model("mistral")
    directory = write_consolidated(tmp_path / "both", model)
    model.save_pretrained(directory)
    assert open_checkpoint(directory).format == "huggingface"
    (directory / "model.safetensors").unlink()
    assert open_checkpoint(directory).format == "consolidated"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 4}}, "lora is"),
        ({"quantization": {"qformat_weight": "fp8"}}, "quantization is"),
        ({"dim": "ABSENT"}, "dim is 'None'; expected a positive whole number"),
        ({"n_layers": 3}, r"'layers\.2\.attention_norm\.weight' is missing"),
        ({"n_heads": 8}, r"'layers\.0\.attention\.wq\.weight' has shape"),
        ({"moe": 3}, "moe is '3'"),
        ({"moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}}, "moe.num_shared_experts is"),
        ({"yarn": {"factor": 4.0}}, "yarn is"),
        ({"causal": False}, "causal is 'False'"),
        ({"use_biases": True}, "use_biases is 'True'"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping is '30.0'"),
        ({"_sliding_window": [4, None]}, "_sliding_window is"),
        ({"sliding_window": [4, 8]}, "sliding_window is"),
        ({"sliding_window": [4, None, None]}, "sliding_window is"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
    ],
)
def test_params_that_do_not_fit(tmp_path, hf_model, changes, message):
    directory = write_consolidated(tmp_path / "own", hf_model("mistral"), **changes)
    with pytest.raises(UserError, match=message) as caught:
        open_checkpoint(directory)
    assert str(directory) in str(caught.value)


def test_missing_parts(tmp_path, hf_model):
    directory = write_consolidated(tmp_path / "own", hf_model("mistral"), parts=3)
    (directory / "consolidated-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="2 of 3 consolidated files"):
        open_checkpoint(directory)
    for path in directory.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UserError, match=r"no consolidated\.safetensors"):
        open_checkpoint(directory)
