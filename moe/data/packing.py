"""From pairs to packed, mixed-language batches.

An example is a prompt and its response; only the response is learned. Examples are packed into rows of up to
``tokens_per_batch`` tokens and do not attend to each other. Every batch holds all languages in about equal token
counts: load balancing within a single-language batch would work against language experts.
"""

# S tokens of a packed row, N scored positions

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.data.examples import Example as Example
from moe.data.examples import Examples, TokenCache, in_memory
from moe.data.pairs import Pair
from moe.data.prompt import encode_example, instruction_for
from moe.errors import UserError
from moe.tokenizer import Tokenizer

EMPTY, AHEAD = 0.05, 32


@dataclass(frozen=True)
class Batch:
    """A packed row.

    Attributes:
        tokens: [1, S] int64.
        documents: lengths of the packed examples; they sum to S.
        languages: [S] int64, index of each token's language.
        positions: [N] int64, the positions whose hidden state predicts a learned token.
        targets: [N] int64, these tokens.
    """

    tokens: Tensor
    documents: tuple[int, ...]
    languages: Tensor
    positions: Tensor
    targets: Tensor

    @property
    def items(self) -> int:
        """How many losses a step's mean is over: one a learned token."""
        return self.targets.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = (t.to(device) for t in (self.languages, self.positions, self.targets))
        return Batch(self.tokens.to(device), self.documents, *moved)


@dataclass(frozen=True)
class EncodedData:
    """Examples per language, and how many pairs were left out for being longer than ``max_tokens``."""

    examples: dict[str, Examples]
    too_long: dict[str, int]


def encode_pairs(
    pairs: Mapping[str, Sequence[Pair]],
    tokenizer: Tokenizer,
    template: str,
    max_tokens: int,
    unnamed_share: float = 0.0,
    seed: int = 0,
    cache: tuple[Path, Any] | None = None,
) -> EncodedData:
    """Encodes pairs with a prompt template; a language's index is its place in ``pairs``.

    ``unnamed_share`` of the prompts, drawn by ``seed``, do not name the language: a router trained on the others alone
    would read the name and nothing else.

    Args:
        cache: a folder for the token ids, which are then mapped instead of held in memory, and the fingerprints of
            data and tokenizer, as JSON; the same ones are not encoded again.

    Pairs longer than ``max_tokens`` are left out and counted. Raises :class:`UserError` when nothing of a language is
    left.
    """
    too_long: dict[str, int] = {}

    def encoded(language: str, items: Sequence[Pair]) -> Iterator[tuple[list[int], int, int]]:
        draw = random.Random(f"unnamed-{seed}-{language}")
        count = place = 0
        for place, pair in enumerate(items, start=1):
            named = draw.random() >= unnamed_share
            instruction = instruction_for(pair.text, pair.language if named else None)
            tokens, start = encode_example(tokenizer, template, instruction, pair.code)
            if len(tokens) <= max_tokens:
                count += 1
                yield tokens, start, place - 1
        too_long[language] = place - count
        if not count:
            raise UserError(
                f"none of the {len(items)} {language} pairs fits into {max_tokens} tokens; set max_tokens higher"
            )

    flows = {language: encoded(language, items) for language, items in pairs.items()}
    if cache is None:
        return EncodedData(in_memory(flows), too_long)
    own = tokenizer.chat.source if tokenizer.chat is not None else None
    files = TokenCache(cache[0], [cache[1], list(pairs), template, own, max_tokens, unnamed_share, seed])
    if files.read() is None:
        files.write(flows, too_long)
    found = files.read()
    assert found is not None, "just written"
    return EncodedData(*found)


def make_batch(examples: Sequence[Example]) -> Batch:
    """Packs examples into one row."""
    tokens: list[int] = []
    languages: list[int] = []
    positions: list[int] = []
    targets: list[int] = []
    for example in examples:
        offset = len(tokens)
        tokens.extend(example.tokens)
        languages.extend([example.language] * len(example.tokens))
        positions.extend(range(offset + example.response_start - 1, offset + len(example.tokens) - 1))
        targets.extend(example.tokens[example.response_start :])
    lengths = tuple(len(example.tokens) for example in examples)
    ids, owners, places, wanted = (
        torch.tensor(values, dtype=torch.int64) for values in (tokens, languages, positions, targets)
    )
    return Batch(ids[None], lengths, owners, places, wanted)


class MixedBatches:
    """An endless, reproducible sequence of mixed-language batches; ``batches[i]`` depends on the seed and ``i`` alone.

    Each language's examples are shuffled and taken in turn, epoch after epoch; the next example always comes from the
    language that has had the fewest tokens so far. Where whole examples in this order would leave more than
    :data:`EMPTY` of the batches empty, the rest of a batch is filled from the next :data:`AHEAD` examples, the longest
    that fits first (best fit); the order of the others stays.
    """

    def __init__(self, examples: Mapping[str, Sequence[Example]], tokens_per_batch: int, seed: int):
        self.examples = [Examples.of(items) for items in examples.values()]
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        self._lengths = [array("I", items.lengths.tolist()) for items in self.examples]
        longest = max(map(max, self._lengths))
        if longest > tokens_per_batch:
            raise UserError(f"tokens_per_batch is {tokens_per_batch}, but an example has {longest} tokens")
        lengths = [items.lengths for items in self.examples]
        gap = np.mean([(x.astype(float) ** 2).mean() / x.mean() for x in lengths]) / 2  # cut at a random token
        self._ahead = AHEAD if gap > EMPTY * tokens_per_batch else 0
        self._groups, self._index, self._group = self._from_start(), -1, [(0, 0)]

    def _order(self, language: int, epoch: int) -> array[int]:
        order = array("I", range(len(self.examples[language])))
        random.Random(f"{self.seed}-{language}-{epoch}").shuffle(order)  # type: ignore[arg-type]
        return order

    def _draws(self) -> Iterator[tuple[int, int, int]]:
        """Language, index and epoch of one example after another."""
        orders = [self._order(language, 0) for language in range(len(self.examples))]
        taken, tokens = [0] * len(orders), [0] * len(orders)
        while True:
            language = min(range(len(tokens)), key=lambda i: (tokens[i], i))
            epoch, place = divmod(taken[language], len(orders[language]))
            if epoch and not place:
                orders[language] = self._order(language, epoch)
            index = orders[language][place]
            taken[language] += 1
            tokens[language] += self._lengths[language][index]
            yield language, index, epoch

    def _from_start(self) -> Iterator[list[tuple[int, int]]]:
        """Language and index of each example, batch by batch; no more than the examples looked at are kept."""
        draws = self._draws()
        seen = [next(draws) for _ in range(self._ahead + 1)]
        while True:
            group: list[tuple[int, int]] = []
            room = self.tokens_per_batch
            while (place := self._fitting(seen, room)) is not None:
                language, index, _ = seen.pop(place)
                group.append((language, index))
                room -= self._lengths[language][index]
                seen.append(next(draws))
            yield group

    def _fitting(self, seen: Sequence[tuple[int, int, int]], room: int) -> int | None:
        """The place of the first example if it fits, else of the longest one that does; None without one."""
        best, longest = None, 0
        epochs: dict[int, int] = {}
        for place, (language, index, epoch) in enumerate(seen):
            length = self._lengths[language][index]
            # None goes before one of an earlier pass over the same language.
            passed = epoch > epochs.setdefault(language, epoch)
            if not passed and longest < length <= room:
                best, longest = place, length
                if place == 0:
                    break
        return best

    def group(self, index: int) -> list[Example]:
        """The examples of batch ``index``, which takes longer where it is before the last one asked for."""
        if index < 0:
            raise IndexError(f"batch {index}")
        if index < self._index:
            self._groups, self._index = self._from_start(), -1
        while self._index < index:
            self._group = next(self._groups)
            self._index += 1
        return [self.examples[language][item] for language, item in self._group]

    def __getitem__(self, index: int) -> Batch:
        return make_batch(self.group(index))

    @property
    def epoch_batches(self) -> float:
        """About how many batches one pass over the data takes."""
        return sum(map(sum, self._lengths)) / self.tokens_per_batch

    def filled(self, batches: int = 100) -> float:
        """The share of ``tokens_per_batch`` that the first batches fill."""
        groups = islice(self._from_start(), batches)
        tokens = sum(self._lengths[language][index] for group in groups for language, index in group)
        return tokens / (batches * self.tokens_per_batch)
