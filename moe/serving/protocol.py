"""OpenAI's completions and chat completions: what a request asks for, and how answers are put."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe.data.prompt import encode_fill, instruction_for
from moe.errors import UserError, did_you_mean
from moe.inference.answers import Answer, Question, Writer
from moe.inference.generation import answer_limit
from moe.inference.sampling import Sampling
from moe.languages import get_language

MOST_STOPS = 16
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_text(value: Any) -> bool:
    return type(value) is str


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


Check = tuple[str, Callable[[Any], bool]]
INT: Check = ("a whole number", _is_int)
NUMBER: Check = ("a number", _is_number)
TEXT: Check = ("a text", _is_text)
BOOL: Check = ("true or false", lambda value: type(value) is bool)
# What a request may say for all of them; null is as if nothing was said.
FIELDS: dict[str, Check] = {
    "model": TEXT,
    "max_tokens": INT,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": INT,
    "min_p": NUMBER,
    "repetition_penalty": NUMBER,
    "seed": INT,
    "n": INT,
    "stop": ("a text or a list of texts", lambda value: _is_text(value) or _texts(value)),
    "stream": BOOL,
    "stream_options": ("an object", lambda value: isinstance(value, dict)),
    "language": TEXT,
    "routing": TEXT,
    "experts": (
        "a list of numbers or names",
        lambda value: isinstance(value, list) and all(_is_text(x) or _is_int(x) for x in value),
    ),
}
COMPLETION: dict[str, Check] = FIELDS | {
    "prompt": ("a text, a list of texts, or tokens", lambda value: _is_text(value) or isinstance(value, list)),
    "echo": BOOL,
    "suffix": TEXT,
}
CHAT: dict[str, Check] = FIELDS | {
    "messages": ("a list of messages", lambda value: isinstance(value, list)),
    "max_completion_tokens": INT,
}
# Sent by clients, and without a meaning here.
IGNORED = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "tool_choice")
    + ("parallel_tool_calls", "reasoning_effort", "verbosity", "modalities", "cache_prompt")
)
# What cannot be done, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "best_of": (1,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}


@dataclass(frozen=True)
class Job:
    """One HTTP request: prompts in tokens, each to be answered ``n`` times with the same settings.

    Attributes:
        echoes: of each prompt the text that goes before its answers.
    """

    writer: Writer
    prompts: list[list[int]]
    echoes: list[str]
    n: int
    language: str | None
    chat: bool
    stream: bool
    include_usage: bool

    @property
    def answers(self) -> int:
        return self.n * len(self.prompts)


def read_body(content: bytes) -> dict[str, Any]:
    """The JSON object of a request's body."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise UserError('the body is not JSON; expected an object such as {"prompt": "def add("}') from None
    if not isinstance(body, dict):
        raise UserError("the body is not a JSON object")
    return body


def read_job(body: Mapping[str, Any], chat: bool, defaults: Writer, most: int) -> Job:
    """What a body asks for; what it leaves out is as ``defaults`` says.

    Args:
        most: answers that one request may ask for.

    Raises:
        UserError: with the field, what it is, and what was expected.
    """
    said = _checked(body, CHAT if chat else COMPLETION)
    language = said.get("language")
    if language is not None:
        get_language(language)
    routing, experts = said.get("routing", defaults.routing), said.get("experts", defaults.experts)
    if language is not None and not chat and routing == "free" and not defaults.stop_at_function:
        raise UserError('language changes nothing in a completion that is routed freely; add "routing": "forced"')
    usual = defaults.sampling
    sampling = Sampling(
        temperature=float(said.get("temperature", usual.temperature)),
        top_k=said.get("top_k", usual.top_k),
        top_p=float(said.get("top_p", usual.top_p)),
        seed=said.get("seed", secrets.randbits(62)),
        min_p=float(said.get("min_p", usual.min_p)),
        repetition_penalty=float(said.get("repetition_penalty", usual.repetition_penalty)),
    )
    longest = said.get("max_completion_tokens", said.get("max_tokens", defaults.max_new_tokens))
    if longest < 1:
        raise UserError(f"max_tokens is {longest}, expected at least 1")
    stop = said.get("stop", defaults.stop)
    stop = [stop] if isinstance(stop, str) else stop
    if len(stop) > MOST_STOPS:
        raise UserError(f"stop has {len(stop)} texts, expected at most {MOST_STOPS}")
    options = said.get("stream_options", {})
    if unknown := options.keys() - {"include_usage", "include_obfuscation"}:
        raise UserError(f"unknown stream_options {min(unknown)!r}; known: include_usage")
    settings = (longest, sampling, stop, defaults.draft, defaults.truncate, defaults.stop_at_function, routing, experts)
    writer = Writer(defaults.model, defaults.tokenizer, defaults.template, *settings)
    writer.bias(language)  # refuses experts that there are not
    echoes = None
    if chat:
        prompts = [writer.encode(_conversation(said.get("messages"), language))]
    else:
        prompts, texts = _prompts(said.get("prompt"), said.get("suffix") or None, writer)
        echoes = texts if said.get("echo") else None
    n = said.get("n", 1)
    if not 1 <= n * len(prompts) <= most:
        raise UserError(f"n is {n} for {len(prompts)} prompts, expected 1 to {most} answers a request")
    include_usage = options.get("include_usage") is True
    return Job(
        writer, prompts, echoes or [""] * len(prompts), n, language, chat, said.get("stream", False), include_usage
    )


def _checked(body: Mapping[str, Any], fields: Mapping[str, Check]) -> dict[str, Any]:
    """What a body says, in known fields of the right types."""
    said = {}
    for name, value in body.items():
        if value is None or name in IGNORED:
            continue
        if name in NEUTRAL:
            if value not in NEUTRAL[name]:
                raise UserError(f"{name} is not supported; leave it out")
        elif name not in fields:
            raise UserError(f"unknown field {name[:80]!r}{did_you_mean(name, fields)}")
        elif not fields[name][1](value):
            raise UserError(f"{name} is {json.dumps(value)[:80]}, expected {fields[name][0]}")
        else:
            said[name] = value
    return said


def _prompts(prompt: Any, suffix: str | None, writer: Writer) -> tuple[list[list[int]], list[str]]:
    """The tokens and the text of each prompt of a completion, up to a gap where a suffix follows it."""
    if prompt is None:
        raise UserError("the field 'prompt' is missing; expected a text")
    tokenizer, vocabulary = writer.tokenizer, writer.model.config.vocab_size
    many = isinstance(prompt, list) and bool(prompt) and all(isinstance(x, str | list) for x in prompt)
    found, texts = [], []
    for place, one in enumerate(prompt if many else [prompt]):
        name = f"prompt {place + 1}" if many else "the prompt"
        if isinstance(one, str):
            ids = encode_fill(tokenizer, one, suffix) if suffix else tokenizer.encode(one, bos=tokenizer.add_bos)
            texts.append(one)
        elif all(_is_int(token) and 0 <= token < vocabulary for token in one):
            if suffix:
                raise UserError(f"{name} is in tokens; with a suffix it has to be a text")
            ids = list(one)
            texts.append(tokenizer.decode(ids))
        else:
            raise UserError(f"{name} is neither a text nor a list of tokens from 0 to {vocabulary - 1}")
        if writer.truncate:
            ids = ids[-max(1, writer.model.config.max_seq_len - writer.max_new_tokens) :]
        answer_limit(writer.model, len(ids), writer.max_new_tokens, name)
        found.append(ids)
    return found, texts


def _conversation(messages: Any, language: str | None) -> Question:
    """The last message of the user, with those before it."""
    if not messages:
        raise UserError("the field 'messages' is missing or empty; expected at least one message of the user")
    turns = []
    for place, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise UserError(f"message {place} has no known role; expected {', '.join(ROLES)}")
        role, content = ROLES[message["role"]], message.get("content")
        if isinstance(content, list) and all(isinstance(x, dict) and x.get("type") == "text" for x in content):
            content = "".join(part["text"] for part in content if isinstance(part.get("text"), str))
        if not isinstance(content, str):
            raise UserError(f"message {place} has no text; expected content that is a text or a list of text parts")
        if role == "system" and place > 1:
            raise UserError(f"message {place} is of the system; expected it first alone")
        turns.append((role, content))
    if turns[-1][0] != "user":
        raise UserError(f"the last message is of the {turns[-1][0]}; expected the user's")
    worded = [(role, instruction_for(text, language) if role == "user" else text) for role, text in turns[:-1]]
    return Question(turns[-1][1], language, history=tuple(worded))


# ------------------------------------------------------------------------------------------------------- answers


def error_body(message: str, kind: str) -> dict[str, Any]:
    """An error as OpenAI words it."""
    return {"error": {"message": " ".join(message.split()), "type": kind, "param": None, "code": None}}


def usage(prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> dict[str, int]:
    """How many tokens were read (each prompt once) and written."""
    read, written = sum(map(len, prompts)), sum(answer.tokens for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


@dataclass(frozen=True)
class Reply:
    """The frame that answers and pieces of answers go into."""

    job: Job
    id: str
    created: int
    model: str

    def whole(self, answers: Sequence[Answer], routing: Sequence[Any]) -> dict[str, Any]:
        """All answers at once."""
        choices = []
        for index, answer in enumerate(answers):
            text = self.job.echoes[index // self.job.n] + answer.text
            said = {"message": {"role": "assistant", "content": text}} if self.job.chat else {"text": text}
            choices.append(self._choice(index, said, answer.finished, routing[index]))
        return self._frame(choices, "chat.completion") | {"usage": usage(self.job.prompts, answers)}

    def opening(self) -> list[dict[str, Any]]:
        """What a stream begins with."""
        if self.job.chat:
            return [
                self._part(index, {"delta": {"role": "assistant", "content": ""}}) for index in range(self.job.answers)
            ]
        echoes = [(index, self.job.echoes[index // self.job.n]) for index in range(self.job.answers)]
        return [self._part(index, {"text": text}) for index, text in echoes if text]

    def piece(self, index: int, text: str) -> dict[str, Any]:
        """More text of an answer."""
        return self._part(index, {"delta": {"content": text}} if self.job.chat else {"text": text})

    def end(self, index: int, answer: Answer, routing: Any) -> dict[str, Any]:
        """The end of an answer."""
        return self._part(index, {"delta": {}} if self.job.chat else {"text": ""}, answer.finished, routing)

    def closing(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        """What a stream ends with."""
        if not self.job.include_usage:
            return []
        return [self._frame([], "chat.completion.chunk") | {"usage": usage(self.job.prompts, answers)}]

    def _part(
        self, index: int, said: dict[str, Any], finished: str | None = None, routing: Any = None
    ) -> dict[str, Any]:
        frame = self._frame([self._choice(index, said, finished, routing)], "chat.completion.chunk")
        return frame | ({"usage": None} if self.job.include_usage else {})

    def _choice(self, index: int, said: dict[str, Any], finished: str | None, routing: Any) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finished}
        return choice | ({} if routing is None else {"routing": routing})

    def _frame(self, choices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        kind = kind if self.job.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
