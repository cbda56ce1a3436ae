"""Models whose routers see context load in transformers with the code in their directory, and compute what ours do."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch

from checkpoints.model_io import load_model, save_model
from moe.cache import KVCache
from tests.checkpoints.command_line import run_main

transformers = pytest.importorskip("transformers", minversion="5")
ROUTERS = list(product(("mean", "ema", "none"), ("first", "each")))[:-1]  # the last one is Mixtral
TOKENS = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture(autouse=True)
def _modules_cache(tmp_path, monkeypatch):
    """transformers copies code that it is told to trust."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def both(tmp_path, tiny_config, make_model):
    """Our model and transformers', from the same directory: ``both(router_context="ema", moe_layers=(1, 2))``."""

    def make(dtype: torch.dtype = torch.float32, **settings):
        sizes = {"n_layers": 3, "num_experts": 3, "num_experts_per_tok": 1, "router_half_life": 5.0}
        config = replace(tiny_config, **{**sizes, **settings})
        directory = save_model(make_model(config, dtype=torch.float64), None, tmp_path / "model", dtype=dtype)
        assert run_main("verify", directory) == 0
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, trust_remote_code=True, experts_implementation="eager"
        )  # grouped_mm has no float64
        return load_model(directory, dtype).model, theirs.eval()

    return make


@torch.no_grad()
@pytest.mark.parametrize(("context", "layers"), ROUTERS)
@pytest.mark.parametrize("places", [None, (1, 2)], ids=["all layers", "some layers"])
def test_logits_are_ours_with_and_without_a_cache(both, context, layers, places):
    ours, theirs = both(torch.float64, router_context=context, router_layers=layers, moe_layers=places)
    expected = ours(TOKENS).logits
    # transformers computes norms and rotary angles in float32, also in a float64 model.
    torch.testing.assert_close(theirs(TOKENS).logits, expected, rtol=0, atol=1e-5)
    cache, found = None, []
    for part in TOKENS.split((17, 1, 1, 9, 1, 11), dim=1):
        output = theirs(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("context", "layers"), [("ema", "first"), ("mean", "each")])
def test_left_padding_changes_nothing(both, context, layers):
    ours, theirs = both(torch.float64, router_context=context, router_layers=layers, num_experts_per_tok=2)
    lengths = (40, 23, 7)
    mask = torch.stack([torch.arange(40) >= 40 - length for length in lengths]).long()
    found = theirs(TOKENS.where(mask.bool(), 0), attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp_min(0))
    for row, length in enumerate(lengths):
        expected = ours(TOKENS[row : row + 1, 40 - length :]).logits[0]
        torch.testing.assert_close(found.logits[row, 40 - length :], expected, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 8])
def test_generate_writes_what_ours_writes(both, window):
    ours, theirs = both(router_context="ema", router_layers="first", sliding_window=window)
    lengths = (12, 5)
    mask = torch.stack([torch.arange(12) >= 12 - length for length in lengths]).long()
    prompts = TOKENS[:2, :12].where(mask.bool(), 0)
    settings = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
    answers = theirs.generate(prompts, attention_mask=mask, **settings)
    for row, length in enumerate(lengths):
        cache = KVCache(ours.config, 1, length + 20)
        tokens, written = prompts[row : row + 1, 12 - length :], []
        for _ in range(20):
            tokens = ours(tokens, cache=cache).logits[:, -1:].argmax(-1)
            written.append(tokens.item())
        assert answers[row, 12:].tolist() == written


@torch.no_grad()
def test_beams_carry_their_own_context(both):
    """Beam search moves rows of the cache; scores equal those of the same text without a cache."""
    _, theirs = both(torch.float64, router_context="mean", router_layers="each")
    settings = {"do_sample": False, "max_new_tokens": 12, "num_beams": 4, "eos_token_id": None, "pad_token_id": 0}
    cached = theirs.generate(TOKENS[:2, :9], **settings)
    assert torch.equal(cached, theirs.generate(TOKENS[:2, :9], use_cache=False, **settings))


def test_training_reaches_the_routers(both):
    _, theirs = both(router_context="ema", router_layers="first", num_experts_per_tok=2)
    theirs.train()(TOKENS, labels=TOKENS, output_router_logits=True).loss.backward()
    gate = theirs.model.layers[0].mlp.gate.weight
    assert gate.grad is not None and gate.grad.abs().sum() > 0


def test_what_it_cannot_route_by_is_refused(both):
    _, theirs = both(router_context="ema", router_layers="first")
    with pytest.raises(ValueError, match="DynamicCache"):
        theirs.generate(TOKENS, max_new_tokens=2, cache_implementation="static", pad_token_id=0)
    with pytest.raises(ValueError, match="attention_mask"):
        theirs(TOKENS, attention_mask=torch.ones(3, 1, 40, 40))
    with pytest.raises(ValueError, match="do not pack"):
        theirs(TOKENS[:1], position_ids=torch.cat((torch.arange(15), torch.arange(25)))[None])
