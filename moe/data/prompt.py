"""Prompts: how an instruction is put to a model, and which tokens end its answer.

A prompt consists of parts, each plain text or one control token. Every part is encoded on its own, so text never
becomes a control token, and the tokens of a response do not depend on the prompt before it. A model's own template
(``rendering.py``) is tokenized as a whole, as that model was trained.
"""

from __future__ import annotations

from collections.abc import Sequence

from moe.data import rendering
from moe.errors import UserError, did_you_mean
from moe.languages import get_language
from moe.tokenizer import Tokenizer

OWN = "own"  # the model's own chat template, which its tokenizer carries
TEMPLATES = ("mistral-instruct", "chatml", "plain")  # those written here
# What SmolLM2's own chat template puts first when a conversation has no system message.
CHATML_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
Messages = Sequence[tuple[str, str]]  # roles ("system", "user", "assistant") and texts
CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
MISTRAL_MARKS = ("[INST]", "[/INST]")
# Tokens that end a document in models that end a turn with <|im_end|>.
DOCUMENT_ENDS = ("<|endoftext|>", "<|end_of_text|>")


def prompt_parts(tokenizer: Tokenizer, template: str, messages: Messages) -> list[str | int]:
    """The parts of a conversation up to the next answer, in order: texts, and the ids of control tokens.

    ``mistral-instruct`` is ``<s>[INST] … [/INST]``, with the marks as control tokens where the tokenizer has them
    (Mistral v2, v3) and as text where not (v1); ``chatml`` is SmolLM2's, with its default system message; ``plain`` is
    the instruction and a newline. Answers in a conversation end with the template's end token. A system message is a
    turn of its own, in ``mistral-instruct`` text before the first instruction. A model's ``own`` template has no parts:
    it is rendered.

    Args:
        messages: roles and texts; "system" is the first, if any, and a user's message the last.

    Raises:
        UserError: the template is unknown or the tokenizer lacks its control tokens.
    """
    check_template(template)
    if template == "chatml":
        start, end = (_control_id(tokenizer, mark, template) for mark in CHATML_MARKS)
        if messages[0][0] != "system":
            messages = [("system", CHATML_SYSTEM), *messages]
        parts: list[str | int] = []
        for role, text in messages:
            said = ["assistant\n", text] if role == "assistant" else [f"{role}\n{text}"]
            parts += [start, *said, end, "\n"]
        return [*parts, start, "assistant\n"]
    end = end_id(tokenizer, template)
    if template == "plain":
        parts = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        for role, text in messages:
            parts += [text, end] if role == "assistant" else [f"{text}\n"]
        return parts
    if tokenizer.bos_id is None:
        raise UserError(f"the tokenizer has no begin token, which the prompt template {template!r} needs")
    if messages[0][0] == "system":
        (_, system), (role, text), *rest = messages
        messages = [(role, f"{system}\n\n{text}"), *rest]
    parts = [tokenizer.bos_id]
    for role, text in messages:
        if role == "assistant":
            parts += [text, end]
        elif has_mistral_marks(tokenizer):
            opening, closing = (_control_id(tokenizer, mark, template) for mark in MISTRAL_MARKS)
            parts += [opening, text, closing]
        else:
            parts += [f"[INST] {text} [/INST]"]
    return parts


def encode_prompt(tokenizer: Tokenizer, template: str, instruction: str) -> list[int]:
    """Encodes an instruction as the prompt of a template, up to where the response begins.

    Raises:
        UserError: as for :func:`prompt_parts`.
    """
    return encode_messages(tokenizer, template, [("user", instruction)])


def encode_messages(tokenizer: Tokenizer, template: str, messages: Messages) -> list[int]:
    """Encodes a conversation, up to where the next response begins; see :func:`prompt_parts`."""
    if check_template(template) == OWN:
        _require_chat(tokenizer)
        named = [{"role": role, "content": text} for role, text in messages]
        return rendering.encode_chat(tokenizer, named, add_generation_prompt=True)
    ids: list[int] = []
    for part in prompt_parts(tokenizer, template, messages):
        ids += [part] if isinstance(part, int) else tokenizer.encode(part)
    return ids


def encode_example(tokenizer: Tokenizer, template: str, instruction: str, response: str) -> tuple[list[int], int]:
    """Encodes a prompt and its response, closed by the template's end token.

    Returns the ids and the index where the response starts: ``ids[:start]`` is the prompt, ``ids[start:]`` is to be
    learned, its end token included. Nothing is truncated.
    """
    prompt = encode_prompt(tokenizer, template, instruction)
    if template == OWN:
        written = rendering.encode_response(tokenizer, prompt, instruction, response)
        return [*prompt, *written, end_id(tokenizer, template)], len(prompt)
    return [*prompt, *tokenizer.encode(response), end_id(tokenizer, template)], len(prompt)


# Fill-in-the-middle tokens of StarCoder and SmolLM, of Qwen and Codestral; the last writes the suffix first.
FILL_TOKENS = (
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("[SUFFIX]", "[PREFIX]", None),
)


def encode_fill(tokenizer: Tokenizer, prefix: str, suffix: str) -> list[int]:
    """Encodes the text around a gap, as models that were trained to fill gaps read it (Bavarian et al., 2022).

    Raises :class:`UserError` when the tokenizer has no tokens for it.
    """
    for first, second, last in FILL_TOKENS:
        marks = [tokenizer.special_id(name) for name in (first, second, last) if name is not None]
        if None in marks:
            continue
        one, two = (suffix, prefix) if last is None else (prefix, suffix)
        begin = [tokenizer.bos_id] if tokenizer.add_bos else []
        parts = zip(marks, (tokenizer.encode(one), tokenizer.encode(two), []))
        ids = [*begin, *(token for mark, text in parts for token in (mark, *text))]
        return [token for token in ids if token is not None]
    raise UserError(
        f"the tokenizer has no tokens to fill a gap with, such as {FILL_TOKENS[0][0]}; leave the suffix out"
    )


def stop_ids(tokenizer: Tokenizer, template: str) -> frozenset[int]:
    """The ids that end an answer: the template's end token, the tokenizer's, the model's, and those of documents."""
    documents = {end for name in DOCUMENT_ENDS if (end := tokenizer.special_id(name)) is not None}
    return frozenset({end_id(tokenizer, template), tokenizer.eos_id}) | documents | tokenizer.end_ids


def instruction_for(text: str, language: str | None, ask: str = "train") -> str:
    """Words a description as an instruction.

    Args:
        text: what the code should do
        language: a key of :data:`moe.languages.LANGUAGES`; None mentions no language: the text is the instruction
        ask: ``train`` for a model that is trained on the result (it learns to answer with code alone), ``code-only``
            for an untrained chat model, which has to be asked for it
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
    """The template that a tokenizer's control tokens suggest: ``chatml``, ``mistral-instruct``, else ``plain``.

    The tokenizer of Mistral v1 (``<s>`` and ``</s>`` only) suggests ``mistral-instruct``.
    """
    if all(tokenizer.special_id(mark) is not None for mark in CHATML_MARKS):
        return "chatml"
    if has_mistral_marks(tokenizer) or {"<s>", "</s>"} <= tokenizer.special_tokens.keys():
        return "mistral-instruct"
    return "plain"


def check_template(template: object) -> str:
    """Returns the template's name; raises :class:`UserError` when there is none of that name."""
    names = (*TEMPLATES, OWN)
    if not isinstance(template, str) or template not in names:
        hint = did_you_mean(str(template), names)
        raise UserError(f"unknown prompt template {template!r}{hint}; templates: {', '.join(names)}")
    return template


def has_mistral_marks(tokenizer: Tokenizer) -> bool:
    """Whether ``[INST]`` and ``[/INST]`` are control tokens."""
    return all(tokenizer.special_id(mark) is not None for mark in MISTRAL_MARKS)


def end_id(tokenizer: Tokenizer, template: str) -> int:
    """The token that closes an answer in training."""
    if check_template(template) == OWN:
        _require_chat(tokenizer)
        return rendering.end_id(tokenizer)
    return _control_id(tokenizer, CHATML_MARKS[1], template) if template == "chatml" else tokenizer.eos_id


def _require_chat(tokenizer: Tokenizer) -> None:
    if tokenizer.chat is None:
        raise UserError(
            f"the model has no chat template of its own; choose another prompt template: {', '.join(TEMPLATES)}"
        )


def _control_id(tokenizer: Tokenizer, name: str, template: str) -> int:
    index = tokenizer.special_id(name)
    if index is None:
        raise UserError(
            f"the tokenizer has no control token {name}, which the prompt template {template!r} needs; "
            f"choose another template: {', '.join(other for other in TEMPLATES if other != template)}"
        )
    return index
