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
KEPT = 1024  # batches whose examples are kept at least, of those that were drawn


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
        self._restart()
        lengths = [items.lengths for items in self.examples]
        gap = np.mean([(x.astype(float) ** 2).mean() / x.mean() for x in lengths]) / 2  # cut at a random token
        self._ahead = AHEAD if gap > EMPTY * tokens_per_batch else 0

    def _restart(self) -> None:
        self._drawn: list[array[int]] = [array("I") for _ in range(3)]  # language, index and epoch of each example
        self._ends = [0]  # of each batch in them, from the one before the first that is kept
        self._first = 0  # batch whose examples are kept
        self._state = [(0, self._order(language, 0)) for language in range(len(self.examples))]
        self._next = [0] * len(self.examples)
        self._tokens = [0] * len(self.examples)

    def _order(self, language: int, epoch: int) -> array[int]:
        order = array("I", range(len(self.examples[language])))
        random.Random(f"{self.seed}-{language}-{epoch}").shuffle(order)  # type: ignore[arg-type]
        return order

    def _draw(self) -> None:
        language = min(range(len(self._tokens)), key=lambda i: (self._tokens[i], i))
        epoch, order = self._state[language]
        if self._next[language] == len(order):
            epoch, order = epoch + 1, self._order(language, epoch + 1)
            self._state[language], self._next[language] = (epoch, order), 0
        index = order[self._next[language]]
        self._next[language] += 1
        self._tokens[language] += self._lengths[language][index]
        for values, value in zip(self._drawn, (language, index, epoch)):
            values.append(value)

    def _length(self, place: int) -> int:
        return self._lengths[self._drawn[0][place]][self._drawn[1][place]]

    def _draw_to(self, count: int) -> None:
        while self._first + len(self._ends) <= count:
            if len(self._ends) > 2 * KEPT:
                self._forget()
            end, room = self._ends[-1], self.tokens_per_batch
            while (place := self._fitting(end, room)) is not None:
                room -= self._length(place)
                for values in self._drawn if place > end else ():
                    values.insert(end, values.pop(place))
                end += 1
            self._ends.append(end)

    def _fitting(self, start: int, room: int) -> int | None:
        """The example at ``start`` if it fits, else the longest one that does of those after it; None without one."""
        while len(self._drawn[0]) <= start + self._ahead:
            self._draw()
        if self._length(start) <= room:
            return start
        best: tuple[int, int] | None = None
        epochs: dict[int, int] = {}
        for place in range(start, start + 1 + self._ahead):
            # None goes before one of an earlier pass over the same language.
            passed = self._drawn[2][place] > epochs.setdefault(self._drawn[0][place], self._drawn[2][place])
            if not passed and self._length(place) <= room and (best is None or self._length(place) > best[0]):
                best = self._length(place), place
        return None if best is None else best[1]

    def _forget(self) -> None:
        start = self._ends[KEPT]
        self._drawn = [values[start:] for values in self._drawn]
        self._ends = [end - start for end in self._ends[KEPT:]]
        self._first += KEPT

    def group(self, index: int) -> list[Example]:
        """The examples of batch ``index``; the last ones are known, an earlier one is drawn from the start."""
        if index < self._first:
            self._restart()
        self._draw_to(index + 1)
        places = range(self._ends[index - self._first], self._ends[index + 1 - self._first])
        return [self.examples[self._drawn[0][place]][self._drawn[1][place]] for place in places]

    def __getitem__(self, index: int) -> Batch:
        return make_batch(self.group(index))

    @property
    def epoch_batches(self) -> float:
        """About how many batches one pass over the data takes."""
        return sum(map(sum, self._lengths)) / self.tokens_per_batch

    def filled(self, batches: int = 100) -> float:
        """The share of ``tokens_per_batch`` that the first batches fill."""
        tokens = sum(len(example.tokens) for index in range(batches) for example in self.group(index))
        return tokens / (batches * self.tokens_per_batch)
