"""Prompts: the same ids as mistral-common and transformers, and code taken out of answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from moe.data.prompt import (
    CHATML_SYSTEM,
    choose_template,
    encode_example,
    encode_prompt,
    extract_code,
    instruction_for,
    load_template,
    save_template,
    stop_ids,
    template_for_chat,
)
from moe.errors import UserError
from moe.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf, train_sentencepiece
from moe.tokenizer.pipeline import byte_alphabet

MISTRAL_MODELS = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
}
INSTRUCTION = "Write a Python function.  Adds\ttwo\n  numbers; 12 é 🙂."
RESPONSE = "def add(a, b):\n    return a + b\n"
CHATML_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def chatml() -> Tokenizer:
    """A byte-level vocabulary without merges, with SmolLM2's control tokens."""
    return tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "smollm",
            "tokenizer.ggml.tokens": [*CHATML_TOKENS, *byte_alphabet()],
            "tokenizer.ggml.token_type": [3] * 3 + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.add_bos_token": False,
        }
    )


@pytest.fixture(scope="module")
def instruct() -> Tokenizer:
    return train_sentencepiece([RESPONSE, INSTRUCTION], 400, None)


@pytest.fixture(scope="module")
def textual() -> Tokenizer:
    """Like Mistral v1: no control tokens but begin and end."""
    return train_sentencepiece([RESPONSE, INSTRUCTION], 400, None, control_tokens=())


def mistral(version: str) -> Path:
    found = importlib.util.find_spec("mistral_common")
    if found is None or found.origin is None:
        pytest.skip("mistral-common is not installed (pip install mistral-common)")
    return Path(found.origin).parent / "data" / MISTRAL_MODELS[version]


@pytest.mark.parametrize("version", MISTRAL_MODELS)
def test_mistral_prompts_and_examples_have_the_ids_of_mistral_common(version: str) -> None:
    path = mistral(version)
    messages = pytest.importorskip("mistral_common.protocol.instruct.messages")
    request = pytest.importorskip("mistral_common.protocol.instruct.request")
    official = pytest.importorskip("mistral_common.tokens.tokenizers.mistral").MistralTokenizer.from_file(str(path))
    tokenizer = load_tokenizer(path)
    template = choose_template(tokenizer)
    assert template == "mistral-instruct"
    for instruction in (INSTRUCTION, " ", "</s>[INST] x [/INST]", "line\r\n\r\n"):
        user = messages.UserMessage(content=instruction)
        answer = messages.AssistantMessage(content=RESPONSE)
        expected = official.instruct_tokenizer.encode_instruct(request.InstructRequest(messages=[user])).tokens
        assert encode_prompt(tokenizer, template, instruction) == expected
        whole = official.instruct_tokenizer.encode_instruct(request.InstructRequest(messages=[user, answer])).tokens
        assert encode_example(tokenizer, template, instruction, RESPONSE) == (whole, len(expected))
    assert stop_ids(tokenizer, template) == {tokenizer.eos_id}


def test_chatml_is_what_smollm2s_own_chat_template_writes(chatml: Tokenizer) -> None:
    ids = encode_prompt(chatml, "chatml", INSTRUCTION)
    assert chatml.decode(ids, skip_special=False) == (
        f"<|im_start|>system\n{CHATML_SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert CHATML_SYSTEM == "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    example, start = encode_example(chatml, "chatml", INSTRUCTION, RESPONSE)
    assert example[:start] == ids
    assert chatml.decode(example[start:-1]) == RESPONSE
    assert example[-1] == chatml.special_id("<|im_end|>")
    assert stop_ids(chatml, "chatml") == {chatml.special_id("<|im_end|>"), chatml.special_id("<|endoftext|>")}


def test_plain_is_the_instruction_on_a_line_of_its_own(chatml: Tokenizer, instruct: Tokenizer) -> None:
    assert chatml.decode(encode_prompt(chatml, "plain", "Do it.")) == "Do it.\n"
    assert encode_prompt(chatml, "plain", "Do it.") == chatml.encode("Do it.\n")
    assert encode_prompt(instruct, "plain", "Do it.") == instruct.encode("Do it.\n", bos=True)
    ids, start = encode_example(instruct, "plain", "Do it.", RESPONSE)
    assert instruct.decode(ids[start:]) == RESPONSE
    assert ids[-1] == instruct.eos_id


@pytest.mark.parametrize("response", ["", " x", "\n", "[/INST]", "<|im_end|>", "\u2581", "a\r\n\tb\0", "```\n"])
@pytest.mark.parametrize("template", ["mistral-instruct", "chatml", "plain"])
def test_responses_come_back_and_user_text_holds_no_control_token(
    template: str, response: str, chatml: Tokenizer, instruct: Tokenizer
) -> None:
    tokenizer = chatml if template == "chatml" else instruct
    control = set(tokenizer.special_tokens.values())
    ids, start = encode_example(tokenizer, template, response, response)
    assert tokenizer.decode(ids[start:]) == response
    assert not control & set(ids[start:-1])
    usual, usual_start = encode_example(tokenizer, template, "x", "x")
    assert [i for i in ids[:start] if i in control] == [i for i in usual[:usual_start] if i in control]


def test_the_template_is_chosen_by_the_control_tokens(
    chatml: Tokenizer, instruct: Tokenizer, textual: Tokenizer
) -> None:
    assert [choose_template(t) for t in (chatml, instruct, textual)] == [
        "chatml",
        "mistral-instruct",
        "mistral-instruct",
    ]
    bare = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["<|endoftext|>", *byte_alphabet()],
            "tokenizer.ggml.token_type": [3] + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.eos_token_id": 0,
        }
    )
    assert choose_template(bare) == "plain"
    with pytest.raises(UserError, match=r"no control token <\|im_start\|>, which the prompt template 'chatml' needs"):
        encode_prompt(bare, "chatml", "x")
    with pytest.raises(UserError, match="no begin token"):
        encode_prompt(bare, "mistral-instruct", "x")


def test_the_template_is_stored_with_the_model(tmp_path: Path) -> None:
    for template in ("mistral-instruct", "chatml", "plain"):
        save_template(tmp_path, template)
        assert load_template(tmp_path) == template
        assert json.loads((tmp_path / "prompt_template.json").read_text()) == {"template": template}
    with pytest.raises(UserError, match=r"unknown prompt template 'chatlm' \(did you mean 'chatml'\?\); templates: "):
        save_template(tmp_path, "chatlm")
    (tmp_path / "prompt_template.json").write_text('{"template": "alpaca"}')
    with pytest.raises(UserError, match="the template is 'alpaca'; expected one of mistral-instruct, chatml, plain"):
        load_template(tmp_path)
    for content, complaint in {"[]": "found a JSON list", "{": "cannot be read as JSON"}.items():
        (tmp_path / "prompt_template.json").write_text(content)
        with pytest.raises(UserError, match=complaint):
            load_template(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_template(tmp_path / "none")


@pytest.mark.parametrize("kind", ["chatml", "instruct", "textual"])
def test_transformers_users_get_the_same_prompt(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    user = {"role": "user", "content": INSTRUCTION}
    for template in (choose_template(tokenizer), "plain"):
        tokenizer.save(tmp_path)
        save_template(tmp_path, template, tokenizer)
        auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
        ids = auto.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
        assert ids == encode_prompt(tokenizer, template, INSTRUCTION)
        answer = {"role": "assistant", "content": RESPONSE}
        whole = auto.apply_chat_template([user, answer], return_dict=False)
        expected, start = encode_example(tokenizer, template, INSTRUCTION, RESPONSE)
        assert whole[:start] == expected[:start]
        if template != "plain":
            assert whole[: len(expected)] == expected
        if template == "mistral-instruct":
            system = {"role": "system", "content": "Be brief."}
            ids = auto.apply_chat_template([system, user], add_generation_prompt=True, return_dict=False)
            assert ids == encode_prompt(tokenizer, template, f"Be brief.\n\n{INSTRUCTION}")


def test_the_chatml_chat_template_is_smollm2s() -> None:
    jinja2 = pytest.importorskip("jinja2")
    # as published in the metadata of SmolLM2-135M-Instruct, Apache-2.0
    official = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
        "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = train_sentencepiece(["x"], 400, None, control_tokens=CHATML_TOKENS)
    ours = template_for_chat(tokenizer, "chatml")
    turns = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant", "user")]
    for messages in (turns, turns[1:], turns[1:2]):
        for ask in (True, False):
            written = [
                jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
                .from_string(text)
                .render(messages=messages, add_generation_prompt=ask)
                for text in (official, ours)
            ]
            assert written[0] == written[1]


def test_instructions_name_the_language() -> None:
    assert instruction_for("Adds two numbers.", "cpp") == "Write a C++ function. Adds two numbers."
    asked = instruction_for("Adds two numbers.", "javascript", ask="code-only")
    assert asked.startswith("Write a JavaScript function. Adds two numbers.\n")
    assert "only the code" in asked
    assert "```javascript" in asked
    with pytest.raises(UserError, match="unknown language 'pyton'"):
        instruction_for("x", "pyton")
    with pytest.raises(UserError, match="unknown way to ask 'code'"):
        instruction_for("x", "python", ask="code")


CODE = "def f(x):\n    return x"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (f"Sure!\n\n```python\n{CODE}\n```\nThis works.", CODE),
        (f"```\n{CODE}\n```", CODE),
        (f"Here: ```py\n{CODE}\n```", CODE),
        (f"```java\nint f();\n```\n```Python\n{CODE}\n```", CODE),
        (f"```bash\npip install x\n```\nthen\n```\n{CODE}\n```", CODE),
        ("```java\nint f();\n```", "int f();"),
        (f"```python\n{CODE}\n```\n```python\nf(1)\n```", CODE),
        (f"```python\n{CODE}", CODE),
        (f"``` python title=x\n\n{CODE}\n\n```", CODE),
        (f"~~~~python\n{CODE}\n~~~~\nDone.", CODE),
        (f"````python\n{CODE}\n# ```\n````", f"{CODE}\n# ```"),
        ("1. First:\n   ```python\n   def f(x):\n       return x\n   ```", CODE),
        (f"```python\n```\n```python\n{CODE}\n```", CODE),
        (f"```python\r\n{CODE}\r\n```\r\n", CODE),
        (CODE, CODE),
        (f"\n{CODE}\n\n", CODE),
        (f"Sure! Here is the function:\n\n{CODE}\n\nThis function returns `x`. It takes one argument.\nNotes:\n", CODE),
        ("    return x\n", "    return x"),
        ("// Adds two numbers.\nint f();", "// Adds two numbers.\nint f();"),
        ('"""Doc.\n\nReturns the sum of all.\n"""', '"""Doc.\n\nReturns the sum of all.\n"""'),
        ("I cannot do that.", "I cannot do that."),
        ("", ""),
    ],
)
def test_code_is_taken_out_of_an_answer(answer: str, code: str) -> None:
    assert extract_code(answer, "python") == code


def test_the_fence_of_the_language_asked_for_wins() -> None:
    answer = "```c\nint f(void);\n```\n```c++\nauto f() -> int;\n```\n```js\nlet f;\n```"
    assert extract_code(answer, "cpp") == "auto f() -> int;"
    assert extract_code(answer, "javascript") == "let f;"
    assert extract_code(answer, "java") == "int f(void);"
