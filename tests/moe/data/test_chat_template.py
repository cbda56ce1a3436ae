"""Chat templates: transformers gives the tokens of training, and the template is recognized when read back."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.data.chat_template import chat_template, guess_template, named_template
from moe.data.prompt import TEMPLATES, encode_example, encode_prompt, has_mistral_marks, instruction_for, prompt_parts
from moe.errors import UserError
from moe.languages import LANGUAGES
from moe.tokenizer import Tokenizer, load_tokenizer

PAIRS = [
    ("Write a Python function.  Adds\ttwo\n  numbers; 12 é 🙂.", "def add(a, b):\n    return a + b"),
    ("Write a Python function.", "def add(a, b):\n    return a + b\n"),
    ("x", ""),
    ("日本語 [ 'x' ] {{ y }} {% z %}", "{% endfor %}\n\n// done"),
    ("Sum.", "#include <map>\n\nint f();"),
    ("a\n", "#include <vector>\n\n\tint f();  \n"),
]
KINDS = ["chatml", "instruct", "textual", "sentencepiece_chatml", "v1", "v2", "v3", "smollm2"]


@pytest.fixture(scope="module")
def render(tmp_path_factory):
    """Renders a chat template as transformers does."""
    tools = pytest.importorskip("transformers.utils.chat_template_utils")

    def rendered(text: str, messages: list[dict[str, str]], **values) -> str:
        return tools.render_jinja_template(conversations=[messages], chat_template=text, **values)[0][0]

    return rendered


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest, mistral_model) -> Tokenizer:
    kind: str = request.param
    return load_tokenizer(mistral_model(kind)) if kind in ("v1", "v2", "v3") else request.getfixturevalue(kind)


def fitting(tokenizer: Tokenizer) -> list[str]:
    """The templates that a tokenizer has the control tokens for."""
    found = []
    for template in TEMPLATES:
        try:
            prompt_parts(tokenizer, template, [("user", "x")])
        except UserError:
            continue
        found.append(template)
    return found


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize("tokenizer", KINDS, indirect=True)
def test_transformers_tokenizes_as_training_does(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    one_text = not tokenizer.adds_prefix_space  # byte-level: see chat_template's docstring
    pairs = [pair for pair in PAIRS if not one_text or all(text == text.strip() for text in pair)]
    for template in fitting(tokenizer):
        if one_text and template == "mistral-instruct":
            continue
        for name, content in tokenizer.files(chat_template(tokenizer, template)).items():
            (tmp_path / name).write_bytes(content)
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
        after = tokenizer.encode("\n") if template == "chatml" else []  # what SmolLM2 puts behind every turn
        for instruction, response in pairs:
            chat = [message("user", instruction), message("assistant", response)]
            ids = auto.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=False)
            assert ids == encode_prompt(tokenizer, template, instruction)
            whole = auto.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
            expected, start = encode_example(tokenizer, template, instruction, response)
            assert whole["input_ids"] == expected + after
            learned = len(expected) - start
            assert whole["assistant_masks"] == [0] * start + [1] * learned + [0] * len(after)


@pytest.mark.parametrize("tokenizer", ["instruct", "textual", "v2"], indirect=True)
def test_mistrals_system_message_goes_before_the_instruction(tokenizer: Tokenizer, render) -> None:
    text, bos = chat_template(tokenizer, "mistral-instruct"), {"bos_token": "<s>", "eos_token": "</s>"}
    user = message("user", "Add.")
    system = render(text, [message("system", "Be brief."), user], **bos)
    assert system == render(text, [message("user", "Be brief.\n\nAdd.")], **bos)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@settings(max_examples=150, deadline=None)
@given(
    words.filter(str.strip),
    st.sampled_from([None, *LANGUAGES]),
    st.sampled_from(TEMPLATES),
    st.integers(0, 3),
    st.lists(st.tuples(words.filter(str.strip), words.filter(bool)), max_size=2),
    st.none() | words.filter(str.strip),
)
def test_the_rendered_text_is_the_encoded_prompts(
    render, request, text, language, template, kind, turns, system
) -> None:
    tokenizer = request.getfixturevalue(KINDS[kind])
    if template not in fitting(tokenizer):
        return
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    instruction = instruction_for(text, language)
    before = [("system", system)] if system is not None else []
    for asked, answered in turns:
        before += [("user", asked), ("assistant", answered)]
    # As in training, SentencePiece puts a space before an answer (but for one after a control token).
    after_text = template != "mistral-instruct" or not has_mistral_marks(tokenizer)
    space = " " if tokenizer.adds_prefix_space and after_text else ""
    encoded = [(role, space + text if role == "assistant" else text) for role, text in before]
    parts = prompt_parts(tokenizer, template, [*encoded, ("user", instruction)])
    expected = "".join(part if isinstance(part, str) else names[part] for part in parts)
    roles = {"bos_token": names.get(tokenizer.bos_id, ""), "eos_token": names[tokenizer.eos_id]}
    chat = [message(*turn) for turn in [*before, ("user", instruction)]]
    assert render(chat_template(tokenizer, template), chat, add_generation_prompt=True, **roles) == expected


def test_the_chatml_chat_template_is_smollm2s(chatml: Tokenizer, render) -> None:
    # as published in the metadata of SmolLM2-135M-Instruct, Apache-2.0
    official = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    ours = chat_template(chatml, "chatml")
    turns = [message(role, f"{role} says") for role in ("system", "user", "assistant", "user")]
    for messages in (turns, turns[1:], turns[1:2]):
        for ask in (True, False):
            written = [render(text, messages, add_generation_prompt=ask) for text in (official, ours)]
            assert written[0] == written[1]
    assert named_template(official) == "chatml"


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_chat_template_names_its_prompt_template(kind: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(kind)
    for template in fitting(tokenizer):
        text = chat_template(tokenizer, template)
        assert named_template(text) == template
        assert re.search(r"{% generation %}.*{% endgeneration %}", text)
    with pytest.raises(UserError, match=r"unknown prompt template 'chatlm' \(did you mean 'chatml'\?\); templates: "):
        chat_template(tokenizer, "chatlm")


def test_chat_templates_of_earlier_versions_are_recognized() -> None:
    begin, each, end = "{{ bos_token }}", "{% for message in messages %}", "{% endfor %}"
    plain = "{{ message['content'] + (eos_token if message['role'] == 'assistant' else '\\n') }}"
    assert named_template(begin + each + plain + end) == named_template(each + plain + end) == "plain"
    instruct = "{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    assert named_template(begin + each + instruct + end) == "mistral-instruct"


def test_other_chat_templates_are_guessed_by_their_marks(chatml: Tokenizer, textual: Tokenizer) -> None:
    for text in ("", "{{ messages }}", "[INST]", "{# language-experts prompt template: alpaca #}"):
        assert named_template(text) is None
    assert guess_template("{{ '<|im_start|>' }}", textual) == ("chatml", "<|im_start|> in its chat template")
    assert guess_template("{{ '[INST]' }}", chatml) == ("mistral-instruct", "[INST] in its chat template")
    assert guess_template("", chatml) == ("chatml", "its control tokens")
    assert guess_template("", textual) == ("mistral-instruct", "its control tokens")


@settings(max_examples=100, deadline=None)
@given(words.filter(str.strip), words, st.sampled_from(KINDS[1:4]), st.sampled_from(TEMPLATES))
def test_sentencepiece_keeps_prompt_and_response_apart(autos, text, response, kind, template) -> None:
    tokenizer = autos[kind, ""]
    if (kind, template) not in autos or any(name in x for name in ("\u2581", "<", "[") for x in (text, response)):
        return
    chat = [message("user", text), message("assistant", response)]
    ids = autos[kind, template].apply_chat_template(chat, return_dict=False)
    expected, _ = encode_example(tokenizer, template, text, response)
    assert ids[: len(expected)] == expected


@pytest.fixture(scope="module")
def autos(request: pytest.FixtureRequest, tmp_path_factory) -> dict:
    """transformers' tokenizers by kind and template, and ours by kind."""
    transformers, found = pytest.importorskip("transformers"), {}
    for kind in KINDS[1:4]:
        found[kind, ""] = tokenizer = request.getfixturevalue(kind)
        for template in fitting(tokenizer):
            folder = tmp_path_factory.mktemp("auto")
            for name, content in tokenizer.files(chat_template(tokenizer, template)).items():
                (folder / name).write_bytes(content)
            found[kind, template] = transformers.AutoTokenizer.from_pretrained(folder)
    return found
