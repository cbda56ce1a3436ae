"""Text generation: instructions in, code out, streamed while it is written, ended by stop strings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from moe.data.prompt import encode_fill, encode_messages, instruction_for, stop_ids
from moe.decoder import most_invariant_rows
from moe.errors import UserError
from moe.inference.engine import Engine, Generation, OnOutput, Request
from moe.inference.expert_choice import expert_bias
from moe.inference.function_end import FunctionEnd
from moe.inference.generation import answer_limit
from moe.inference.sampling import GREEDY, Sampling
from moe.model import Transformer
from moe.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A description of code and the language to write it in (None mentions none: the router decides).

    ``references`` and ``tests`` are not shown to the model; they go with the answer. With a ``suffix`` the text is code
    and the answer what belongs between the two. ``history`` holds roles ("user", "assistant", or first "system") and
    texts of earlier messages, as the model gets them.
    """

    text: str
    language: str | None = None
    id: str | None = None
    references: tuple[str, ...] = ()
    tests: str | None = None
    suffix: str | None = None
    history: tuple[tuple[str, str], ...] = ()

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
        drafted, accepted: tokens that were guessed, and how many of them were right.
    """

    text: str
    finished: str
    prompt_tokens: int
    tokens: int
    seconds: float
    drafted: int = 0
    accepted: int = 0


class TextStream:
    """The text of one answer, token by token, up to the first stop string.

    Text that may be the start of a stop string is held back until that is decided, so no part of a stop string is ever
    shown. The stop string that is complete first ends the answer, wherever token boundaries lie.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), end: FunctionEnd | None = None):
        self._end = end
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
            if self._end is not None and self._end.before(self.text + shown + self._held, character):
                shown, self._held, self.stopped = shown + self._held, "", True
                break
            self._held += character
            if self._end is not None and self._end.after(self.text + shown + self._held):
                shown, self._held, self.stopped = shown + self._held, "", True
                break
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

    Args:
        draft, batch_invariant: see :class:`~moe.inference.engine.Engine`.
        truncate: whether a prompt that does not fit loses its first tokens; otherwise it is an error.
        stop_at_function: whether an answer ends with its first function, for questions that name a language.
        routing, experts: see :func:`~moe.inference.expert_choice.expert_bias`.

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
        draft: int = 0,
        truncate: bool = False,
        stop_at_function: bool = False,
        routing: str = "free",
        experts: Sequence[int | str] | None = None,
        batch_invariant: bool = False,
    ):
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.sampling, self.stop = max_new_tokens, sampling, check_stop(stop)
        self.draft, self.truncate, self.stop_at_function = draft, truncate, stop_at_function
        self.routing, self.experts, self.batch_invariant = routing, experts, batch_invariant
        if batch_invariant:
            most_invariant_rows(model, draft)
        self.stop_ids = stop_ids(tokenizer, template)

    def encode(self, question: Question, name: str = "the prompt") -> list[int]:
        """The prompt's ids; raises :class:`UserError`, calling the prompt ``name``, when they leave no room."""
        ids = self._ids(question)
        most = max(2, self.model.config.max_seq_len - self._room)
        if self.truncate and len(ids) > most:  # the end of the prompt, behind the token that begins a text
            begin = ids[:1] if ids[0] == self.tokenizer.bos_id else []
            ids = begin + ids[len(ids) - most + len(begin) :]
        answer_limit(self.model, len(ids), self.max_new_tokens, name)
        return ids

    @property
    def _room(self) -> int:
        """Tokens that a prompt which loses its start leaves for the answer."""
        return min(self.max_new_tokens, self.model.config.max_seq_len // 4)

    def _ids(self, question: Question) -> list[int]:
        if question.suffix is not None:
            return encode_fill(self.tokenizer, question.text, question.suffix)
        instruction = instruction_for(question.text, question.language)
        return encode_messages(self.tokenizer, self.template, [*question.history, ("user", instruction)])

    def engine(self, max_rows: int, on_output: OnOutput | None = None) -> Engine:
        """An engine for :meth:`request`."""
        return Engine(self.model, max_rows, self.draft, on_output, batch_invariant=self.batch_invariant)

    def request(
        self,
        question: Question,
        on_answer: Callable[[Answer], object],
        show: Callable[[str], object] = lambda text: None,
        number: int = 0,
        name: str = "the prompt",
        key: object = None,
    ) -> Request:
        """A request whose text goes to ``show`` piece by piece, and the whole answer to ``on_answer``.

        ``number`` varies the random numbers.
        """
        return self.continuation(self.encode(question, name), question.language, on_answer, show, number, key)

    def continuation(
        self,
        prompt: Sequence[int],
        language: str | None,
        on_answer: Callable[[Answer], object],
        show: Callable[[str], object] = lambda text: None,
        number: int = 0,
        key: object = None,
    ) -> Request:
        """:meth:`request` for a prompt in tokens; ``language`` is for the router and the end of functions."""
        stream, started = self.stream(language), time.monotonic()

        def on_token(token: int) -> bool:
            show(stream.push(token))
            return stream.stopped

        def on_finished(found: Generation) -> None:
            show(stream.flush())
            finished = "stop" if stream.stopped else found.finished  # the last characters can complete a stop string
            seconds = time.monotonic() - started
            on_answer(
                Answer(
                    stream.text,
                    finished,
                    found.prompt_tokens,
                    len(found.tokens),
                    seconds,
                    found.drafted,
                    found.accepted,
                )
            )

        limit = answer_limit(self.model, len(prompt), self.max_new_tokens)
        return Request(
            prompt,
            limit,
            self.sampling,
            self.stop_ids,
            number,
            self.bias(language),
            key=key,
            on_token=on_token,
            on_finished=on_finished,
        )

    def stream(self, language: str | None) -> TextStream:
        """What turns the tokens of an answer into text."""
        end = FunctionEnd(language) if self.stop_at_function and language else None
        return TextStream(self.tokenizer, self.stop, end)

    def bias(self, language: str | None) -> tuple[float, ...] | None:
        """What requests in this language add to the router's logits."""
        return expert_bias(self.model.config, language, self.routing, self.experts)

    def fitting(self, question: Question) -> Question:
        """The question without the oldest turns of its history that leave too little room for an answer."""
        most = self.model.config.max_seq_len - self._room
        while question.history and len(self._ids(question)) > most:
            kept = [place for place, (role, _) in enumerate(question.history) if place and role == "user"]
            question = replace(question, history=question.history[kept[0] :] if kept else ())
        return question

    def answer(
        self,
        question: Question,
        show: Callable[[str], object] = lambda text: None,
        on_output: OnOutput | None = None,
        number: int = 0,
    ) -> Answer:
        """Writes one answer and passes its text to ``show`` piece by piece; ``number`` varies the random numbers."""
        return self.answer_many([question], 1, on_output=on_output, show=show, first=number)[0]

    def answer_many(
        self,
        questions: Sequence[Question],
        batch_size: int,
        on_answer: Callable[[int, Answer], object] = lambda place, answer: None,
        on_output: OnOutput | None = None,
        show: Callable[[str], object] = lambda text: None,
        first: int = 0,
    ) -> list[Answer]:
        """Writes all answers, up to ``batch_size`` at a time, and returns them in the order of the questions.

        ``on_answer`` gets each with its question's place, which is its request's key, as soon as it is done. Random
        numbers are those of ``first`` and the numbers after it.
        """
        engine, answers = self.engine(batch_size, on_output), dict[int, Answer]()

        def keep(place: int, answer: Answer) -> None:
            answers[place] = answer
            on_answer(place, answer)

        for place, question in enumerate(questions):
            name = question_name(place, question) if len(questions) > 1 else "the prompt"
            engine.submit(self.request(question, partial(keep, place), show, first + place, name, place))
        engine.run()
        return [answers[place] for place in range(len(questions))]


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings; raises :class:`UserError` when one is empty."""
    if any(not text for text in stop):
        raise UserError("a stop string is empty; expected text such as '# Test'")
    return tuple(stop)


def question_name(place: int, question: Question) -> str:
    """What messages call a question of a file."""
    return f"prompt {place + 1}" + (f" ({question.id})" if question.id else "")
