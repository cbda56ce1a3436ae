"""The base of the embedded default: a small dense model trained from scratch on code files.

It stands in for Mistral-7B. It learns to continue files, each a comment followed by code, in all languages; it has
never seen an instruction, which the later stages teach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from moe.config import ModelConfig
from moe.data.examples import Examples, in_memory
from moe.data.pairs import Pair
from moe.tokenizer import Tokenizer, train_sentencepiece

VOCABULARY = 1536
TOKENIZER_PAIRS = 1000  # per language; more changes the vocabulary no further
COMMENT = {"python": "# "}  # the others write comments as // ...


def tiny_config(vocab_size: int) -> ModelConfig:
    """Sizes of the tiny base: about 1.6 million parameters, with Mistral's window.

    Heads are not grouped: with one key head for five the base learns late to copy names and numbers from its prompt.
    """
    return ModelConfig(
        vocab_size=vocab_size,
        dim=160,
        n_layers=4,
        n_heads=5,
        n_kv_heads=5,
        hidden_dim=448,
        max_seq_len=1024,
        sliding_window=512,
        tie_embeddings=True,
    )


def as_file(pair: Pair) -> str:
    """A pair as it might appear in a source file."""
    return f"{COMMENT.get(pair.language, '// ')}{pair.text}\n{pair.code}\n"


def train_tiny_tokenizer(pairs: Mapping[str, Sequence[Pair]], directory: Path, seed: int) -> Tokenizer:
    """Trains the sentencepiece vocabulary on the training files and saves it in ``directory``."""
    texts = (as_file(pair) for items in pairs.values() for pair in items[:TOKENIZER_PAIRS])
    return train_sentencepiece(texts, VOCABULARY, directory, seed)


def encode_files(pairs: Mapping[str, Sequence[Pair]], tokenizer: Tokenizer, max_tokens: int) -> dict[str, Examples]:
    """Training files as examples in which every token is learned; files longer than ``max_tokens`` are truncated."""

    def encoded(items: Sequence[Pair]) -> Iterator[tuple[list[int], int, int]]:
        for place, pair in enumerate(items):
            yield tokenizer.encode(as_file(pair), bos=True, eos=True)[:max_tokens], 1, place

    return in_memory({language: encoded(items) for language, items in pairs.items()})
