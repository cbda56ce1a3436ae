"""The decoder of single tokens gives what the model gives, and joins weights without copying them twice."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from kernels.cpu.stacked import Stacked, join
from kernels.packed import PackedWeights, int8_levels
from moe.cache import KVCache
from moe.config import ModelConfig
from moe.decoder import Decoder
from moe.layers import Linear
from moe.rope import RopeScaling

FULL = {"num_experts": 3, "num_experts_per_tok": 2}
DELTA = {"num_experts": 3, "expert_form": "delta", "shared_rank": 2, "expert_rank": 3}
FORMS = {
    "dense": {},
    "biases": {"attention_bias": True, "tie_embeddings": True},
    "full": FULL,
    "one of three": {**FULL, "num_experts_per_tok": 1, "router_context": "ema", "router_layers": "first"},
    "some layers": {**FULL, "moe_layers": (1,), "router_context": "mean"},
    "delta": {**DELTA, "num_experts_per_tok": 2, "router_context": "filter"},
    "one delta": {**DELTA, "num_experts_per_tok": 1, "sliding_window": 5},
    "experts' deltas alone": {**DELTA, "shared_rank": 0, "num_experts_per_tok": 1},
    "adapter": {"expert_form": "delta", "shared_rank": 2, "num_experts": 0},
    "attention": {**DELTA, "num_experts_per_tok": 2, "attention_experts": ("q", "v", "o"), "attention_bias": True},
    "attention, first": {
        **{**DELTA, "num_experts_per_tok": 1, "router_context": "ema", "router_layers": "first", "moe_layers": (1,)},
        **{"attention_experts": ("k", "o")},
    },
    "adapter of attention": {"expert_form": "delta", "shared_rank": 2, "num_experts": 0, "attention_experts": ("q",)},
}


def caches(model, lengths: list[int]) -> list[KVCache]:
    """Two caches after prompts of these lengths."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.config.vocab_size, (1, sum(lengths)), generator=generator)
    found = []
    for _ in range(2):
        found.append(KVCache(model.config, len(lengths), 16, dtype=model.dtype))
        model(tokens, cache=found[-1], documents=tuple(lengths))
    return found


def change(model) -> None:
    """Deltas that are zero at the start change nothing, so they get values."""
    for name, parameter in model.named_parameters():
        if ".b1" in name or ".b2" in name or ".b3" in name:
            parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lengths", [[4], [3, 7, 1]])
@torch.no_grad()
def test_a_step_is_that_of_the_model(form, lengths, tiny_config, make_model):
    model = make_model(replace(tiny_config, **FORMS[form]))
    change(model)
    one, other = caches(model, lengths)
    bias = torch.tensor([[0.0, -torch.inf, 0.0]] * len(lengths)) if model.config.num_experts else None
    same = copy.deepcopy(model)
    decoder = Decoder(model)
    for number in range(8):
        tokens = torch.full((len(lengths), 1), number + 5)
        first, second = one.step(*tokens.shape), other.step(*tokens.shape)
        wanted = same(tokens, cache=first, expert_bias=bias)
        found = decoder(tokens, second, bias)
        first.advance()
        second.advance()
        torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=1e-12)
        torch.testing.assert_close(found.hidden, wanted.hidden, rtol=0, atol=1e-12)
        assert len(found.routing) == len(wanted.routing)
        for a, b in zip(found.routing, wanted.routing):
            assert torch.equal(a.expert_ids, b.expert_ids)
            torch.testing.assert_close(a.gates, b.gates)
    for a, b in zip(one.tracks.values(), other.tracks.values()):
        torch.testing.assert_close(a.buffer, b.buffer, rtol=0, atol=1e-12)


@torch.no_grad()
def test_packed_bases_and_wider_caches(tiny_config: ModelConfig, make_model):
    model = make_model(replace(tiny_config, **DELTA, num_experts_per_tok=1), dtype=torch.bfloat16)
    change(model)
    for module in list(model.modules()):
        if isinstance(module, Linear):
            levels, scales = int8_levels(module.weight)
            del module.weight
            module.weight = PackedWeights(levels[None], scales[None])
    one, other = caches(model, [4])
    wanted = model(torch.tensor([[7]]), cache=one.step(1, 1)).logits
    found = Decoder(model)(torch.tensor([[7]]), other.step(1, 1)).logits
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    wide = KVCache(model.config, 1, 16, dtype=torch.float32)
    assert Decoder(model)(torch.tensor([[7]]), wide.step(1, 1)).logits.dtype == torch.bfloat16


def test_joined_weights_stay_parameters_and_are_stored_once(tiny_config, make_model):
    model = make_model(replace(tiny_config, **DELTA))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    Decoder(model)
    parameters = dict(model.named_parameters())
    assert all(
        torch.equal(parameters[name], value) and parameters[name].is_contiguous() for name, value in before.items()
    )
    places = {name: parameter.data_ptr() for name, parameter in parameters.items()}
    decoder = Decoder(model)  # joins what is joined without copying
    assert places == {name: parameter.data_ptr() for name, parameter in parameters.items()}
    with torch.no_grad():
        parameters["layers.0.attention.wk.weight"].zero_()  # training in place is seen
    wq = parameters["layers.0.attention.wq.weight"]
    assert not decoder.layers[0].qkv.product(torch.ones(1, wq.shape[1]).double())[0, len(wq) :][: len(wq) // 4].any()
    assert all(parameter.requires_grad for parameter in parameters.values())


def test_rows_are_joined_in_order():
    parts = [nn.Parameter(torch.randn(2, 3, 4)), nn.Parameter(torch.randn(5, 4))]
    wanted = torch.cat([part.detach().reshape(-1, 4) for part in parts])
    whole = join(parts)
    assert torch.equal(whole, wanted) and join(parts).data_ptr() == whole.data_ptr()
    backwards = join(parts[::-1])  # neighbors in the other order are not what is asked for
    assert torch.equal(backwards, torch.cat((wanted[6:], wanted[:6])))
    x = torch.randn(3, 4)
    torch.testing.assert_close(Stacked(*parts).product(x), x @ wanted.T)


def test_other_models_are_left_to_the_model(tiny_config, make_model):
    dynamic = make_model(replace(tiny_config, rope_scaling=RopeScaling("dynamic", 2.0)))
    mixed = make_model(tiny_config)
    mixed.norm.float()
    for model in (dynamic, mixed):
        with pytest.raises(ValueError, match="one dtype on a CPU"):
            Decoder(model)
