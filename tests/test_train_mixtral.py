"""`python train.py` with a base that is a mixture already."""

from __future__ import annotations

from dataclasses import replace

import torch

from checkpoints.model_io import load_model, save_model
from moe.config import ModelConfig
from moe.data.sources import load_data
from moe.model import Transformer
from moe.training.tiny_base import train_tiny_tokenizer
from tests.train_command import CONTEXT, train


def test_a_mixtral_base_is_trained_further(tmp_path):
    """Its experts and routers are kept, learn, and are written as Mixtral; nothing is fitted anew."""
    pairs = load_data("synthetic", ("python", "cpp"), seed=0, train_pairs=60).train
    tokenizer = train_tiny_tokenizer(pairs, tmp_path / "tokenizer", 0)
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "max_seq_len": 512}
    config = ModelConfig(tokenizer.vocab_size, **sizes, num_experts=2, num_experts_per_tok=1)
    before = Transformer(config).reset(3)
    base = save_model(before, tokenizer, tmp_path / "mixtral", template="plain")
    flags = [
        *CONTEXT,
        "--base",
        base,
        "--expert-form",
        "full",
        "--runs",
        tmp_path,
        "--name",
        "r",
        "--max-tokens",
        "320",
    ]
    done = train(*flags)
    assert "it is a mixture" in done.stdout and "max |Δlogit| 0.000e+00" in done.stdout
    assert "router fitted" not in done.stdout and "dense adapter" not in (tmp_path / "r" / "report.md").read_text()
    after = load_model(tmp_path / "r" / "model")
    assert after.config == replace(config, expert_languages=("python", "cpp"), z_loss_weight=after.config.z_loss_weight)
    for name in ("feed_forward.experts.w1", "feed_forward.gate.weight", "attention.wq.weight"):
        first, second = (model.get_parameter(f"layers.1.{name}") for model in (before, after.model))
        assert torch.equal(first, second) == ("attention" in name)
        assert (first - second).abs().max() < 0.2, "training goes on from what was there"
    for more, message in (
        (["--languages", "python", "cpp", "java"], "a mixture of 2 experts, and 3 languages are named"),
        (["--expert-form", "delta"], "add --expert-form full to train its experts further"),
    ):
        refused = train(*flags[:-4], "--dry-run", *more, check=False)
        assert refused.returncode == 2 and message in refused.stderr
    again = ["--languages", "cpp", "python", "--base", tmp_path / "r" / "model", "--dry-run"]
    refused = train(*flags[:-4], *again, check=False)
    assert refused.returncode == 2 and "the base has experts for python cpp" in refused.stderr
