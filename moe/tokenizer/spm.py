"""Sentencepiece models: the ``tokenizer.model`` of Mistral, Mixtral and Llama 2."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from moe.errors import UserError
from moe.tokenizer import sentencepiece_model as proto
from moe.tokenizer.base import CONTROL_SHAPE, SPACE, SpecialTokens, Tokenizer, token_bytes
from moe.tokenizer.files import MODEL_FILE, missing_role, tokenizer_config, tokenizer_files
from moe.tokenizer.pipeline import sentencepiece_pipeline

if TYPE_CHECKING:
    import sentencepiece


class SentencePieceTokenizer(Tokenizer):
    """A byte-pair sentencepiece model with byte fallback, with the same ids as the library for all ordinary text.

    One character is not ordinary: U+2581, which stands for a space inside the library and so comes back as one. Here
    it is written with its three byte tokens, and the texts around it are encoded on their own.

    Args:
        data: the model file's bytes
        added: control tokens beside the model's own (a fine-tune's), by name
        roles: the names of the tokens for ``bos``, ``eos``, ``pad`` and ``unk`` where they differ from the model's
        add_bos: whether the begin token stands before each text
        source: the file's name, for error messages

    Raises:
        UserError: the bytes are no sentencepiece model, or one that changes text.
    """

    def __init__(
        self,
        data: bytes,
        added: Mapping[str, int] | None = None,
        roles: Mapping[str, str] | None = None,
        add_bos: bool = True,
        source: str | Path = "the sentencepiece model",
    ) -> None:
        try:
            model = proto.parse_model(data)
        except (ValueError, OverflowError, struct.error) as error:
            raise UserError(f"{source}: not a sentencepiece model ({error})") from error
        if not model.is_bpe:
            raise UserError(f"{source}: a sentencepiece model of another kind than BPE; expected BPE, as Mistral's is")
        if model.loses_text:
            raise UserError(f"{source}: the model {model.loses_text}, so code would not come back as it was")
        control = {piece.text: index for index, piece in enumerate(model.pieces) if _is_control(piece)}
        self._bytes_ids = _byte_ids(model, source)
        # What names a control token among user-defined ones must not be found in text.
        hidden = {index for index in control.values() if model.pieces[index].type == proto.USER_DEFINED}
        self._data, self._plain_data = data, proto.as_control(data, hidden) if hidden else data
        self._processor = _load(self._plain_data, source)
        self._model = model
        self._added = dict(added or {})

        texts = [piece.text for piece in model.pieces]
        pieces = token_bytes(texts, None)
        for index in control.values():
            pieces[index] = b""
        for name, index in self._added.items():
            pieces.extend([b""] * (index + 1 - len(pieces)))
            control = {other: at for other, at in control.items() if at != index} | {name: index}
            pieces[index] = b""
        super().__init__(pieces, control, _roles(model, control, roles or {}, add_bos, source), model.dummy_prefix)

    @cached_property
    def _processor_inside(self) -> sentencepiece.SentencePieceProcessor:
        """Encodes text that follows other text: no space is put before it."""
        return _load(proto.without_dummy_prefix(self._plain_data), "the sentencepiece model")

    def encode_continued(self, text: str) -> list[int]:
        return self._encode_with(self._processor_inside, text)

    def _encode_text(self, text: str) -> list[int]:
        return self._encode_with(self._processor, text)

    def _encode_with(self, processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
        first, *others = text.split(SPACE)
        ids = processor.encode(first) if first else []
        for other in others:
            ids += [self._bytes_ids[byte] for byte in SPACE.encode()]
            ids += self._processor_inside.encode(other) if other else []
        return ids

    def files(self, chat_template: str | None = None) -> dict[str, bytes]:
        """``tokenizer.model``, the same as ``tokenizer.json`` (transformers 5 derives other merges from the former and
        splits code differently), and the two files that name the special tokens."""
        pieces = [(text, score, kind) for text, score, kind in self._model.pieces]
        pieces += [("", 0.0, proto.UNUSED)] * (self.vocab_size - len(pieces))
        begin = self.bos_id if self.add_bos else None
        pipeline = self.pipeline or sentencepiece_pipeline(
            pieces, self._control, self._dummy_prefix, begin, self.unk_id
        )
        config = tokenizer_config(self._names, self._roles, {index: name for name, index in self._added.items()})
        return {MODEL_FILE: self._data, **tokenizer_files(pipeline, config, chat_template)}


def _is_control(piece: proto.Piece) -> bool:
    return piece.type in (proto.CONTROL, proto.UNKNOWN) or (
        piece.type == proto.USER_DEFINED and CONTROL_SHAPE.fullmatch(piece.text) is not None
    )


def _byte_ids(model: proto.Model, source: str | Path) -> list[int]:
    """The ids of the 256 byte pieces; checks that they and the space are there."""
    found = {piece.text: index for index, piece in enumerate(model.pieces)}
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    absent = [name for name in (*names, SPACE) if name not in found]
    if absent:
        raise UserError(f"{source}: the vocabulary lacks {absent[0]!r}, so some code cannot be encoded")
    return [found[name] for name in names]


def _roles(
    model: proto.Model, control: Mapping[str, int], names: Mapping[str, str], add_bos: bool, source: str | Path
) -> SpecialTokens:
    """Finds the ids with a role: by the names given, else by the model's own settings."""
    defaults = {"bos": (proto.BOS_PIECE, b"<s>"), "eos": (proto.EOS_PIECE, b"</s>"), "pad": (proto.PAD_PIECE, b"<pad>")}
    found: dict[str, int | None] = {}
    for role, (number, default) in defaults.items():
        own = model.trainer.get(number, default)
        found[role] = control.get(names.get(role, "")) if role in names else None
        if found[role] is None and role in names and role != "pad":
            raise UserError(missing_role(role, names[role], source))
        if found[role] is None and isinstance(own, bytes):
            found[role] = control.get(own.decode("utf-8", "replace"))
    unknown = next((index for index, piece in enumerate(model.pieces) if piece.type == proto.UNKNOWN), None)
    eos = found["eos"]
    if eos is None:
        raise UserError(f"{source}: no end token in it; expected a control token such as '</s>'")
    return SpecialTokens(found["bos"], eos, eos if found["pad"] is None else found["pad"], unknown, add_bos)


def _load(data: bytes, source: str | Path) -> sentencepiece.SentencePieceProcessor:
    import sentencepiece  # here: what tokenizes nothing needs no library for it

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=data)
    except RuntimeError as error:
        raise UserError(f"{source}: sentencepiece cannot load it ({error})") from error
