"""Drawing tokens: exact shares, the same choices as transformers' filters, seeds, edges."""

from __future__ import annotations

import pytest
import torch

from moe.errors import UserError
from moe.inference.sampling import GREEDY, Sampling, candidates, choose, number_stream, sample

DRAWS = 10_000


def shares(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """How often each token is drawn at evenly spread uniform numbers: within 1/DRAWS of its probability."""
    grid = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    drawn = sample(logits.expand(DRAWS, -1), sampling, grid)
    return torch.bincount(drawn, minlength=logits.shape[0]) / DRAWS


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(40, generator=torch.Generator().manual_seed(0)) * 2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(0, 1.0), (7, 1.0), (0, 0.8), (9, 0.7), (1, 0.5), (40, 1.0), (100, 0.999)]
)
def test_shares_equal_those_of_transformers(logits, temperature, top_k, top_p):
    from transformers.generation import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    filters = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        filters.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        filters.append(TopPLogitsWarper(top_p))
    wanted = torch.softmax(filters(None, logits[None]), dim=-1)[0]
    found = shares(logits, Sampling(temperature, top_k, top_p))
    assert (found - wanted).abs().max() < 1.5 / DRAWS
    assert bool((found[wanted == 0] == 0).all())


def test_the_nucleus_is_the_smallest_that_holds_p():
    logits = torch.tensor([0.2, 0.5, 0.1, 0.2], dtype=torch.float64).log()[None]
    for top_p, wanted in (
        (0.05, [1]),
        (0.49, [1]),
        (0.51, [1, 0]),
        (0.69, [1, 0]),
        (0.75, [1, 0, 3]),
        (0.95, [1, 0, 3, 2]),
    ):
        kept, ids = candidates(logits, Sampling(1.0, top_p=top_p))
        assert ids[0][kept[0] > 0].tolist() == wanted, top_p


def test_greedy(logits):
    assert GREEDY.greedy and not Sampling(0.1).greedy
    assert sample(torch.stack((logits, -logits)), GREEDY).tolist() == [int(logits.argmax()), int(logits.argmin())]
    assert sample(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), GREEDY).tolist() == [1], "the first of equals"
    everything = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    for sampling in (Sampling(1e-300), Sampling(5.0, top_k=1), Sampling(5.0, top_p=1e-9)):
        assert sample(logits.expand(3, -1), sampling, everything).tolist() == [int(logits.argmax())] * 3


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(1.0, top_k=3), Sampling(1.0, top_p=0.99)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ends_of_the_distribution(sampling, dtype):
    """Tokens of no probability are never drawn, whatever the uniform number."""
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 1.0, float("-inf")]], dtype=dtype)
    first, last = (int(sample(logits, sampling, torch.tensor([u], dtype=torch.float64))) for u in (0.0, 1 - 2**-53))
    assert {first, last} == {1, 3}


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (9, 1.0), (0, 0.9), (12, 0.8)])
@pytest.mark.parametrize("min_p", [0.02, 0.2, 1.0])
def test_min_p_and_the_penalty_equal_those_of_transformers(logits, top_k, top_p, min_p):
    from transformers import generation

    text = [3, 5, 3, 17, 39, 5]
    filters = [generation.RepetitionPenaltyLogitsProcessor(1.4), generation.TemperatureLogitsWarper(1.5)]
    filters += [generation.TopKLogitsWarper(top_k)] if top_k else []
    filters += [generation.TopPLogitsWarper(top_p)] if top_p < 1 else []
    filters += [generation.MinPLogitsWarper(min_p)]
    wanted = torch.softmax(generation.LogitsProcessorList(filters)(torch.tensor([text]), logits[None]), -1)[0]
    grid, sampling = (torch.arange(DRAWS) + 0.5) / DRAWS, Sampling(1.5, top_k, top_p, 0, min_p, 1.4)
    drawn = choose(logits.expand(DRAWS, -1), [sampling] * DRAWS, grid.tolist(), [text] * DRAWS)
    found = torch.bincount(torch.tensor(drawn), minlength=40) / DRAWS
    assert (found - wanted).abs().max() < 1.5 / DRAWS and bool((found[wanted == 0] == 0).all())


@pytest.mark.parametrize("penalty", [1e-300, 1e-45, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_most_extreme_penalties_draw_tokens_that_exist(logits, penalty, dtype):
    """Of the positive logits the one that the smallest penalty leaves infinite took every probability to NaN."""
    for settings in ({}, {"top_p": 0.5}, {"top_k": 3, "min_p": 0.1}):
        sampling = Sampling(1.0, repetition_penalty=penalty, **settings)
        (drawn,) = choose(logits[None].to(dtype), [sampling], [0.999], [range(0, 40, 2)])
        assert drawn in (range(0, 40, 2) if penalty < 1 else range(1, 40, 2))


def test_rows_with_settings_of_their_own(logits):
    settings = [Sampling(), Sampling(1.0), Sampling(repetition_penalty=9.0), Sampling(1.0, 3), Sampling(1.0, seed=7)]
    texts = [[0], [1], [int(logits.argmax())], [2], [3]]
    rows = [choose(logits[None], [s], [0.3], [t])[0] for s, t in zip(settings, texts)]
    assert choose(logits.expand(5, -1), settings, [0.3] * 5, texts) == rows
    assert rows[0] == int(logits.argmax()) != rows[2] and rows[1] == rows[4]


def test_random_numbers_belong_to_seed_and_row():
    def numbers(seed: int, row: int, count: int) -> list[float]:
        stream = number_stream(seed, row)
        return [stream.random() for _ in range(count)]

    assert numbers(5, 3, 20) == numbers(5, 3, 50)[:20]
    assert len({n for seed in (5, 6) for row in range(3) for n in numbers(seed, row, 1)}) == 6
    many = torch.tensor([numbers(0, row, 50) for row in range(200)])
    assert many.min() >= 0 and many.max() < 1 and abs(float(many.mean()) - 0.5) < 0.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0, expected more than 0 and at most 1"),
        ({"top_p": 1.01}, "top_p is 1.01"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0, expected a positive number"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(UserError, match=message):
        Sampling(**settings)
