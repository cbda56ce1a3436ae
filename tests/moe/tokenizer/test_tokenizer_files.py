"""Tokenizer files: what is read and written, and one line for each that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe.errors import Notice, UserError
from moe.tokenizer import Tokenizer, load_tokenizer, sentencepiece_model, tokenizer_from_gguf, train_sentencepiece
from moe.tokenizer.fast import JsonTokenizer
from moe.tokenizer.pipeline import byte_alphabet
from moe.tokenizer.sentencepiece_model import Piece, parse_model, write_model

TEXTS = ["def f(x):\n    return x + 1  \r\n\t", " lead", "\u2581", "<|im_end|>", "</s>é👩"]
CONTROL = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("trained")
    train_sentencepiece(["def f(x):\n    return x + 1\n", "return return"], 400, directory, control_tokens=())
    return directory


@pytest.fixture
def directory(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained tokenizer's files to change."""
    for file in trained.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.fixture(scope="module")
def byte_level() -> dict[str, Any]:
    """The content of a byte-level tokenizer.json."""
    tokens = ["<|end|>", "<|begin|>", *byte_alphabet(), "re"]
    tokenizer = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3, 3] + [1] * 257,
            "tokenizer.ggml.merges": ["r e"],
            "tokenizer.ggml.eos_token_id": 0,
            "tokenizer.ggml.bos_token_id": 1,
        }
    )
    assert isinstance(tokenizer, JsonTokenizer)
    return json.loads(tokenizer._content)


def change(path: Path, **changes: object) -> None:
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def same(one: Tokenizer, other: Tokenizer) -> bool:
    return all(one.encode(text, True, True) == other.encode(text, True, True) for text in TEXTS)


def test_a_directory_or_either_file_gives_the_same_tokenizer(trained: Path) -> None:
    names = {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {file.name for file in trained.iterdir()} == names
    tokenizer = load_tokenizer(trained)
    roles = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id, tokenizer.add_bos)
    assert roles == (1, 2, 3, 0, True)
    for path in (trained / "tokenizer.model", trained / "tokenizer.json", str(trained)):
        other = load_tokenizer(path)
        assert same(tokenizer, other)
        assert (other.bos_id, other.eos_id, other.pad_id, other.unk_id, other.add_bos) == roles
    special = json.loads((trained / "special_tokens_map.json").read_text())
    assert special == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def test_saving_again_writes_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    load_tokenizer(trained).save(tmp_path / "new" / "folder")
    for file in trained.iterdir():
        assert (tmp_path / "new" / "folder" / file.name).read_bytes() == file.read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the tokenizer cannot be written"):
        load_tokenizer(trained).save(tmp_path / "file")


def test_versioned_model_files_are_found(directory: Path) -> None:
    expected = load_tokenizer(directory)
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.model").rename(directory / "tokenizer.model.v3")
    assert same(load_tokenizer(directory), expected)
    assert same(load_tokenizer(directory / "tokenizer.model.v3"), expected)


def test_control_tokens_that_a_fine_tune_added(directory: Path, tmp_path: Path) -> None:
    base = load_tokenizer(directory)
    size = base.vocab_size
    decoder = {
        str(size): {"content": "<|im_end|>", **CONTROL},
        str(size + 2): {"content": "<|im_start|>", **CONTROL},
        "2": {"content": "</s>", **CONTROL},
    }
    change(directory / "tokenizer_config.json", added_tokens_decoder=decoder, eos_token={"content": "<|im_end|>"})
    tokenizer = load_tokenizer(directory)
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.special_id("<|im_start|>") == size + 2
    assert tokenizer.eos_id == tokenizer.special_id("<|im_end|>") == size
    assert [tokenizer.encode(text) for text in TEXTS] == [base.encode(text) for text in TEXTS]
    assert tokenizer.decode([size, *base.encode("x"), size + 1, size + 2]) == "x"
    tokenizer.save(tmp_path / "again")
    for again in (load_tokenizer(tmp_path / "again"), load_tokenizer(tmp_path / "again" / "tokenizer.json")):
        assert again.special_tokens == tokenizer.special_tokens
        assert again.eos_id == tokenizer.eos_id
        assert same(again, tokenizer)
    # the older form of the same, and a token that takes over another's id
    change(directory / "tokenizer_config.json", added_tokens_decoder=None, eos_token="<|end|>")
    (directory / "added_tokens.json").write_text(json.dumps({"<|end|>": size, "<|pad|>": 3}))
    tokenizer = load_tokenizer(directory)
    assert (tokenizer.eos_id, tokenizer.special_id("<|pad|>"), tokenizer.special_id("<pad>")) == (size, 3, None)


def test_whether_the_begin_token_is_added_is_read(directory: Path, byte_level: dict[str, Any]) -> None:
    change(directory / "tokenizer_config.json", add_bos_token=False)
    assert not load_tokenizer(directory).add_bos
    change(directory / "tokenizer_config.json", add_bos_token=None)
    assert load_tokenizer(directory).add_bos
    assert load_tokenizer(directory / "tokenizer.json").add_bos
    roles = {"eos": "<|end|>", "bos": "<|begin|>"}
    assert not JsonTokenizer(json.dumps(byte_level), roles).add_bos
    processor = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}}]}
    assert JsonTokenizer(json.dumps({**byte_level, "post_processor": processor}), roles).add_bos
    assert not JsonTokenizer(json.dumps({**byte_level, "post_processor": processor}), roles, add_bos=False).add_bos


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file; expected tokenizer\.model or tokenizer\.json"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(UserError, match=r"no tokenizer in it; expected tokenizer\.model or .*, found nothing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tekken.json.txt").write_text("x")
    with pytest.raises(UserError, match=r"found tekken\.json\.txt"):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="not a tokenizer file"):
        load_tokenizer(tmp_path / "tekken.json.txt")


@pytest.mark.parametrize("cut", [0, 1, 7, 1000, -1, -20])
def test_a_cut_model_file_is_said_to_be_broken(directory: Path, cut: int) -> None:
    data = (directory / "tokenizer.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(data[:cut])
    with pytest.raises(UserError, match=r"tokenizer\.model: "):
        load_tokenizer(directory)


@pytest.mark.parametrize(
    "data", [b"not a model at all", b"\xff" * 100, b"\n\x03\x08\x01\x02", b'{"a": 1}', b"\x0b\x0c"]
)
def test_other_files_are_no_models(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(UserError, match=r"tokenizer\.model: not a sentencepiece model"):
        load_tokenizer(tmp_path)


PIECES = [
    Piece("<unk>", 0.0, sentencepiece_model.UNKNOWN),
    Piece("<s>", 0.0, sentencepiece_model.CONTROL),
    Piece("</s>", 0.0, sentencepiece_model.CONTROL),
    *(Piece(f"<0x{byte:02X}>", 0.0, sentencepiece_model.BYTE) for byte in range(256)),
    Piece("\u2581", -1.0),
]
TRAINER = {sentencepiece_model.MODEL_TYPE: sentencepiece_model.BPE, sentencepiece_model.BYTE_FALLBACK: 1}
NORMALIZER = {1: b"identity", sentencepiece_model.REMOVE_EXTRA_SPACES: 0}


@pytest.mark.parametrize(
    ("pieces", "trainer", "normalizer", "complaint"),
    [
        (PIECES, {**TRAINER, sentencepiece_model.MODEL_TYPE: 1}, NORMALIZER, "of another kind than BPE"),
        (PIECES, {**TRAINER, sentencepiece_model.BYTE_FALLBACK: 0}, NORMALIZER, "has no byte fallback"),
        (PIECES, TRAINER, {**NORMALIZER, sentencepiece_model.CHARSMAP: b"\0" * 8}, "normalizes characters"),
        (PIECES, TRAINER, {1: b"identity"}, "removes extra spaces"),
        (PIECES, TRAINER, {**NORMALIZER, sentencepiece_model.ESCAPE_SPACES: 0}, "writes spaces in a way"),
        (PIECES[:-1], TRAINER, NORMALIZER, "lacks '\u2581'"),
        ([*PIECES[:2], *PIECES[3:]], TRAINER, NORMALIZER, "no end token in it"),
        (PIECES[:50], TRAINER, NORMALIZER, "lacks '<0x2F>'"),
        ([*PIECES, *PIECES[-1:]], TRAINER, NORMALIZER, "sentencepiece cannot load it"),
    ],
)
def test_models_that_lose_text_are_refused(
    tmp_path: Path, pieces: list[Piece], trainer: dict, normalizer: dict, complaint: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(write_model(PIECES, TRAINER, NORMALIZER))
    assert load_tokenizer(tmp_path).encode("a") == [259, 3 + ord("a")]
    (tmp_path / "tokenizer.model").write_bytes(write_model(pieces, trainer, normalizer))
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(tmp_path)


def test_user_defined_pieces_are_text_unless_they_look_like_control_tokens(tmp_path: Path) -> None:
    kind = sentencepiece_model.USER_DEFINED
    pieces = [*PIECES, Piece("<|im_end|>", 0.0, kind), Piece("<table>", 0.0, kind)]
    (tmp_path / "tokenizer.model").write_bytes(write_model(pieces, TRAINER, NORMALIZER))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_id("<|im_end|>") == 260
    assert tokenizer.special_id("<table>") is None
    assert tokenizer.encode("<table>") == [259, 261]
    assert 260 not in tokenizer.encode("<|im_end|>")
    assert all(tokenizer.decode(tokenizer.encode(text)) == text for text in ("<table> <|im_end|>", "<|im_end|>"))
    tokenizer.save(tmp_path / "saved")
    fast = load_tokenizer(tmp_path / "saved" / "tokenizer.json")
    assert fast.special_tokens == tokenizer.special_tokens
    assert 261 in fast.encode("<table>")
    assert 260 not in fast.encode("<|im_end|>")


def test_the_model_format_is_read_back_as_written() -> None:
    pieces = [Piece("a", -1.5), Piece("é\u2581", 0.25, 4), Piece("x" * 300, 0.0, 5)]
    model = parse_model(write_model(pieces, {4: 300, 43: -1, 45: b"<unk>"}, {3: 0}))
    assert model.pieces == pieces
    assert model.trainer == {4: 300, 43: (1 << 64) - 1, 45: b"<unk>"}
    assert not model.dummy_prefix
    protobuf = pytest.importorskip("google.protobuf", reason="needs protobuf to check against")
    official = pytest.importorskip("sentencepiece.sentencepiece_model_pb2").ModelProto()
    official.ParseFromString(write_model(pieces, {4: 300, 43: -1, 45: b"<unk>"}, {3: 0}))
    assert [(piece.piece, piece.score, piece.type) for piece in official.pieces] == pieces
    assert (official.trainer_spec.vocab_size, official.trainer_spec.pad_id) == (300, -1), protobuf.__version__
    assert not official.normalizer_spec.add_dummy_prefix
    assert parse_model(official.SerializeToString()) == model


def pre_tokenizer(**step: object) -> Callable[[dict], None]:
    return lambda spec: spec["pre_tokenizer"]["pretokenizers"].insert(0, step)


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda spec: spec.update(normalizer={"type": "Lowercase"}), "its normalizer Lowercase changes text"),
        (pre_tokenizer(type="WhitespaceSplit"), "its pre-tokenizer WhitespaceSplit loses text"),
        (
            pre_tokenizer(type="Split", pattern={"String": " "}, behavior="Removed", invert=False),
            "its pre-tokenizer Split loses text",
        ),
        (pre_tokenizer(type="ByteLevel", add_prefix_space=True), "puts spaces inside text"),
        (lambda spec: spec.update(pre_tokenizer=None), "neither a byte-level vocabulary nor one with byte fallback"),
        (lambda spec: spec["model"].update(type="WordPiece"), "a WordPiece vocabulary; expected BPE"),
        (lambda spec: spec["model"].update(merges=[["zz", "z"]]), "the tokenizers library cannot load it"),
        (lambda spec: spec["model"]["vocab"].pop("A"), "lacks 1 bytes and the means to escape them"),
        (lambda spec: spec.pop("model"), "not a tokenizer.json of the tokenizers library"),
        (lambda spec: spec.update(added_tokens=[1]), "not a tokenizer.json of the tokenizers library"),
        (
            lambda spec: (spec.update(added_tokens=[]), spec["model"]["vocab"].pop("<|end|>", None)),
            "tokenizer_config.json names '<|.*|>' as the (begin|end) token, which the vocabulary lacks",
        ),
    ],
)
def test_pipelines_that_lose_text_are_refused(
    tmp_path: Path, byte_level: dict[str, Any], edit: Callable[[dict], None], complaint: str
) -> None:
    spec = json.loads(json.dumps(byte_level))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    change_config = {"eos_token": "<|end|>", "bos_token": "<|begin|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(change_config))
    assert load_tokenizer(tmp_path).decode(load_tokenizer(tmp_path).encode(" return")) == " return"
    edit(spec)
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json: cannot be read as JSON"),
        ("special_tokens_map.json", "[]", "special_tokens_map.json: found a JSON list; expected an object"),
        ("added_tokens.json", '{"<|x|>": "one"}', "'one' stands where the id of an added token was expected"),
        ("added_tokens.json", '{"<|x|>": 99999999}', "99999999 stands where the id of an added token was expected"),
    ],
)
def test_broken_files_beside_the_model_are_named(directory: Path, name: str, content: str, complaint: str) -> None:
    (directory / name).write_text(content)
    with pytest.raises(UserError, match=complaint):
        load_tokenizer(directory)


def test_a_tokenizer_json_that_is_no_json(tmp_path: Path) -> None:
    for content, complaint in ((b"{", "not a tokenizer.json"), (b"\xff\xfe", "not UTF-8"), (b"[" * 99_999, "not a ")):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            load_tokenizer(tmp_path)


def step(kind: str, before: list[str], after: list[str], pair: list[str]) -> dict[str, Any]:
    """A post-processor that puts tokens before and after a text, and others before a pair of texts."""
    if kind == "RobertaProcessing":
        return {"type": kind, "cls": [before[0], 1], "sep": [after[0], 0]}
    parts = [{"SpecialToken": {"id": name, "type_id": 0}} for name in before]
    single = [*parts, {"Sequence": {"id": "A"}}, *({"SpecialToken": {"id": name, "type_id": 0}} for name in after)]
    special = {name: {"id": name, "ids": [0], "tokens": [name]} for name in (*before, *after, *pair)}
    made = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    return {"type": "Sequence", "processors": [{"type": "ByteLevel"}, made]} if kind == "Sequence" else made


@pytest.mark.parametrize(
    ("kind", "before", "after", "pair", "begins"),
    [
        ("TemplateProcessing", ["<|begin|>"], [], [], True),
        ("Sequence", ["<|begin|>"], ["<|end|>"], [], True),
        ("RobertaProcessing", ["<|begin|>"], ["<|end|>"], [], True),
        ("TemplateProcessing", [], ["<|begin|>"], [], False),  # a token that begins and ends texts, put at the end
        ("Sequence", [], [], ["<|begin|>"], False),
    ],
)
def test_the_begin_token_counts_only_before_a_text(byte_level, kind, before, after, pair, begins) -> None:
    content = json.dumps({**byte_level, "post_processor": step(kind, before, after, pair)})
    roles = {"bos": "<|begin|>", "eos": "<|end|>"}
    assert JsonTokenizer(content, roles).add_bos is begins
    with pytest.warns(Notice, match=f"would put {'one' if begins else 'none'} before a text"):
        assert JsonTokenizer(content, roles, add_bos=not begins).add_bos is not begins
    other = json.dumps({**byte_level, "post_processor": step("RobertaProcessing", ["<|end|>"], ["<|begin|>"], [])})
    with pytest.raises(UserError, match=r"its post_processor puts <\|end\|> before each text"):
        JsonTokenizer(other, roles)


@pytest.mark.parametrize(
    ("token", "complaint"),
    [
        ({"id": 0, "content": "foo"}, "'foo' has id 0, but '<|end|>' has that id"),
        ({"id": 5, "content": "foo"}, "'foo' has id 5, but .* has that id"),
        ({"id": 900, "content": "re"}, "'re' has id 900, but the vocabulary has it as 258"),
    ],
)
def test_added_tokens_that_share_an_id_are_refused(byte_level, token, complaint) -> None:
    added = [*byte_level["added_tokens"], {**CONTROL, "special": False, **token}]
    with pytest.raises(UserError, match=complaint):
        JsonTokenizer(json.dumps({**byte_level, "added_tokens": added}), {"eos": "<|end|>"})


def test_pieces_at_the_ends_of_words_are_refused(byte_level) -> None:
    content = {**byte_level, "model": {**byte_level["model"], "end_of_word_suffix": "</w>"}}
    with pytest.raises(UserError, match="pieces depend on the ends of words"):
        JsonTokenizer(json.dumps(content), {"eos": "<|end|>"})


def test_single_words_stay_single_words(byte_level) -> None:
    added = [
        *byte_level["added_tokens"],
        {**CONTROL, "id": 259, "content": "foo", "special": False, "single_word": True},
    ]
    tokenizer = JsonTokenizer(json.dumps({**byte_level, "added_tokens": added}), {"eos": "<|end|>"})
    assert 259 in tokenizer.encode("a foo b") and 259 not in tokenizer.encode("food")


def test_tokens_that_the_config_adds_as_text_are_found_in_text(byte_level, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level))
    listed = {"259": {**CONTROL, "content": "NEW", "special": False}, "260": {**CONTROL, "content": "OLD"}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "added_tokens_decoder": listed})
    )
    tokenizer = load_tokenizer(tmp_path)
    assert 259 in tokenizer.encode("NEW OLD") and 260 not in tokenizer.encode("NEW OLD")
    assert tokenizer.decode(tokenizer.encode("NEW OLD")) == "NEW OLD"


def test_a_llama_tokenizer_without_the_space_before_texts(directory: Path) -> None:
    config = directory / "tokenizer_config.json"
    before = load_tokenizer(directory)
    change(config, add_prefix_space=False)
    assert same(before, load_tokenizer(directory)), "only Llama's classes know the key"
    change(config, tokenizer_class="LlamaTokenizer")
    tokenizer = load_tokenizer(directory)
    assert tokenizer.encode("return") == before.encode_continued("return") != before.encode("return")
    assert tokenizer.decode(tokenizer.encode(" return")) == " return" and not tokenizer.adds_prefix_space
    (directory / "tokenizer.model").unlink()
    assert load_tokenizer(directory).encode("return") == tokenizer.encode("return")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"added_tokens": [{**CONTROL, "id": [1], "content": "x"}]}, "not a tokenizer.json"),
        ({"model": {"type": "BPE", "vocab": {"a": [1]}, "merges": []}}, "not a tokenizer.json"),
        ({"post_processor": []}, "its post_processor is broken"),
        ({"post_processor": {"type": "TemplateProcessing", "single": [1]}}, "its post_processor is broken"),
    ],
)
def test_broken_parts_give_one_line(byte_level, changes, complaint) -> None:
    with pytest.raises(UserError, match=complaint):
        JsonTokenizer(json.dumps({**byte_level, **changes}), {"eos": "<|end|>", "bos": "<|begin|>"})
