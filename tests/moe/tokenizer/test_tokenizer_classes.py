"""Keys of tokenizer files that change ids: read as transformers reads them, or refused by name."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from moe.data.rendering import encode_chat
from moe.errors import Notice, UserError
from moe.tokenizer import OwnChat, load_tokenizer
from moe.tokenizer.base import SPACE
from moe.tokenizer.classes import OTHERS, settled_files, tokenizer_class
from moe.tokenizer.files import read_chat_tokens
from moe.tokenizer.pipeline import LLAMA3_WORDS, QWEN2_WORDS, split_words

TEXTS = [
    "def add(x1, y22):\n    return x1 + y22  # it's IT'S\n\n\tfoo[10] = 'a  b'\n    1 +  2345",
    "Add two.",
    "x  12",
]
SPECIAL = ["<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>"]
CHAT = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
META = {"type": "Metaspace", "replacement": SPACE, "split": False}
BYTE_LEVEL = {
    "words": WORDS,
    "prefixed": {**WORDS, "add_prefix_space": True},
    "digits": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, WORDS]},
    "qwen": split_words(QWEN2_WORDS),
    "llama3": split_words(LLAMA3_WORDS),
}
SPACES = {
    "never": {**META, "prepend_scheme": "never"},
    "first": {**META, "prepend_scheme": "first"},
    "normalizer": None,
}
PREPEND = [{"type": "Prepend", "prepend": SPACE}, {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}]


@pytest.fixture(scope="module")
def vocabularies() -> dict[str, str]:
    """A ``tokenizer.json`` of each kind: byte-level, and SentencePiece's."""
    found = {}
    for kind in ("bytes", "spaces"):
        backend = Tokenizer(models.BPE(byte_fallback=kind == "spaces", unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(False) if kind == "bytes" else pre_tokenizers.Metaspace()
        base = [f"<0x{byte:02X}>" for byte in range(256)] if kind == "spaces" else []
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=[*SPECIAL, *base],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else [],
            show_progress=False,
        )
        backend.train_from_iterator(TEXTS * 30, trainer)
        spec = json.loads(backend.to_str())
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIAL]
        found[kind] = json.dumps(spec)
    return found


@pytest.fixture
def written(tmp_path, vocabularies):
    def write(pipeline: str, config: dict, model_type: str = "llama", **changes) -> Path:
        spec = json.loads(vocabularies["bytes" if pipeline in BYTE_LEVEL else "spaces"])
        spec["pre_tokenizer"] = {**BYTE_LEVEL, **SPACES}[pipeline]
        if pipeline == "normalizer":
            spec["normalizer"] = {"type": "Sequence", "normalizers": PREPEND}
        named = {"bos_token": "<s>", "eos_token": "<|im_end|>", **config}
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        for name, content in (("tokenizer", spec | changes), ("tokenizer_config", named)):
            (folder / f"{name}.json").write_text(json.dumps(content))
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        return folder

    return write


def compare(folder: Path) -> list[str]:
    """Checks ids of texts and chats against transformers'; returns what was said."""
    from transformers import AutoTokenizer

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        ours = load_tokenizer(folder)
    ours.chat = OwnChat(CHAT, read_chat_tokens(folder))
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert ours.encode(text, bos=ours.add_bos) == theirs(text).input_ids, text
        assert ours.decode(ours.encode(text)) == text
        turns = [{"role": "user", "content": text}]
        wanted = theirs.apply_chat_template(turns, chat_template=CHAT, return_dict=False)
        assert encode_chat(ours, turns) == wanted, text
    return [str(one.message) for one in caught if one.category is Notice]


@pytest.mark.filterwarnings("ignore::moe.errors.Notice")
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "GPT2TokenizerFast", "Qwen2Tokenizer", "LlamaTokenizer"])
@pytest.mark.parametrize("pipeline", [*BYTE_LEVEL, *SPACES])
def test_a_class_splits_text_as_in_transformers(written, pipeline, kind):
    for extra in ({}, {"add_prefix_space": True}, {"add_prefix_space": False}, {"legacy": True}):
        folder = written(pipeline, {"tokenizer_class": kind, **extra})
        fits = kind in ("PreTrainedTokenizerFast", "LlamaTokenizer") or pipeline in BYTE_LEVEL
        if not fits or (kind == "Qwen2Tokenizer" and extra.get("add_prefix_space")):
            with pytest.raises(UserError, match=f"{kind.removesuffix('Fast')}|add_prefix_space"):
                load_tokenizer(folder)
            continue
        said = compare(folder)
        own = {"GPT2TokenizerFast": "words", "Qwen2Tokenizer": "qwen"}.get(kind)
        if own is not None and not extra:
            assert bool(said) == (pipeline != own), said
        elif own is None:
            assert not said


@pytest.mark.parametrize("pipeline", ["digits", "normalizer"])
def test_models_of_another_type_keep_the_ids_of_the_class(written, pipeline):
    """A mixture of a Llama model is a Mixtral, for which transformers ignores the class."""
    folder = written(pipeline, {"tokenizer_class": "GPT2Tokenizer" if pipeline == "digits" else "LlamaTokenizer"})
    with pytest.warns(Notice) if pipeline == "digits" else warnings.catch_warnings():
        before = load_tokenizer(folder)
    files = {name: folder / name for name in ("tokenizer.json", "tokenizer_config.json")}
    settled = settled_files(folder, files)
    assert settled_files(folder, settled) == settled
    for name, content in settled.items():
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text('{"model_type": "mixtral"}')
    assert not compare(folder) and tokenizer_class(folder) is None
    assert [load_tokenizer(folder).encode_chat(text) for text in TEXTS] == [before.encode_chat(text) for text in TEXTS]


def test_mistral_models_are_read_without_the_class(written):
    for pipeline in ("digits", "normalizer"):
        assert not compare(written(pipeline, {"tokenizer_class": "LlamaTokenizer"}, "mistral"))


def test_every_class_of_transformers_that_splits_text_itself_is_known():
    import transformers
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    known = {f"{name}Tokenizer" for name in OTHERS}
    known |= {"LlamaTokenizer", "CodeLlamaTokenizer", "GPT2Tokenizer", "CodeGenTokenizer", "GPTNeoXTokenizer"}
    for name in dir(transformers):
        if name.endswith("Tokenizer"):
            kind = getattr(transformers, name)
            if isinstance(kind, type) and issubclass(kind, TokenizersBackend) and "__init__" in kind.__dict__:
                assert kind.__name__ in known | {"Qwen2Tokenizer"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer_class": "T5TokenizerFast"}, "tokenizer_class is 'T5Tokenizer'"),
        ({"split_special_tokens": True}, "split_special_tokens is true"),
        ({"auto_map": {"AutoTokenizer": ["code.Mine", None]}}, "auto_map names code"),
    ],
)
def test_what_is_not_read_is_refused_by_name(written, config, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(written("words", config))


@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_special_tokens_of_the_vocabulary_alone_are_found_in_chats(written, vocabularies, key):
    added = [x for x in json.loads(vocabularies["bytes"])["added_tokens"] if not x["content"].startswith("<|im")]
    named = {"image_token": "<|im_start|>"} if key.startswith("extra") else ["<|im_start|>"]
    folder = written("words", {key: named}, added_tokens=added)
    assert not compare(folder)
    assert 3 not in load_tokenizer(folder).encode("<|im_start|>"), "text gives no control token"


def test_tokens_around_each_text(written):
    def processor(*names: str) -> dict:
        parts = [
            {"Sequence": {"id": "A", "type_id": 0}} if x == "A" else {"SpecialToken": {"id": x, "type_id": 0}}
            for x in names
        ]
        ids = {x: {"id": x, "ids": [SPECIAL.index(x)], "tokens": [x]} for x in names if x != "A"}
        return {"type": "TemplateProcessing", "single": parts, "pair": [*parts, *parts], "special_tokens": ids}

    assert not compare(written("words", {}, post_processor=processor("<s>", "A")))
    for names in (("<s>", "<|im_start|>", "A"), ("<|im_start|>", "A")):
        with pytest.raises(UserError, match=r"puts .*<\|im_start\|> before each text"):
            load_tokenizer(written("words", {}, post_processor=processor(*names)))
    with pytest.warns(Notice, match="would put </s> after each text"):
        load_tokenizer(written("words", {}, post_processor=processor("<s>", "A", "</s>")))
