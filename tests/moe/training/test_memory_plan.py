"""The memory planner against models that are really made, and against the sizes of Mistral-7B."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.model import Transformer, count_parameters
from moe.training.memory_plan import GIB, plan_memory
from moe.training.stages import choose_trainable

MISTRAL = ModelConfig(**MISTRAL_7B._asdict(), max_seq_len=32768)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 4},
        {"num_experts": 4, "expert_form": "delta", "shared_rank": 3, "expert_rank": 2},
        {"expert_form": "delta", "shared_rank": 3},
    ],
)
def test_counts_equal_a_real_model(tiny_config, changes):
    config = replace(tiny_config, **changes)
    model = Transformer(config).reset(0)
    plan = plan_memory(config, 64, torch.float32, activation_checkpointing=False)
    assert plan.parameters == count_parameters(model)
    assert plan.trainable == sum(p.numel() for p in choose_trainable(model, "branch").values())
    assert plan.weights == 4 * plan.parameters and plan.optimizer == 8 * plan.trainable


def test_mistral_7b_fits_24_gb_with_deltas_and_not_with_full_experts():
    delta = replace(MISTRAL, num_experts=4, expert_form="delta", shared_rank=32, expert_rank=8)
    plan = plan_memory(delta, 4096, torch.bfloat16, activation_checkpointing=True)
    assert 7.2e9 < plan.parameters < 7.4e9
    assert 13.4 < plan.weights / GIB < 14.5  # bf16 base of 13.5 GiB, float32 deltas
    assert plan.total < 22 * GIB
    full = plan_memory(replace(MISTRAL, num_experts=4), 4096, torch.bfloat16, activation_checkpointing=True)
    assert 24.0e9 < full.parameters < 24.3e9 and full.total > 80 * GIB


def test_recomputation_saves_most_activations():
    delta = replace(MISTRAL, num_experts=4, expert_form="delta", shared_rank=32, expert_rank=8)
    kept, recomputed = (
        plan_memory(delta, 4096, torch.bfloat16, activation_checkpointing=r).activations for r in (False, True)
    )
    assert recomputed < kept / 4
