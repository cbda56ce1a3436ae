"""Tokenizers from GGUF metadata: the keys ``tokenizer.ggml.*``.

``tokenizer.ggml.pre`` names the regular expressions that split text into words before byte-pair merges; names and
expressions are those of llama.cpp (src/llama-vocab.cpp), written for the engine of the library `tokenizers`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from moe.errors import Notice, UserError, did_you_mean
from moe.tokenizer import sentencepiece_model as proto
from moe.tokenizer.base import CONTROL_SHAPE, OwnChat, Tokenizer
from moe.tokenizer.fast import JsonTokenizer
from moe.tokenizer.pipeline import GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS, byte_level_pipeline, split_words
from moe.tokenizer.spm import SentencePieceTokenizer

PREFIX = "tokenizer.ggml."
_TEKKEN_UPPER, _TEKKEN_LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}*{_TEKKEN_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_TEKKEN_UPPER}+{_TEKKEN_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT_WORDS = (r"\p{N}", GPT2_WORDS)
# Those that files of the architecture `llama` have: no other is read.
_DEFAULT_WORDS = (r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]")
PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "default": _DEFAULT_WORDS,
    "gpt-2": (GPT2_WORDS,),
    "smollm": _DIGIT_WORDS,
    "refact": _DIGIT_WORDS,  # IBM Granite's code models
    "llama-bpe": (LLAMA3_WORDS,),
    "llama3": (LLAMA3_WORDS,),
    "llama-v3": (LLAMA3_WORDS,),
    "qwen2": (QWEN2_WORDS,),  # Qwen models with Llama's names
    "tekken": (_TEKKEN_WORDS,),
}
_ADDED = {proto.CONTROL, proto.USER_DEFINED, proto.UNUSED}
# Of these, llama.cpp takes a word that is in the vocabulary whole, whatever the merges say, and starts with bos.
WHOLE_WORDS = {"llama-bpe", "llama3", "llama-v3", "tekken"}


_KNOWN = set(
    "model pre tokens token_type token_type_count scores merges add_bos_token add_eos_token add_space_prefix".split()
)
_TURN_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


def tokenizer_from_gguf(fields: Mapping[str, Any], rows: int | None = None) -> Tokenizer:
    """Builds the tokenizer of a GGUF file from its metadata.

    Args:
        fields: the file's metadata as plain values; other keys than ``tokenizer.*`` are ignored
        rows: of the model's embedding; added tokens without one are left out, with a :class:`Notice`

    Raises:
        UserError: a key is missing, the kind of vocabulary or its pre-tokenizer is unknown, or the lists disagree.
    """
    kind = _get(fields, "model", str)
    tokens = _get(fields, "tokens", Sequence)
    types = fields.get(PREFIX + "token_type")
    if types is not None and len(types) != len(tokens):
        raise UserError(f"{PREFIX}token_type has {len(types)} entries; expected {len(tokens)}, as many as tokens")
    types = [proto.NORMAL] * len(tokens) if types is None else [int(value) for value in types]
    if kind not in ("gpt2", "llama"):
        raise UserError(f"{PREFIX}model is {kind!r}; expected 'gpt2' (byte-level BPE) or 'llama' (sentencepiece)")
    _refuse_changes(fields)
    if rows is not None and len(tokens) > rows and {*types[rows:]} <= _ADDED:
        fields, tokens, types = _with_rows(fields, tokens, types, rows)
    tokenizer = (_byte_level if kind == "gpt2" else _sentencepiece)(fields, tokens, types)
    ends = (fields.get(PREFIX + key) for key in _TURN_ENDS)
    tokenizer.end_ids = frozenset(end for end in ends if isinstance(end, int) and 0 <= end < len(tokens))
    chat = fields.get("tokenizer.chat_template")
    if isinstance(chat, str) and chat:
        roles = _role_ids(fields, tokens)
        tokenizer.chat = OwnChat(chat, tuple((f"{role}_token", tokens[index]) for role, index in roles.items()))
    return tokenizer


def _refuse_changes(fields: Mapping[str, Any]) -> None:
    """Raises :class:`UserError` for settings that are not read and may change ids or text, unless they are off."""
    for key, value in fields.items():
        name = key.removeprefix(PREFIX)
        if name != key and name not in _KNOWN and not name.endswith("_token_id") and value:
            raise UserError(f"{key} is set ({str(value)[:40]}); expected nothing: such tokenizers are unsupported")
    if fields.get(PREFIX + "add_eos_token"):
        warnings.warn(
            f"{PREFIX}add_eos_token would put the end token after each text, also after prompts; they are written "
            "without",
            Notice,
            stacklevel=3,
        )


def _with_rows(
    fields: Mapping[str, Any], tokens: Sequence[str], types: list[int], rows: int
) -> tuple[Mapping[str, Any], Sequence[str], list[int]]:
    """The lists without added tokens that have no row in the embedding."""
    for key, what in (("bos_token_id", "begin"), ("eos_token_id", "end")):
        if rows <= int(fields.get(PREFIX + key, 0)) < len(tokens):
            index = fields[PREFIX + key]
            raise UserError(f"{PREFIX}{key}: the {what} token {tokens[index]!r} ({index}) has none of the {rows} rows")
    listed = ", ".join(f"{name!r} (id {rows + index})" for index, name in enumerate(tokens[rows : rows + 5]))
    warnings.warn(
        f"the GGUF file's tokenizer adds {listed}, for which the embedding of {rows} rows has none; left out", Notice,
        stacklevel=3,
    )  # fmt: skip
    kept = dict(fields)
    for key in ("padding_token_id", "unknown_token_id"):
        if rows <= int(fields.get(PREFIX + key, 0)) < len(tokens):
            del kept[PREFIX + key]
    if isinstance(scores := fields.get(PREFIX + "scores"), list):
        kept[PREFIX + "scores"] = scores[:rows]
    return kept, tokens[:rows], types[:rows]


def _byte_level(fields: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    pre = fields.get(PREFIX + "pre", "default")
    if pre not in PRE_TOKENIZERS:
        hint = did_you_mean(str(pre), PRE_TOKENIZERS)
        raise UserError(f"{PREFIX}pre is {pre!r}{hint}; known pre-tokenizers: {', '.join(PRE_TOKENIZERS)}")
    if fields.get(PREFIX + "add_space_prefix"):
        raise UserError(f"{PREFIX}add_space_prefix is on for a byte-level vocabulary, which is not supported")
    merges = [_merge(merge) for merge in _get(fields, "merges", Sequence)]
    control = {
        name: index
        for index, (name, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (proto.CONTROL, proto.UNKNOWN) or (kind == proto.USER_DEFINED and CONTROL_SHAPE.fullmatch(name))
    }
    literal = {name: index for index, name in enumerate(tokens) if types[index] == proto.USER_DEFINED}
    literal = {name: index for name, index in literal.items() if name not in control}
    roles = _role_ids(fields, tokens)
    control.update({tokens[index]: index for index in roles.values()})  # some files mark a role's token as ordinary
    add_bos = bool(fields.get(PREFIX + "add_bos_token", pre in WHOLE_WORDS)) and "bos" in roles
    pipeline = byte_level_pipeline(
        tokens, merges, control, literal, split_words(*PRE_TOKENIZERS[pre]), roles["bos"] if add_bos else None,
        ignore_merges=pre in WHOLE_WORDS,
    )  # fmt: skip
    content = json.dumps(pipeline, ensure_ascii=False)
    names = {role: tokens[index] for role, index in roles.items()}
    return JsonTokenizer(content, names, add_bos, source="the GGUF file's tokenizer")


def _sentencepiece(fields: Mapping[str, Any], tokens: Sequence[str], types: list[int]) -> Tokenizer:
    scores = _get(fields, "scores", Sequence)
    if len(scores) != len(tokens):
        raise UserError(f"{PREFIX}scores has {len(scores)} entries; expected {len(tokens)}, as many as tokens")
    roles = {"bos": 1, "eos": 2, "unk": 0, **_role_ids(fields, tokens)}  # llama.cpp's ids where the file has none
    if len(tokens) <= max(roles.values()):
        raise UserError(f"{PREFIX}tokens has only {len(tokens)} entries; expected a whole vocabulary")
    for role, index in roles.items():
        types[index] = proto.UNKNOWN if role == "unk" else proto.CONTROL
    pieces = [proto.Piece(*piece) for piece in zip(tokens, map(float, scores), types, strict=True)]
    names = {role: tokens[index] for role, index in roles.items()}
    numbers = {"unk": proto.UNK_PIECE, "bos": proto.BOS_PIECE, "eos": proto.EOS_PIECE, "pad": proto.PAD_PIECE}
    trainer: dict[int, int | bytes] = {proto.MODEL_TYPE: proto.BPE, proto.BYTE_FALLBACK: 1, proto.UNK_ID: roles["unk"]}
    trainer |= {numbers[role]: name.encode() for role, name in names.items()}
    prefix = int(bool(fields.get(PREFIX + "add_space_prefix", True)))
    normalizer: dict[int, int | bytes] = {1: b"identity", proto.DUMMY_PREFIX: prefix}
    normalizer |= {proto.REMOVE_EXTRA_SPACES: 0, proto.ESCAPE_SPACES: 1}
    data = proto.write_model(pieces, trainer, normalizer)
    add_bos = bool(fields.get(PREFIX + "add_bos_token", True))
    return SentencePieceTokenizer(data, None, names, add_bos, source="the GGUF file's tokenizer")


def _role_ids(fields: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, int]:
    keys = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
    found = {}
    for role, key in keys.items():
        value = fields.get(PREFIX + key)
        if value is None or int(value) in (-1, 0xFFFFFFFF):
            continue
        if not 0 <= int(value) < len(tokens):
            raise UserError(f"{PREFIX}{key} is {value}; expected an id below {len(tokens)}")
        found[role] = int(value)
    return found


def _merge(merge: object) -> list[str]:
    parts = str(merge).split(" ")
    if len(parts) != 2:
        raise UserError(f"{PREFIX}merges holds {merge!r}; expected two tokens with a space between")
    return parts


def _get(fields: Mapping[str, Any], key: str, kind: type) -> Any:
    value = fields.get(PREFIX + key)
    if value is None:
        there = ", ".join(sorted(name for name in fields if name.startswith(PREFIX))) or "none"
        raise UserError(f"the GGUF metadata lack {PREFIX}{key}; tokenizer keys there: {there}")
    if not isinstance(value, kind) or (kind is Sequence and isinstance(value, str)):
        raise UserError(f"{PREFIX}{key} is a {type(value).__name__}; expected a {kind.__name__}")
    return value
