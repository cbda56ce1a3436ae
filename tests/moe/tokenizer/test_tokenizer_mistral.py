"""The real sentencepiece models of Mistral v1, v2 and v3 (from the package mistral-common), id for id."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from moe.data.pairs import load_split
from moe.tokenizer import Tokenizer, load_tokenizer, sentencepiece_model, tokenizer_from_gguf

TEXTS = [
    "", " ", "  ", "   x", "\t", "\n", "\r\n", "a\r\n\tb\n\n\n  c   d ", "\0", "a\0b", "x" * 100, " " * 37, "\n" * 9,
    "def f(x):\n    return  x\n", "1234567890", "héllo wörld", "日本語", "👩‍💻 emoji", "\ufeffx",
    "\U00045678\U0010ffff", "</s>", "<s>[INST] x [/INST]", "<unk><0x0A>", "\u2585\u2047", "e\u0301", "a  b   c    d",
]  # fmt: skip


@pytest.fixture(scope="module", params=["v1", "v2", "v3"])
def path(request: pytest.FixtureRequest, mistral_model) -> Path:
    return mistral_model(request.param)


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> Tokenizer:
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def real_texts(shared_data: Path) -> list[str]:
    """Real code and descriptions, 240 pairs."""
    split = load_split(shared_data / "pairs", "test", ["python", "java", "javascript", "cpp"], limit=60)
    return [text for pairs in split.values() for pair in pairs for text in (pair.code, pair.text)]


def test_ids_are_mistral_commons(path: Path, tokenizer: Tokenizer) -> None:
    module = pytest.importorskip("mistral_common.tokens.tokenizers.sentencepiece")
    official = module.SentencePieceTokenizer(path)
    assert tokenizer.vocab_size == official.n_words
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id) == (official.bos_id, official.eos_id, official.unk_id)
    assert set(tokenizer.special_tokens.values()) >= {*official.special_ids, official.unk_id}
    # v3 lists [REF] and the like as user-defined pieces, which are found in text; here they are control tokens too.
    others = [name for name, index in tokenizer.special_tokens.items() if index not in {0, *official.special_ids}]
    assert all("REF" in name for name in others)
    assert len(others) == (20 if path.name.endswith("v3") else 0)
    assert tokenizer.add_bos
    for text in TEXTS:
        assert tokenizer.encode(text, bos=True, eos=True) == official.encode(text, bos=True, eos=True)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ids_of_real_code_are_sentencepieces(path: Path, tokenizer: Tokenizer, real_texts: list[str]) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert [tokenizer.encode(text) for text in real_texts] == [raw.encode(text) for text in real_texts]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in real_texts] == real_texts


def test_decoding_any_ids_is_sentencepieces(path: Path, tokenizer: Tokenizer) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    control = set(tokenizer.special_tokens.values())
    ids = [index for index in range(tokenizer.vocab_size) if not raw.is_byte(index) and index not in control]
    for start in range(0, len(ids), 1000):
        assert tokenizer.decode(ids[start : start + 1000]) == raw.decode(ids[start : start + 1000])


def test_the_square_that_stands_for_a_space_is_written_in_bytes(path: Path, tokenizer: Tokenizer) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    square = [raw.piece_to_id(f"<0x{byte:02X}>") for byte in "\u2581".encode()]
    assert raw.decode(raw.encode("a\u2581b")) != "a\u2581b"
    assert tokenizer.encode("a\u2581b") == [*raw.encode("a"), *square, raw.piece_to_id("b")]
    assert tokenizer.encode("\u2581") == square


def test_the_model_file_is_read_as_the_library_reads_it(path: Path) -> None:
    raw = sentencepiece.SentencePieceProcessor(model_file=str(path))
    model = sentencepiece_model.parse_model(path.read_bytes())
    assert len(model.pieces) == raw.vocab_size()
    for index in range(0, raw.vocab_size(), 7):
        piece = model.pieces[index]
        assert (piece.text, piece.score) == (raw.id_to_piece(index), raw.get_score(index))
        assert (piece.type == sentencepiece_model.CONTROL) == raw.is_control(index)
        assert (piece.type == sentencepiece_model.BYTE) == raw.is_byte(index)
    assert model.is_bpe
    assert model.dummy_prefix
    assert model.loses_text is None


def test_the_same_vocabulary_as_gguf_metadata_has_the_same_ids(
    path: Path, tokenizer: Tokenizer, real_texts: list[str]
) -> None:
    pieces = sentencepiece_model.parse_model(path.read_bytes()).pieces
    fields = {
        "model": "llama",
        "tokens": [piece.text for piece in pieces],
        "scores": [piece.score for piece in pieces],
        "token_type": [piece.type for piece in pieces],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    rebuilt = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in fields.items()})
    assert rebuilt.special_tokens == tokenizer.special_tokens
    assert rebuilt.add_bos
    for text in [*TEXTS, "a\u2581b", *real_texts[::8]]:
        assert rebuilt.encode(text) == tokenizer.encode(text)
    name = "tokenizer.json"
    assert rebuilt.files()[name] == tokenizer.files()[name]


def test_transformers_loads_what_is_saved_with_the_same_ids(
    tokenizer: Tokenizer, real_texts: list[str], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}')
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = [text for text in TEXTS if not any(name in text for name in tokenizer.special_tokens)]
    assert len(plain) > 20
    for text in [*plain, *real_texts[::2]]:
        assert auto(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
    assert auto("x = 1").input_ids == tokenizer.encode("x = 1", bos=True)
    assert auto.decode(tokenizer.encode(real_texts[0]), clean_up_tokenization_spaces=False) == real_texts[0]
    assert (auto.bos_token_id, auto.eos_token_id, auto.pad_token_id) == (1, 2, 2)
    for file in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(file)
        assert loaded.special_tokens == tokenizer.special_tokens
        assert loaded.add_bos
        assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
        assert [loaded.encode(text) for text in real_texts[::8]] == [tokenizer.encode(text) for text in real_texts[::8]]
    assert load_tokenizer(tmp_path).files() == tokenizer.files()
