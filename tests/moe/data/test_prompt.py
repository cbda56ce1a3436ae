"""Prompts: the same ids as mistral-common and transformers, and code taken out of answers."""

from __future__ import annotations

import pytest

from moe.data.prompt import (
    CHATML_SYSTEM,
    choose_template,
    encode_example,
    encode_prompt,
    instruction_for,
    stop_ids,
)
from moe.errors import UserError
from moe.tokenizer import Tokenizer, load_tokenizer, tokenizer_from_gguf
from moe.tokenizer.pipeline import byte_alphabet

INSTRUCTION = "Write a Python function.  Adds\ttwo\n  numbers; 12 é 🙂."
RESPONSE = "def add(a, b):\n    return a + b\n"


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_mistral_prompts_and_examples_have_the_ids_of_mistral_common(version: str, mistral_model) -> None:
    path = mistral_model(version)
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
