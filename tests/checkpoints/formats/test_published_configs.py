"""Checkpoints with the settings of published models, narrow and random: every format gives transformers' logits."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.model_io import load_model, read_config
from tests.checkpoints.formats.test_consolidated import write_consolidated

MISTRAL = {
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
V1 = {**MISTRAL, "sliding_window": 4096, "rope_theta": 1e4, "vocab_size": 32000}
V2 = {**MISTRAL, "sliding_window": None, "rope_theta": 1e6, "vocab_size": 32000}
# Kind, and settings as in the published config.json; those of the Instruct models are those of their bases.
MODELS = {
    "Mistral-7B-v0.1": ("mistral", V1),
    "Mistral-7B-v0.2": ("mistral", V2),
    "Mistral-7B-v0.3": ("mistral", {**V2, "vocab_size": 32768}),
    "Mixtral-8x7B-v0.1": (
        "mixtral",
        V2 | {"num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02},
    ),
    "Llama-2-7b": (
        "llama",
        {**MISTRAL, "max_position_embeddings": 4096, "num_key_value_heads": 4, "vocab_size": 32000}
        | {"pretraining_tp": 1, "rope_theta": 1e4},
    ),
}
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture
def published(hf_model, tmp_path):
    """Writes a published model's directory, with its older config.json; gives also what transformers reads there."""

    def make(name: str, dtype: torch.dtype, shards: bool):
        from transformers import AutoModelForCausalLM

        kind, settings = MODELS[name]
        settings = dict(settings)
        theta = settings.pop("rope_theta")
        model = hf_model(kind, rope_parameters={"rope_theta": theta, "rope_type": "default"}, **settings).to(dtype)
        directory = tmp_path / "hf"
        model.save_pretrained(directory, max_shard_size="2MB" if shards else "1GB")
        assert (directory / "model.safetensors.index.json").exists() == shards
        written = json.loads((directory / "config.json").read_text())
        written = {key: value for key, value in written.items() if key not in ("rope_parameters", "dtype", "head_dim")}
        written |= {"rope_theta": theta, "rope_scaling": None, "torch_dtype": str(dtype).removeprefix("torch.")}
        (directory / "config.json").write_text(json.dumps(written))
        return directory, AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    return make


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", MODELS)
def test_huggingface_and_consolidated_round_trips(tmp_path, published, hf_logits, our_logits, name, dtype):
    from transformers import AutoModelForCausalLM

    directory, theirs = published(name, dtype, shards=dtype != torch.float16)
    expected = hf_logits(theirs)
    settings = MODELS[name][1]
    config = read_config(directory)
    assert (config.rope_theta, config.vocab_size) == (settings["rope_theta"], settings["vocab_size"])
    assert config.sliding_window == settings.get("sliding_window") and config.head_dim == 8
    sources = [directory]
    if "llama" not in name.lower():
        parts = 1 if dtype == torch.float16 else 3
        sources.append(write_consolidated(tmp_path / "own", theirs.to(dtype), parts))
        theirs.float()
    for source in sources:
        out = tmp_path / f"from-{source.name}"
        assert main(["convert", str(source), str(out)]) == 0
        again = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        again.set_attn_implementation(theirs.config._attn_implementation)
        assert torch.equal(hf_logits(again), expected)
        loaded = load_model(source)
        assert (our_logits(loaded.model) - expected).abs().max() <= 1e-5 * expected.abs().max()
