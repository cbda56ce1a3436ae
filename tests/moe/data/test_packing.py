"""Packed batches: every response token once, languages even, the same for the same seed."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from moe.data import packing
from moe.data.examples import TokensOnDisk
from moe.data.packing import Example, MixedBatches, encode_pairs, make_batch
from moe.data.stored import Pair, StoredPairs
from moe.data.synthetic import generate_pairs
from moe.errors import UserError
from moe.tokenizer import train_sentencepiece


def examples(lengths, language: int) -> list[Example]:
    return [
        Example(tuple(range(100 * i, 100 * i + n)), response_start=1 + n // 3, language=language)
        for i, n in enumerate(lengths)
    ]


@pytest.fixture
def data() -> dict[str, list[Example]]:
    return {"python": examples([5, 9, 14, 30, 8], 0), "cpp": examples([20, 28, 6], 1)}


def test_a_batch_predicts_each_response_token_from_the_one_before():
    first, second = Example((7, 8, 9, 10), 2, 0), Example((1, 2, 3), 1, 3)
    batch = make_batch([first, second])
    assert batch.tokens.tolist() == [[7, 8, 9, 10, 1, 2, 3]]
    assert batch.documents == (4, 3)
    assert batch.languages.tolist() == [0] * 4 + [3] * 3
    assert batch.positions.tolist() == [1, 2, 4, 5]
    assert batch.targets.tolist() == [9, 10, 2, 3]


def test_a_share_of_the_prompts_does_not_name_the_language(tmp_path):
    pairs = {x: generate_pairs(x, 60, 0) for x in ("python", "cpp")}
    tokenizer = train_sentencepiece([pair.code for pair in pairs["cpp"]], 400, tmp_path)

    def unnamed(share: float, seed: int = 0) -> list[bool]:
        found = []
        for language, items in encode_pairs(pairs, tokenizer, "plain", 4096, share, seed).examples.items():
            name = {"python": "Python", "cpp": "C++"}[language]
            prompts = (tokenizer.decode(item.tokens[: item.response_start]) for item in items)
            found += [f"Write a {name} function" not in prompt for prompt in prompts]
        return found

    assert not any(unnamed(0.0)) and all(unnamed(1.0))
    half = unnamed(0.5)
    assert 40 < sum(half) < 80 and half[:60] != half[60:]
    assert unnamed(0.5) == half != unnamed(0.5, seed=1)


def test_batches_fill_up_and_mix_languages(data):
    batches = MixedBatches(data, 64, seed=0)
    tokens = [0, 0]
    for index in range(40):
        batch = batches[index]
        size = batch.tokens.shape[1]
        assert 64 - 30 < size <= 64
        for language in (0, 1):
            tokens[language] += int((batch.languages == language).sum())
    assert abs(tokens[0] - tokens[1]) <= 30


def test_no_example_is_lost_or_repeated_within_a_pass(data):
    batches = MixedBatches(data, 64, seed=3)
    seen = [e for i in range(20) for e in batches.group(i) if e.language == 0]
    for epoch in range(3):
        window = seen[5 * epoch : 5 * epoch + 5]
        assert sorted(len(e.tokens) for e in window) == [5, 8, 9, 14, 30]


def test_any_batch_can_be_asked_for_first(data):
    later = MixedBatches(data, 64, seed=1)[7]
    batches = MixedBatches(data, 64, seed=1)
    assert all(batches[i].tokens.numel() for i in range(7))
    assert batches[7].tokens.equal(later.tokens)
    assert not all(MixedBatches(data, 64, seed=2)[i].tokens.equal(batches[i].tokens) for i in range(3))


def test_an_example_longer_than_a_batch_is_an_error(data):
    with pytest.raises(UserError, match="has 30 tokens"):
        MixedBatches(data, 29, seed=0)


def test_the_cache_gives_the_same_batches_and_is_read_again(tmp_path, monkeypatch):
    pairs = {x: generate_pairs(x, 40, 0) for x in ("python", "cpp")}
    tokenizer = train_sentencepiece([pair.code for pair in pairs["cpp"]], 400, tmp_path)
    longest = sorted(len(x.tokens) for x in encode_pairs(pairs, tokenizer, "plain", 999).examples["cpp"])[-3]

    def encoded(key: str, share: float = 0.5):
        return encode_pairs(pairs, tokenizer, "plain", longest, share, 3, (tmp_path / "tokens", key))

    memory, cached = encode_pairs(pairs, tokenizer, "plain", longest, 0.5, 3), encoded("a")
    assert cached.too_long == memory.too_long and sum(memory.too_long.values()) > 0
    for language, items in memory.examples.items():
        assert cached.examples[language] == list(items)
        assert cached.examples[language].places.tolist() == items.places.tolist()
        assert isinstance(cached.examples[language].tokens, TokensOnDisk)
    first, second = (MixedBatches(x.examples, 512, 1) for x in (memory, cached))
    assert all(first[i].tokens.equal(second[i].tokens) for i in range(5))

    def never(*_):
        raise AssertionError("encoded again")

    with monkeypatch.context() as patch:
        patch.setattr(packing, "encode_example", never)
        assert encoded("a").examples["cpp"] == cached.examples["cpp"]
        for other in ({"key": "b"}, {"key": "a", "share": 0.1}):
            with pytest.raises(AssertionError):
                encoded(**other)
    (tmp_path / "tokens" / "x").mkdir(parents=True, exist_ok=True)
    encoded("b")
    assert len(list((tmp_path / "tokens").iterdir())) == 1, "caches of other keys are removed"


def long_tailed(seed: int) -> dict[str, list[Example]]:
    """Examples as long as pairs of real code: 250 tokens on average, few of up to 1,024."""
    draw = np.random.default_rng(seed)
    return {x: examples(np.clip(draw.lognormal(5.2, 0.8, 300), 20, 1024).astype(int), i) for i, x in enumerate("ab")}


def test_most_of_each_batch_is_filled_and_nothing_is_lost():
    batches = MixedBatches(long_tailed(0), 2048, seed=0)
    groups = [batches.group(i) for i in range(100)]
    sizes = [sum(len(x.tokens) for x in group) for group in groups]
    assert max(sizes) <= 2048 and batches.filled() == sum(sizes) / 204800 > 0.97
    shares = [sum(len(x.tokens) for x in group if x.language) / size for group, size in zip(groups, sizes)]
    assert abs(np.mean(shares) - 0.5) < 0.02 and np.std(shares) < 0.2
    for language in (0, 1):
        seen = [x.tokens[0] for group in groups for x in group if x.language == language]
        assert len(seen) > 300 and sorted(seen[:300]) == [100 * i for i in range(300)], "one pass, then the next"


def test_the_drawn_order_stays_where_it_fills_batches_by_itself():
    examples = long_tailed(1)
    batches, order = MixedBatches(examples, 8192, seed=0), MixedBatches(examples, 1 << 20, seed=0).group(0)
    found = [x for i in range(20) for x in batches.group(i)]
    assert found == order[: len(found)] and batches.filled(20) > 0.95


def test_going_back_and_looking_ahead_change_no_batch():
    """A router is fitted beyond the training steps before the first of them, and a baseline starts anew."""
    batches, once = MixedBatches(long_tailed(2), 2048, seed=0), MixedBatches(long_tailed(2), 2048, seed=0)
    wanted = [once.group(i) for i in range(400)]
    for index in (399, 0, 0, 1, 250, 7, 399):
        assert batches.group(index) == wanted[index]
        assert batches.filled(30) == sum(len(x.tokens) for g in wanted[:30] for x in g) / (30 * 2048)
        assert batches.group(index) == wanted[index]


def test_memory_does_not_grow_with_the_batches(data):
    batches = MixedBatches(data, 64, seed=0)
    batches.group(500)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        batches.group(2_000)
        assert tracemalloc.get_traced_memory()[0] - before < 4_000
    finally:
        tracemalloc.stop()


def test_stored_pairs_are_a_sequence(monkeypatch):
    monkeypatch.setattr("moe.data.stored.IN_MEMORY", 10)  # the rest goes to a file
    pairs = [Pair("python", f"T\u00fc {i}", "x\n" * i, tests="{}", package="p") for i in range(5)]
    stored = StoredPairs()
    for pair in pairs:
        stored.append(pair)
    assert stored == pairs and list(stored)[3].package == "p"
    assert (stored[-1], stored[1:3], len(stored)) == (pairs[-1], pairs[1:3], 5)
    stored.append(pairs[0])
    assert stored[5] == pairs[0] and stored != pairs
    with pytest.raises(IndexError):
        stored[6]
