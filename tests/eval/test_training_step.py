"""The step of Mistral-7B's shape, here of a tiny one: it trains, it measures, and it says when there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch

from eval import training_step
from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.training.config import RunConfig, load_preset, make_config


def test_both_stages_are_measured(tiny_config):
    config = RunConfig(max_tokens=24, tokens_per_batch=64, shared_rank=2, expert_rank=2, activation_checkpointing=True)
    result = training_step.measure(tiny_config, config, torch.device("cpu"), torch.float32, steps=2)
    for stage in ("branch", "mix"):
        assert len(result[stage]["losses"]) == 2 and all(map(math.isfinite, result[stage]["losses"]))
        assert result[stage]["tokens_per_second"] > 0
    assert result["limit_gib"] == 22


def test_the_plan_of_the_preset_fits_under_the_limit():
    config = make_config(load_preset("mistral-7b-24gb"), {"base": "random", "data": "random"})
    ranks = {"shared_rank": config.shared_rank, "expert_rank": config.expert_rank}
    shape = ModelConfig(**MISTRAL_7B._asdict(), num_experts=4, expert_form="delta", **ranks)
    plan = training_step.plan_memory(shape, config.tokens_per_batch, torch.bfloat16, config.activation_checkpointing)
    assert plan.total < training_step.LIMIT


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        training_step.main([str(tmp_path / "out.json")])
    assert capsys.readouterr().err == "error: no GPU that torch can use was found\n"
    with pytest.raises(SystemExit, match="2"):
        training_step.main([])
    assert "the following arguments are required: OUT.json" in capsys.readouterr().err
