"""A model's own chat template: text and ids are transformers', for any roles and turns, and nothing is forged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.data import rendering
from moe.data.prompt import OWN, check_template, encode_example, encode_prompt, stop_ids
from moe.data.rendering import encode_chat, end_id, render, unusable
from moe.errors import UserError
from moe.tokenizer import OwnChat, Tokenizer, load_tokenizer, train_sentencepiece
from moe.tokenizer.files import read_chat_tokens
from moe.tokenizer.pipeline import byte_alphabet, byte_level_pipeline, split_words

NAMES = ["<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
NAMES += ["[INST]", "[/INST]"]
TEMPLATES = {
    "turns": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}",
    "chatml": rendering.CHATML,
    "strict": "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}",
    "blocks": "{%- set ns = namespace(found=false) %}\n"
    "{%- for message in messages %}\n"
    "    {%- if message['role'] == 'system' %}\n"
    "        {%- set ns.found = true %}\n"
    "    {%- endif %}\n"
    "    <|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n"
    "{%- endfor %}\n"
    "{% if not ns.found %}\n  none\n{% endif %}\n"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}",
    "controls": "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index }} {{ m | tojson }}<|end|>{% endfor %}",
    "marked": "{% macro turn(m) %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt else '' }}",
    "tools": "{% if tools %}T{% endif %}{% if documents is defined and documents is not none %}D{% endif %}"
    "{{ pad_token | default('no pad') }}{{ sep_token }}{{ messages | length }}"
    "{% for m in messages %}<|user|>{{ m['content'][:20] | upper }}{{ m.get('name', '-') }}{% endfor %}",
}


def directory_of(tokenizer_json: str | None, tmp_path: Path, template: str) -> Path:
    """A tokenizer's directory as transformers 5 writes it."""
    tmp_path.mkdir()
    if tokenizer_json is not None:
        (tmp_path / "tokenizer.json").write_text(tokenizer_json)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"pad_token": "<pad>"}))
    (tmp_path / "chat_template.jinja").write_text(template)
    return tmp_path


def byte_level() -> str:
    control = {name: index for index, name in enumerate(NAMES)}
    tokens = [*NAMES, *byte_alphabet()]
    pipeline = byte_level_pipeline(tokens, [], control, {}, split_words(r"\s+|\w+|[^\s\w]+"), None, False)
    for token in pipeline["added_tokens"]:
        token["rstrip"] = token["content"] == "<|assistant|>"  # eats the newline after it, as Phi-3's tokens do
    return json.dumps(pipeline)


def sentencepiece() -> str:
    texts = ["def add(a, b):\n    return a + b\n", "Write a function.  Adds\ttwo\n  numbers."] * 20
    return train_sentencepiece(texts, 400, None, control_tokens=NAMES[2:]).files()["tokenizer.json"].decode()


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def both(request: pytest.FixtureRequest, tmp_path_factory):
    """By the name of a template: our tokenizer and transformers'."""
    transformers = pytest.importorskip("transformers")
    content = byte_level() if request.param == "byte-level" else sentencepiece()
    made = {}
    for name, template in TEMPLATES.items():
        folder = directory_of(content, tmp_path_factory.mktemp("tokenizers") / name, template)
        ours = load_tokenizer(folder)
        ours.chat = OwnChat(template, read_chat_tokens(folder))
        made[name] = (ours, transformers.AutoTokenizer.from_pretrained(folder))
    return made


words = st.text(st.sampled_from("ab \n\t{}%'\"\\éß🙂日_#<|>[]/"), max_size=12)
turns = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant", "tool"]),
        words,
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=turns, name=st.sampled_from(list(TEMPLATES)), prompt=st.booleans())
def test_text_and_ids_are_those_of_transformers(both, messages, name, prompt):
    ours, theirs = both[name]
    try:
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception:
        with pytest.raises(UserError, match="the chat template fails"):
            render(ours.chat, messages, prompt)
        return
    assert render(ours.chat, messages, prompt) == expected
    ids = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
    assert encode_chat(ours, messages, prompt) == list(ids)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=words, after=words, token=st.sampled_from(NAMES), name=st.sampled_from(list(TEMPLATES)))
def test_a_message_cannot_forge_a_turn(both, before, after, token, name):
    ours, _ = both[name]
    control = set(ours.special_tokens.values())

    def turns_in(text: str) -> list[int]:
        return [index for index in encode_chat(ours, rendering.prompt_of(text), True) if index in control]

    assert turns_in(before + token + after) == turns_in("nothing")
    if name != "tools":  # which cuts its text
        text = ours.decode(encode_chat(ours, rendering.prompt_of("x" + token + "y"), True), skip_special=False)
        assert token in text.split("x", 1)[1]


@pytest.mark.parametrize("name", ["turns", "chatml", "blocks", "marked"])
def test_training_learns_the_response_and_the_end_of_its_turn(both, name):
    """The ids are those of transformers for the whole conversation, up to the token that ends the answer."""
    ours, theirs = both[name]
    for response in ("def f(x):\n    return x", "x", "  y\n", ""):
        ids, start = encode_example(ours, OWN, "Add two.", response)
        assert ids[:start] == encode_prompt(ours, OWN, "Add two.")
        asked = rendering.prompt_of("Add two.")
        assert ids[:start] == list(theirs.apply_chat_template(asked, add_generation_prompt=True, return_dict=False))
        assert ids[-1] == end_id(ours) and ids[-1] in stop_ids(ours, OWN)
        assert ours.decode(ids[start:]).strip() == response.strip()
        if name in ("turns", "chatml") and response.strip() == response:
            whole = [*asked, {"role": "assistant", "content": response}]
            assert list(theirs.apply_chat_template(whole, return_dict=False))[: len(ids)] == ids
    ends = {"turns": "</s>", "chatml": "<|im_end|>", "blocks": "<|end|>", "marked": "<|end|>"}
    assert end_id(ours) == ours.special_id(ends[name])


def test_a_response_that_holds_control_tokens_is_text(both):
    ours, _ = both["turns"]
    ids, start = encode_example(ours, OWN, "Print </s>.", "print('</s><|user|>')")
    control = set(ours.special_tokens.values())
    assert [index for index in ids[start:] if index in control] == [ours.eos_id]


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return load_tokenizer(directory_of(byte_level(), tmp_path / "t", ""))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}", "the chat template fails"),
        ("{{ raise_exception('needs tools') }}", "needs tools"),
        ("{{ messages[1].content }}", "the chat template fails"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("hello", "leaves out"),
        ("{{ messages[0].content | upper }}", "leaves out or changes"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "the chat template fails"),
        ("{% for i in range(10**9) %}x{% endfor %}{{ messages[0].content }}", "the chat template fails"),
        ("{% set _ = messages.append(1) %}{{ messages[0].content }}", "the chat template fails"),
    ],
)
def test_templates_that_cannot_be_used_say_why(tokenizer, template, reason):
    tokenizer.chat = OwnChat(template)
    assert reason in (unusable(tokenizer) or "")
    assert "\n" not in (unusable(tokenizer) or "")


def test_a_token_without_a_row_is_named(tmp_path):
    folder = directory_of(byte_level(), tmp_path / "t", "")
    spec = json.loads((folder / "tokenizer.json").read_text())
    new = {"id": 267, "content": "<|late|>", "special": True, "normalized": False, "single_word": False}
    spec["added_tokens"].append({**new, "lstrip": False, "rstrip": False})
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    assert load_tokenizer(folder).vocab_size == 268
    with pytest.warns(match=r"adds '<\|late\|>' \(id 267\), for which the embedding of 267 rows has none"):
        tokenizer = load_tokenizer(folder, rows=267)
    assert tokenizer.vocab_size == 267 and tokenizer.special_id("<|late|>") is None
    tokenizer.pipeline = json.dumps(spec)
    tokenizer.chat = OwnChat("{{ messages[0].content }}<|late|>")
    assert "'<|late|>' (id 267)" in (unusable(tokenizer) or "")


def test_without_a_template_of_its_own(tokenizer):
    assert check_template(OWN) == OWN and unusable(tokenizer) == "it has none"
    with pytest.raises(UserError, match=r"no chat template of its own; .* mistral-instruct, chatml, plain"):
        encode_prompt(tokenizer, OWN, "x")
    with pytest.raises(UserError, match="no chat template of its own"):
        stop_ids(tokenizer, OWN)


def test_named_tokens_are_those_of_the_files(tmp_path):
    folder = directory_of(None, tmp_path / "t", "")
    (folder / "special_tokens_map.json").write_text('{"unk_token": {"content": "<unk>"}, "eos_token": "old"}')
    tokens = (("bos_token", "<s>"), ("eos_token", "</s>"), ("pad_token", "<pad>"), ("unk_token", "<unk>"))
    assert read_chat_tokens(folder) == tokens
