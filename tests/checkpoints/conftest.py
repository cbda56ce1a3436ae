"""Tiny models of each format, written the way that transformers and other tools write them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoints.model_io import save_model
from moe.config import ModelConfig


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
def mistral_directory(tmp_path, make_model) -> Path:
    """A dense Mistral directory; the parity tests show that ours is what transformers reads and writes."""
    config = ModelConfig(vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, max_seq_len=256)
    return save_model(make_model(config, dtype=torch.float32), None, tmp_path / "mistral")


@pytest.fixture
def run_child():
    """Runs a function in a forked process and returns its exit code; ``kill_after`` seconds it gets SIGKILL.

    Forking spares the seconds that a new interpreter takes to import torch. One thread: a fork copies no thread pools.
    """

    def run(function: Callable[[], object], kill_after: float | None = None) -> int:
        child = os.fork()
        if child == 0:
            try:
                torch.set_num_threads(1)
                function()
                os._exit(0)
            except BaseException:
                os._exit(1)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)  # the child is not waited for yet, so its number is still its own
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return run
