"""Lists of prompts in, lists of answers out: the engine for callers that know all their prompts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from moe.errors import UserError
from moe.inference.engine import Engine, Generation, OnOutput, Request
from moe.inference.sampling import GREEDY, Sampling
from moe.model import Transformer

OnToken = Callable[[int, int], object]  # (place in the prompts, token) -> true to end that answer


def generate_many(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    row_ids: Sequence[int] | None = None,
    draft: int = 0,
    on_token: OnToken | None = None,
    on_progress: Callable[[int, Generation], object] | None = None,
    on_output: OnOutput | None = None,
    cuda_graphs: bool = True,
) -> list[Generation]:
    """Answers any number of prompts, ``batch_size`` at a time (None: all at once), in their order.

    An answer ends at a token of ``stop_ids`` (not part of it), after ``max_new_tokens``, or where the model's context
    is full. It does not depend on the other prompts, but for the last bits of logits.

    Args:
        prompts: token ids, none empty.
        row_ids: what each row's random numbers are drawn for (its place in ``prompts`` when not given).
        draft, cuda_graphs: see :class:`Engine`.
        on_token: called with (place, token) for every token of an answer; a true result ends that answer.
        on_progress: called with (place, answer) as soon as an answer is done.
        on_output: called with the requests, whose ``key`` is the place, and the output of each next token's position.

    Raises:
        UserError: for an empty prompt, one that leaves no room in the context, or numbers below 1.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"batch size is {batch_size}, expected at least 1")
    limits = [
        answer_limit(model, len(prompt), max_new_tokens, f"prompt {place + 1}") for place, prompt in enumerate(prompts)
    ]
    engine = Engine(model, batch_size or len(prompts), draft, on_output, cuda_graphs)
    answers: dict[int, Generation] = {}

    def finished(place: int, answer: Generation) -> None:
        answers[place] = answer
        if on_progress is not None:
            on_progress(place, answer)

    stop, ids = frozenset(stop_ids), row_ids or range(len(prompts))
    for place, (prompt, limit) in enumerate(zip(prompts, limits)):
        show = None if on_token is None else partial(on_token, place)
        done = partial(finished, place)
        engine.submit(Request(prompt, limit, sampling, stop, ids[place], None, place, show, done))
    engine.run()
    return [answers[place] for place in range(len(prompts))]


def answer_limit(model: Transformer, prompt_tokens: int, max_new_tokens: int, name: str = "the prompt") -> int:
    """The most tokens an answer may have: ``max_new_tokens``, or what the context leaves.

    Raises :class:`UserError`, calling the prompt ``name``, when that is none.
    """
    context = model.config.max_seq_len
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if prompt_tokens == 0:
        raise UserError(f"{name} is empty")
    if prompt_tokens >= context:
        raise UserError(
            f"{name} has {prompt_tokens} tokens and leaves no room in the model's context of {context} tokens"
        )
    return min(max_new_tokens, context - prompt_tokens)
