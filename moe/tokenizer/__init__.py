"""Tokenizers behind one interface: sentencepiece models, ``tokenizer.json`` and GGUF vocabularies.

Encoding and decoding give code back exactly, and a user's text never becomes a control token.
"""

from moe.tokenizer.base import OwnChat, SpecialTokens, StreamDecoder, Tokenizer, check_fits
from moe.tokenizer.gguf import tokenizer_from_gguf
from moe.tokenizer.load import load_tokenizer
from moe.tokenizer.train import train_sentencepiece

__all__ = [
    "OwnChat",
    "SpecialTokens",
    "StreamDecoder",
    "Tokenizer",
    "check_fits",
    "load_tokenizer",
    "tokenizer_from_gguf",
    "train_sentencepiece",
]
