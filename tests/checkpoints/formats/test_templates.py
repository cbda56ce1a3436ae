"""A model's prompt template travels with it, in directories and GGUF files; a guess is announced."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.model_io import load_model, save_model
from moe.data.chat_template import TEMPLATE_FILE
from moe.data.rendering import render
from moe.errors import Notice, UserError
from moe.inference.answers import Question, Writer
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main

TEXTS = ["Return the sum of a list.", "def total(xs):\n    return sum(xs)\n"] * 20
FOREIGN = "{{ bos_token }}{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endfor %}"
MINE = ["plain", "mistral-instruct"]


@pytest.fixture
def saved(tmp_path, tiny_config, make_model):
    """A dense model with a SentencePiece tokenizer, saved with a template."""
    tokenizer = train_sentencepiece(TEXTS, 400, None)
    model = make_model(replace(tiny_config, vocab_size=tokenizer.vocab_size), dtype=torch.float32)

    def save(template: str | None) -> Path:
        return save_model(model, tokenizer, tmp_path / f"model-{template}", template=template)

    return save


def to_gguf(directory: Path, path: Path) -> None:
    """Converts as llama.cpp's converter does, with the part of it that reads a directory's chat template."""
    gguf = pytest.importorskip("gguf")
    sentencepiece, transformers = pytest.importorskip("sentencepiece"), pytest.importorskip("transformers")
    from tests.checkpoints.formats.test_gguf import write_gguf

    def add_tokenizer(writer) -> None:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        kinds = {pieces.is_unknown: 2, pieces.is_control: 3, pieces.is_byte: 6}
        ids = range(pieces.vocab_size())
        writer.add_tokenizer_model("llama")
        writer.add_token_list([pieces.id_to_piece(i) for i in ids])
        writer.add_token_scores([pieces.get_score(i) for i in ids])
        writer.add_token_types([next((kind for test, kind in kinds.items() if test(i)), 1) for i in ids])
        gguf.SpecialVocab(directory).add_to_gguf(writer, quiet=True)

    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    write_gguf(path, theirs, extra=add_tokenizer)


def answers(path: Path) -> list[str]:
    loaded = load_model(path)
    questions = [Question(text, language) for text in TEXTS[:2] for language in ("python", None)]
    return [
        answer.text for answer in Writer(loaded.model, loaded.tokenizer, loaded.template, 8).answer_many(questions, 4)
    ]


@pytest.mark.parametrize("template", MINE)
def test_the_template_travels_in_a_gguf_file(saved, tmp_path, template):
    directory, file = saved(template), tmp_path / "gguf" / "model.gguf"
    file.parent.mkdir()
    to_gguf(directory, file)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert load_model(file).template == template
        assert answers(file) == answers(directory)
    assert run_main("convert", file, tmp_path / "back") == 0
    assert json.loads((tmp_path / "back" / TEMPLATE_FILE).read_text()) == {"template": template}
    # what a file says of itself counts more than what lies beside it
    (file.parent / TEMPLATE_FILE).write_text('{"template": "chatml"}')
    assert load_model(file).template == template


@pytest.mark.parametrize("template", MINE)
@pytest.mark.parametrize("place", ["prompt_template.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_directory_names_its_template(saved, template, place):
    directory = saved(template)
    if place != TEMPLATE_FILE:
        (directory / TEMPLATE_FILE).unlink()
    if place == "chat_template.jinja":  # where transformers 5 saves it
        config = json.loads((directory / "tokenizer_config.json").read_text())
        (directory / place).write_text(config.pop("chat_template"))
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert load_model(directory).template == template


def test_a_guess_is_announced_in_one_line(saved, tmp_path, capsys):
    directory = saved(None)
    with pytest.warns(
        Notice, match="does not name its prompt template; 'mistral-instruct' is a guess from its control"
    ):
        assert load_model(directory).template == "mistral-instruct"
    config = json.loads((directory / "tokenizer_config.json").read_text())
    broken = FOREIGN + "{{ raise_exception('only for tools') }}"
    listed = [{"name": "tools", "template": "x"}, {"name": "default", "template": broken}]
    for chat in (broken, listed, {"tools": "x", "default": broken}):
        (directory / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": chat}))
        with pytest.warns(Notice, match=r"only for tools.*guess from \[INST\] in its chat template"):
            assert load_model(directory).template == "mistral-instruct"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert run_main("upcycle", directory, tmp_path / "moe", "--languages", "python", "java", "--no-proof") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "prompt template" in line]
    assert len(said) == 1 and said[0].startswith(f"warning: {directory} does not name") and "--template NAME" in said[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert load_model(directory, template="plain").template == "plain"
    with pytest.raises(UserError, match="unknown prompt template 'plane'"):
        load_model(directory, template="plane")


def test_a_chat_template_can_name_the_extra_tokens_of_its_model(saved):
    directory = saved(None)
    path = directory / "tokenizer_config.json"
    chat = "{{ turn_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    extra = {"extra_special_tokens": {"turn_token": "[INST]"}, "chat_template": chat}
    path.write_text(json.dumps({**json.loads(path.read_text()), **extra}))
    tokenizer = load_model(directory).tokenizer
    assert render(tokenizer.chat, [{"role": "user", "content": "x"}]) == "[INST]x"


def test_a_template_that_is_given_replaces_the_chat_template_too(saved, tmp_path):
    directory = saved("mistral-instruct")
    assert run_main("convert", directory, tmp_path / "out", "--template", "plain") == 0
    (tmp_path / "out" / TEMPLATE_FILE).unlink()
    assert load_model(tmp_path / "out").template == "plain"
    assert run_main("convert", directory, tmp_path / "same", "--template", "mistral-instruct") == 0
    name = "tokenizer_config.json"
    assert (tmp_path / "same" / name).read_bytes() == (directory / name).read_bytes()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"template": "alpaca"}', "unknown prompt template 'alpaca'; templates: mistral-instruct, chatml, plain"),
        ("[]", "expected an object"),
        ("{", "JSON"),
    ],
)
def test_a_broken_template_file_is_named(saved, content, complaint):
    directory = saved("plain")
    (directory / TEMPLATE_FILE).write_text(content)
    with pytest.raises(UserError, match=complaint) as error:
        load_model(directory)
    assert str(error.value).startswith(str(directory / TEMPLATE_FILE))
