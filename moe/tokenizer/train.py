"""Training a small sentencepiece model on code."""

from __future__ import annotations

import io
import random
import string
from collections.abc import Iterable, Sequence
from pathlib import Path

from moe.errors import UserError
from moe.tokenizer.base import SPACE, Tokenizer
from moe.tokenizer.spm import SentencePieceTokenizer

MAX_TEXTS = 100_000
CONTROL_TOKENS = ("[INST]", "[/INST]")
# Every printable ASCII character gets a piece of its own, whatever the texts hold; all others have their bytes.
ASCII = string.ascii_letters + string.digits + string.punctuation + "\n\t"
# Characters that the trainer keeps for itself (a space and the unknown piece) or drops.
RESERVED = str.maketrans(dict.fromkeys((SPACE, "\u2585", "\0"), " "))


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    directory: str | Path | None,
    seed: int = 0,
    control_tokens: Sequence[str] = CONTROL_TOKENS,
) -> Tokenizer:
    """Trains a byte-pair sentencepiece model that keeps code exactly, as Mistral's: byte fallback, no normalization,
    runs of spaces kept, one token per digit.

    Args:
        texts: what to train on; of more than 100,000 texts a random choice is used, drawn with ``seed``
        vocab_size: number of tokens, bytes and control tokens included; the result has fewer where the texts do not
            hold that many repeated pieces, so read the size from the tokenizer
        directory: where its files are written; None writes nothing
        seed: for the choice of texts; the same texts and seed give the same bytes
        control_tokens: further control tokens, after ``<unk>``, ``<s>``, ``</s>`` and ``<pad>``

    Raises:
        UserError: no text, or a vocabulary too small for the bytes, the control tokens and the characters.
    """
    # A lone surrogate is not valid Unicode text; "replace" makes it a question mark.
    readable = (text.encode("utf-8", "replace").decode("utf-8").translate(RESERVED) for text in texts)
    chosen = [text for text in readable if text.strip()]
    if not chosen:
        raise UserError("no text to train a tokenizer on; expected at least one that is not blank")
    if len(chosen) > MAX_TEXTS:
        chosen = random.Random(seed).sample(chosen, MAX_TEXTS)
    smallest = 256 + 4 + len(control_tokens) + len(ASCII) + 1
    if vocab_size < smallest:
        raise UserError(f"a vocabulary of {vocab_size} tokens was asked for; it takes at least {smallest}")
    import sentencepiece  # here: what tokenizes nothing needs no library for it

    out = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(chosen),
            model_writer=out,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=0.9995,
            required_chars=ASCII,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=1 << 30,  # longer texts would be left out; this is the most it takes
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            control_symbols=list(control_tokens),
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f"sentencepiece cannot train {vocab_size} tokens on {len(chosen)} texts: {error}") from error
    tokenizer = SentencePieceTokenizer(out.getvalue(), source="the trained tokenizer")
    if directory is not None:
        tokenizer.save(directory)
    return tokenizer
