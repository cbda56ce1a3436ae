"""Writing answers: the cache, batches, dropped rows and limits change no token."""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import replace

import pytest
import torch

from moe.cache import KVCache, fill_holes
from moe.errors import UserError
from moe.inference import engine
from moe.inference.drafts import Lookup
from moe.inference.engine import Engine, Request, cache_dtype
from moe.inference.generation import generate_many
from moe.inference.sampling import Sampling, number_stream, sample

WINDOWS = [None, 5]


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 97, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def slowly(model, prompt, count, stop_ids=(), sampling=None, row=0) -> list[int]:
    """The definition: read everything again for each token, one prompt at a time, without a cache."""
    text, numbers = list(prompt), number_stream(sampling.seed, row) if sampling else None
    for _ in range(count):
        logits = model(torch.tensor([text])).logits[:, -1]
        token = (
            int(logits.argmax())
            if sampling is None
            else int(sample(logits, sampling, torch.tensor([numbers.random()])))
        )
        if token in stop_ids:
            break
        text.append(token)
    return text[len(prompt) :]


@pytest.fixture(params=["dense", "full", "delta"])
def config(request, tiny_config):
    changes = {
        "dense": {"tie_embeddings": True},
        "full": {"num_experts": 4},
        "delta": {"num_experts": 4, "expert_form": "delta", "shared_rank": 3, "expert_rank": 2},
    }
    return replace(tiny_config, **changes[request.param])


@pytest.mark.parametrize("window", WINDOWS)
def test_greedy_with_the_cache_equals_greedy_without(config, window, make_model):
    model = make_model(replace(config, sliding_window=window))
    prompts = prompts_of(7, 1, 12, 4, 12)
    wanted = [slowly(model, prompt, 15) for prompt in prompts]
    assert len({tuple(w) for w in wanted}) == 5
    assert [generate_many(model, [p], max_new_tokens=15)[0].tokens for p in prompts] == wanted
    assert [g.tokens for g in generate_many(model, prompts, max_new_tokens=15)] == wanted
    assert [g.tokens for g in generate_many(model, prompts, batch_size=2, max_new_tokens=15)] == wanted


@pytest.mark.parametrize("window", WINDOWS)
def test_rows_that_stop_leave_the_batch_and_change_no_other(tiny_config, window, make_model):
    model = make_model(replace(tiny_config, sliding_window=window))
    prompts = prompts_of(*range(1, 13))
    full = [slowly(model, prompt, 20) for prompt in prompts]
    # Stop at what some rows say early and others late or never.
    stop = {full[0][0], full[3][2], full[5][5], full[8][9]}
    wanted = [list(itertools.takewhile(lambda token: token not in stop, text)) for text in full]
    lengths = [len(text) for text in wanted]
    assert len(set(lengths)) >= 4 and max(lengths) == 20
    sizes = []
    answers = generate_many(
        model, prompts, max_new_tokens=20, stop_ids=stop, on_output=lambda rows, out: sizes.append(len(rows))
    )
    assert [a.tokens for a in answers] == wanted
    assert [a.finished for a in answers] == ["length" if n == 20 else "stop" for n in lengths]
    assert [a.prompt_tokens for a in answers] == list(range(1, 13))
    # Every forward pass holds just the rows that still want a token.
    assert sizes == [sum(n >= step for n in lengths) for step in range(max(lengths))]


@pytest.mark.parametrize("sampling", [Sampling(0.9, seed=3), Sampling(1.2, 20, 0.9, seed=4)])
def test_samples_do_not_depend_on_the_batch(tiny_config, sampling, make_model):
    model = make_model(tiny_config, std=0.1)
    prompts = prompts_of(6, 6, 2, 9)
    prompts[1] = prompts[0]
    wanted = [slowly(model, prompt, 12, (5, 6), sampling, row) for row, prompt in enumerate(prompts)]
    assert wanted[0] != wanted[1], "the same prompt twice gives two samples"
    settings = {"max_new_tokens": 12, "stop_ids": (5, 6), "sampling": sampling}
    for size in (1, 3, 4):
        assert [g.tokens for g in generate_many(model, prompts, batch_size=size, **settings)] == wanted
    alone = generate_many(model, [prompts[2]], row_ids=[2], **settings)
    assert alone[0].tokens == wanted[2]
    other = generate_many(model, prompts, max_new_tokens=12, sampling=replace(sampling, seed=99))
    assert [g.tokens for g in other] != wanted


def test_the_context_is_respected(tiny_config, make_model):
    model = make_model(replace(tiny_config, max_seq_len=16))
    answers = generate_many(model, prompts_of(3, 10, 15), max_new_tokens=8)
    assert [(len(a.tokens), a.finished) for a in answers] == [(8, "length"), (6, "length"), (1, "length")]
    with pytest.raises(
        UserError, match="prompt 2 has 16 tokens and leaves no room in the model's context of 16 tokens"
    ):
        generate_many(model, prompts_of(3, 16), max_new_tokens=8)
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate_many(model, [[1], []], batch_size=4, max_new_tokens=8)
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        generate_many(model, [[1]], max_new_tokens=0)
    with pytest.raises(UserError, match="batch size is 0"):
        generate_many(model, [[1]], batch_size=0, max_new_tokens=1)
    assert generate_many(model, [], max_new_tokens=1) == [] == generate_many(model, [], batch_size=1, max_new_tokens=1)


def test_callbacks(tiny_config, make_model):
    model = make_model(tiny_config)
    prompts = prompts_of(5, 3, 8)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    done = {}

    def on_token(row, token):
        seen[row].append(token)
        return row == 1 and len(seen[1]) == 4

    answers = generate_many(
        model, prompts, batch_size=2, max_new_tokens=9, on_token=on_token, on_progress=done.__setitem__
    )
    assert [a.tokens for a in answers] == [seen[0], seen[1], seen[2]]
    assert [(len(a.tokens), a.finished) for a in answers] == [(9, "length"), (4, "stop"), (9, "length")]
    assert [done[i] for i in range(3)] == answers


def test_filling_holes_moves_rows_forward_only():
    for count in range(1, 7):
        for ended in itertools.chain.from_iterable(itertools.combinations(range(count), n) for n in range(count)):
            keep = fill_holes(count, ended)
            assert sorted(keep) == sorted(set(range(count)) - set(ended))
            assert all(source >= target for target, source in enumerate(keep))
            moved = sum(source != target for target, source in enumerate(keep))
            assert moved <= len(ended)


@pytest.mark.parametrize("window", WINDOWS)
@torch.no_grad()
def test_a_cache_wider_than_the_model(tiny_config, window, make_model):
    """bfloat16 models keep a float32 cache on a CPU; the values in it are the same, so only attention is more exact."""
    model = make_model(replace(tiny_config, sliding_window=window), dtype=torch.bfloat16, std=0.05)
    assert cache_dtype(model) == torch.float32 and cache_dtype(model.double()) == torch.float64
    model = model.bfloat16()
    tokens = torch.tensor(prompts_of(9, 9))
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache(model.config, 2, 12, dtype)
        parts = [model(part, cache=cache).logits for part in tokens.split((5, 1, 3), dim=1)]
        logits.append(torch.cat(parts, dim=1).double())
        assert parts[0].dtype == torch.bfloat16
    exact = model.double()(tokens).logits
    errors = [float((found - exact).abs().max()) for found in logits]
    assert max(errors) < 0.02 * float(exact.abs().max())


@pytest.mark.parametrize("window", WINDOWS)
def test_prompts_read_in_parts(tiny_config, window, make_model, monkeypatch):
    model = make_model(replace(tiny_config, sliding_window=window))
    prompts = prompts_of(9, 9, 7, 3, 12)
    wanted = [slowly(model, prompt, 6) for prompt in prompts]
    monkeypatch.setattr(engine, "TOKENS_PER_PASS", 18)
    seen = []
    answers = generate_many(
        model, prompts, max_new_tokens=6, on_output=lambda requests, out: seen.append([r.key for r in requests])
    )
    assert [a.tokens for a in answers] == wanted
    assert seen[:4] == [[0, 1], [2, 3], [4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("context", ["none", "mean", "ema", "filter"])
def test_samples_of_a_prompt_share_its_reading(tiny_config, window, context, make_model):
    """Those of the first batch copy its row, later ones what was kept of it; routers remember what they should."""
    config = replace(tiny_config, num_experts=4, router_context=context, sliding_window=window)
    model, (prompt, other) = make_model(config), prompts_of(17, 5)
    sampling, read = Sampling(1.0, seed=1), []
    wanted = [slowly(model, p, 8, (), sampling, row) for row, p in enumerate([prompt] * 5 + [other])]
    model.register_forward_pre_hook(lambda _, args, kwargs: read.append(kwargs.get("documents")), with_kwargs=True)
    answers = generate_many(model, [prompt] * 5 + [other], batch_size=2, max_new_tokens=8, sampling=sampling)
    assert [a.tokens for a in answers] == wanted
    assert [r for r in read if r] == [(17,), (5,)]


def test_requests_enter_and_leave_a_running_batch(tiny_config, make_model):
    model, prompts = make_model(tiny_config), prompts_of(5, 9, 2, 7, 30, 3)
    lengths, settings = (
        (3, 11, 1, 6, 9, 4),
        [Sampling(), Sampling(1.0, 8, 0.9, 2, 0.05, 1.3), Sampling(0.7, seed=9)] * 2,
    )
    done: dict[int, list[int]] = {}
    running = Engine(model, 3)
    requests = [
        Request(p, n, s, row_id=i, key=i, on_finished=lambda found, i=i: done.__setitem__(i, found.tokens))
        for i, (p, n, s) in enumerate(zip(prompts, lengths, settings))
    ]
    running.submit(*requests[:3])
    for request in requests[3:]:
        running.step()
        running.submit(request)
    running.run()
    assert [len(done[i]) for i in range(6)] == list(lengths)
    for i, request in enumerate(requests):
        alone = generate_many(model, [request.prompt], max_new_tokens=lengths[i], sampling=settings[i], row_ids=[i])
        assert alone[0].tokens == done[i]
    assert not running.step()


def test_a_cancelled_request_ends(tiny_config, make_model):
    running, done = Engine(make_model(tiny_config), 1), []
    requests = [Request(p, 50, key=i, on_finished=done.append) for i, p in enumerate(prompts_of(4, 6, 3))]
    running.submit(*requests)
    running.step()
    for request in requests[:2]:
        running.cancel(request)
    running.run()
    assert [(len(a.tokens), a.finished) for a in done] == [(2, "stop"), (0, "stop"), (50, "length")]


@pytest.mark.parametrize("attention", [{}, {"sliding_window": 5}, {"sliding_window": 7, "sliding_layers": (1,)}])
@pytest.mark.parametrize("context", ["none", "mean", "ema", "filter"])
def test_drafts_change_no_token(tiny_config, attention, context, make_model, monkeypatch):
    """Greedy and drawn: tokens that were not confirmed leave no trace in keys, routers, text and random numbers."""
    model = make_model(replace(tiny_config, num_experts=4, router_context=context, **attention))
    prompts = prompts_of(5, 3, 8)
    for sampling in (Sampling(), Sampling(0.9, 20, seed=3), Sampling(repetition_penalty=1.2)):
        settings = {"max_new_tokens": 30, "sampling": sampling}
        plain = [a.tokens for a in generate_many(model, prompts, **settings)]
        texts = [prompt + tokens for prompt, tokens in zip(prompts, plain)]

        def guess(self, count, texts=texts):
            """What comes, with a mistake at every seventh place of the text."""
            (text,) = [t for t in texts if t[: len(self._text)] == self._text]
            return [
                (text[i] + (i % 7 == 0)) % 97 for i in range(len(self._text), min(len(self._text) + count, len(text)))
            ]

        monkeypatch.setattr(Lookup, "guess", guess)
        for size, draft in ((1, 3), (3, 6)):
            drafted = generate_many(model, prompts, batch_size=size, draft=draft, **settings)
            assert [a.tokens for a in drafted] == plain
            assert all(0 < a.accepted < a.drafted for a in drafted)


def test_look_ups_find_the_newest_place():
    lookup = Lookup([1, 2, 3, 4, 9, 2, 3, 5, 6, 7, 2, 3])
    assert lookup.guess(3) == [5, 6, 7] and lookup.guess(0) == []
    lookup.push(4)
    assert lookup.guess(2) == [9, 2], "a longer agreement counts more"
    lookup.push(8)
    assert lookup.guess(2) == [] and Lookup([1]).guess(4) == []
    assert Lookup([5, 5, 5, 5]).guess(4) == [5]


def test_right_drafts_save_passes(tiny_config, make_model, monkeypatch):
    model, passes = make_model(tiny_config), []
    prompt = prompts_of(6)[0]
    text = generate_many(model, [prompt], max_new_tokens=40)[0].tokens
    decode = Engine._decode
    monkeypatch.setattr(Engine, "_decode", lambda engine: passes.append(1) or decode(engine))
    found = generate_many(model, [prompt + text + prompt], max_new_tokens=40, draft=5)[0]
    assert len(passes) == len(found.tokens) - 1 - found.accepted


def test_biases_choose_experts(tiny_config, make_model):
    """A request's bias is its own; -inf leaves an expert out."""
    model = make_model(replace(tiny_config, num_experts=4, num_experts_per_tok=2))
    off, seen = float("-inf"), []

    def look(requests, output):
        for routing in output.routing:
            for place, request in enumerate(requests):
                seen.append(
                    (request.key, {int(e) for e, g in zip(routing.expert_ids[place], routing.gates[place]) if g})
                )

    done = {}
    running = Engine(model, 4, on_output=look)
    biases = [None, (0.0, off, 0.0, off), (off, off, off, 0.0), (0.0, 0.0, 0.0, 0.0)]
    for key, bias in enumerate(biases):
        prompt = prompts_of(7)[0]
        running.submit(
            Request(prompt, 12, expert_bias=bias, key=key, on_finished=lambda a, k=key: done.__setitem__(k, a))
        )
    running.run()
    assert {frozenset(experts) for key, experts in seen if key == 1} == {frozenset({0, 2})}
    assert {frozenset(experts) for key, experts in seen if key == 2} == {frozenset({3})}
    assert done[0].tokens == done[3].tokens == generate_many(model, prompts_of(7), max_new_tokens=12)[0].tokens
    assert done[0].tokens != done[2].tokens


def test_random_requests_in_a_running_batch_equal_each_alone(tiny_config, make_model):
    """SOAK=2000 in the environment makes it a soak: lengths, settings, biases and arrivals are random."""
    context = {"router_context": "filter", "router_layers": "first", "sliding_window": 24}
    model = make_model(replace(tiny_config, num_experts=4, **context))
    draw, done = random.Random(0), {}
    requests = []
    for key in range(int(os.environ.get("SOAK", "16"))):
        drawn = Sampling(
            draw.uniform(0.3, 1.5), draw.choice([0, 5]), draw.choice([1, 0.8]), draw.randrange(9), 0.01, 1.2
        )
        requests.append(
            Request(
                [draw.randrange(97) for _ in range(draw.choice([1, 3, 10, 60]))],
                draw.choice([1, 4, 9, 20]),
                draw.choice([Sampling(), drawn]),
                frozenset(draw.sample(range(97), 3)),
                draw.randrange(1000),
                draw.choice([None, None, (0.0, float("-inf"), 0.0, 3.0)]),
                key,
                on_finished=lambda answer, key=key: done.__setitem__(key, answer),
            )
        )
    running, pending = Engine(model, 6, draft=3), list(requests)
    while pending or running.rows or running.waiting:
        for _ in range(min(len(pending), draw.choice([0, 1, 1, 3, 8]))):
            running.submit(pending.pop(0))
        running.step()
    for request in requests:
        alone: list = []
        single = Engine(model, 1)
        single.submit(replace(request, on_finished=alone.append))
        single.run()
        assert (alone[0].tokens, alone[0].finished) == (done[request.key].tokens, done[request.key].finished)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_request_that_overflows_spoils_no_later_one(device, tiny_config, make_model, monkeypatch):
    """On a GPU rows are cleaned without a look at them; here a cache's rows in the host's memory stand for it."""
    clean = KVCache._clean

    def cleaned(cache, place):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cache, "device", torch.device(device))
            patch.setattr(torch.Tensor, "isfinite", None if device == "cuda" else torch.Tensor.isfinite)
            clean(cache, place)

    monkeypatch.setattr(KVCache, "_clean", cleaned)
    model = make_model(tiny_config, dtype=torch.float32)
    with torch.no_grad():
        model.tok_embeddings.weight[7] = torch.nan
    found: dict[object, list[torch.Tensor]] = {}

    def keep(chosen, output) -> None:
        for request, row in zip(chosen, output.logits[:, 0]):
            found.setdefault(request.key, []).append(row.clone())

    running = Engine(model, 2, on_output=keep)
    for requests in ([([5] * 9, 2), ([7] * 40, 6)], [([5, 6], 3), ([6, 5], 3)]):  # the second row moves to the first
        running.submit(*(Request(prompt, count, key=tuple(prompt)) for prompt, count in requests))
        running.run()
    assert torch.stack(found[(7,) * 40]).isnan().all()
    assert all(torch.stack(found[key]).isfinite().all() for key in ((5, 6), (6, 5)))
