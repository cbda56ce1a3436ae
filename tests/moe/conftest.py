"""Tokenizers that several tests prompt with, small ones made here and real ones where they are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints.formats.smollm2 import find_smollm2
from moe.errors import UserError
from moe.tokenizer import Tokenizer, tokenizer_from_gguf, train_sentencepiece
from moe.tokenizer.pipeline import byte_alphabet

MISTRAL_MODELS = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}
TEXTS = ["def add(a, b):\n    return a + b\n", "Write a Python function.  Adds\ttwo\n  numbers; 12 é 🙂."]
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def chatml() -> Tokenizer:
    """A byte-level vocabulary without merges, with SmolLM2's control tokens."""
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": [*CHATML_TOKENS, *byte_alphabet()],
            "tokenizer.ggml.token_type": [3] * 3 + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
        }
    )


@pytest.fixture(scope="session")
def instruct() -> Tokenizer:
    return train_sentencepiece(TEXTS, 400, None)


@pytest.fixture(scope="session")
def textual() -> Tokenizer:
    """Like Mistral v1: no control tokens but begin and end."""
    return train_sentencepiece(TEXTS, 400, None, control_tokens=())


@pytest.fixture(scope="session")
def sentencepiece_chatml() -> Tokenizer:
    """A SentencePiece vocabulary with ChatML's control tokens."""
    return train_sentencepiece(TEXTS, 400, None, control_tokens=CHATML_TOKENS)


@pytest.fixture(scope="session")
def mistral_model() -> Callable[[str], Path]:
    """Finds a tokenizer model of Mistral (``v1``, ``v2``, ``v3``) in the package mistral-common."""

    def find(version: str) -> Path:
        found = importlib.util.find_spec("mistral_common")
        if found is None or found.origin is None:
            pytest.skip("mistral-common is not installed (pip install mistral-common)")
        return Path(found.origin).parent / "data" / MISTRAL_MODELS[version]

    return find


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    try:
        return find_smollm2()  # a .gguf or the .whl with one
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_fields(smollm2_file: Path) -> dict[str, Any]:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(smollm2_file)
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}


@pytest.fixture(scope="session")
def smollm2(smollm2_fields: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_gguf(smollm2_fields)
