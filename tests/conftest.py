"""Shared by all tests: tiny models, the same model in transformers, and where optional data lies."""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from moe.config import ModelConfig
from moe.model import Transformer

ROOT = Path(__file__).resolve().parent.parent
# Two test processes on two cores: more threads than cores only wait for each other.
torch.set_num_threads(1 if os.environ.get("PYTEST_XDIST_WORKER") else (os.cpu_count() or 1))
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell that starts a job in the background has it ignore Ctrl-C, which tests send to themselves and to programs.
signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # what importing and collecting make stays: looking through it for garbage takes a quarter of the time


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()


def pytest_collection_modifyitems(items):
    # Files with long tests first: one that starts last leaves the other process idle.
    long = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in long)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


# Why tests are skipped, by a word of the reason that they give.
SKIPPED = {
    "shared/data": "no shared data folder (set SHARED_DIR)",
    "SHARED_DIR": "no shared data folder (set SHARED_DIR)",
    "SmolLM2": "no SmolLM2 (set SMOLLM2_GGUF)",
    "CONVERT_HF_TO_GGUF": "no llama.cpp converter (set CONVERT_HF_TO_GGUF)",
    "CUDA": "no CUDA GPU",
}


def pytest_terminal_summary(terminalreporter):
    """Counts the skipped tests by reason, in one line."""
    reasons = [report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", [])]
    counts = Counter(next((short for word, short in SKIPPED.items() if word in reason), reason) for reason in reasons)
    if counts:
        listed = "; ".join(f"{reason}: {number}" for reason, number in counts.most_common())
        terminalreporter.write_line(f"{len(reasons)} tests skipped: {listed}")


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder ``shared/data`` beside the repository (or in SHARED_DIR); tests that need it are skipped without."""
    folder = Path(os.environ.get("SHARED_DIR", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the repository")
    return folder


@pytest.fixture
def tiny_config() -> ModelConfig:
    """A dense model of a few thousand parameters."""
    return ModelConfig(vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, max_seq_len=128)


@pytest.fixture
def make_model():
    """Makes a randomly initialized model; float64 and a wide init, so that differences would show."""

    def make(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float64, std: float = 0.2) -> Transformer:
        model = Transformer(config).reset(seed, std).to(dtype)
        with torch.no_grad():  # a delta that changes nothing would test nothing
            generator = torch.Generator().manual_seed(seed + 1)
            for name, parameter in model.named_parameters():
                if "delta" in name.rsplit(".", 2)[-2] and name[-2] == "b":
                    parameter.normal_(0.0, std, generator=generator)
        return model

    return make


@pytest.fixture(scope="session")
def from_transformers():
    """Copies a transformers Llama, Mistral or Mixtral model into ours."""

    def convert(theirs, dtype: torch.dtype) -> Transformer:
        c = theirs.config
        moe = c.model_type == "mixtral"
        config = ModelConfig(
            vocab_size=c.vocab_size,
            dim=c.hidden_size,
            n_layers=c.num_hidden_layers,
            n_heads=c.num_attention_heads,
            n_kv_heads=c.num_key_value_heads,
            hidden_dim=c.intermediate_size,
            head_dim=getattr(c, "head_dim", None) or 0,
            norm_eps=c.rms_norm_eps,
            rope_theta=c.rope_parameters["rope_theta"],
            max_seq_len=c.max_position_embeddings,
            sliding_window=getattr(c, "sliding_window", None),
            tie_embeddings=c.tie_word_embeddings,
            num_experts=c.num_local_experts if moe else 0,
            num_experts_per_tok=c.num_experts_per_tok if moe else 2,
        )
        ours = Transformer(config).to(dtype)
        state = {}
        for name, tensor in theirs.state_dict().items():
            for old, new in (
                ("model.embed_tokens", "tok_embeddings"),
                ("lm_head", "output"),
                ("model.", ""),
                ("self_attn.q_proj", "attention.wq"),
                ("self_attn.k_proj", "attention.wk"),
                ("self_attn.v_proj", "attention.wv"),
                ("self_attn.o_proj", "attention.wo"),
                ("input_layernorm", "attention_norm"),
                ("post_attention_layernorm", "ffn_norm"),
                ("mlp.gate_proj", "feed_forward.w1"),
                ("mlp.up_proj", "feed_forward.w3"),
                ("mlp.down_proj", "feed_forward.w2"),
                ("mlp.gate.", "feed_forward.gate."),
                ("mlp.experts.down_proj", "feed_forward.experts.w2"),
            ):
                name = name.replace(old, new)
            if name.endswith("mlp.experts.gate_up_proj"):
                prefix = name.replace("mlp.experts.gate_up_proj", "feed_forward.experts.")
                state[prefix + "w1"], state[prefix + "w3"] = tensor.chunk(2, dim=1)
            elif not (name == "output.weight" and config.tie_embeddings):
                state[name] = tensor
        ours.load_state_dict(state)
        return ours

    return convert
