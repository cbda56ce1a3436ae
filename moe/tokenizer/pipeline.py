"""``tokenizer.json``, the file of the library `tokenizers`: what one holds, and how one is written.

Written here for vocabularies that come from elsewhere (sentencepiece models, GGUF metadata), so that transformers reads
them with the same ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from moe.tokenizer.base import SPACE
from moe.tokenizer.sentencepiece_model import NORMAL, USER_DEFINED

# GPT-2's split of text into words, https://github.com/openai/gpt-2/blob/master/src/encoder.py
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable ones stand for themselves, the others for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def split_words(*patterns: str) -> dict:
    """A pre-tokenizer that splits text at each regular expression in turn and then maps it to GPT-2's bytes."""
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]}


def byte_level_pipeline(
    tokens: Sequence[str],
    merges: Iterable[Sequence[str]],
    control: Mapping[str, int],
    literal: Mapping[str, int],
    pre_tokenizer: dict,
    bos_id: int | None,
    ignore_merges: bool,
) -> dict:
    """The content of tokenizer.json for GPT-2's kind of vocabulary.

    ``control`` tokens are never found in text by this project's tokenizers; ``literal`` ones are found whole. With
    ``ignore_merges`` a word that is in the vocabulary is taken whole.
    """
    model = _bpe({token: index for index, token in enumerate(tokens)}, merges)
    return {
        **_frame(control, literal, bos_id, tokens),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "decoder": {**BYTE_LEVEL, "use_regex": True},
        "model": {**model, "ignore_merges": ignore_merges},
    }


def sentencepiece_pipeline(
    pieces: Sequence[tuple[str, float, int]],
    control: Mapping[str, int],
    dummy_prefix: bool,
    bos_id: int | None,
    unk_id: int | None,
) -> dict:
    """The content of tokenizer.json for a sentencepiece BPE vocabulary of (text, score, type), in the order of ids.

    The normalizer puts a space before each stretch of text, as sentencepiece does, also after control tokens.
    """
    names = {index: name for name, index in control.items()}
    tokens = [names.get(index, text) for index, (text, _, _) in enumerate(pieces)]
    literal = {
        text: index for index, (text, _, kind) in enumerate(pieces) if kind == USER_DEFINED and index not in names
    }
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = [{"type": "Prepend", "prepend": SPACE}] if dummy_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if dummy_prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    vocab = {token: index for index, token in enumerate(tokens) if token}
    model = _bpe(vocab, _merges(pieces))
    return {
        **_frame(control, literal, bos_id, tokens),
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": {
            **model,
            "unk_token": None if unk_id is None else tokens[unk_id],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _merges(pieces: Sequence[tuple[str, float, int]]) -> list[list[str]]:
    """Merges that give what sentencepiece's scores give: it always joins the pair whose join has the highest score.

    Of two ways to make the same piece the one with the longer left part comes first, as sentencepiece works from the
    left and so leaves short pieces on the right.
    """
    usable = {text: score for text, score, kind in pieces if kind in (NORMAL, USER_DEFINED)}
    found = []
    for text, score, kind in pieces:
        if kind != NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in usable and right in usable:
                found.append((-score, -len(left), left, right))
    found.sort(key=lambda merge: merge[:2])
    return [[left, right] for _, _, left, right in found]


def _bpe(vocab: dict[str, int], merges: Iterable[Sequence[str]]) -> dict:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": [list(merge) for merge in merges],
    }


def _frame(control: Mapping[str, int], literal: Mapping[str, int], bos_id: int | None, tokens: Sequence[str]) -> dict:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": index, "content": name, **flags, "special": True} for name, index in control.items()]
    added += [{"id": index, "content": name, **flags, "special": False} for name, index in literal.items()]
    begin = [] if bos_id is None else [{"SpecialToken": {"id": tokens[bos_id], "type_id": 0}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*begin, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [*begin, {"Sequence": {"id": "A", "type_id": 0}}, *begin, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {}
            if bos_id is None
            else {tokens[bos_id]: {"id": tokens[bos_id], "ids": [bos_id], "tokens": [tokens[bos_id]]}},
        },
    }
