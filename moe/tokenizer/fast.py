"""``tokenizer.json`` of the library `tokenizers`: byte-level BPE (SmolLM2, Qwen, Llama 3) and Llama 2's BPE."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moe.errors import Notice, UserError
from moe.tokenizer.base import CONTROL_SHAPE, SPACE, ByteEscape, SpecialTokens, Tokenizer, token_bytes
from moe.tokenizer.files import missing_role, tokenizer_config, tokenizer_files
from moe.tokenizer.pipeline import byte_alphabet

USUAL_NAMES = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>"),
    "eos": ("</s>", "<|im_end|>", "<|end_of_text|>", "<|endoftext|>", "<eos>"),
    "pad": ("<pad>", "<|pad|>"),
    "unk": ("<unk>",),
}
KEEP_TEXT = {"Split", "Digits", "Punctuation", "UnicodeScripts", "ByteLevel", "Metaspace", "FixedLength"}
HEX_DIGITS = "0123456789abcdef"


class JsonTokenizer(Tokenizer):
    """A BPE ``tokenizer.json``, freed of what changes text, with the same ids as the library for ordinary text.

    Control tokens are taken out of the vocabulary that encodes, so no text can give one. Unicode normalization is left
    out (text in normal form, which is nearly all, has the same ids). In vocabularies of Llama 2's kind U+2581 is
    written with its byte tokens; in byte-level ones that lack some bytes, those are escaped (see :class:`ByteEscape`).

    Args:
        content: the file's text
        roles: the names of the tokens for ``bos``, ``eos``, ``pad`` and ``unk``; usual names where not given
        add_bos: whether the begin token stands before each text; None reads it from the file
        source: the file's name, for error messages

    Raises:
        UserError: the file is no such JSON, or of a kind that does not keep text.
    """

    def __init__(
        self,
        content: str,
        roles: Mapping[str, str] | None = None,
        add_bos: bool | None = None,
        source: str | Path = "tokenizer.json",
    ) -> None:
        try:
            spec = json.loads(content)
            added = {token["content"]: (int(token["id"]), token["special"]) for token in spec["added_tokens"] or ()}
            vocab = dict(spec["model"]["vocab"]) if spec["model"].get("type", "BPE") == "BPE" else None
            vocab = vocab and {name: int(index) for name, index in vocab.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{source}: not a tokenizer.json of the tokenizers library ({error!r})") from error
        if vocab is None:
            raise UserError(f"{source}: a {spec['model']['type']} vocabulary; expected BPE")
        _refuse_shared_ids(vocab, {name: index for name, (index, _) in added.items()}, source)
        self._content = self.pipeline = content
        ends = {
            name for role, name in (roles or {}).items() if role in ("bos", "eos")
        }  # control, whatever the file says
        control = {
            name: index
            for name, (index, special) in added.items()
            if special or name in ends or CONTROL_SHAPE.fullmatch(name)
        }
        control |= {name: vocab[name] for name in ends - control.keys() if name in vocab}
        literal = {name: index for name, (index, _) in added.items() if name not in control}
        vocab.update(literal)
        plain, alphabet, dummy_prefix = _plain_pipeline(spec, source)
        plain["model"]["vocab"] = {name: index for name, index in vocab.items() if name not in control}
        plain["model"]["merges"] = [merge for merge in spec["model"]["merges"] if not _makes(merge, control)]
        plain["added_tokens"] = [
            {**token, "lstrip": False, "rstrip": False}
            for token in plain["added_tokens"] or ()
            if token["content"] in literal
        ]
        from tokenizers import Tokenizer as Backend  # here: what tokenizes nothing needs no library for it

        try:
            self._backend = Backend.from_str(json.dumps(plain))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"{source}: the tokenizers library cannot load it ({error})") from error

        names = [""] * (1 + max([*vocab.values(), *control.values()], default=0))
        for name, index in vocab.items():
            names[index] = name
        pieces = token_bytes(names, alphabet)
        for name, index in literal.items():
            pieces[index] = name.encode()
        for index in control.values():
            pieces[index] = b""
        self._byte_level = alphabet is not None
        symbols = {byte: character for character, byte in (alphabet or {}).items()}
        byte_names = [symbols[byte] if symbols else f"<0x{byte:02X}>" for byte in range(256)]
        self._bytes_ids = [None if name in control else vocab.get(name) for name in byte_names]
        missing = frozenset(byte for byte, index in enumerate(self._bytes_ids) if index is None)
        if missing and not self._byte_level:
            raise UserError(f"{source}: the vocabulary lacks {byte_names[min(missing)]!r}, so some code has no tokens")
        self._space_ids = [index for byte in SPACE.encode() if (index := self._bytes_ids[byte]) is not None]
        roles_found = _roles(control, roles or {}, add_bos, spec, source)
        escape = _escape(missing, control, roles_found, vocab, source)
        super().__init__(pieces, control, roles_found, dummy_prefix, escape)

    def encode_continued(self, text: str) -> list[int]:
        return self._encode_text(text, prefix=False)

    def _encode_text(self, text: str, prefix: bool = True) -> list[int]:
        prefix = prefix and self._dummy_prefix
        if self._byte_level:
            if prefix:
                text = " " + text
            if self._escape is None or not _holds(text, self._escape.missing):
                return self._backend.encode(text, add_special_tokens=False).ids
            return [index for part in self._escaped_parts(text, self._escape) for index in part]
        first, *others = text.split(SPACE)
        if first and prefix:
            first = " " + first
        ids = self._backend.encode(first, add_special_tokens=False).ids if first else []
        for other in others:
            ids += self._space_ids
            ids += self._backend.encode(other, add_special_tokens=False).ids if other else []
        return ids

    def _escaped_parts(self, text: str, escape: ByteEscape) -> Iterator[list[int]]:
        start = 0
        for position, character in enumerate(text):
            if _holds(character, escape.missing):
                if start < position:
                    yield self._backend.encode(text[start:position], add_special_tokens=False).ids
                for byte in character.encode():
                    index = self._bytes_ids[byte]
                    yield escape.encode(byte) if index is None else [index]
                start = position + 1
        if start < len(text):
            yield self._backend.encode(text[start:], add_special_tokens=False).ids

    def files(self, chat_template: str | None = None) -> dict[str, bytes]:
        """``tokenizer.json`` as it was read and the two files that name the special tokens."""
        return tokenizer_files(self._content, tokenizer_config(self._names, self._roles, {}), chat_template)


def _makes(merge: Any, control: Mapping[str, int]) -> bool:
    """Whether a merge has to do with a token that text may not give."""
    left, _, right = merge.partition(" ") if isinstance(merge, str) else (merge[0], "", merge[1])
    return left + right in control or left in control or right in control


def _refuse_shared_ids(vocab: Mapping[str, int], added: Mapping[str, int], source: str | Path) -> None:
    """Text would become another token, maybe a control token, if an added token had the id of that one."""
    names: dict[int, str] = {index: name for name, index in vocab.items()}
    for name, index in added.items():
        other = names.setdefault(index, name)
        if other != name or vocab.get(name, index) != index:
            where = f"{other!r} has that id" if other != name else f"the vocabulary has it as {vocab[name]}"
            raise UserError(
                f"{source}: the added token {name!r} has id {index}, but {where}; expected an id of its own"
            )


def _holds(text: str, missing: frozenset[int]) -> bool:
    data = text.encode()
    return len(data.translate(None, bytes(missing))) != len(data)


def _plain_pipeline(spec: dict, source: str | Path) -> tuple[dict, dict[str, int] | None, bool]:
    """Returns the pipeline without anything that changes text, its byte alphabet (None when it is of Llama 2's kind)
    and whether a space goes before each text."""
    plain = {**spec, "model": {**spec["model"], "dropout": None}, "truncation": None, "padding": None}
    plain["post_processor"] = None
    if spec["model"].get("end_of_word_suffix") or spec["model"].get("continuing_subword_prefix"):
        raise UserError(f"{source}: its pieces depend on the ends of words, so code would not come back as it was")
    plain["normalizer"], prefixed = _plain_normalizer(spec.get("normalizer"), source)
    steps = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    for step in steps:
        if step["type"] not in KEEP_TEXT or step.get("behavior", "Isolated") == "Removed":
            raise UserError(f"{source}: its pre-tokenizer {step['type']} loses text, so code would not come back")
    byte_level = any(step["type"] == "ByteLevel" for step in steps)
    adds_space = [step for step in steps if step["type"] == "ByteLevel" and step.get("add_prefix_space", True)]
    meta = [step for step in steps if step["type"] == "Metaspace"]
    if adds_space and len(steps) > 1:
        raise UserError(f"{source}: its ByteLevel pre-tokenizer puts spaces inside text; expected add_prefix_space off")
    prefixed |= bool(adds_space) or any(_prepends(step) for step in meta)
    plain["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [_without_prefix(step) for step in steps]}
    if not byte_level and not spec["model"].get("byte_fallback"):
        raise UserError(
            f"{source}: neither a byte-level vocabulary nor one with byte fallback; code would not come back"
        )
    return plain, byte_alphabet() if byte_level else None, prefixed


def _plain_normalizer(normalizer: dict | None, source: str | Path) -> tuple[dict | None, bool]:
    """Keeps only the step that writes spaces as U+2581; says whether one that puts a space before text was there."""
    kept, prefixed = [], False
    for step in _steps(normalizer, "normalizers"):
        if step["type"] == "Prepend" and step.get("prepend") == SPACE:
            prefixed = True
        elif step["type"] == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, SPACE):
            kept.append(step)
        elif step["type"] not in ("NFC", "NFKC"):
            raise UserError(f"{source}: its normalizer {step['type']} changes text, so code would not come back")
    return {"type": "Sequence", "normalizers": kept} if kept else None, prefixed


def _steps(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Flattens nested sequences of steps."""
    if step is None:
        return []
    return [flat for inner in step[key] for flat in _steps(inner, key)] if step["type"] == "Sequence" else [step]


def _prepends(step: dict[str, Any]) -> bool:
    return step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never") != "never"


def _without_prefix(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    if step["type"] == "Metaspace":
        return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": step.get("split", True)}
    return step


def _roles(
    control: Mapping[str, int], names: Mapping[str, str], add_bos: bool | None, spec: dict, source: str | Path
) -> SpecialTokens:
    found: dict[str, int | None] = {}
    for role, usual in USUAL_NAMES.items():
        candidates = (names[role],) if role in names else usual
        if role in ("bos", "eos") and role in names and names[role] not in control:
            raise UserError(missing_role(role, names[role], source))
        found[role] = next((control[name] for name in candidates if name in control), None)
    eos = found["eos"]
    if eos is None:
        raise UserError(f"{source}: no end token is known; name it as eos_token in tokenizer_config.json beside it")
    try:
        before, after = _around(spec)
    except (TypeError, KeyError, AttributeError, IndexError, ValueError) as error:
        raise UserError(f"{source}: its post_processor is broken ({error!r})") from error
    begins = found["bos"] is not None and [control.get(name) for name in before] == [found["bos"]]
    if before and not begins:
        raise UserError(
            f"{source}: its post_processor puts {' '.join(before)} before each text; expected nothing or the begin "
            "token: name it as bos_token in tokenizer_config.json"
        )
    if after:
        warnings.warn(
            f"{source} would put {' '.join(after)} after each text, also after prompts; they are written without",
            Notice,
            stacklevel=2,
        )
    if add_bos is None:
        add_bos = begins
    elif add_bos != begins:
        put = "put one" if begins else "put none"
        warnings.warn(
            f"{source} would {put} before a text, while tokenizer_config.json says add_bos_token {str(add_bos).lower()}"
            ", which is followed; correct one of them if that is wrong",
            Notice,
            stacklevel=2,
        )
    return SpecialTokens(found["bos"], eos, eos if found["pad"] is None else found["pad"], found["unk"], add_bos)


def _around(spec: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The control tokens that the post-processor puts before and after a single text."""
    before: list[str] = []
    after: list[str] = []
    for step in _steps(spec.get("post_processor"), "processors"):
        if step["type"] == "TemplateProcessing":
            names = [part["SpecialToken"]["id"] if "SpecialToken" in part else "" for part in step["single"]]
            place = names.index("") if "" in names else len(names)
            before, after = [*names[:place], *before], [*after, *names[place + 1 :]]
        elif step["type"] in ("BertProcessing", "RobertaProcessing"):
            before, after = [step["cls"][0], *before], [*after, step["sep"][0]]
        elif step["type"] != "ByteLevel":
            raise ValueError(f"{step['type']} is unknown")
    return before, after


def _escape(
    missing: frozenset[int], control: Mapping[str, int], roles: SpecialTokens, vocab: Mapping[str, int], source: object
) -> ByteEscape | None:
    """The marker is the control token with the highest id that has no role: in real vocabularies a leftover."""
    if not missing:
        return None
    taken = {roles.bos, roles.eos, roles.pad, roles.unk}
    free = [index for index in control.values() if index not in taken]
    digits = {vocab[digit]: value for value, digit in enumerate(HEX_DIGITS) if digit in vocab}
    if not free or len(digits) < len(HEX_DIGITS):
        raise UserError(f"{source}: the vocabulary lacks {len(missing)} bytes and the means to escape them")
    return ByteEscape(max(free), digits, missing)
