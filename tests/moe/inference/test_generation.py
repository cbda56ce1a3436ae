"""Writing answers: the cache, batches, dropped rows and limits change no token."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from moe.cache import KVCache
from moe.errors import UserError
from moe.inference import generation
from moe.inference.generation import cache_dtype, fill_holes, generate, generate_many
from moe.inference.sampling import Sampling, sample, uniforms

WINDOWS = [None, 5]


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 97, (n,), generator=generator).tolist() for n in lengths]


@torch.inference_mode()
def slowly(model, prompt, count, stop_ids=(), sampling=None, row=0) -> list[int]:
    """The definition: read everything again for each token, one prompt at a time, without a cache."""
    text, numbers = list(prompt), uniforms(sampling.seed, [row], count) if sampling else None
    for step in range(count):
        logits = model(torch.tensor([text])).logits[:, -1]
        token = int(logits.argmax()) if sampling is None else int(sample(logits, sampling, numbers[:, step]))
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
    assert [generate(model, [p], max_new_tokens=15)[0].tokens for p in prompts] == wanted
    assert [g.tokens for g in generate(model, prompts, max_new_tokens=15, pad_id=96)] == wanted
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
    answers = generate(
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
    alone = generate(model, [prompts[2]], row_ids=[2], **settings)
    assert alone[0].tokens == wanted[2]
    other = generate(model, prompts, max_new_tokens=12, sampling=replace(sampling, seed=99))
    assert [g.tokens for g in other] != wanted


def test_the_context_is_respected(tiny_config, make_model):
    model = make_model(replace(tiny_config, max_seq_len=16))
    answers = generate(model, prompts_of(3, 10, 15), max_new_tokens=8)
    assert [(len(a.tokens), a.finished) for a in answers] == [(8, "length"), (6, "length"), (1, "length")]
    with pytest.raises(
        UserError, match="prompt 2 has 16 tokens and leaves no room in the model's context of 16 tokens"
    ):
        generate(model, prompts_of(3, 16), max_new_tokens=8)
    with pytest.raises(UserError, match="prompt 2 is empty"):
        generate_many(model, [[1], []], batch_size=4, max_new_tokens=8)
    with pytest.raises(UserError, match="max_new_tokens is 0"):
        generate(model, [[1]], max_new_tokens=0)
    with pytest.raises(UserError, match="batch size is 0"):
        generate_many(model, [[1]], batch_size=0, max_new_tokens=1)
    assert generate(model, [], max_new_tokens=1) == [] == generate_many(model, [], batch_size=1, max_new_tokens=1)


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
    monkeypatch.setattr(generation, "TOKENS_PER_PASS", 25)
    seen = []
    answers = generate(model, prompts, max_new_tokens=6, on_output=lambda rows, out: seen.append(rows))
    assert [a.tokens for a in answers] == wanted
    assert seen[:4] == [[0, 1], [2, 3], [4], [0, 1, 2, 3, 4]]


def test_batches_that_are_known_are_not_written_again(tiny_config, make_model, monkeypatch):
    """A batch that lacks one answer is written whole, so that every answer is as in one go."""
    model, prompts = make_model(tiny_config), prompts_of(9, 8, 7, 6, 5)
    wanted = generate_many(model, prompts, batch_size=2, max_new_tokens=6)
    asked = []
    plain = generation.generate
    monkeypatch.setattr(generation, "generate", lambda *a, row_ids, **k: (asked.append(row_ids), plain(*a, **k))[1])
    known = {place: wanted[place] for place in (0, 1, 2)}
    assert generate_many(model, prompts, batch_size=2, max_new_tokens=6, known=known) == wanted
    assert asked == [[2, 3], [4]]
