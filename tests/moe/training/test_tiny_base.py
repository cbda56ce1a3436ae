"""The embedded base: files as examples."""

from __future__ import annotations

import pytest

from moe.data.packing import encode_pairs
from moe.data.pairs import Pair
from moe.data.sources import load_data
from moe.errors import UserError
from moe.model import Transformer, count_parameters
from moe.training.tiny_base import as_file, encode_files, tiny_config, train_tiny_tokenizer

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


def test_pairs_that_are_too_long_are_counted_and_none_left_is_an_error(data, tmp_path):
    tokenizer = train_tiny_tokenizer(data.train, tmp_path, 0)
    lengths = sorted(len(e.tokens) for e in encode_pairs(data.train, tokenizer, "plain", 999).examples["python"])
    limit = lengths[len(lengths) // 2]
    encoded = encode_pairs(data.train, tokenizer, "plain", limit)
    assert encoded.too_long["python"] == sum(n > limit for n in lengths) > 0
    with pytest.raises(UserError, match="fits into 3 tokens"):
        encode_pairs(data.train, tokenizer, "plain", 3)
