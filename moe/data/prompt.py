"""Prompts: how an instruction is put to a model, and how code is taken out of its answer.

A template is a list of stretches, each plain text or one control token. Every stretch is encoded on its own, so text
never becomes a control token, and nothing of a response depends on the prompt before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from moe.errors import UserError, did_you_mean
from moe.languages import get_language
from moe.tokenizer import Tokenizer

TEMPLATES = ("mistral-instruct", "chatml", "plain")
TEMPLATE_FILE = "prompt_template.json"
CONFIG_FILE = "tokenizer_config.json"
# What SmolLM2's own chat template puts first when a conversation has no system message.
CHATML_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
MISTRAL_MARKS = ("[INST]", "[/INST]")
# Tokens that end a document in models that end a turn with <|im_end|>.
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")

_MESSAGES = "{% for message in messages %}"
_END = "{% endfor %}"
_SYSTEM_FIRST = (  # Mistral's models have no system turn: its text goes before the first instruction
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
)
_CHATML_JINJA = (
    _MESSAGES
    + "{% if loop.first and message['role'] != 'system' %}"
    + "{{ '<|im_start|>system\\n"
    + CHATML_SYSTEM
    + "<|im_end|>\\n' }}{% endif %}"
    + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    + _END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def encode_prompt(tokenizer: Tokenizer, template: str, instruction: str) -> list[int]:
    """Encodes an instruction as the prompt of a template, up to where the response begins.

    ``mistral-instruct`` is ``<s>[INST] … [/INST]``, with the marks as control tokens where the tokenizer has them
    (Mistral v2, v3) and as text where not (v1); ``chatml`` is SmolLM2's, with its default system message; ``plain`` is
    the instruction and a line end.

    Raises:
        UserError: the template is unknown or the tokenizer lacks its control tokens.
    """
    ids: list[int] = []
    for stretch in _stretches(tokenizer, template, instruction):
        ids += [stretch] if isinstance(stretch, int) else tokenizer.encode(stretch)
    return ids


def encode_example(tokenizer: Tokenizer, template: str, instruction: str, response: str) -> tuple[list[int], int]:
    """Encodes a prompt and its response, closed by the template's end token.

    Returns the ids and the index where the response starts: ``ids[:start]`` is the prompt, ``ids[start:]`` is to be
    learned, its end token included. Nothing is cut to a length.
    """
    prompt = encode_prompt(tokenizer, template, instruction)
    return [*prompt, *tokenizer.encode(response), _end_id(tokenizer, template)], len(prompt)


def stop_ids(tokenizer: Tokenizer, template: str) -> frozenset[int]:
    """The ids that end an answer: the template's end token, the tokenizer's, and those that end documents."""
    documents = (tokenizer.special_id(name) for name in DOCUMENT_ENDS)
    return frozenset({_end_id(tokenizer, template), tokenizer.eos_id, *(end for end in documents if end is not None)})


def instruction_for(text: str, language: str | None, ask: str = "train") -> str:
    """Words a description as an instruction.

    Args:
        text: what the code shall do
        language: a key of :data:`moe.languages.LANGUAGES`; None says nothing of a language: the text is the instruction
        ask: ``train`` for a model that is trained on the result (it learns to answer with code alone), ``code-only``
            for a chat model as it is, which has to be told
    """
    found = get_language(language) if language is not None else None
    instruction = text if found is None else f"Write a {found.name} function. {text}"
    if ask == "train":
        return instruction
    if ask == "code-only":
        fence = "" if found is None else f"```{found.fences[0]} "
        return (
            f"{instruction}\nAnswer with only the code of the function, in one {fence}code block, "
            "without an explanation, an example or tests."
        )
    raise UserError(f"unknown way to ask {ask!r}{did_you_mean(ask, ('train', 'code-only'))}; known: train, code-only")


def choose_template(tokenizer: Tokenizer) -> str:
    """The template that a tokenizer's control tokens point to: ``chatml``, ``mistral-instruct``, else ``plain``.

    The tokenizer of Mistral v1 (``<s>`` and ``</s>`` only) is taken for ``mistral-instruct``.
    """
    if all(tokenizer.special_id(mark) is not None for mark in CHATML_MARKS):
        return "chatml"
    if _has_mistral_marks(tokenizer) or {"<s>", "</s>"} <= tokenizer.special_tokens.keys():
        return "mistral-instruct"
    return "plain"


def check_template(template: str) -> str:
    """Returns the template's name; raises :class:`UserError` when there is none of that name."""
    if template not in TEMPLATES:
        hint = did_you_mean(str(template), TEMPLATES)
        raise UserError(f"unknown prompt template {template!r}{hint}; templates: {', '.join(TEMPLATES)}")
    return template


def save_template(directory: str | Path, template: str, tokenizer: Tokenizer | None = None) -> None:
    """Stores a template's name in a model directory.

    With the ``tokenizer`` whose files are there, ``tokenizer_config.json`` also gets the ``chat_template`` that makes
    transformers write the same prompt.
    """
    directory = Path(directory)
    files = {directory / TEMPLATE_FILE: {"template": check_template(template)}}
    if tokenizer is not None:
        config = directory / CONFIG_FILE
        files[config] = {**_read_json(config), "chat_template": template_for_chat(tokenizer, template)}
    for path, content in files.items():
        try:
            path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


def load_template(directory: str | Path) -> str:
    """Reads which template a model was trained with; raises :class:`UserError` when it is not stored or unknown."""
    path = Path(directory) / TEMPLATE_FILE
    template = _read_json(path).get("template")
    if template not in TEMPLATES:
        raise UserError(f"{path}: the template is {template!r}; expected one of {', '.join(TEMPLATES)}")
    return template


def template_for_chat(tokenizer: Tokenizer, template: str) -> str:
    """The Jinja ``chat_template`` with which transformers' ``apply_chat_template`` gives the ids of
    :func:`encode_prompt` for one user message, ``add_generation_prompt=True``."""
    check_template(template)
    if template == "chatml":
        return _CHATML_JINJA
    begin = "{{ bos_token }}" if template == "mistral-instruct" or tokenizer.add_bos else ""
    if template == "plain":
        answer = "{{ message['content'] + (eos_token if message['role'] == 'assistant' else '\\n') }}"
        return begin + _MESSAGES + answer + _END
    # As text the marks stand between spaces; as control tokens they are followed by a text's own space.
    space = "" if _has_mistral_marks(tokenizer) else " "
    return (
        f"{_SYSTEM_FIRST}{begin}{_MESSAGES}"
        "{% if message['role'] == 'user' %}"
        f"{{{{ '[INST]{space}' + (system if loop.first else '') + message['content'] + '{space}[/INST]' }}}}"
        f"{{% else %}}{{{{ '{space}' + message['content'] + eos_token }}}}{{% endif %}}{_END}"
    )


def extract_code(answer: str, language: str) -> str:
    """Takes the code out of a chat model's answer.

    The first fenced block that names the language, else the first that names none, else the first; a block that is
    never closed runs to the end. Without a fence, sentences before and after the code are dropped. Line ends around
    the code are left out.
    """
    fences = get_language(language).fences
    blocks = [(name, code) for name, code in _fenced_blocks(answer) if code.strip()]
    for wanted in (lambda name: name in fences, lambda name: not name, lambda name: True):
        for name, code in blocks:
            if wanted(name):
                return code
    return _without_prose(answer)


_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<lead>\S.*?)??(?P<fence>`{3,}|~{3,})[ \t]*(?P<name>[\w+#.-]*)[^`]*")
# An English sentence on a line of its own: a capital, two words, no sign that only code has, a full stop or colon.
_PROSE = re.compile(
    r"(?:[-*\d.]+\s+)?[A-Z][^\s{}=;]*(?:\s+[^\s{}=;]+)+[.:!?][*`)]*|(?:Explanation|Example|Note|Usage|Output)s?:"
)


def _fenced_blocks(answer: str) -> list[tuple[str, str]]:
    """The fenced blocks of Markdown text, as (the name after the fence in lower case, the code)."""
    blocks: list[tuple[str, str]] = []
    opened: re.Match[str] | None = None
    lines: list[str] = []
    for line in answer.split("\n"):
        if opened is None:
            opened, lines = _FENCE.fullmatch(line), []
        elif line.strip().startswith(opened["fence"]) and not line.strip().strip(opened["fence"][0]):
            blocks.append((opened["name"].lower(), _block(lines, opened)))
            opened = None
        else:
            lines.append(line)
    if opened is not None:
        blocks.append((opened["name"].lower(), _block(lines, opened)))
    return blocks


def _block(lines: Sequence[str], opened: re.Match[str]) -> str:
    indent = "" if opened["lead"] else opened["indent"]  # a fence in a list takes its code in with it
    return "\n".join(line.removeprefix(indent) for line in lines).strip("\r\n")


def _without_prose(answer: str) -> str:
    lines = answer.split("\n")
    code = [number for number, line in enumerate(lines) if line.strip() and not _PROSE.fullmatch(line.strip())]
    if not code:
        return answer.strip("\r\n")
    return "\n".join(lines[code[0] : code[-1] + 1]).rstrip("\r")


def _stretches(tokenizer: Tokenizer, template: str, instruction: str) -> list[str | int]:
    check_template(template)
    if template == "plain":
        begin = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        return [*begin, f"{instruction}\n"]
    if template == "chatml":
        start, end = (_control_id(tokenizer, mark, template) for mark in CHATML_MARKS)
        system, user = f"system\n{CHATML_SYSTEM}", f"user\n{instruction}"
        return [start, system, end, "\n", start, user, end, "\n", start, "assistant\n"]
    if tokenizer.bos_id is None:
        raise UserError(f"the tokenizer has no begin token, which the prompt template {template!r} needs")
    if _has_mistral_marks(tokenizer):
        opening, closing = (_control_id(tokenizer, mark, template) for mark in MISTRAL_MARKS)
        return [tokenizer.bos_id, opening, instruction, closing]
    return [tokenizer.bos_id, f"[INST] {instruction} [/INST]"]


def _end_id(tokenizer: Tokenizer, template: str) -> int:
    check_template(template)
    return _control_id(tokenizer, CHATML_MARKS[1], template) if template == "chatml" else tokenizer.eos_id


def _control_id(tokenizer: Tokenizer, name: str, template: str) -> int:
    index = tokenizer.special_id(name)
    if index is None:
        raise UserError(
            f"the tokenizer has no control token {name}, which the prompt template {template!r} needs; "
            f"choose another template: {', '.join(other for other in TEMPLATES if other != template)}"
        )
    return index


def _has_mistral_marks(tokenizer: Tokenizer) -> bool:
    return all(tokenizer.special_id(mark) is not None for mark in MISTRAL_MARKS)


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a JSON {type(content).__name__}; expected an object")
    return content
