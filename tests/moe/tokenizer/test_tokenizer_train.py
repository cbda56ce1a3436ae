"""Training a small sentencepiece model: exact on any text, the same each time, silent."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe.errors import UserError
from moe.tokenizer import load_tokenizer, train, train_sentencepiece

TEXTS = [
    f"def {verb}_{noun}({noun}, n):\n    # {verb} the {noun}\n    if n > {number}:\n        return {noun}[:{number}]\n"
    for verb in ("count", "sort", "merge", "find", "drop")
    for noun in ("items", "words", "lines", "pairs")
    for number in (1, 25, 300)
]


def test_code_becomes_few_tokens_and_comes_back(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(TEXTS, 470, tmp_path)
    assert tokenizer.vocab_size == 470
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, 2, 3)
    assert (tokenizer.special_id("[INST]"), tokenizer.special_id("[/INST]")) == (4, 5)
    for text in [*TEXTS, "日本語\t\r\n\0\u2581 \u2585", "~`@$^&"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0]) / 2
    assert load_tokenizer(tmp_path).files() == tokenizer.files()


def test_digits_stand_alone_and_ascii_has_pieces() -> None:
    tokenizer = train_sentencepiece(["return 2024 2024 2024"] * 50, 400, None, control_tokens=())
    assert len(tokenizer.encode("2024")) == len(tokenizer.encode("")) + 5  # the space before it and four digits
    for character in "~`@$^&{}\n\tAZ":
        assert len(tokenizer.encode(f"x{character}")) <= 3


def test_the_same_texts_give_the_same_bytes_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        train_sentencepiece(iter(TEXTS), 480, tmp_path / name, seed=3)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert capfd.readouterr() == ("", "")


def test_of_very_many_texts_the_seed_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "MAX_TEXTS", 10)
    files = [train_sentencepiece(TEXTS, 420, None, seed=seed).files() for seed in (0, 0, 1)]
    assert files[0] == files[1] != files[2]


def test_long_texts_and_half_surrogates_are_trained_on() -> None:
    tokenizer = train_sentencepiece(["wonderful " * 2000, "a\ud800b"], 400, None)
    assert len(tokenizer.encode("wonderful")) == 1


def test_a_vocabulary_is_smaller_where_the_texts_have_too_little_in_common() -> None:
    tokenizer = train_sentencepiece(["ab"], 8192, None)
    assert 256 < tokenizer.vocab_size < 8192
    assert tokenizer.decode(tokenizer.encode("ab cd\n")) == "ab cd\n"


def test_mistakes_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text to train a tokenizer on"):
        train_sentencepiece(["", " \n"], 512, tmp_path)
    with pytest.raises(UserError, match="a vocabulary of 300 tokens was asked for; it takes at least 359"):
        train_sentencepiece(TEXTS, 300, tmp_path)
    many = ["".join(map(chr, range(0x4E00, 0x5200)))]
    with pytest.raises(UserError, match="sentencepiece cannot train 400 tokens on 1 texts"):
        train_sentencepiece(many, 400, tmp_path)
    assert not list(tmp_path.iterdir())
