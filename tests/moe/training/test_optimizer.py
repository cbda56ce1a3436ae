"""AdamW with averages of 8 bits, as bitsandbytes keeps them."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from checkpoints.runs.state import load_train_state, save_train_state
from moe.data.packing import MixedBatches
from moe.errors import UserError
from moe.model import Transformer
from moe.training.config import RunConfig
from moe.training.memory_plan import plan_memory
from moe.training.optimizer import make_optimizer, require_bitsandbytes
from moe.training.stages import is_router, make_stage
from moe.training.trainer import StageState, Trainer
from tests.moe.training.ranks import CONFIG, LANGUAGES, SHAPES, examples

SHAPE = replace(SHAPES["full"], dim=64, hidden_dim=136)  # 136 x 64 x 2 values are 68 blocks
BATCHES = MixedBatches({name: examples(i) for i, name in enumerate(LANGUAGES)}, CONFIG.tokens_per_batch, seed=0)
EIGHT = replace(CONFIG, expert_form="full", optimizer_bits=8)


def trainer(config: RunConfig) -> Trainer:
    return Trainer(Transformer(SHAPE).reset(0, 0.2), make_stage("mix", config), BATCHES, LANGUAGES, config)


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_eight_bits_learn_about_the_same_and_resume_to_the_bit(tmp_path):
    wide, whole, broken = trainer(replace(EIGHT, optimizer_bits=32)), trainer(EIGHT), trainer(EIGHT)
    losses = [[report.loss for report in one.run()] for one in (wide, whole)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)
    broken.train_step(), broken.train_step()
    save_train_state(tmp_path, broken.state().tensors, {"step": 2})
    resumed = trainer(EIGHT)
    resumed.restore(StageState("mix", 2, load_train_state(tmp_path)[0]))
    assert len(list(resumed.run())) == 2
    wanted, found = whole.state().tensors, resumed.state().tensors
    assert wanted.keys() == found.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    kept = [tensor for name, tensor in found.items() if name.rpartition("/")[2] in ("state1", "state2")]
    scales = [tensor for name, tensor in found.items() if name.rpartition("/")[2] in ("absmax1", "absmax2")]
    counted = sum(tensor.nbytes for tensor in (*scales, *(tensor for tensor in kept if tensor.dtype == torch.uint8)))
    assert counted == plan_memory(SHAPE, 64, torch.float32, False, optimizer_bits=8).optimizer
    routers = [name for name in resumed.parameters if is_router(name)]
    assert all(found[f"optimizer/{name}/state1"].dtype == torch.float32 for name in routers)


@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_experts_without_a_gradient_stay_as_they_are_in_eight_bits():
    experts = torch.nn.Parameter(torch.randn(3, 50, 37))  # experts that do not end with a block
    first, stage = experts.detach().clone(), make_stage("preferences", EIGHT)
    optimizer = make_optimizer({"layers.0.feed_forward.expert_deltas.a1": experts}, 0.0, stage, 8, kept=True)
    for group in optimizer.param_groups:
        group["lr"] = 1e-2
    for size in (1.0, 10.0, 100.0):
        experts.grad = torch.zeros_like(experts)
        experts.grad[1] = torch.randn(50, 37) * size
        optimizer.step()
    assert torch.equal(experts[::2], first[::2]) and not torch.equal(experts[1], first[1])


def test_without_the_library_or_with_shards_it_is_refused(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.49.2")
    with pytest.raises(UserError, match=r"0\.49\.2 is installed; type: pip install"):
        require_bitsandbytes()
    with pytest.raises(UserError, match="optimizer_bits is 16, expected 8 or 32"):
        replace(EIGHT, optimizer_bits=16)
    with pytest.raises(UserError, match="needs whole weights"):
        replace(EIGHT, shard=True)
