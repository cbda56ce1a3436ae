"""The tokenizer interface: exact encoding and decoding of code, as a whole and token by token.

Decoding maps ids to bytes, joins them and reads them as UTF-8, so tabs, newlines, runs of spaces, every Unicode
character and NUL round-trip, and a character that spans several tokens appears with its last byte.
"""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moe.errors import UserError

# What control tokens look like. Vocabularies that list such tokens as ordinary "user defined" ones would let a user's
# text forge a turn of the chat, so tokens of this shape are always taken as control tokens.
CONTROL_SHAPE = re.compile(r"<\|[^|\s]+\|>|\[/?[A-Z][A-Z0-9_]*\]|</?s>|<(?:unk|pad|mask)>|<(?:start|end)_of_turn>")
# Embedding tables are often padded to a round number of rows; more spare rows than this is another model's tokenizer.
SPARE_ROWS, SPARE_FRACTION = 1024, 0.05
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()


@dataclass(frozen=True)
class SpecialTokens:
    """Ids with a role; ``add_bos``: whether the model was trained with ``bos`` before each text."""

    bos: int | None
    eos: int
    pad: int
    unk: int | None = None
    add_bos: bool = False


@dataclass(frozen=True)
class OwnChat:
    """A model's own chat template: Jinja text, and the tokens by the names that the text may use (``eos_token``)."""

    source: str
    tokens: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ByteEscape:
    """How bytes that a vocabulary lacks are written: the control token ``marker``, then two hexadecimal digits.

    ``digits`` maps the ids of ``0`` to ``f`` to their values; ``missing`` are the bytes in question. SmolLM2 lacks six
    control characters and the lead bytes of planes 4 to 11; other implementations silently drop such characters.
    """

    marker: int
    digits: Mapping[int, int]
    missing: frozenset[int]

    @cached_property
    def digit_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self.digits, key=self.digits.__getitem__))

    def encode(self, byte: int) -> list[int]:
        return [self.marker, self.digit_ids[byte >> 4], self.digit_ids[byte & 15]]


class Tokenizer(ABC):
    """Text to ids and back; ``decode(encode(text)) == text`` for every text that is valid Unicode.

    Control tokens (``<s>``, ``[INST]``, ``<|im_end|>``) have ids but no text: text that looks like one is encoded as
    plain text, and :meth:`special_id` gives the ids.

    Args:
        pieces: the bytes of each id, in order; empty for control tokens
        control: control tokens by name
        roles: the ids of begin, end, padding and unknown
        dummy_prefix: each text is encoded with a space before it, which decoding removes (SentencePiece's way)
        escape: how bytes are written that no piece holds

    Attributes:
        end_ids: further tokens that end an answer, as the model's configs name them.
        chat: the model's own chat template.
        pipeline: text of the ``tokenizer.json`` that tokenizes rendered chats; None splits them at control tokens.
    """

    end_ids: frozenset[int] = frozenset()
    chat: OwnChat | None = None
    pipeline: str | None = None

    def __init__(
        self,
        pieces: Sequence[bytes],
        control: Mapping[str, int],
        roles: SpecialTokens,
        dummy_prefix: bool,
        escape: ByteEscape | None = None,
    ) -> None:
        self._pieces = pieces
        self._control = dict(control)
        self._names = {index: name for name, index in self._control.items()}
        self._roles = roles
        self._dummy_prefix = dummy_prefix
        self._escape = escape

    @property
    def vocab_size(self) -> int:
        """The number of ids, control tokens included."""
        return len(self._pieces)

    @property
    def bos_id(self) -> int | None:
        return self._roles.bos

    @property
    def eos_id(self) -> int:
        return self._roles.eos

    @property
    def pad_id(self) -> int:
        """The id to fill batches with; the end token where the vocabulary has none for padding."""
        return self._roles.pad

    @property
    def unk_id(self) -> int | None:
        return self._roles.unk

    @property
    def add_bos(self) -> bool:
        """Whether the model expects the begin token before each text."""
        return self._roles.add_bos and self._roles.bos is not None

    @property
    def adds_prefix_space(self) -> bool:
        """Whether each text is encoded with a space before it, which decoding removes (SentencePiece's way)."""
        return self._dummy_prefix

    @property
    def special_tokens(self) -> dict[str, int]:
        """All control tokens with their ids."""
        return dict(self._control)

    def special_id(self, token: str) -> int | None:
        """Returns the id of a control token such as ``[INST]``, or None when there is none of that name."""
        return self._control.get(token)

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Encodes plain text, with begin and end tokens on request; raises :class:`UserError` for a lone surrogate,
        which is not valid Unicode text."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"text holds a lone surrogate at character {error.start + 1}; expected Unicode") from error
        ids = self._encode_text(text) if text else []
        if bos:
            if self.bos_id is None:
                raise UserError("this tokenizer has no begin token; encode without one")
            ids = [self.bos_id, *ids]
        return [*ids, self.eos_id] if eos else ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of the ids; bytes that are not UTF-8 become U+FFFD. Control tokens are left out, or written
        by name with ``skip_special=False``."""
        stream = self.stream(skip_special)
        return "".join([stream.push(index) for index in ids]) + stream.flush()

    def stream(self, skip_special: bool = True) -> StreamDecoder:
        """Returns a decoder that takes one id at a time."""
        return StreamDecoder(self, skip_special)

    def encode_chat(self, text: str, continued: bool = False) -> list[int]:
        """Encodes a rendered chat template, in which control tokens stand by name, as transformers does.

        Args:
            continued: other text of the same chat comes before this.

        Raises:
            UserError: a token in it has no row in the model's embedding.
        """
        if self._chat_backend is not None and not continued:
            ids = self._chat_backend.encode(text, add_special_tokens=False).ids
            if beyond := [index for index in ids if index >= self.vocab_size]:
                name = self._chat_backend.id_to_token(beyond[0])
                raise UserError(f"the chat template writes {name!r} (id {beyond[0]}), for which the model has no row")
            return ids
        ids = []
        for part in self._control_names.split(text):
            index = self._control.get(part)
            if index is not None:
                ids.append(index)
            elif part:
                ids += self.encode_continued(part) if continued else self.encode(part)
            continued = continued and not part
        return ids

    @cached_property
    def _control_names(self) -> re.Pattern[str]:
        longest = sorted(self._control, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest)) or '(?!)'})")

    @cached_property
    def _chat_backend(self) -> Any:
        if self.pipeline is None:
            return None
        from tokenizers import Tokenizer as Backend

        backend = Backend.from_str(self.pipeline)
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode_continued(self, text: str) -> list[int]:
        """Encodes text that follows other text: no space is put before it."""
        return self.encode(text)

    @abstractmethod
    def _encode_text(self, text: str) -> list[int]:
        """Encodes text that is not empty and holds no lone surrogate."""

    @abstractmethod
    def files(self, chat_template: str | None = None) -> dict[str, bytes]:
        """The files by name that transformers' AutoTokenizer and :func:`load_tokenizer` read.

        Args:
            chat_template: Jinja text that goes into ``tokenizer_config.json``.
        """

    def save(self, directory: str | Path) -> None:
        """Writes :meth:`files` into a directory; raises :class:`UserError` where that cannot be done."""
        directory = Path(directory)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for name, content in self.files().items():
                (directory / name).write_bytes(content)
        except OSError as error:
            raise UserError(f"{directory}: the tokenizer cannot be written: {error.strerror or error}") from error


class StreamDecoder:
    """Decodes ids one by one; the texts returned, joined, are ``decode`` of all ids.

    A character whose bytes are spread over tokens is returned with its last token, never in part.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = tokenizer._dummy_prefix
        self._pending: list[int] = []  # an escape that is not complete yet

    def push(self, index: int) -> str:
        """Takes the next id and returns the text that is now complete, often empty."""
        return self._utf8.decode(self._bytes(int(index)))

    def flush(self) -> str:
        """Ends the text: returns U+FFFD for bytes of a character that never became complete."""
        rest = b"".join(self._plain(index) for index in self._pending)
        self._pending = []
        return self._utf8.decode(rest, final=True)

    def _bytes(self, index: int) -> bytes:
        escape = self._tokenizer._escape
        if escape is None or not (self._pending or index == escape.marker):
            return self._plain(index)
        if index == escape.marker or index not in escape.digits:
            before = b"".join(self._plain(earlier) for earlier in self._pending)
            self._pending = [index] if index == escape.marker else []
            return before if self._pending else before + self._plain(index)
        self._pending.append(index)
        if len(self._pending) < 3:
            return b""
        (_, high, low), self._pending = self._pending, []
        byte = escape.digits[high] * 16 + escape.digits[low]
        if byte in escape.missing:
            self._at_start = False
            return bytes([byte])
        return self._plain(escape.marker) + self._plain(high) + self._plain(low)

    def _plain(self, index: int) -> bytes:
        tokenizer = self._tokenizer
        if index in tokenizer._names:
            return b"" if self._skip_special else tokenizer._names[index].encode()
        if not 0 <= index < len(tokenizer._pieces):
            return REPLACEMENT  # a padding row of the embedding has no text
        piece = tokenizer._pieces[index]
        if self._at_start and piece:
            self._at_start = False
            return piece.removeprefix(b" ")
        return piece


def check_fits(tokenizer: Tokenizer, vocab_size: int) -> None:
    """Raises :class:`UserError` unless the tokenizer's ids fit an embedding of ``vocab_size`` rows and nearly fill it.

    Spare rows are allowed, as embeddings are padded to round sizes: up to 1,024 or 5%.
    """
    found = tokenizer.vocab_size
    if found > vocab_size:
        raise UserError(
            f"the tokenizer has {found} tokens but the model's embedding only {vocab_size} rows; "
            "expected the tokenizer that the model was trained with"
        )
    if vocab_size - found > max(SPARE_ROWS, SPARE_FRACTION * vocab_size):
        raise UserError(
            f"the tokenizer has {found} tokens but the model's embedding {vocab_size} rows, too many to be padding; "
            "expected the tokenizer that the model was trained with"
        )


def token_bytes(pieces: Iterable[str], alphabet: Mapping[str, int] | None) -> list[bytes]:
    """Maps the pieces of a vocabulary to the bytes they stand for.

    With ``alphabet`` (character -> byte) each character is a byte, as in GPT-2; without, pieces are text in which
    U+2581 stands for a space and ``<0xAB>`` for a byte, as in sentencepiece.
    """
    if alphabet is None:
        return [
            bytes([int(piece[3:5], 16)]) if BYTE_PIECE.fullmatch(piece) else piece.replace(SPACE, " ").encode()
            for piece in pieces
        ]
    return [
        bytes(alphabet[character] for character in piece) if all(map(alphabet.__contains__, piece)) else piece.encode()
        for piece in pieces
    ]


SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # U+2581, how sentencepiece writes a space
BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
