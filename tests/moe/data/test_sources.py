"""Where a run's pairs come from."""

from __future__ import annotations

import pytest

from moe.data.pairs import Pair
from moe.data.sources import load_data, sample
from moe.errors import UserError
from tests.pair_files import write_pairs

LANGUAGES = ("python", "cpp")


def write_splits(folder, **counts) -> None:
    """Splits of that many pairs per language; ``test_standalone`` becomes ``test-standalone``."""
    for split, count in counts.items():
        for language in LANGUAGES:
            pairs = [Pair(language, f"Text {i}.", f"code {i}") for i in range(count)]
            write_pairs(pairs, folder / split.replace("_", "-") / f"{language}.jsonl.gz")


def test_pairs_from_a_folder(tmp_path):
    write_splits(tmp_path, train=9, test=9)
    data = load_data(str(tmp_path), LANGUAGES, train_pairs=4)
    assert [len(x) for x in data.train.values()] == [4, 4] and len(data.held_out["test"]["cpp"]) == 9


def test_every_test_split_that_is_there_is_scored(tmp_path):
    write_splits(tmp_path, train=2, validation=2, test=2)
    assert list(load_data(str(tmp_path), LANGUAGES).held_out) == ["test"]
    write_splits(tmp_path, test_standalone=3, test_b=1)
    (tmp_path / "test-python-alone").mkdir()
    write_pairs([Pair("python", "Text.", "code")], tmp_path / "test-python-alone" / "python.jsonl")
    (tmp_path / "tests.txt").write_text("no split")
    assert list(load_data(str(tmp_path), LANGUAGES).held_out) == ["test", "test-b", "test-standalone"]
    assert "test-python-alone" in load_data(str(tmp_path), ("python",)).held_out
    assert list(load_data(str(tmp_path), LANGUAGES, test_sets=("validation",)).held_out) == ["validation"]


def test_splits_that_are_asked_for_must_be_there(tmp_path):
    write_splits(tmp_path, train=2, test_b=2)
    with pytest.raises(UserError, match=r"no split 'test' .*splits there: test-b, train"):
        load_data(str(tmp_path), LANGUAGES)
    with pytest.raises(UserError, match="no split 'test-standalone'"):
        load_data(str(tmp_path), LANGUAGES, test_sets=("test-b", "test-standalone"))
    with pytest.raises(UserError, match="the synthetic data have no split 'test-b'"):
        load_data("synthetic", LANGUAGES, train_pairs=1, test_sets=("test-b",))


def test_synthetic_splits_share_no_text():
    data = load_data("synthetic", LANGUAGES, train_pairs=50)
    assert list(data.held_out) == ["test"]
    for language in LANGUAGES:
        train = {pair.text for pair in data.train[language]}
        assert len(data.train[language]) == 50
        assert not train & {pair.text for pair in data.held_out["test"][language]}


def test_samples_depend_on_the_seed_and_keep_their_order():
    items = list(range(100))
    assert sample(items, 10, 1) == sample(items, 10, 1) == sorted(sample(items, 10, 1))
    assert sample(items, 10, 1) != sample(items, 10, 2)
    assert sample(items, 0, 1) == sample(items, 200, 1) == items
