"""Tokenizers out of GGUF metadata: word splits, SmolLM2's real vocabulary, and what broken metadata get."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import pre_tokenizers

from moe.data.chat_template import chat_template, named_template
from moe.data.pairs import load_split
from moe.data.prompt import encode_prompt
from moe.errors import Notice, UserError
from moe.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf
from moe.tokenizer.gguf import PRE_TOKENIZERS
from moe.tokenizer.pipeline import byte_alphabet, split_words

# published in the metadata of SmolLM2-135M-Instruct
SMOLLM2_CONTROL = 17
CHAT = [{"role": "user", "content": "Write a Python function.\n  Adds 12 numbers."}]


@pytest.fixture(scope="module")
def real_texts(shared_data: Path) -> list[str]:
    split = load_split(shared_data / "pairs", "test", ["python", "java", "javascript", "cpp"], limit=75)
    return [text for pairs in split.values() for pair in pairs for text in (pair.code, pair.text)]


@pytest.fixture(scope="module")
def official(smollm2_file: Path):
    transformers = pytest.importorskip("transformers")
    # The class that AutoTokenizer picks, which does not read the model's config first.
    return transformers.PreTrainedTokenizerFast.from_pretrained(smollm2_file.parent, gguf_file=smollm2_file.name)


def splitter(kind: str) -> Callable[[str], list[str]]:
    """What a kind of GGUF pre-tokenizer does: text to words, written in GPT-2's characters for bytes."""
    frame = {"version": "1.0", "added_tokens": [], "normalizer": None, "decoder": None, "post_processor": None}
    model = {"type": "BPE", "vocab": {}, "merges": []}
    pre_tokenizer = split_words(*PRE_TOKENIZERS[kind])
    backend = Backend.from_str(json.dumps({**frame, "pre_tokenizer": pre_tokenizer, "model": model}))
    return lambda text: [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def readable(words: list[str]) -> list[str]:
    alphabet = byte_alphabet()
    return [bytes(alphabet[character] for character in word).decode("utf-8", "replace") for word in words]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gpt-2", ["I", "'ll", " pay", "  ", " 12345", ".", "50", ",", " ok", "?!", "\n\n ", " x"]),
        ("smollm", ["I", "'ll", " pay", "   ", *"12345", ".", "5", "0", ",", " ok", "?!", "\n\n ", " x"]),
        ("default", ["I", "'", "ll", " pay", "  ", " ", "123", "45", ".", "50", ",", " ok", "?!", "\n\n ", " x"]),
        ("llama-bpe", ["I", "'ll", " pay", "  ", " ", "123", "45", ".", "50", ",", " ok", "?!\n\n", " ", " x"]),
        ("qwen2", ["I", "'ll", " pay", "  ", " ", *"12345", ".", "5", "0", ",", " ok", "?!\n\n", " ", " x"]),
        ("tekken", ["I", "'ll", " pay", "  ", " ", *"12345", ".", "5", "0", ",", " ok", "?!\n\n", " ", " x"]),
    ],
)
def test_each_pre_tokenizer_splits_its_way(kind: str, expected: list[str]) -> None:
    assert readable(splitter(kind)("I'll pay   12345.50, ok?!\n\n  x")) == expected


def test_splits_of_real_code_are_those_of_other_libraries(real_texts: list[str]) -> None:
    """GPT-2's and SmolLM's splits as the tokenizers library has them built in, Tekken's as mistral-common has it."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    smollm = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    for kind, official in {"gpt-2": gpt2, "smollm": smollm}.items():
        split = splitter(kind)
        for text in real_texts:
            assert split(text) == [word for word, _ in official.pre_tokenize_str(text)]
    regex = pytest.importorskip("regex")
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        pytest.skip("mistral-common is not installed (pip install mistral-common)")
    data = Path(found.origin).parent / "data"
    config = json.loads(next(iter(sorted(data.glob("tekken*.json")))).read_text())["config"]
    split = splitter("tekken")
    for text in [*real_texts, "ÀÉ camelCase HTTPServer's  日本 1234 // x\r\n\t"]:
        assert readable(split(text)) == regex.findall(config["pattern"], text)


def test_whole_words_are_taken_before_merges_where_llama_cpp_does() -> None:
    symbols = list(byte_alphabet())
    tokens = ["<|end_of_text|>", "<|begin_of_text|>", *symbols, "ab", "abc"]  # no merge makes "abc"
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
    }
    whole = tokenizer_from_gguf({**fields, "tokenizer.ggml.pre": "llama-bpe"})
    merged = tokenizer_from_gguf({**fields, "tokenizer.ggml.pre": "qwen2"})
    assert whole.encode("abc") == [tokens.index("abc")]
    assert merged.encode("abc") == [tokens.index("ab"), tokens.index("c")]
    assert whole.add_bos
    assert not merged.add_bos


def test_user_defined_tokens_are_found_in_text_unless_they_look_like_control_tokens() -> None:
    tokens = ["<eos>", "<tool_call>", "<|think|>", *byte_alphabet()]
    tokenizer = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 4, 4] + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.eos_token_id": 0,
        }
    )
    assert tokenizer.encode("a<tool_call> b")[1] == 1
    assert tokenizer.decode(tokenizer.encode("a<tool_call> b")) == "a<tool_call> b"
    assert tokenizer.special_tokens == {"<eos>": 0, "<|think|>": 2}
    assert len(tokenizer.encode("<|think|>")) == len("<|think|>")


def test_smollm2s_ids_are_transformers(smollm2: Tokenizer, official, real_texts: list[str]) -> None:
    """transformers 5.23 ignores `tokenizer.ggml.pre`, so it does not split digits; with that put right, ids agree."""
    assert smollm2.vocab_size == len(official) == 49152
    plain = [text for text in real_texts if not any(name in text for name in smollm2.special_tokens)]
    assert [smollm2.decode(smollm2.encode(text)) for text in real_texts] == real_texts
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    official.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), byte_level]
    )
    expected = official(plain, add_special_tokens=False).input_ids
    assert [smollm2.encode(text) for text in plain] == expected
    assert smollm2.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]


def test_smollm2s_special_tokens_and_chat(smollm2: Tokenizer, official, smollm2_fields: dict[str, Any]) -> None:
    assert len(smollm2.special_tokens) == SMOLLM2_CONTROL
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.pad_id, smollm2.unk_id) == (1, 2, 2, 0)
    assert not smollm2.add_bos
    expected = official.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    ids = encode_prompt(smollm2, "chatml", CHAT[0]["content"])
    assert smollm2.decode(ids, skip_special=False) == expected
    for text in (smollm2_fields["tokenizer.chat_template"], chat_template(smollm2, "chatml")):
        assert named_template(text) == "chatml"
        rendered = official.apply_chat_template(CHAT, chat_template=text, add_generation_prompt=True, tokenize=False)
        assert rendered == expected


def test_smollm2_keeps_characters_that_its_vocabulary_lacks(smollm2: Tokenizer) -> None:
    missing = [index for index, token in enumerate(smollm2._bytes_ids) if token is None]
    assert bytes(missing) == b"\x04\x06\x13\x14\x16\x1d\xc0\xc1\xf1\xf2\xf5\xf6\xf7\xf8\xf9\xfa\xfb\xfc\xfd\xfe\xff"
    text = "".join(map(chr, range(256))) + "".join(chr(plane << 16 | 0x1234) for plane in range(17))
    assert smollm2.decode(smollm2.encode(text)) == text


def test_smollm2_saved_is_loaded_with_the_same_ids(smollm2: Tokenizer, real_texts: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    smollm2.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.files() == smollm2.files()
    assert loaded.special_tokens == smollm2.special_tokens
    assert not loaded.add_bos
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in real_texts[::4]:
        assert loaded.encode(text) == smollm2.encode(text) == auto(text).input_ids
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id, auto.unk_token_id) == (1, 2, 2, 0)


def spm_fields(**changes: object) -> dict[str, Any]:
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
    fields = {
        "model": "llama",
        "tokens": names,
        "scores": [0.0] * 259 + [-2.0, -3.0, -1.0],
        "token_type": [2, 3, 3] + [6] * 256 + [1] * 3,
        **changes,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}


def test_a_sentencepiece_vocabulary_follows_the_files_flags() -> None:
    tokenizer = tokenizer_from_gguf(spm_fields())
    assert tokenizer.encode("a a") == [261, 261]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (1, 2, 2, 0)
    assert tokenizer.add_bos
    bare = tokenizer_from_gguf(spm_fields(add_space_prefix=False, add_bos_token=False))
    assert bare.encode("a a") == [260, 261]
    assert bare.decode([261, 260]) == " aa"
    assert not bare.add_bos
    # tokens with a role are not always marked as control tokens
    unmarked = tokenizer_from_gguf(spm_fields(token_type=[1, 1, 1] + [6] * 256 + [1] * 3, eos_token_id=2))
    assert unmarked.special_tokens == tokenizer.special_tokens
    with pytest.raises(UserError, match="there are not 256 byte pieces"):
        tokenizer_from_gguf(spm_fields(token_type=None))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"model": None}, "the GGUF metadata lack tokenizer.ggml.model; tokenizer keys there: tokenizer.ggml.scores"),
        ({"tokens": None}, "the GGUF metadata lack tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens is a str; expected a Sequence"),
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'; expected 'gpt2'"),
        ({"scores": [0.0]}, "tokenizer.ggml.scores has 1 entries; expected 262"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type has 1 entries; expected 262"),
        ({"eos_token_id": 262}, "tokenizer.ggml.eos_token_id is 262; expected an id below 262"),
        ({"tokens": ["a"], "scores": [0.0], "token_type": [1]}, "has only 1 entries; expected a whole vocabulary"),
        ({"model": "gpt2"}, "the GGUF metadata lack tokenizer.ggml.merges"),
        ({"model": "gpt2", "pre": "qwen3"}, r"tokenizer.ggml.pre is 'qwen3' \(did you mean 'qwen2'\?\); known"),
        ({"model": "gpt2", "merges": ["abc"]}, "holds 'abc'; expected two tokens with a space between"),
        ({"model": "gpt2", "add_space_prefix": True}, "add_space_prefix is on for a byte-level vocabulary"),
    ],
)
def test_broken_metadata_are_a_users_mistake(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        tokenizer_from_gguf(spm_fields(**changes))


def lists(*extra: tuple[str, int], **keys: Any) -> dict[str, Any]:
    """A byte-level vocabulary whose last tokens are ``extra`` (name, type)."""
    names = ["<|a|>", "<|b|>", *byte_alphabet(), *(name for name, _ in extra)]
    fields = {"model": "gpt2", "pre": "smollm", "tokens": names, "merges": [], "bos_token_id": 0, "eos_token_id": 1}
    fields["token_type"] = [3, 3] + [1] * 256 + [kind for _, kind in extra]
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | keys).items()}


def test_tokens_that_end_a_turn_or_a_message_end_answers() -> None:
    fields = lists(("<|eot|>", 3), ("<|eom|>", 3), eot_token_id=258, eom_token_id=259)
    assert tokenizer_from_gguf(fields).end_ids == {1, 258, 259}
    assert tokenizer_from_gguf(lists(eot_token_id=4000)).end_ids == {1}


def test_added_tokens_without_a_row() -> None:
    fields = lists(("<|pad|>", 3), ("<|new|>", 4), padding_token_id=258)
    with pytest.warns(
        match=r"adds '<\|pad\|>' \(id 258\), '<\|new\|>' \(id 259\), for which the embedding of 258 rows"
    ):
        tokenizer = tokenizer_from_gguf(fields, rows=258)
    assert tokenizer.vocab_size == 258 and tokenizer.pad_id == tokenizer.eos_id
    assert max(tokenizer.encode("<|new|>")) < 258
    assert tokenizer_from_gguf(fields, rows=300).vocab_size == 260
    assert tokenizer_from_gguf(lists(("word", 1)), rows=258).vocab_size == 259  # no added token: check_fits refuses it
    with pytest.raises(UserError, match=r"eos_token_id: the end token '<\|pad\|>' \(258\) has none of the 258 rows"):
        tokenizer_from_gguf({**fields, "tokenizer.ggml.eos_token_id": 258}, rows=258)


@pytest.mark.parametrize("key", ["remove_extra_whitespaces", "precompiled_charsmap", "add_sep_token", "of_tomorrow"])
def test_settings_that_change_text_are_refused_by_name(key: str) -> None:
    with pytest.raises(UserError, match=rf"tokenizer\.ggml\.{key} is set"):
        tokenizer_from_gguf(lists(**{key: [1] if key == "precompiled_charsmap" else True}))
    assert tokenizer_from_gguf(lists(**{key: False})).vocab_size == 258
    with pytest.warns(Notice, match="add_eos_token would put the end token after each text"):
        tokenizer_from_gguf(lists(add_eos_token=True, fim_pre_token_id=3))


def test_a_chat_template_and_the_tokens_it_may_name() -> None:
    chat = tokenizer_from_gguf({**lists(), "tokenizer.chat_template": "{{ eos_token }}"}).chat
    assert chat is not None and dict(chat.tokens) == {"bos_token": "<|a|>", "eos_token": "<|b|>"}
