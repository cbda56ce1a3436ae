"""Tiny models of each format, written the way that transformers and other tools write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.fixture
def hf_model():
    """Makes a random transformers model: ``hf_model("mistral", tie_word_embeddings=True)``."""
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        MixtralConfig,
        MixtralForCausalLM,
    )

    classes = {
        "mistral": (MistralConfig, MistralForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
        "mixtral": (MixtralConfig, MixtralForCausalLM),
    }

    def make(kind: str, seed: int = 0, std: float = 0.2, **settings):
        config_class, model_class = classes[kind]
        sizes = {
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 256,
            "initializer_range": std,
        }
        if kind == "mixtral":
            sizes["num_local_experts"] = 4
        torch.manual_seed(seed)
        model = model_class(config_class(**{**sizes, **settings})).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        return model

    return make


@pytest.fixture
def hf_logits():
    """Logits of a transformers model for fixed tokens [2, 40]."""

    def run(model) -> torch.Tensor:
        with torch.no_grad():
            return model(sample_tokens(model.config.vocab_size)).logits

    return run


def sample_tokens(vocab_size: int) -> torch.Tensor:
    return torch.randint(0, vocab_size, (2, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def our_logits():
    """Logits of one of our models for the same tokens."""

    def run(model) -> torch.Tensor:
        with torch.no_grad():
            return model(sample_tokens(model.config.vocab_size)).logits

    return run


@pytest.fixture
def mistral_directory(tmp_path, hf_model) -> Path:
    """A dense Mistral directory as transformers writes it."""
    directory = tmp_path / "mistral"
    hf_model("mistral").save_pretrained(directory)
    return directory
