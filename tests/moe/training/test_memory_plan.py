"""The memory planner against models that are really made, and against the sizes of Mistral-7B."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.model import Transformer, count_parameters
from moe.training.memory_plan import GIB, count_step, learns, most_tokens, pack_feed_forwards, plan_memory
from moe.training.stages import choose_trainable

MISTRAL = ModelConfig(**MISTRAL_7B._asdict(), max_seq_len=32768)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 4},
        {"num_experts": 4, "expert_form": "delta", "shared_rank": 3, "expert_rank": 2},
        {"expert_form": "delta", "shared_rank": 3},
        {"num_experts": 3, "expert_form": "delta", "expert_rank": 2, "attention_experts": ("q", "o")},
    ],
)
def test_counts_equal_a_real_model(tiny_config, changes):
    config = replace(tiny_config, **changes)
    model = Transformer(config).reset(0)
    plan = plan_memory(config, 64, torch.float32, activation_checkpointing=False)
    assert plan.parameters == count_parameters(model)
    assert plan.trainable == sum(p.numel() for p in choose_trainable(model, "branch").values())
    assert plan.weights == 4 * plan.parameters and plan.optimizer == 8 * plan.trainable


@pytest.mark.parametrize("activation_checkpointing", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 2, "n_layers": 5},
        {"num_experts": 4, "expert_form": "delta", "shared_rank": 8, "expert_rank": 4, "n_layers": 6},
        {
            **{"num_experts": 3, "expert_form": "delta", "shared_rank": 8, "expert_rank": 4, "n_layers": 5},
            **{"attention_experts": ("q", "k", "v", "o"), "router_layers": "first"},
        },
        {"num_experts": 2, "expert_form": "delta", "expert_rank": 3, "n_layers": 6, "moe_layers": (1, 3, 4)},
        {"dim": 96, "hidden_dim": 200, "num_experts": 3, "expert_form": "delta", "expert_rank": 8, "n_layers": 7},
        {"dim": 96, "hidden_dim": 200, "num_experts": 3, "n_layers": 4, "moe_layers": (2, 3)},
    ],
)
def test_bytes_are_those_of_a_real_step(tiny_config, changes, activation_checkpointing):
    """Storages of a whole model's step on a CPU, against the plan, which runs two or three layers without memory."""
    config = replace(tiny_config, vocab_size=300, **changes)
    model = Transformer(config).reset(0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns(config, name))
    plan = plan_memory(config, 1200, torch.float32, activation_checkpointing)
    parameters = sum(p.untyped_storage().nbytes() for p in model.parameters())
    counted = parameters + plan.optimizer + count_step(model, 1200, activation_checkpointing)
    assert plan.total == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize(
    "changes", [{}, {"moe_layers": (1, 3)}, {"num_experts": 0, "expert_rank": 0, "shared_rank": 3}]
)
def test_bytes_on_an_int4_base(changes):
    """Weights that are int4 are buffers; the layers between sparse ones are packed, too, and widths of no group not."""
    sizes = {"vocab_size": 300, "dim": 64, "n_layers": 5, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 128}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "expert_rank": 3}
    for hidden in (128, 100):
        settings = {**sizes, "max_seq_len": 512, **experts, "expert_form": "delta", **changes, "hidden_dim": hidden}
        config = ModelConfig.from_dict(settings)
        model = Transformer(config).reset(0)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(learns(config, name))
        parameters = count_parameters(model)
        packed = pack_feed_forwards(model)
        plan = plan_memory(config, 600, torch.float32, activation_checkpointing=False, int4=True)
        stored = sum(t.untyped_storage().nbytes() for t in (*model.parameters(), *model.buffers()))
        assert plan.parameters == parameters == count_parameters(model) and plan.weights == stored and packed > 0
        counted = stored + plan.optimizer + count_step(model, 600, False)
        assert plan.total == pytest.approx(counted, rel=0.02)
        assert plan.weights < plan_memory(config, 600, torch.float32, False).weights


def test_the_most_tokens_that_fit(tiny_config):
    config = replace(tiny_config, num_experts=2, expert_form="delta", expert_rank=3)
    kept, recomputed = (
        partial(plan_memory, config, dtype=torch.float32, activation_checkpointing=r) for r in (False, True)
    )
    available = kept(3072).total
    found = most_tokens(kept, available)
    assert kept(found).total <= available and 2700 < found < 3400
    assert most_tokens(recomputed, available) > found
    assert most_tokens(kept, 1000) == 0


def test_mistral_7b_fits_24_gb_with_deltas_and_not_with_full_experts():
    delta = replace(MISTRAL, num_experts=4, expert_form="delta", shared_rank=32, expert_rank=8)
    plan = plan_memory(delta, 4096, torch.bfloat16, activation_checkpointing=True)
    assert 7.2e9 < plan.parameters < 7.4e9
    assert 13.4 < plan.weights / GIB < 14.5  # bf16 base of 13.5 GiB, float32 deltas
    assert plan.total < 22 * GIB
    full = plan_memory(replace(MISTRAL, num_experts=4), 4096, torch.bfloat16, activation_checkpointing=True)
    assert 24.0e9 < full.parameters < 24.3e9 and full.total > 80 * GIB


@pytest.mark.parametrize("form", ["delta", "full"])
@pytest.mark.parametrize("int4", [False, True])
def test_on_a_gpu_what_layers_hold_while_they_run_counts(form, int4):
    """Of a delta layer's backward at least the gradients of both pre-activations and the gated activation [R, F]."""
    pytest.importorskip("triton")
    ranks = {"shared_rank": 3, "expert_rank": 2} if form == "delta" else {}
    config = replace(
        MISTRAL, vocab_size=64, n_layers=2, dim=256, hidden_dim=1024, num_experts=4, expert_form=form, **ranks
    )
    cpu, gpu = (plan_memory(config, 2048, torch.bfloat16, True, int4, on_gpu) for on_gpu in (False, True))
    held = 3 * 2048 * config.num_experts_per_tok * 1024 * 2
    assert gpu.activations > (held if form == "delta" else cpu.activations)
    assert gpu.trainable == cpu.trainable and gpu.optimizer == cpu.optimizer
    if int4 and form == "delta":
        zeros = 2 * 3 * 2 * 1024 * 256 // 128  # beside each scale on a CPU
        assert cpu.weights - gpu.weights == zeros


def test_a_gpu_keeps_the_input_of_norms_and_keys_for_every_head():
    """By the kernels' definitions; planned so, a step of Mistral-7B's shape takes the 17.78 GiB that an H200 took."""
    pytest.importorskip("triton")
    tokens, dim, heads, kv_heads, head_dim = 1024, 256, 4, 2, 64
    sizes = {"vocab_size": 64, "dim": dim, "n_heads": heads, "n_kv_heads": kv_heads, "head_dim": head_dim}
    config = replace(MISTRAL, **sizes, hidden_dim=512, num_experts=2, expert_form="delta", expert_rank=2)

    def kept_by_a_layer(gpu: bool) -> int:
        two, three = (
            plan_memory(replace(config, n_layers=layers), tokens, torch.bfloat16, False, gpu=gpu).activations
            for layers in (2, 3)
        )
        return three - two

    norms = 2 * (4 - 2) * tokens * dim  # the float32 copy of a CPU, against the 16-bit input
    attention = 2 * 2 * tokens * (heads - kv_heads) * head_dim
    assert kept_by_a_layer(False) - kept_by_a_layer(True) == pytest.approx(norms - attention, rel=0.02)


def test_recomputation_saves_most_activations():
    delta = replace(MISTRAL, num_experts=4, expert_form="delta", shared_rank=32, expert_rank=8)
    kept, recomputed = (
        plan_memory(delta, 4096, torch.bfloat16, activation_checkpointing=r).activations for r in (False, True)
    )
    assert recomputed < kept / 4
