"""Where a run's pairs come from: the synthetic tasks that come with the project, or a folder of JSON Lines."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe.data.pairs import Pair, load_split
from moe.data.synthetic import generate_pairs
from moe.errors import UserError
from moe.training.config import SYNTHETIC, RunConfig

SYNTHETIC_TRAIN, SYNTHETIC_HELD_OUT = 10_000, 400  # pairs per language that are drawn unless fewer are asked for

Pairs = dict[str, list[Pair]]


@dataclass(frozen=True)
class DataSets:
    """Pairs per language: to train on, and held out by the name of their split."""

    train: Pairs
    held_out: dict[str, Pairs]


def load_data(config: RunConfig) -> DataSets:
    """Loads everything a run needs; raises :class:`UserError` for data that is missing, empty or broken."""
    if not config.data:
        raise UserError("no data given; add --data DIR with train/LANGUAGE.jsonl and so on, or --data synthetic")
    if config.data == SYNTHETIC:
        return _synthetic(config)
    limit = config.train_pairs or None
    train = load_split(Path(config.data), "train", config.languages)
    train = {language: sample(pairs, limit, config.seed) for language, pairs in train.items()}
    held_out = {split: load_split(Path(config.data), split, config.languages) for split in config.test_sets}
    return DataSets(train, held_out)


def _synthetic(config: RunConfig) -> DataSets:
    count = config.train_pairs or SYNTHETIC_TRAIN
    train = {x: generate_pairs(x, count, config.seed, "train") for x in config.languages}
    held_out = {}
    for split in config.test_sets:
        if split not in ("test", "validation"):
            raise UserError(f"the synthetic data have no split {split!r}; expected test or validation")
        held_out[split] = {x: generate_pairs(x, SYNTHETIC_HELD_OUT, config.seed, split) for x in config.languages}
    return DataSets(train, held_out)


def sample(items: Sequence[Pair], count: int | None, seed: int) -> list[Pair]:
    """``count`` of the items, drawn by ``seed`` and in their old order; all of them when there are no more."""
    if not count or count >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[index] for index in chosen]


def sample_all(pairs: Mapping[str, Sequence[Pair]], count: int | None, seed: int) -> Pairs:
    """:func:`sample` for each language."""
    return {language: sample(items, count, seed) for language, items in pairs.items()}
