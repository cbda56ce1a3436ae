"""The embedded base: files as examples, and data sources."""

from __future__ import annotations

import pytest

from moe.data.packing import encode_pairs
from moe.data.pairs import Pair
from moe.data.sources import load_data, sample
from moe.errors import UserError
from moe.model import Transformer, count_parameters
from moe.training.tiny_base import as_file, encode_files, tiny_config, train_tiny_tokenizer
from tests.pair_files import write_pairs

LANGUAGES = ("python", "cpp")


@pytest.fixture(scope="module")
def data():
    return load_data("synthetic", LANGUAGES, train_pairs=50)


def test_a_file_is_a_comment_and_its_code():
    assert as_file(Pair("python", "Adds.", "def add(): ...")) == "# Adds.\ndef add(): ...\n"
    assert as_file(Pair("cpp", "Adds.", "int add();")) == "// Adds.\nint add();\n"


def test_every_token_of_a_file_is_learned(data, tmp_path):
    tokenizer = train_tiny_tokenizer(data.train, tmp_path, 0)
    examples = encode_files(data.train, tokenizer, 64)
    first = examples["cpp"][0]
    assert first.response_start == 1 and first.tokens[0] == tokenizer.bos_id and first.language == 1
    text = as_file(data.train["cpp"][0])
    assert text.startswith(tokenizer.decode(first.tokens)) or tokenizer.decode(first.tokens) == text
    assert max(len(e.tokens) for items in examples.values() for e in items) <= 64


def test_the_tiny_base_is_tiny():
    assert count_parameters(Transformer(tiny_config(1536))) < 2e6


def test_synthetic_splits_share_no_text(data):
    for language in LANGUAGES:
        train = {pair.text for pair in data.train[language]}
        assert len(data.train[language]) == 50
        assert not train & {pair.text for pair in data.held_out["test"][language]}


def test_pairs_that_are_too_long_are_counted_and_none_left_is_an_error(data, tmp_path):
    tokenizer = train_tiny_tokenizer(data.train, tmp_path, 0)
    lengths = sorted(len(e.tokens) for e in encode_pairs(data.train, tokenizer, "plain", 999).examples["python"])
    limit = lengths[len(lengths) // 2]
    encoded = encode_pairs(data.train, tokenizer, "plain", limit)
    assert encoded.too_long["python"] == sum(n > limit for n in lengths) > 0
    with pytest.raises(UserError, match="fits into 3 tokens"):
        encode_pairs(data.train, tokenizer, "plain", 3)


def test_pairs_from_a_folder(tmp_path):
    for split in ("train", "test"):
        for language in LANGUAGES:
            (tmp_path / split).mkdir(exist_ok=True)
            pairs = [Pair(language, f"Text {i}.", f"code {i}") for i in range(9)]
            write_pairs(pairs, tmp_path / split / f"{language}.jsonl.gz")
    data = load_data(str(tmp_path), LANGUAGES, train_pairs=4)
    assert [len(x) for x in data.train.values()] == [4, 4] and len(data.held_out["test"]["cpp"]) == 9
    with pytest.raises(UserError, match="no data given"):
        load_data("", LANGUAGES)


def test_samples_depend_on_the_seed_and_keep_their_order():
    items = list(range(100))
    assert sample(items, 10, 1) == sample(items, 10, 1) == sorted(sample(items, 10, 1))
    assert sample(items, 10, 1) != sample(items, 10, 2)
    assert sample(items, 0, 1) == sample(items, 200, 1) == items
