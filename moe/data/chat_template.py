"""Jinja chat templates: how a prompt template travels with a model, and how it is recognized when read back.

A model directory stores the template's name (``prompt_template.json``) and, for other programs, a ``chat_template``.
GGUF files hold the chat template alone, so its first line names the prompt template in a Jinja comment.
"""

from __future__ import annotations

import re

from moe.data import rendering
from moe.data.prompt import (
    CHATML_MARKS,
    CHATML_SYSTEM,
    MISTRAL_MARKS,
    OWN,
    TEMPLATES,
    check_template,
    choose_template,
    has_mistral_marks,
)
from moe.errors import UserError
from moe.tokenizer import OwnChat, Tokenizer

TEMPLATE_FILE = "prompt_template.json"
_NAMED = re.compile(r"\{#-? language-experts prompt template: ([\w-]+) -?#\}")
# What only the chat templates of versions without that comment hold.
_OLD_FORMS = {
    "plain": "{{ message['content'] + (eos_token if message['role'] == 'assistant' else '\\n') }}",
    "mistral-instruct": "(system if loop.first else '') + message['content']",
}

_MESSAGES, _END = "{% for message in messages %}", "{% endfor %}"
_IF_ASSISTANT, _ELSE, _ENDIF = "{% if message['role'] == 'assistant' %}", "{% else %}", "{% endif %}"
_SYSTEM_FIRST = (  # Mistral's models have no system turn: its text goes before the first instruction
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
)
_DEFAULT_SYSTEM = (
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + CHATML_SYSTEM + "<|im_end|>\\n' }}{% endif %}"
)


def chat_template(tokenizer: Tokenizer, template: str) -> str:
    """The Jinja ``chat_template`` that makes transformers' ``apply_chat_template`` tokenize as training does.

    One user message with ``add_generation_prompt=True`` gives the ids of :func:`moe.data.prompt.encode_prompt`; a user
    and an assistant message give those of :func:`moe.data.prompt.encode_example`, and ``chatml`` SmolLM2's newline
    after them. ``{% generation %}`` marks the response and its end token, for losses on these alone.

    transformers tokenizes what stands between control tokens as one text, so a byte-level tokenizer can join the end
    of a prompt and the start of a response: white space on either side of the newline in ``plain`` and ``chatml``, and
    punctuation after ``[/INST]`` where that is no control token. SentencePiece never does.
    """
    if check_template(template) == OWN:
        if tokenizer.chat is None:
            raise UserError("the model has no chat template of its own to store; name another prompt template")
        return tokenizer.chat.source
    named = f"{{# language-experts prompt template: {template} #}}"
    # SentencePiece puts a space before each text, so before a response too; transformers only after a control token.
    after_text = template != "mistral-instruct" or not has_mistral_marks(tokenizer)
    content = "message['content']"
    if tokenizer.adds_prefix_space and after_text:
        content = f"(' ' + {content} if {content} else '')"
    if template == "chatml":
        answer = _generation(f"{content} + '<|im_end|>'")
        return (
            f"{named}{_MESSAGES}{_DEFAULT_SYSTEM}{{{{ '<|im_start|>' + message['role'] + '\\n' }}}}"
            f"{_IF_ASSISTANT}{answer}{_ELSE}{{{{ message['content'] + '<|im_end|>' }}}}{_ENDIF}{{{{ '\\n' }}}}{_END}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
        )
    answer = _generation(f"{content} + eos_token")
    if template == "plain":
        begin = "{{ bos_token }}" if tokenizer.add_bos else ""
        other = "{{ message['content'] + '\\n' }}"
        return f"{named}{begin}{_MESSAGES}{_IF_ASSISTANT}{answer}{_ELSE}{other}{_ENDIF}{_END}"
    space = "" if has_mistral_marks(tokenizer) else " "
    user = f"{{{{ '[INST]{space}' + (system if loop.first else '') + message['content'] + '{space}[/INST]' }}}}"
    return f"{named}{_SYSTEM_FIRST}{{{{ bos_token }}}}{_MESSAGES}{_IF_ASSISTANT}{answer}{_ELSE}{user}{_ENDIF}{_END}"


def named_template(chat: str) -> str | None:
    """The prompt template of a chat template that :func:`chat_template` wrote, or of SmolLM2's own; else None."""
    named = _NAMED.search(chat)
    if named and named[1] in TEMPLATES:
        return named[1]
    if CHATML_SYSTEM in chat and _writes_smollm2(chat):
        return "chatml"
    return next((name for name, form in _OLD_FORMS.items() if form in chat), None)


def _writes_smollm2(chat: str) -> bool:
    """Whether a template that names SmolLM writes SmolLM2's prompt: later models of that name add to it."""
    start, end = CHATML_MARKS
    expected = f"{start}system\n{CHATML_SYSTEM}{end}\n{start}user\nx{end}\n{start}assistant\n"
    try:
        return rendering.render(OwnChat(chat), rendering.prompt_of("x"), add_generation_prompt=True) == expected
    except UserError:
        return False


def guess_template(chat: str, tokenizer: Tokenizer | None) -> tuple[str, str]:
    """A prompt template for a model that names none, and in words what the guess rests on.

    Args:
        chat: the model's chat template, empty where it has none.
    """
    for name, mark in (("chatml", CHATML_MARKS[0]), ("mistral-instruct", MISTRAL_MARKS[0])):
        if mark in chat:
            return name, f"{mark} in its chat template"
    return "plain" if tokenizer is None else choose_template(tokenizer), "its control tokens"


def _generation(expression: str) -> str:
    return f"{{% generation %}}{{{{ {expression} }}}}{{% endgeneration %}}"
