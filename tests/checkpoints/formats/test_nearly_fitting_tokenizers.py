"""Tokenizer files that disagree with each other, the config or the embedding; and every token that ends an answer."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from checkpoints.formats import open_checkpoint
from checkpoints.formats.config_keys import GENERATION, ignored_generation
from checkpoints.formats.extras import checkpoint_tokenizer
from checkpoints.model_io import load_model, save_model
from moe.data.prompt import OWN, encode_prompt, stop_ids
from moe.errors import Notice, UserError
from moe.inference.answers import Question, Writer
from moe.model import Transformer
from moe.tokenizer import train_sentencepiece
from tests.checkpoints.command_line import run_main
from tests.train_command import Done, train

TEXTS = ["Return the sum of a list.", "def total(xs):\n    return sum(xs)\n"] * 20
TURN = "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
TURN += "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"


@pytest.fixture(scope="module")
def vocabulary():
    return train_sentencepiece(TEXTS, 400, None)


@pytest.fixture
def saved(tmp_path, tiny_config, make_model, vocabulary):
    """A dense model whose embedding has some rows more than its vocabulary; no template is named."""

    def save(more_rows: int = 0, **files) -> Path:
        config = replace(tiny_config, vocab_size=vocabulary.vocab_size + more_rows)
        directory = save_model(make_model(config, dtype=torch.float32), vocabulary, tmp_path / "model")
        for name, content in files.items():
            place = directory / name.replace("__", ".")
            place.write_text(content if isinstance(content, str) else json.dumps(content))
        return directory

    return save


def edit(path: Path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "ABSENT"}))


def add_to_json(directory: Path, *names: str, special: bool = True) -> None:
    """Adds tokens to ``tokenizer.json`` alone, as transformers 5 saves a fine-tune."""
    path = directory / "tokenizer.json"
    spec = json.loads(path.read_text())
    index = 1 + max(spec["model"]["vocab"].values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    spec["added_tokens"] += [{"id": index + i, "content": name, **flags} for i, name in enumerate(names)]
    path.write_text(json.dumps(spec))


def notices(action) -> tuple[object, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        result = action()
    return result, [str(one.message) for one in caught if one.category is Notice]


def test_the_same_tokens_in_both_files_are_read_without_a_word(saved):
    directory = saved()
    tokenizer, said = notices(lambda: checkpoint_tokenizer(open_checkpoint(directory)))
    assert type(tokenizer).__name__ == "SentencePieceTokenizer" and not said
    assert tokenizer.pipeline == (directory / "tokenizer.json").read_text()


def test_added_tokens_of_tokenizer_json_are_not_hidden(saved):
    directory = saved(more_rows=2)
    add_to_json(directory, "<|im_start|>", "<|im_end|>")
    edit(directory / "tokenizer_config.json", eos_token="<|im_end|>")
    loaded, said = notices(lambda: load_model(directory))
    size = loaded.config.vocab_size
    assert loaded.tokenizer.vocab_size == size and loaded.tokenizer.eos_id == size - 1
    (line,) = [text for text in said if "disagree" in text]
    assert f"first at id {size - 2} (None and '<|im_start|>'); tokenizer.json is read" in line and "\n" not in line
    assert f"fits the embedding of {size} rows and the end token '<|im_end|>'" in line
    guessed = [text for text in said if "guess" in text]
    assert len(guessed) == 1 and "ChatML without a system message" in guessed[0] and loaded.template == OWN
    ids = encode_prompt(loaded.tokenizer, loaded.template, "Add two.")
    assert "SmolLM" not in loaded.tokenizer.decode(ids) and ids.count(size - 2) == 2


def test_an_old_tokenizer_json_beside_the_right_model(saved, vocabulary):
    """The other way around: the model has what the embedding needs."""
    directory = saved()
    path = directory / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["model"]["vocab"] = {name: index for name, index in spec["model"]["vocab"].items() if index < 300}
    spec["model"]["merges"] = [m for m in spec["model"]["merges"] if "".join(m) in spec["model"]["vocab"]]
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 300]
    path.write_text(json.dumps(spec))
    tokenizer, said = notices(lambda: checkpoint_tokenizer(open_checkpoint(directory)))
    assert type(tokenizer).__name__ == "SentencePieceTokenizer" and "tokenizer.model is read" in said[0]
    assert tokenizer.pipeline is None  # chats are not tokenized by the file that was not taken


@pytest.mark.parametrize("file", ["tokenizer.model", "tokenizer.json"])
@pytest.mark.parametrize("role", ["eos", "bos"])
def test_a_role_that_the_vocabulary_lacks_is_an_error(saved, file, role):
    directory = saved()
    other = {"tokenizer.model": "tokenizer.json", "tokenizer.json": "tokenizer.model"}[file]
    (directory / other).unlink()
    edit(directory / "tokenizer_config.json", **{f"{role}_token": "<|im_end|>"})
    with pytest.raises(UserError, match=rf"{file}: tokenizer_config\.json names '<\|im_end\|>' as the .* token"):
        load_model(directory)


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
def test_an_added_token_without_a_row_is_left_out_by_name(saved, place):
    directory = saved()
    size = load_model(directory, template="plain").config.vocab_size
    if place == "added_tokens.json":
        (directory / place).write_text(json.dumps({"<PAD>": size}))
    elif place == "tokenizer_config.json":
        edit(directory / place, added_tokens_decoder={str(size): {"content": "<PAD>", "special": True}})
    else:
        (directory / "tokenizer.model").unlink()
        add_to_json(directory, "<PAD>", special=False)
    if place != "tokenizer.json":
        (directory / "tokenizer.json").unlink()
    edit(directory / "tokenizer_config.json", pad_token="<PAD>")
    loaded, said = notices(lambda: load_model(directory, template="plain"))
    assert loaded.tokenizer.vocab_size == size and loaded.tokenizer.pad_id < size
    (line,) = [text for text in said if "left out" in text]
    assert f"'<PAD>' (id {size}), for which the embedding of {size} rows has none" in line
    assert max(loaded.tokenizer.encode("<PAD> x")) < size
    assert Writer(loaded.model, loaded.tokenizer, "plain", 4).answer(Question("Add.")).tokens <= 4
    saved_again = save_model(loaded.model, loaded.tokenizer, directory.with_name("again"), template="plain")
    assert notices(lambda: load_model(saved_again))[1] == []


def test_a_token_that_is_needed_and_has_no_row_is_an_error(saved):
    directory = saved()
    size = load_model(directory, template="plain").config.vocab_size
    (directory / "tokenizer.json").unlink()
    (directory / "added_tokens.json").write_text(json.dumps({"<|im_end|>": size}))
    edit(directory / "tokenizer_config.json", eos_token="<|im_end|>")
    with pytest.raises(UserError, match=rf"the end token '<\|im_end\|>' is added as id {size}, but .* {size} rows"):
        load_model(directory)
    edit(directory / "tokenizer_config.json", eos_token="</s>")
    (directory / "chat_template.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    _, said = notices(lambda: load_model(directory))
    assert any("left out" in text for text in said)
    edit(directory / "config.json", vocab_size=size)
    (directory / "added_tokens.json").write_text(json.dumps({"<|im_end|>": "x"}))
    with pytest.raises(UserError, match=r"added_tokens\.json: 'x' stands where the id"):
        load_model(directory)


def test_tokens_that_only_the_config_adds_to_a_tokenizer_json(saved):
    directory = saved(more_rows=1)
    (directory / "tokenizer.model").unlink()
    size = open_checkpoint(directory).config.vocab_size
    edit(directory / "tokenizer_config.json", added_tokens_decoder={str(size - 1): {"content": "<|end|>"}})
    tokenizer = checkpoint_tokenizer(open_checkpoint(directory))
    assert tokenizer.special_id("<|end|>") == size - 1 == tokenizer.vocab_size - 1


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [(2, [2, 7], {2, 7}), ([5, 6], "ABSENT", {5, 6}), (2, 9, {2, 9}), (None, None, set()), ([3], [4], {3, 4})],
)
def test_every_end_token_of_both_configs_stops_an_answer(saved, config, generation, expected):
    directory = saved()
    edit(directory / "config.json", eos_token_id=config)
    edit(directory / "generation_config.json", eos_token_id=generation)
    loaded = load_model(directory, template="plain")
    ends = stop_ids(loaded.tokenizer, "plain")
    assert ends == expected | {loaded.tokenizer.eos_id}
    out = save_model(loaded.model, loaded.tokenizer, directory.with_name("again"), template="plain")
    assert stop_ids(load_model(out).tokenizer, "plain") == ends
    unnamed = save_model(loaded.model, loaded.tokenizer, directory.with_name("unnamed"))
    assert load_model(unnamed, template="plain").tokenizer.end_ids >= expected
    always = Always(loaded.model, max(ends))
    writer = Writer(always, loaded.tokenizer, "plain", 5)
    assert writer.answer(Question("Add.")).finished == "stop"


class Always(Transformer):
    """A model that says one token, whatever it reads."""

    def __init__(self, model: Transformer, token: int):
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        self.token = token

    def forward(self, *args, **kwargs):
        found = super().forward(*args, **kwargs)
        found.logits[..., self.token] = 1e9
        return found


@pytest.mark.parametrize("value", ["2", [2, "x"], True, [-1], 1.5])
def test_end_tokens_that_are_no_ids_are_an_error(saved, value):
    directory = saved()
    edit(directory / "generation_config.json", eos_token_id=value)
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is .*; expected token ids"):
        load_model(directory)


def test_an_end_token_that_is_text_and_settings_in_vain_are_said(saved):
    directory = saved()
    tokenizer = load_model(directory, template="plain").tokenizer
    index = tokenizer.encode("return")[-1]
    settings = {"eos_token_id": index, "repetition_penalty": 1.1, "no_repeat_ngram_size": 0, "temperature": 0.7}
    edit(directory / "generation_config.json", **settings)
    _, said = notices(lambda: load_model(directory, template="plain"))
    assert any(f"eos_token_id names {index}, the text" in text for text in said)
    assert any("asks for repetition_penalty 1.1; answers are written without" in text for text in said)
    (directory / "generation_config.json").unlink()
    edit(directory / "config.json", no_repeat_ngram_size=3)
    _, said = notices(lambda: load_model(directory, template="plain"))
    assert any("config.json asks for no_repeat_ngram_size 3; answers are written without" in text for text in said)


# Of sampling, of beams, of lengths and of how transformers computes: greedy text does not depend on them.
_NO_TEXT = """
    assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind bos_token_id
    cache_config cache_implementation compile_config continuous_batching_config decoder_start_token_id disable_compile
    diversity_penalty do_sample early_stopping eos_token_id epsilon_cutoff eta_cutoff is_assistant length_penalty
    low_memory max_cache_len max_length max_matching_ngram_size max_new_tokens max_time min_p num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_return_sequences output_attentions output_hidden_states
    output_logits output_scores pad_token_id prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values
    renormalize_logits return_dict_in_generate speculation_type target_lookbehind temperature top_h top_k top_p
    transformers_version typical_p use_cache use_mtp
"""


def test_every_setting_of_generation_that_changes_greedy_text_is_named():
    from transformers import GenerationConfig

    known = {*_NO_TEXT.split(), *GENERATION}
    assert {key for key in GenerationConfig().to_dict() if not key.startswith("_")} <= known
    assert ignored_generation({"stop_strings": ["\n\n"], "num_beams": 1, "top_k": 5}) == ["stop_strings ['\\n\\n']"]


def test_a_foreign_chat_template_is_the_models_own(saved, tmp_path, capsys):
    directory = saved(chat_template__jinja=TURN)
    loaded, said = notices(lambda: load_model(directory))
    assert loaded.template == OWN and not said
    prompt = loaded.tokenizer.decode(encode_prompt(loaded.tokenizer, OWN, "Add two."), skip_special=False)
    assert "".join(prompt.split()) == "<|user|>Addtwo.</s><|assistant|>"
    for name, form in (("delta", "delta"), ("full", "full")):
        languages = ["--languages", "python", "java", "--expert-form", form]
        assert run_main("upcycle", directory, tmp_path / name, *languages, "--no-proof") == 0
        again = load_model(tmp_path / name)
        assert again.template == OWN and again.tokenizer.chat == loaded.tokenizer.chat
    out = save_model(loaded.model, loaded.tokenizer, tmp_path / "again", template=OWN)
    stored = json.loads((out / "tokenizer_config.json").read_text())
    assert stored["chat_template"] == TURN and load_model(out).template == OWN
    assert run_main("convert", directory, tmp_path / "plain", "--template", "plain") == 0
    assert load_model(tmp_path / "plain").template == "plain"
    assert "warning" not in capsys.readouterr().err


def dry_run(directory: Path, *more: str) -> Done:
    flags = ["--train-pairs", "4", "--max-tokens", "100", "--languages", "python", "java", "--no-baseline"]
    speed = ["--tokens-per-second", "1"]  # which is not what is tested
    return train("--dry-run", "--base", directory, "--data", "synthetic", *flags, *speed, *more, check=False)


def test_a_dry_run_checks_tokenizer_and_template(saved):
    directory = saved()
    (directory / "chat_template.jinja").write_text("{{ raise_exception('only with tools') }}")
    done = dry_run(directory)
    assert done.returncode == 0 and "cannot use its own chat template" in done.stderr and "only with" in done.stderr
    done = dry_run(directory, "--chat-base")
    assert done.returncode == 2 and "only with tools" in done.stderr and "--template NAME" in done.stderr
    assert dry_run(directory, "--chat-base", "--template", "plain").returncode == 0
    (directory / "chat_template.jinja").write_text(TURN)
    done = dry_run(directory, "--chat-base")
    assert done.returncode == 0 and not done.stderr
    done = dry_run(directory, "--template", "chatml")
    assert done.returncode == 2 and "no control token <|im_" in done.stderr
    other = train_sentencepiece(TEXTS * 2, 390, None)
    for name, content in other.files().items():
        (directory / name).write_bytes(content)
    (directory / "tokenizer.json").unlink()
    shutil.copyfile(directory / "tokenizer.model", directory / "kept")
    grown = train_sentencepiece(["abc def ghi jkl mno " + chr(0x3B1 + i) * 3 for i in range(25)] * 20, 600, None)
    (directory / "tokenizer.model").write_bytes(grown.files()["tokenizer.model"])
    done = dry_run(directory)
    assert done.returncode == 2 and "tokens but the model's embedding only" in done.stderr
    (directory / "tokenizer.model").unlink()
    done = dry_run(directory)
    assert done.returncode == 2 and "has no tokenizer" in done.stderr


CASES = {
    "14-foreign-chat-templates/user-assistant": [],
    "14-foreign-chat-templates/chatml": [],
    "15-end-tokens-of-generation-config-ignored/model": ["is a guess from its control tokens"],
    "16-tokenizer-model-hides-tokenizer-json/chatml": ["tokenizer.json is read"],
    "16-tokenizer-model-hides-tokenizer-json/no-template": [
        "tokenizer.json is read",
        "ChatML without a system message",
    ],
    "20-added-pad-token-without-a-row/model": ["adds '<PAD>' (id 1536)"],
}


@pytest.mark.parametrize("case", CASES)
def test_reported_cases(shared_data, case):
    directory = shared_data / "cases" / case
    if not directory.is_dir():
        pytest.skip("no such case in shared/data")
    loaded, said = notices(lambda: load_model(directory))
    assert len(said) == len(CASES[case]), said
    assert all(part in line for part, line in zip(CASES[case], said, strict=True))
    answer = Writer(loaded.model, loaded.tokenizer, loaded.template, 6).answer(Question("Add two.", "python"))
    if case.startswith("15"):
        assert (answer.finished, answer.tokens) == ("stop", 0)
    if case.startswith("14"):
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoTokenizer.from_pretrained(directory)
        asked = [{"role": "user", "content": "Add two."}]
        expected = theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert encode_prompt(loaded.tokenizer, loaded.template, "Add two.") == list(expected)
