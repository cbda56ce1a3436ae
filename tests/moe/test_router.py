"""Routers that see context: the running mean, and that every way of running a model gives the same decisions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from moe.cache import KVCache
from moe.config import ModelConfig
from moe.errors import UserError
from moe.inference.generation import generate_many
from moe.router import BLOCK, FILTER_BLOCK, filter_beliefs, running_sum

CONTEXTS = [(context, layers) for context in ("mean", "ema", "filter") for layers in ("each", "first")]


@pytest.fixture(params=CONTEXTS, ids="-".join)
def model(request, tiny_config, make_model):
    context, layers = request.param
    config = dataclasses.replace(
        tiny_config,
        num_experts=4,
        num_experts_per_tok=2,
        expert_form="delta",
        shared_rank=2,
        expert_rank=3,
        router_context=context,
        router_half_life=5.0,
        router_layers=layers,
    )
    return make_model(config)


def logits_of(output):
    return [routing.router_logits for routing in output.routing]


@pytest.mark.parametrize("length", [1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("decay", [1.0, 0.9, 0.5])
def test_the_running_sum_is_the_loop(length, decay):
    x, before = torch.randn(3, length, 4), torch.randn(3, 4, dtype=torch.float64)
    for start in (None, before):
        state, wanted = torch.zeros(3, 4, dtype=torch.float64) if start is None else start, []
        for t in range(length):
            state = decay * state + x[:, t].double()
            wanted.append(state)
        torch.testing.assert_close(running_sum(x, decay, start), torch.stack(wanted, 1), atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("length", [1, 2, FILTER_BLOCK, FILTER_BLOCK + 1, 3 * FILTER_BLOCK + 7])
@pytest.mark.parametrize("keep", [0.999, 0.9, 0.1])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_the_filter_is_the_loop(length, keep, scale):
    x, before = scale * torch.randn(3, length, 4), torch.randn(3, 4, dtype=torch.float64)
    for start in (None, before):
        belief = torch.full((3, 4), 0.25, dtype=torch.float64) if start is None else start.softmax(-1)
        wanted = []
        for t in range(length):
            belief = (keep * belief + (1 - keep) / 4) * x[:, t].double().softmax(-1)
            belief = belief / belief.sum(-1, keepdim=True)
            wanted.append(belief)
        torch.testing.assert_close(filter_beliefs(x, keep, start).exp(), torch.stack(wanted, 1), atol=1e-11, rtol=1e-9)


def test_a_filter_follows_a_change_that_a_mean_misses():
    """Many tokens that say little for one expert, then two that say much for another."""
    logits = torch.zeros(1, 62, 2)
    logits[0, :60, 0], logits[0, 60:, 1] = 1.0, 6.0
    assert filter_beliefs(logits, 0.99)[0, [59, 61]].argmax(-1).tolist() == [0, 1]
    assert running_sum(logits, 1.0)[0, [59, 61]].argmax(-1).tolist() == [0, 0]


def test_filtered_logits_keep_the_size_of_the_tokens_own(model):
    """What the z-loss sees: beliefs alone would have logsumexp 0 whatever the weights are."""
    if model.config.router_context != "filter":
        pytest.skip("of the filter alone")
    seen = []
    output = model(torch.randint(0, 97, (1, 20)), observer=lambda layer, x: seen.append(x))
    plain = seen[0][0] @ model.layers[0].feed_forward.gate.weight.T
    torch.testing.assert_close(output.routing[0].router_logits.logsumexp(-1), plain.logsumexp(-1))


def test_the_decision_is_the_mean_of_the_tokens_so_far(model):
    """Layer 0 against its definition: the weighted mean of gate logits over the document, newest weight 1."""
    if model.config.router_context == "filter":
        pytest.skip("no mean")
    tokens = torch.randint(0, 97, (1, 20))
    seen = []
    output = model(tokens, observer=lambda layer, x: seen.append(x))
    plain = seen[0][0] @ model.layers[0].feed_forward.gate.weight.T  # [S, E]
    decay = 1.0 if model.config.router_context == "mean" else 0.5 ** (1 / 5)
    for t in range(20):
        weights = decay ** torch.arange(t, -1, -1, dtype=torch.float64)
        wanted = (weights[:, None] * plain[: t + 1]).sum(0) / weights.sum()
        torch.testing.assert_close(output.routing[0].router_logits[t], wanted)


def test_packed_documents_decide_as_if_each_were_alone(model):
    lengths = (7, 1, 70, 12)
    tokens = torch.randint(0, 97, (1, sum(lengths)))
    packed = model(tokens, documents=lengths)
    alone = [model(part) for part in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed.logits, torch.cat([output.logits for output in alone], dim=1))
    for layer, logits in enumerate(logits_of(packed)):
        parts = torch.cat([output.routing[layer].router_logits for output in alone])
        torch.testing.assert_close(logits, parts)
        assert torch.equal(packed.routing[layer].expert_ids, torch.cat([o.routing[layer].expert_ids for o in alone]))


@pytest.mark.parametrize("window", [None, 6])
def test_reading_in_chunks_and_token_by_token_decides_as_one_pass(model, make_model, window):
    model.config = dataclasses.replace(model.config, sliding_window=window)
    tokens = torch.randint(0, 97, (3, 40))
    whole = model(tokens)
    for chunks in ([40], [13, 20, 7], [1] * 40):
        cache = KVCache(model.config, 3, 40, torch.float64)
        outputs = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat([o.logits for o in outputs], dim=1), whole.logits)
        for layer, logits in enumerate(logits_of(whole)):
            parts = [o.routing[layer].router_logits.view(3, -1, 4) for o in outputs]
            torch.testing.assert_close(torch.cat(parts, dim=1), logits.view(3, 40, 4))


def test_padding_and_leaving_rows_change_nothing(model):
    """Prompts of different lengths in one batch, answers that end at different steps: as each prompt alone."""
    prompts = [torch.randint(0, 97, (n,)).tolist() for n in (3, 17, 9, 1, 30)]
    stop = {int(generate_many(model, prompts[:1], max_new_tokens=4)[0].tokens[-1])}
    together = generate_many(model, prompts, max_new_tokens=24, stop_ids=stop)
    for prompt, answer in zip(prompts, together):
        assert generate_many(model, [prompt], max_new_tokens=24, stop_ids=stop)[0].tokens == answer.tokens


def test_checkpointed_activations_give_the_same_gradients(model):
    tokens, lengths = torch.randint(0, 97, (1, 40)), (15, 25)
    gradients = []
    for recompute in (False, True):
        model.zero_grad()
        output = model(tokens, documents=lengths, activation_checkpointing=recompute)
        (output.logits.logsumexp(-1).sum() + output.routing[-1].router_logits.pow(2).sum()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and "layers.0.feed_forward.gate.weight" in gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name])


def test_one_router_decides_for_all_layers_where_it_is_asked_to(model):
    output = model(torch.randint(0, 97, (2, 11)))
    routers = [n for n, _ in model.named_parameters() if n.endswith("gate.weight")]
    if model.config.router_layers == "first":
        assert routers == ["layers.0.feed_forward.gate.weight"]
        assert all(routing is output.routing[0] for routing in output.routing)
    else:
        assert len(routers) == model.config.n_layers
        assert not torch.equal(*logits_of(output)[:2])


def test_forced_experts_need_no_context(model):
    tokens, forced = torch.randint(0, 97, (1, 12)), torch.randint(0, 4, (12,))
    output = model(tokens, forced_experts=forced)
    assert len(output.routing) == model.config.n_layers
    assert all(torch.equal(r.expert_ids[:, 0], forced) and r.router_logits is None for r in output.routing)


def test_a_token_router_is_the_default(tiny_config):
    assert ModelConfig.from_dict(tiny_config.to_dict()).router_context == "none"
    assert not tiny_config.router_places
    for bad in ({"router_context": "max"}, {"router_layers": "last"}, {"router_half_life": 0.0}):
        with pytest.raises(UserError, match=next(iter(bad))):
            dataclasses.replace(tiny_config, **bad)
