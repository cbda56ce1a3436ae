"""Sets of layers: how they are written, and what a config makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moe.config import ModelConfig, format_layers, parse_layers
from moe.errors import UserError
from moe.experts import MoEFeedForward
from moe.layers import FeedForward
from moe.model import Transformer
from moe.training.memory_plan import plan_memory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", None),
        (" ALL ", None),
        ("3", (3,)),
        ("16-31", tuple(range(16, 32))),
        ("0-3, 8 ,30-", (0, 1, 2, 3, 8, 30, 31)),
        ("5,1-5,5", (1, 2, 3, 4, 5)),
    ],
)
def test_ranges_are_read(text, expected):
    assert parse_layers(text, 32) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no layer"),
        ("1,,2", "names no layer"),
        ("x", "'x' is not a layer"),
        ("-3", "'-3' is not a layer"),
        ("1.5", "'1.5' is not a layer"),
        ("٣", "is not a layer"),
        ("99999999999999999999", "is not a layer"),
        ("5-2", "run backwards; write 2-5"),
        ("30-32", "this model has the layers 0 to 31"),
        ("32", "this model has the layers 0 to 31"),
        ("40-", "this model has the layers 0 to 31"),
    ],
)
def test_what_is_no_range_is_named(text, problem):
    with pytest.raises(UserError, match=problem):
        parse_layers(text, 32)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_the_short_form_reads_back(layers):
    assert parse_layers(format_layers(layers), 41) == tuple(sorted(layers))


def test_the_config_keeps_layers_in_order_and_drops_them_when_they_are_all(tiny_config):
    config = replace(tiny_config, n_layers=3, num_experts=2, moe_layers=(2, 0, 2))
    assert config.moe_layers == config.sparse_layers == (0, 2)
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert config.dense() == replace(tiny_config, n_layers=3)
    whole = replace(tiny_config, num_experts=2, moe_layers=[1, 0])
    assert whole == replace(tiny_config, num_experts=2) and list(whole.sparse_layers) == [0, 1]
    assert list(tiny_config.sparse_layers) == []


@pytest.mark.parametrize("layers", [(), (2,), (-1,), (True,), ("1",), "01", 1, (0.0,)])
def test_impossible_layers_are_refused(tiny_config, layers):
    with pytest.raises(UserError, match="moe_layers"):
        replace(tiny_config, num_experts=2, moe_layers=layers)


def test_a_dense_model_has_no_layers_with_experts(tiny_config):
    with pytest.raises(UserError, match="this model has none"):
        replace(tiny_config, moe_layers=(0,))


@pytest.mark.parametrize("form", [{}, {"expert_form": "delta", "expert_rank": 2}], ids=["full", "delta"])
def test_only_the_named_layers_route(tiny_config, make_model, form):
    model = make_model(replace(tiny_config, n_layers=3, num_experts=3, moe_layers=(1,), **form))
    assert [type(layer.feed_forward) for layer in model.layers] == [FeedForward, MoEFeedForward, FeedForward]
    output = model(torch.randint(0, 97, (2, 9)))
    assert len(output.routing) == 1 and output.routing[0].expert_ids.shape == (18, 2)
    output.logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.layers[1].feed_forward.parameters())


@pytest.mark.parametrize("recompute", [False, True])
def test_experts_in_upper_layers_keep_fewer_activations(tiny_config, recompute):
    every = replace(tiny_config, n_layers=8, num_experts=4, expert_form="delta", expert_rank=2)
    upper = replace(every, moe_layers=(6, 7))
    plans = [plan_memory(config, 64, torch.float32, recompute) for config in (every, upper)]
    assert plans[1].parameters == sum(p.numel() for p in Transformer(upper).parameters()) < plans[0].parameters
    assert plans[1].trainable * 4 == plans[0].trainable
    assert plans[1].activations < plans[0].activations
