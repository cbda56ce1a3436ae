"""From pairs to packed, mixed-language batches.

An example is a prompt and its response; only the response is learned. Examples are packed into rows of up to
``tokens_per_batch`` tokens and do not attend to each other. Every batch holds all languages in about equal token
counts: load balancing within a single-language batch would work against language experts.
"""

# S tokens of a packed row, N scored positions

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe.data.pairs import Pair
from moe.data.prompt import encode_example, instruction_for
from moe.errors import UserError
from moe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and response together; ``tokens[response_start:]`` are learned; ``language`` is an index."""

    tokens: tuple[int, ...]
    response_start: int
    language: int


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
    """Examples per language, and how many pairs were left out for being longer than ``max_tokens``.

    ``kept`` has the place in the pairs of each example.
    """

    examples: dict[str, list[Example]]
    too_long: dict[str, int]
    kept: dict[str, list[int]]


def encode_pairs(
    pairs: Mapping[str, Sequence[Pair]],
    tokenizer: Tokenizer,
    template: str,
    max_tokens: int,
    unnamed_share: float = 0.0,
    seed: int = 0,
) -> EncodedData:
    """Encodes pairs with a prompt template; a language's index is its place in ``pairs``.

    ``unnamed_share`` of the prompts, drawn by ``seed``, do not name the language: a router trained on the others alone
    would read the name and nothing else.

    Pairs longer than ``max_tokens`` are left out and counted. Raises :class:`UserError` when nothing of a language is
    left.
    """
    examples: dict[str, list[Example]] = {}
    too_long: dict[str, int] = {}
    places: dict[str, list[int]] = {}
    for index, (language, items) in enumerate(pairs.items()):
        kept, places[language] = [], []
        draw = random.Random(f"unnamed-{seed}-{language}")
        for place, pair in enumerate(items):
            named = draw.random() >= unnamed_share
            instruction = instruction_for(pair.text, pair.language if named else None)
            tokens, start = encode_example(tokenizer, template, instruction, pair.code)
            if len(tokens) <= max_tokens:
                kept.append(Example(tuple(tokens), start, index))
                places[language].append(place)
        if not kept:
            raise UserError(
                f"none of the {len(items)} {language} pairs fits into {max_tokens} tokens; set max_tokens higher"
            )
        examples[language], too_long[language] = kept, len(items) - len(kept)
    return EncodedData(examples, too_long, places)


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
    language that has had the fewest tokens so far.
    """

    def __init__(self, examples: Mapping[str, Sequence[Example]], tokens_per_batch: int, seed: int):
        self.examples = [list(items) for items in examples.values()]
        self.tokens_per_batch = tokens_per_batch
        self.seed = seed
        longest = max(len(example.tokens) for items in self.examples for example in items)
        if longest > tokens_per_batch:
            raise UserError(f"tokens_per_batch is {tokens_per_batch}, but an example has {longest} tokens")
        self._drawn: list[list[Example]] = []
        self._state = [(0, self._order(language, 0)) for language in range(len(self.examples))]
        self._next = [0] * len(self.examples)
        self._tokens = [0] * len(self.examples)
        self._pending = self._draw()  # what did not fit into the last batch opens the next one

    def _order(self, language: int, epoch: int) -> list[int]:
        order = list(range(len(self.examples[language])))
        random.Random(f"{self.seed}-{language}-{epoch}").shuffle(order)
        return order

    def _draw(self) -> Example:
        language = min(range(len(self._tokens)), key=lambda i: (self._tokens[i], i))
        epoch, order = self._state[language]
        if self._next[language] == len(order):
            epoch, order = epoch + 1, self._order(language, epoch + 1)
            self._state[language], self._next[language] = (epoch, order), 0
        example = self.examples[language][order[self._next[language]]]
        self._next[language] += 1
        self._tokens[language] += len(example.tokens)
        return example

    def group(self, index: int) -> list[Example]:
        """The examples of batch ``index``."""
        while len(self._drawn) <= index:
            group, used = [], 0
            while used + len(self._pending.tokens) <= self.tokens_per_batch:
                group.append(self._pending)
                used += len(self._pending.tokens)
                self._pending = self._draw()
            self._drawn.append(group)
        return self._drawn[index]

    def __getitem__(self, index: int) -> Batch:
        return make_batch(self.group(index))

    @property
    def epoch_batches(self) -> float:
        """About how many batches one pass over the data takes."""
        total = sum(len(example.tokens) for items in self.examples for example in items)
        return total / self.tokens_per_batch
