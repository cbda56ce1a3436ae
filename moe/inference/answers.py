"""Text generation: instructions in, code out, streamed while it is written, ended by stop strings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moe.data.prompt import encode_prompt, instruction_for, stop_ids
from moe.errors import UserError
from moe.inference.generation import Generation, OnOutput, answer_limit, generate, generate_many
from moe.inference.sampling import GREEDY, Sampling
from moe.model import Transformer
from moe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A description of code and the language to write it in (None mentions none: the router decides).

    ``references`` and ``tests`` are not shown to the model; they go with the answer.
    """

    text: str
    language: str | None = None
    id: str | None = None
    references: tuple[str, ...] = ()
    tests: str | None = None

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise UserError("the prompt is empty; type what the code should do")
        for text in (self.text, self.id or ""):
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise UserError(f"a lone surrogate at character {error.start + 1}; expected Unicode text") from None


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        text: up to a stop string, without it.
        finished: "stop" (by the model or a stop string) or "length" (no tokens were left).
        tokens: how many the model wrote, with those of a stop string and without the end token.
        seconds: from the start of the call to this answer's end.
    """

    text: str
    finished: str
    prompt_tokens: int
    tokens: int
    seconds: float


class TextStream:
    """The text of one answer, token by token, up to the first stop string.

    Text that may be the start of a stop string is held back until that is decided, so no part of a stop string is ever
    shown. The stop string that is complete first ends the answer, wherever token boundaries lie.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self._decoder = tokenizer.stream()
        self._stop = tuple(sorted(stop, key=len, reverse=True))
        self._held = ""
        self.text = ""  # everything that push and flush returned
        self.stopped = False

    def push(self, token: int) -> str:
        """Takes the next token and returns the text that is certain now, often empty."""
        return "" if self.stopped else self._add(self._decoder.push(token))

    def flush(self) -> str:
        """Ends the answer and returns what was held back."""
        if self.stopped:
            return ""
        shown = self._add(self._decoder.flush())
        if not self.stopped:
            self.text += self._held
            shown, self._held = shown + self._held, ""
        return shown

    def _add(self, piece: str) -> str:
        shown = ""
        for character in piece:
            self._held += character
            ended = next((stop for stop in self._stop if self._held.endswith(stop)), None)
            if ended is not None:
                shown += self._held.removesuffix(ended)
                self._held, self.stopped = "", True
                break
            keep = self._open_prefix()
            shown += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
        self.text += shown
        return shown

    def _open_prefix(self) -> int:
        """Length of the longest end of the held text that a stop string starts with."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        ends = range(longest, 0, -1)
        return next((n for n in ends if any(stop.startswith(self._held[-n:]) for stop in self._stop)), 0)


class Writer:
    """Writes answers with a model, its tokenizer and the prompt template that it was trained with.

    Raises :class:`UserError` for an empty stop string and, when asked, for prompts that do not fit the context.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        template: str,
        max_new_tokens: int = 512,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.sampling, self.stop = max_new_tokens, sampling, check_stop(stop)
        self._settings: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "stop_ids": stop_ids(tokenizer, template),
            "sampling": sampling,
            "pad_id": tokenizer.pad_id,
        }

    def encode(self, question: Question, name: str = "the prompt") -> list[int]:
        """The prompt's ids; raises :class:`UserError`, calling the prompt ``name``, when they leave no room."""
        ids = encode_prompt(self.tokenizer, self.template, instruction_for(question.text, question.language))
        answer_limit(self.model, len(ids), self.max_new_tokens, name)
        return ids

    def answer(
        self,
        question: Question,
        show: Callable[[str], object] = lambda text: None,
        on_output: OnOutput | None = None,
        number: int = 0,
    ) -> Answer:
        """Writes one answer and passes its text to ``show`` piece by piece; ``number`` varies the random numbers."""
        stream = TextStream(self.tokenizer, self.stop)

        def on_token(row: int, token: int) -> bool:
            show(stream.push(token))
            return stream.stopped

        started = time.monotonic()
        prompt = self.encode(question)
        found = generate(
            self.model, [prompt], row_ids=[number], on_token=on_token, on_output=on_output, **self._settings
        )[0]
        show(stream.flush())
        seconds = time.monotonic() - started
        return Answer(stream.text, _finished(found, stream), len(prompt), len(found.tokens), seconds)

    def answer_many(
        self,
        questions: Sequence[Question],
        batch_size: int,
        on_answer: Callable[[int, Answer], object] = lambda place, answer: None,
        on_output: OnOutput | None = None,
    ) -> list[Answer]:
        """Writes all answers, ``batch_size`` at a time, and returns them in the order of the questions.

        ``on_answer`` gets each with its question's place as soon as it is done, short ones first.
        """
        prompts = [self.encode(question, _name(place, question)) for place, question in enumerate(questions)]
        streams = [TextStream(self.tokenizer, self.stop) for _ in questions]
        answers: dict[int, Answer] = {}
        started = time.monotonic()

        def on_token(place: int, token: int) -> bool:
            streams[place].push(token)
            return streams[place].stopped

        def on_finished(place: int, found: Generation) -> None:
            stream = streams[place]
            stream.flush()
            answers[place] = Answer(
                stream.text,
                _finished(found, stream),
                found.prompt_tokens,
                len(found.tokens),
                time.monotonic() - started,
            )
            on_answer(place, answers[place])

        generate_many(
            self.model,
            prompts,
            batch_size=batch_size,
            on_token=on_token,
            on_progress=on_finished,
            on_output=on_output,
            **self._settings,
        )
        return [answers[place] for place in range(len(questions))]


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings; raises :class:`UserError` when one is empty."""
    if any(not text for text in stop):
        raise UserError("a stop string is empty; expected text such as '# Test'")
    return tuple(stop)


def _finished(found: Generation, stream: TextStream) -> str:
    return "stop" if stream.stopped else found.finished  # the last characters of an answer can complete a stop string


def _name(place: int, question: Question) -> str:
    return f"prompt {place + 1}" + (f" ({question.id})" if question.id else "")
