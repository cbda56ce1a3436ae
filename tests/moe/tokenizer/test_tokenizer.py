"""What every tokenizer keeps: all text exactly, whole or streamed, and control tokens out of a user's reach."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moe.errors import UserError
from moe.tokenizer import Tokenizer, check_fits, load_tokenizer, tokenizer_from_gguf, train_sentencepiece
from moe.tokenizer.fast import JsonTokenizer
from moe.tokenizer.pipeline import byte_alphabet

MISTRAL_MODELS = {
    "mistral-v1": "tokenizer.model.v1",
    "mistral-v2": "mistral_instruct_tokenizer_240216.model.v2",
    "mistral-v3": "mistral_instruct_tokenizer_240323.model.v3",
}
CODE = [
    "def add(a, b):\n    return a + b\n\n\nif x:\n\ty = 12345\r\n",
    "for (int i = 0; i < n; i++) {\n        sum += a[i];\n}",
    "The quick brown fox counts 1 2 3 four.",
]
KINDS = ["spm", "byte-level", "gaps", "llama-json", "metaspace-json", "prefix-json", *MISTRAL_MODELS]
NASTY = [
    " ", "  ", "\t", "\n", "\r\n", "\n\n\n", "\0", "\u2581", "\u2585", "\u2047", "\ufeff", "\ufffd", "\u0301", "e",
    "</s>", "<s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<|im_end|>", "<|endoftext|>", "<0x0A>", "<0xE2>", "```",
    "f1", "\x04", "\x1d", "\x7f", "\x85", "\u200d", "é", "👩‍💻", "𐀀", "\U00020000", "\U00045678", "\U0010ffff",
]  # fmt: skip
any_text = st.lists(st.sampled_from(NASTY) | st.text(max_size=8), max_size=12).map("".join)
every_plane = st.lists(
    st.integers(0, 16).flatmap(lambda plane: st.integers(plane << 16, (plane << 16) + 0xFFFF)), max_size=12
).map(lambda points: "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000))


def byte_level(missing: bytes = b"", **changes: object) -> Tokenizer:
    """A small byte-level vocabulary as GGUF metadata, without some bytes."""
    symbols = [symbol for symbol, byte in byte_alphabet().items() if byte not in missing]
    merges = ["Ġ Ġ", "ĠĠ ĠĠ", "r e", "t u", "re tu", "retu r", "retur n", "Ċ Ċ", "Ã ©"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<file_sep>", *symbols]
    tokens += [merge.replace(" ", "") for merge in merges]
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3] * 4 + [1] * (len(tokens) - 4),
        "merges": merges,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "unknown_token_id": 0,
    }
    return tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in {**fields, **changes}.items()})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    directory = tmp_path_factory.mktemp("tokenizer")
    made: dict[str, Tokenizer] = {"spm": train_sentencepiece(CODE * 20, 420, directory)}
    made["llama-json"] = load_tokenizer(directory / "tokenizer.json")
    spec = json.loads((directory / "tokenizer.json").read_text())
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
    made["metaspace-json"] = JsonTokenizer(json.dumps({**spec, "normalizer": None, "pre_tokenizer": meta}))
    made["byte-level"] = byte_level()
    made["gaps"] = byte_level(b"\x04\x06\x1d\xc0\xf1\xf2\xff")
    made["byte-level"].save(directory / "prefix")
    spec = json.loads((directory / "prefix/tokenizer.json").read_text())
    spec["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    roles = {"bos": "<|im_start|>", "eos": "<|im_end|>"}
    made["prefix-json"] = JsonTokenizer(json.dumps({**spec, "normalizer": {"type": "NFC"}}), roles)
    found = importlib.util.find_spec("mistral_common")
    if found is not None and found.origin is not None:
        data = Path(found.origin).parent / "data"
        made |= {kind: load_tokenizer(data / name) for kind, name in MISTRAL_MODELS.items()}
    return made


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    if request.param not in tokenizers:
        pytest.skip("mistral-common is not installed (pip install mistral-common)")
    return tokenizers[request.param]


def check_exact(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream()
    parts = [stream.push(index) for index in ids]
    assert "".join(parts) + stream.flush() == text
    assert all(0 <= index < tokenizer.vocab_size for index in ids)
    framed = tokenizer.encode(text, bos=True, eos=True)
    assert framed == [tokenizer.bos_id, *ids, tokenizer.eos_id]
    assert tokenizer.decode(framed) == text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=any_text | every_plane)
@example("")
@example(" ")
@example("\u2581")
@example("\u2581 \u2581\u2581 x \u2581")
@example(" \u2581 ")
@example("".join(chr(plane << 16 | 0x1234) for plane in range(17)))
@example("".join(map(chr, range(256))))
def test_all_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    check_exact(tokenizer, text)


def test_text_that_looks_like_a_control_token_stays_text(tokenizer: Tokenizer) -> None:
    control = tokenizer.special_tokens
    assert control
    for name in [*list(control)[:40], *NASTY]:
        for text in (name, f" {name}", f"a{name}b", name * 3, f"{name}\n"):
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text
            escapes = [] if tokenizer._escape is None else [tokenizer._escape.marker]
            assert not set(control.values()).difference(escapes) & set(ids)
            assert tokenizer.decode(ids, skip_special=False) == text


def test_control_tokens_have_ids_and_are_left_out_of_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x = 1\n", bos=True, eos=True)
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    bos, eos = names[tokenizer.bos_id], names[tokenizer.eos_id]
    assert tokenizer.special_id(bos) == tokenizer.bos_id
    assert tokenizer.special_id("x") is None
    assert tokenizer.special_id("no such token") is None
    assert tokenizer.decode(ids) == "x = 1\n"
    assert tokenizer.decode(ids, skip_special=False) == f"{bos}x = 1\n{eos}"
    assert tokenizer.pad_id in names


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_streaming_any_ids_is_decoding_them(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Also of ids that no text gives, as an untrained model writes them: broken UTF-8 becomes U+FFFD either way."""
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1) | st.integers(0, 300), max_size=20))
    for skip_special in (True, False):
        stream = tokenizer.stream(skip_special)
        parts = [stream.push(index) for index in ids]
        assert "".join(parts) + stream.flush() == tokenizer.decode(ids, skip_special)
        assert all(part.encode() for part in parts if part)  # no half of a surrogate pair


def test_a_character_is_streamed_whole_with_its_last_token(tokenizers: dict[str, Tokenizer]) -> None:
    for kind in ("spm", "byte-level", "gaps"):
        stream = tokenizers[kind].stream()
        parts = [stream.push(index) for index in tokenizers[kind].encode("a👩b\U00045678")]
        assert [part for part in parts if part] == ["a", "👩", "b", "\U00045678"]
        assert parts[-1] == "\U00045678"
    stream = tokenizers["byte-level"].stream()
    ids = tokenizers["byte-level"].encode("é" + "👩")
    assert "".join(stream.push(index) for index in ids[:-1]) == "é"
    assert stream.flush() == "\ufffd"


def test_bytes_that_a_vocabulary_lacks_are_escaped(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["gaps"]
    marker = tokenizer.special_id("<file_sep>")
    one, f = (tokenizer.encode(digit)[0] for digit in "1f")
    four, zero = (tokenizer.encode(digit)[0] for digit in "40")
    assert tokenizer.encode("\x04") == [marker, zero, four]
    assert tokenizer.encode("a\U00040000")[1:4] == [marker, f, one]
    # An escape is read as one only where it stands for a byte that is missing.
    assert tokenizer.decode([marker, f, f]) == "\ufffd"
    assert tokenizer.decode([marker, four, one]) == "41"
    assert tokenizer.decode([marker, zero]) == "0"
    assert tokenizer.decode([marker, marker, zero, four], skip_special=False) == "<file_sep>\x04"
    assert tokenizer.decode([marker, zero, tokenizer.eos_id], skip_special=False) == "<file_sep>0<|im_end|>"
    # Text that needs none has the ids of a vocabulary without gaps.
    full, text = tokenizers["byte-level"], CODE[0] + "f1 04"
    names = {index: piece for index, piece in enumerate(full._pieces)}
    assert [names[index] for index in full.encode(text)] == [
        tokenizer._pieces[index] for index in tokenizer.encode(text)
    ]
    assert marker not in tokenizer.encode(text)


def test_lone_surrogates_are_a_users_mistake(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="lone surrogate at character 2"):
        tokenizer.encode("a\ud800")


def test_ids_outside_the_vocabulary_are_shown_not_hidden(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("x")
    assert tokenizer.decode([*ids, tokenizer.vocab_size, -1]) == "x\ufffd\ufffd"


def test_a_tokenizer_without_a_begin_token_says_so() -> None:
    tokenizer = byte_level(bos_token_id=None)
    assert tokenizer.bos_id is None
    assert not tokenizer.add_bos
    with pytest.raises(UserError, match="no begin token"):
        tokenizer.encode("x", bos=True)


def test_a_tokenizer_has_to_fit_the_embedding(tokenizers: dict[str, Tokenizer]) -> None:
    tokenizer = tokenizers["byte-level"]
    size = tokenizer.vocab_size
    for rows in (size, size + 1, size + 1000):
        check_fits(tokenizer, rows)
    with pytest.raises(UserError, match=f"has {size} tokens but the model's embedding only {size - 1} rows"):
        check_fits(tokenizer, size - 1)
    with pytest.raises(UserError, match="32000 rows, too many to be padding"):
        check_fits(tokenizer, 32000)
