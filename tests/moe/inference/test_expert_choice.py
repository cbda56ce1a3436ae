"""Requests that force, favor or leave out experts: alone and side by side in a batch, for every kind of router."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from moe.config import ROUTER_CONTEXTS, ROUTER_LAYERS
from moe.errors import UserError
from moe.inference.engine import Engine, Request
from moe.inference.expert_choice import FAVOR, expert_bias
from moe.inference.sampling import Sampling

NAMES = ("python", "java", "cpp", "go")
PROMPT = [5, 9, 31, 7, 80, 2, 44]


@pytest.fixture
def config(tiny_config):
    return replace(tiny_config, num_experts=4, expert_languages=NAMES)


def test_what_is_added(config):
    assert expert_bias(config, "java") is None
    assert expert_bias(config, "java", "forced") == (-math.inf, FAVOR, -math.inf, -math.inf)
    assert expert_bias(config, "java", "biased") == (0.0, FAVOR, 0.0, 0.0)
    assert expert_bias(config, "java", "biased", [0, "java"]) == (0.0, FAVOR, -math.inf, -math.inf)
    assert expert_bias(config, None, experts=["0", " C++", 3]) == (0.0, -math.inf, 0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("java", "force"), r"unknown routing 'force' \(did you mean 'forced'"),
        ((None, "forced"), "without a language"),
        (("rust", "biased"), "no expert is for rust; experts: python, java, cpp, go"),
        (("java", "forced", [0]), "the expert for java is not among the chosen"),
        ((None, "free", [4]), r"unknown expert '4'; experts: 0 \(python\), 1"),
        ((None, "free", ["-1"]), "unknown expert '-1'"),
        ((None, "free", ["pyton"]), "did you mean 'python'"),
        ((None, "free", [""]), "unknown expert ''"),
        ((None, "free", []), "no expert is chosen"),
    ],
)
def test_mistakes(config, arguments, message):
    with pytest.raises(UserError, match=message):
        expert_bias(config, *arguments)


def test_a_dense_model_has_nothing_to_choose(tiny_config):
    with pytest.raises(UserError, match="no experts"):
        expert_bias(tiny_config, "python", "forced")


@torch.inference_mode()
def slowly(model, bias, count=12):
    """The definition: everything is read again for each token, with what the router decides by written out."""
    text = list(PROMPT)
    for _ in range(count):
        added = None if bias is None else torch.tensor(bias).expand(len(text), -1)
        text.append(int(model(torch.tensor([text]), expert_bias=added).logits[0, -1].argmax()))
    return text[len(PROMPT) :]


@torch.inference_mode()
def alone(model, expert, count=12):
    """Each token's expert is given, without a router."""
    text = list(PROMPT)
    for _ in range(count):
        forced = torch.full((len(text),), expert)
        text.append(int(model(torch.tensor([text]), forced_experts=forced).logits[0, -1].argmax()))
    return text[len(PROMPT) :]


@pytest.mark.parametrize("layers", ROUTER_LAYERS)
@pytest.mark.parametrize("context", ROUTER_CONTEXTS)
def test_each_request_of_a_batch_is_routed_as_it_says(config, make_model, context, layers):
    model = make_model(replace(config, router_context=context, router_layers=layers, router_half_life=6.0))
    choices = [
        None,
        *(expert_bias(config, name, "forced") for name in NAMES),
        *(expert_bias(config, name, "biased") for name in NAMES[:2]),
        expert_bias(config, None, experts=[0, 2]),
        expert_bias(config, None, experts=[3]),
    ]
    answers, used = {}, {place: set() for place in range(len(choices))}

    def watch(requests, output):
        for row, request in enumerate(requests):
            for routing in output.routing:
                used[request.key] |= set(routing.expert_ids[row][routing.gates[row] > 0].tolist())

    engine = Engine(model, 5, on_output=watch)
    for place, bias in enumerate(choices):
        done = lambda found, place=place: answers.update({place: found.tokens})  # noqa: E731
        engine.submit(Request(PROMPT, 12, expert_bias=bias, key=place, on_finished=done))
    engine.run()
    assert [answers[place] for place in range(len(choices))] == [slowly(model, bias) for bias in choices]
    assert [answers[place] for place in range(1, 5)] == [alone(model, expert) for expert in range(4)]
    assert answers[8] == answers[4] and len({tuple(answers[place]) for place in range(5)}) == 5
    assert [used[place] for place in range(1, 5)] == [{0}, {1}, {2}, {3}]
    assert used[7] == {0, 2} and used[8] == {3} and len(used[0]) >= 2


def test_gates_of_the_experts_left_are_those_of_a_router_without_the_others(config, make_model):
    model = make_model(config)
    tokens = torch.tensor([PROMPT])
    free = model(tokens).routing[0]
    bias = torch.tensor(expert_bias(config, None, experts=[1, 3]))
    kept = model(tokens, expert_bias=bias.expand(len(PROMPT), -1)).routing[0]
    wanted = free.router_logits[:, [1, 3]].softmax(-1)
    dense = torch.zeros(len(PROMPT), 4, dtype=wanted.dtype).scatter_add_(1, kept.expert_ids, kept.gates)
    torch.testing.assert_close(dense[:, [1, 3]], wanted)
    assert not dense[:, [0, 2]].any()


def test_drafts_and_draws_keep_to_the_choice(config, make_model):
    model, bias = make_model(config), expert_bias(config, "cpp", "forced")
    for draft in (0, 4):
        found = []
        engine = Engine(model, 2, draft)
        for row in range(3):
            sampling = Sampling(0.7, seed=row)
            engine.submit(Request(PROMPT * 2, 10, sampling, expert_bias=bias, on_finished=found.append))
            engine.submit(Request(PROMPT * 2, 10, sampling))
        engine.run()
        if not draft:
            wanted = [answer.tokens for answer in found]
    assert [answer.tokens for answer in found] == wanted
