"""Counted operations and sizes, against sums by hand and the plain layer."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from eval.cost import count_flops, model_cost
from moe.config import ModelConfig
from moe.model import Transformer
from moe.training.interrupt import Interrupted, raised_signals

CONFIG = ModelConfig(vocab_size=97, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, max_seq_len=64)
DELTA = {"expert_form": "delta", "shared_rank": 3}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "expert_rank": 5}
FULL = {"num_experts": 4, "num_experts_per_tok": 2}


def plain_flops(config: ModelConfig, length: int) -> int:
    """Operations of a forward pass written with plain products, a loop over layers."""
    d, f, heads, kv, c = config.dim, config.hidden_dim, config.n_heads, config.n_kv_heads, config.head_dim
    x = torch.zeros(length, d)
    with FlopCounterMode(display=False) as counter:
        for _ in range(config.n_layers):
            for width in (heads * c, kv * c, kv * c):
                F.linear(x, torch.zeros(width, d))
            F.linear(torch.zeros(length, heads * c), torch.zeros(d, heads * c))
            q = torch.zeros(heads, length, c)
            scores = q @ torch.zeros(heads, c, length)
            scores @ q
            if config.num_experts:
                F.linear(x, torch.zeros(config.num_experts, d))
            visits = config.num_experts_per_tok if config.num_experts else 1
            full = config.num_experts and not config.is_delta
            rows = torch.zeros(length * (visits if full else 1), d)
            for _ in range(2):
                F.linear(rows, torch.zeros(f, d))
            F.linear(torch.zeros(rows.shape[0], f), torch.zeros(d, f))
            ranks = []
            if config.is_delta:
                ranks.append((length, config.shared_rank))
                if config.num_experts:
                    ranks.append((length * visits, config.expert_rank))
            for count, rank in ranks:
                for a, b in ((d, f), (d, f), (f, d)):
                    F.linear(F.linear(torch.zeros(count, a), torch.zeros(rank, a)), torch.zeros(b, rank))
        F.linear(x, torch.zeros(config.vocab_size, d))
    return counter.get_total_flops()


@pytest.mark.parametrize("changes", [{}, DELTA, {**DELTA, **MIXTURE}, FULL], ids=["dense", "adapter", "delta", "full"])
def test_counted_operations_are_those_of_plain_products(changes):
    config = replace(CONFIG, **changes)
    for length in (1, 17, 64):
        with FakeTensorMode():
            found = count_flops(Transformer(config), length)
        assert found == plain_flops(config, length)
    assert model_cost(config).flops_per_token == plain_flops(config, 64) / 64


def test_context_routing_adds_next_to_nothing():
    config = replace(CONFIG, **DELTA, **MIXTURE)
    context = replace(config, router_context="ema", router_layers="first")
    ratio = model_cost(context).flops_per_token / model_cost(config).flops_per_token
    assert 0.9 < ratio < 1.1 and ratio != 1


def test_sizes():
    dense, adapter, mixture, full = (
        model_cost(replace(CONFIG, **changes)) for changes in ({}, DELTA, {**DELTA, **MIXTURE}, FULL)
    )
    layer = 3 * (CONFIG.dim + CONFIG.hidden_dim)  # parameters of all low-rank factors, for each rank
    assert dense.trained == 0 and dense.active == dense.parameters
    assert adapter.trained == 2 * 3 * layer == adapter.parameters - dense.parameters
    assert adapter.active == adapter.parameters
    routers = 2 * 4 * CONFIG.dim
    assert mixture.trained == 2 * (3 + 4 * 5) * layer + routers
    assert mixture.active == dense.parameters + 2 * (3 + 2 * 5) * layer + routers
    feed_forward = 2 * 3 * CONFIG.dim * CONFIG.hidden_dim
    assert full.trained == 4 * feed_forward + routers
    assert full.active == full.parameters - 2 * feed_forward == dense.parameters + feed_forward + routers


def test_a_large_model_takes_no_memory():
    config = ModelConfig(
        vocab_size=32000, dim=4096, n_layers=32, n_heads=32, n_kv_heads=8, hidden_dim=14336, max_seq_len=4096
    )
    cost = model_cost(config)
    assert cost.parameters == 7_241_732_096  # Mistral-7B
    assert 2 * 7.1e9 < cost.flops_per_token < 2 * 7.4e9


def test_a_signal_waits_until_operations_are_counted():
    model, ran = Transformer(CONFIG), []
    model.register_forward_pre_hook(lambda *_: signal.raise_signal(signal.SIGTERM))
    model.register_forward_hook(lambda *_: ran.append(True))
    with pytest.raises(Interrupted), raised_signals():
        count_flops(model, 4)
    assert ran
