"""The step of Mistral-7B's shape, here of a tiny one: it trains, it measures, and it says when there is no GPU."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from eval import random_models, training_step
from kernels import int4
from kernels.packed import Int4Weights
from moe.training.config import load_preset, make_config
from moe.training.memory_plan import GIB

CPU = torch.device("cpu")


def test_both_bases_and_peft_are_measured(tmp_path):
    pytest.importorskip("peft", reason="peft is not installed")
    path = tmp_path / "out.json"
    assert training_step.main([str(path), "--smoke"]) == 0
    result = json.loads(path.read_text())
    assert result["limit_gib"] == 21.5 and result["int4"]["planned_gib"] < result["bf16"]["planned_gib"]
    for base in ("bf16", "int4"):
        for stage in ("branch", "mix"):
            assert len(result[base][stage]["losses"]) == 2 and all(map(math.isfinite, result[base][stage]["losses"]))
            assert result[base][stage]["tokens_per_second"] > 0
    assert result["peft"]["rank"] == 6 and result["peft"]["mix"]["tokens_per_second"] > 0


def test_a_side_that_fails_is_a_result_and_ours_an_error(tmp_path, monkeypatch, capsys):
    def full(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    path = tmp_path / "out.json"
    monkeypatch.setattr(training_step, "measure_peft", full)
    assert training_step.main([str(path), "--smoke"]) == 0
    assert "out of memory" in json.loads(path.read_text())["peft"]["error"]
    monkeypatch.setattr(training_step, "measure_ours", full)
    with pytest.raises(SystemExit, match="2"):
        training_step.main([str(path), "--smoke", "--quick"])
    assert "out.json says how" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["full", "delta"])
def test_a_packed_model_is_the_model_with_its_weights_rounded_to_int4(form):
    config = replace(
        random_models.TOY, num_experts=4, expert_form=form, **({"expert_rank": 2} if form == "delta" else {})
    )
    models = []
    for packed in (False, True):
        torch.manual_seed(0)
        models.append(random_models.random_model(config, CPU, torch.float32, packed).eval())
    whole, packed = models
    for ours, theirs in zip(whole.layers, packed.layers, strict=True):
        for name in ("w1", "w2", "w3"):
            if form == "full":
                weight, small = getattr(ours.feed_forward.experts, name), getattr(theirs.feed_forward.experts, name)
            else:
                weight = getattr(ours.feed_forward.base, name).weight
                small = getattr(theirs.feed_forward.base, name).weight
            assert isinstance(small, Int4Weights)
            exact = int4.unpack(int4.pack(weight)).view(weight.shape)
            weight.data.copy_(exact)
            assert torch.equal(exact, int4.unpack(small.weight()).view(weight.shape))
    tokens = torch.arange(40).remainder(60)[None]
    difference = (whole(tokens).logits - packed(tokens).logits).abs().max()
    assert difference < 1e-5 * whole(tokens).logits.abs().max()


def test_the_plans_fit_under_the_limit():
    config = make_config(load_preset("mistral-7b-24gb"), {"base": "random", "data": "random"})
    large = replace(config, shared_rank=48, expert_rank=16)
    for run, packed in ((config, False), (large, True)):
        shape = training_step.delta_config(random_models.SHAPE, run)
        planned = training_step.planned_bytes(shape, run, torch.bfloat16, packed, gpu=True)
        assert (5 if packed else 15) * GIB < planned < training_step.LIMIT


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        training_step.main([str(tmp_path / "out.json")])
    assert capsys.readouterr().err == "error: no GPU that torch can use was found\n"
    with pytest.raises(SystemExit, match="2"):
        training_step.main([])
    assert "the following arguments are required: OUT.json" in capsys.readouterr().err
