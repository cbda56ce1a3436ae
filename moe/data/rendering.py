"""A model's own chat template: Jinja rendered as transformers renders it, and tokenized without forged control tokens.

Chat templates are code from a download, so they run in Jinja's immutable sandbox. Control tokens that stand in a
message's text are encoded as text: private characters around them survive the rendering and are taken out afterwards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

from moe.errors import UserError
from moe.tokenizer import OwnChat, Tokenizer

# ChatML without a system message, for models that have its tokens and no template.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
Messages = Sequence[Mapping[str, Any]]
_PROBE = "Probe 1, \u00fcber\n\ttwo"  # stands for an instruction and for an answer


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant writes; the text is the same without it."""

    tags = {"generation"}  # noqa: RUF012 (so declared by Jinja)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source)


def render(chat: OwnChat, messages: Messages, add_generation_prompt: bool = False) -> str:
    """The text of a conversation, as ``apply_chat_template(tokenize=False)`` gives it.

    Raises:
        UserError: the template is no Jinja, or refuses these messages.
    """
    try:
        values: dict[str, Any] = {"tools": None, "documents": None, **dict(chat.tokens)}
        plain = [dict(message) for message in messages]
        return _compiled(chat.source).render(messages=plain, add_generation_prompt=add_generation_prompt, **values)
    except Exception as error:  # a template can raise anything
        raise UserError(
            f"the chat template fails: {' '.join(str(error).split())[:200] or type(error).__name__}"
        ) from None


def encode_chat(tokenizer: Tokenizer, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
    """The ids of a conversation in the model's own template; no text of a message becomes a control token.

    Raises:
        UserError: as for :func:`render`, or for a token without a row in the embedding.
    """
    assert tokenizer.chat is not None
    texts = "".join(text for message in messages for text in message.values() if isinstance(text, str))
    before, after = [mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in texts][:2]
    forged = _any_of(tokenizer)
    marked = [
        {key: forged.sub(rf"{before}\g<0>{after}", text) if isinstance(text, str) else text for key, text in m.items()}
        for m in messages
    ]
    # The template can have cut off one of a token's two marks.
    either = f"{before}({forged.pattern}){after}?|({forged.pattern}){after}"
    split = re.split(either, render(tokenizer.chat, marked, add_generation_prompt))
    parts = [part for part in split if part is not None]
    ids: list[int] = []
    for place, part in enumerate(parts):
        part = part.replace(before, "").replace(after, "")  # the template can have cut a marked token in two
        if place % 2:
            ids += tokenizer.encode_continued(part) if ids else tokenizer.encode(part)
        elif part:
            ids += tokenizer.encode_chat(part, continued=place > 0)
    return ids


def _any_of(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Finds the name of any control token, the longest first."""
    names = sorted(tokenizer.special_tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


def prompt_of(instruction: str) -> list[dict[str, str]]:
    """The messages of a prompt: one turn of the user."""
    return [{"role": "user", "content": instruction}]


def encode_response(tokenizer: Tokenizer, prompt: Sequence[int], instruction: str, response: str) -> list[int]:
    """The ids of a response as they stand after its prompt in the tokens of the whole text, where that can be said."""
    assert tokenizer.chat is not None
    if not _any_of(tokenizer).search(f"{instruction}\n{response}"):
        text = render(tokenizer.chat, prompt_of(instruction), add_generation_prompt=True)
        whole = tokenizer.encode_chat(text + response)
        if whole[: len(prompt)] == list(prompt):
            return whole[len(prompt) :]
    return tokenizer.encode_continued(response)


def end_id(tokenizer: Tokenizer) -> int:
    """The token that ends the assistant's turn: the first control token after its text, else the tokenizer's end."""
    assert tokenizer.chat is not None
    try:
        text = render(tokenizer.chat, [*prompt_of(_PROBE), {"role": "assistant", "content": _PROBE}])
    except UserError:
        return tokenizer.eos_id
    _, found, rest = text.rpartition(_PROBE)
    match = _any_of(tokenizer).search(rest) if found else None
    return tokenizer.eos_id if match is None else tokenizer.special_tokens[match[0]]


def unusable(tokenizer: Tokenizer) -> str | None:
    """Why prompts cannot be put in the model's own template; None when they can."""
    if tokenizer.chat is None:
        return "it has none"
    try:
        text = render(tokenizer.chat, prompt_of(_PROBE), add_generation_prompt=True)
        encode_chat(tokenizer, prompt_of(_PROBE), add_generation_prompt=True)
    except UserError as error:
        return str(error)
    return None if _PROBE in text else "the chat template leaves out or changes the text of a message"
