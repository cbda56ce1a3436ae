"""Where a run's pairs come from: the synthetic tasks that come with the project, or a folder of JSON Lines."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from moe.data.pairs import Pair, Split, load_split, read_split
from moe.data.splits import File, list_splits
from moe.data.synthetic import generate_pairs
from moe.errors import UserError

AUTO = "auto"  # as the name of a test set: "test" and every other split whose name starts with it
SYNTHETIC = "synthetic"  # as the name of a data folder: the tasks that come with the project
SYNTHETIC_TRAIN, SYNTHETIC_HELD_OUT = 10_000, 400  # pairs per language that are drawn unless fewer are asked for

Pairs = Mapping[str, Sequence[Pair]]
Item = TypeVar("Item")


@dataclass(frozen=True)
class DataSets:
    """Pairs per language: to train on, and held out by the name of their split; ``readings`` says how files were read.

    A line of ``readings`` begins with its split.
    """

    train: Pairs
    held_out: dict[str, Pairs]
    readings: tuple[str, ...] = ()


def load_data(
    data: str,
    languages: Sequence[str],
    *,
    seed: int = 0,
    train_pairs: int = 0,
    test_sets: Sequence[str] = (AUTO,),
    fields: Sequence[str] = (),
) -> DataSets:
    """Loads everything that a run trains on and is scored by.

    Args:
        data: a folder of ``SPLIT/LANGUAGE.jsonl[.gz]`` or another form (:mod:`moe.data.splits`), or :data:`SYNTHETIC`.
        train_pairs: per language, drawn by ``seed``; 0 for all there are.
        test_sets: names of splits, or :data:`AUTO` for ``test`` and every other ``test*`` that has all languages.
        fields: what is what in the files, as :func:`moe.data.layouts.parse_fields` takes it.

    Raises:
        UserError: data that are missing, empty or broken.
    """
    if data == SYNTHETIC:
        train: Pairs = {x: generate_pairs(x, train_pairs or SYNTHETIC_TRAIN, seed, "train") for x in languages}
        return DataSets(train, _synthetic_test_sets(languages, seed, test_sets))
    directory = Path(data)
    names = _test_splits(directory, languages) if AUTO in test_sets else test_sets
    splits = {name: read_split(directory, name, languages, fields=fields) for name in ("train", *names)}
    train = sample_all(splits["train"].pairs, train_pairs, seed)
    return DataSets(train, {name: splits[name].pairs for name in names}, tuple(_describe(splits)))


def _describe(splits: Mapping[str, Split]) -> list[str]:
    return [f"{name}: {split.reading.describe()}" for name, split in splits.items()]


def load_held_out(data: str, languages: Sequence[str], split: str, seed: int = 0, fields: Sequence[str] = ()) -> Pairs:
    """Pairs of one held-out split; arguments and errors as for :func:`load_data`."""
    if data == SYNTHETIC:
        return _synthetic_test_sets(languages, seed, (split,))[split]
    return load_split(Path(data), split, languages, fields=fields)


def _synthetic_test_sets(languages: Sequence[str], seed: int, test_sets: Sequence[str]) -> dict[str, Pairs]:
    held_out: dict[str, Pairs] = {}
    for split in ("test",) if AUTO in test_sets else test_sets:
        if split not in ("test", "validation"):
            raise UserError(f"the synthetic data have no split {split!r}; expected test or validation")
        held_out[split] = {x: generate_pairs(x, SYNTHETIC_HELD_OUT, seed, split) for x in languages}
    return held_out


def _test_splits(directory: Path, languages: Sequence[str]) -> list[str]:
    """``test``, whether it is there or not, and the other ``test*`` splits that have all languages.

    Files whose name says no language count where those of train are of that kind, too.
    """
    splits = list_splits(directory)
    unnamed = any(language is None for language, _ in splits.get("train", []))

    def whole(files: Sequence[File]) -> bool:
        there = {language for language, _ in files}
        return (unnamed and None in there) or there >= set(languages)

    return [
        "test",
        *sorted(name for name, files in splits.items() if name.startswith("test") and name != "test" and whole(files)),
    ]


def sample(items: Sequence[Item], count: int | None, seed: int) -> Sequence[Item]:
    """``count`` of the items, drawn by ``seed`` and in their old order; all of them when there are no more."""
    if not count or count >= len(items):
        return items
    chosen = sorted(random.Random(seed).sample(range(len(items)), count))
    return [items[index] for index in chosen]


def sample_all(pairs: Mapping[str, Sequence[Pair]], count: int | None, seed: int) -> Pairs:
    """:func:`sample` for each language."""
    return {language: sample(items, count, seed) for language, items in pairs.items()}
