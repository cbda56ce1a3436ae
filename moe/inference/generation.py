"""Batched generation: one pass reads a batch of prompts, then every step adds a token to each row.

A finished row leaves the batch at once, so a step costs only as much as the answers that are still being written.
"""

# B rows in the batch, S longest prompt, V vocabulary

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from moe.cache import KVCache
from moe.errors import UserError
from moe.inference.sampling import GREEDY, Sampling, sample, uniforms
from moe.model import ModelOutput, Transformer

T = TypeVar("T")


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        tokens: ids of the answer, without the stop token.
        finished: "stop" (a stop token, or the caller ended it) or "length" (no tokens were left).
        prompt_tokens: length of the prompt.
    """

    tokens: list[int]
    finished: str
    prompt_tokens: int


# Prompts are read this many tokens at a time: more is no faster, and activations need memory for each.
TOKENS_PER_PASS = 8192

OnToken = Callable[[int, int], object]  # (row, token) -> true to end that row's answer
OnOutput = Callable[[list[int], ModelOutput], object]  # (rows in the batch, what the model gave for them)


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    pad_id: int = 0,
    row_ids: Sequence[int] | None = None,
    on_token: OnToken | None = None,
    on_finished: Callable[[int, Generation], object] | None = None,
    on_output: OnOutput | None = None,
) -> list[Generation]:
    """Answers all ``prompts`` in one batch.

    An answer ends at a token of ``stop_ids`` (not part of it), after ``max_new_tokens``, or where the model's context
    is full. Short prompts are padded on the left, which changes only the last bits of the logits.

    Args:
        prompts: token ids, none empty.
        row_ids: what each row's random numbers are drawn for (its place in ``prompts`` when not given).
        on_token: called with (row, token) for every token of an answer; a true result ends that answer.
        on_finished: called with (row, answer) as soon as an answer is done.
        on_output: called after every forward pass with the rows that were in it and the model's output (its logits of
            the last position alone).

    Raises:
        UserError: for an empty prompt, one that leaves no room in the context, or ``max_new_tokens`` below 1.
    """
    if not prompts:
        return []
    limits = [
        answer_limit(model, len(prompt), max_new_tokens, f"prompt {row + 1}") for row, prompt in enumerate(prompts)
    ]
    stop, longest, steps = frozenset(stop_ids), max(map(len, prompts)), max(limits)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts])
    padded = [[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    cache = KVCache(model.config, len(prompts), longest + steps - 1, cache_dtype(model), model.device, padding)
    numbers = None if sampling.greedy else uniforms(sampling.seed, row_ids or range(len(prompts)), steps)  # [B, steps]
    answers: list[list[int]] = [[] for _ in prompts]
    done: dict[int, Generation] = {}
    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    tokens = torch.tensor(padded, device=model.device)  # [B, S]
    for step in range(steps):
        logits = _forward(model, tokens, cache, rows, on_output)  # [B, V]
        chosen = sample(logits, sampling, None if numbers is None else numbers[rows, step])  # [B]
        ended: set[int] = set()  # places in the batch
        for place, (row, token) in enumerate(zip(rows, chosen.tolist())):
            stopped = token in stop
            if not stopped:
                answers[row].append(token)
                stopped = on_token is not None and bool(on_token(row, token))
            if stopped or len(answers[row]) == limits[row]:
                ended.add(place)
                done[row] = Generation(answers[row], "stop" if stopped else "length", len(prompts[row]))
                if on_finished is not None:
                    on_finished(row, done[row])
        if len(ended) == len(rows):
            break
        if ended:
            keep = fill_holes(len(rows), ended)
            cache.keep_rows(torch.tensor(keep, device=model.device))
            chosen, rows = chosen[keep], [rows[place] for place in keep]
        tokens = chosen[:, None]  # [B, 1]
    return [done[row] for row in range(len(prompts))]


def _forward(model: Transformer, tokens: Tensor, cache: KVCache, rows: list[int], on_output: OnOutput | None) -> Tensor:
    """Logits [B, V] of the last of tokens [B, S], computed for as many rows at a time as TOKENS_PER_PASS allows."""
    batch, length = tokens.shape
    rows_per_pass = max(1, TOKENS_PER_PASS // length)
    logits = []
    for start in range(0, batch, rows_per_pass):
        stop = min(start + rows_per_pass, batch)
        output = model(tokens[start:stop], cache=cache.rows(start, stop), last_only=True)
        logits.append(output.logits[:, 0])
        if on_output is not None:
            on_output(rows[start:stop], output)
    cache.advance(length)
    return torch.cat(logits)


def generate_many(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    batch_size: int,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    sampling: Sampling = GREEDY,
    pad_id: int = 0,
    on_token: OnToken | None = None,
    on_progress: Callable[[int, Generation], object] | None = None,
    on_output: OnOutput | None = None,
    known: Mapping[int, Generation] | None = None,
) -> list[Generation]:
    """Answers any number of prompts, ``batch_size`` at a time, longest first; the answers are in the prompts' order.

    Prompts of similar length share a batch, to keep padding low. A row's random numbers depend on the seed and on its
    place in ``prompts``, never on its batch. ``on_token``, ``on_progress`` (an answer is done) and ``on_output`` get a
    prompt's place. Batches whose answers are all ``known``, by place, are not written again; one that lacks an answer
    is, whole: in another batch the last bits of its logits could differ.

    Raises :class:`UserError` as :func:`generate` does, before any work.
    """
    if batch_size < 1:
        raise UserError(f"batch size is {batch_size}, expected at least 1")
    for place, prompt in enumerate(prompts):
        answer_limit(model, len(prompt), max_new_tokens, f"prompt {place + 1}")
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    answers: dict[int, Generation] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        if known and all(place in known for place in batch):
            answers |= {place: known[place] for place in batch}
            continue
        found = generate(
            model,
            [prompts[place] for place in batch],
            max_new_tokens=max_new_tokens,
            stop_ids=stop_ids,
            sampling=sampling,
            pad_id=pad_id,
            row_ids=batch,
            on_token=_with_places(on_token, batch),
            on_finished=_with_places(on_progress, batch),
            on_output=None if on_output is None else _outputs_with_places(on_output, batch),
        )
        answers |= zip(batch, found)
    return [answers[place] for place in range(len(prompts))]


def _with_places(callback: Callable[[int, T], object] | None, batch: list[int]) -> Callable[[int, T], object] | None:
    """The callback, called with a prompt's place in the place of its row in the batch."""
    return None if callback is None else lambda row, value: callback(batch[row], value)


def _outputs_with_places(on_output: OnOutput, batch: list[int]) -> OnOutput:
    return lambda rows, output: on_output([batch[row] for row in rows], output)


def cache_dtype(model: Transformer) -> torch.dtype:
    """What keys and values are kept in: the model's dtype, but float32 for 16-bit models on a CPU.

    The fused attention of CPUs is 5 to 8 times slower for one bfloat16 query than in float32 (torch 2.13: 5.1 ms
    against 0.6 ms at 32 rows of 150 keys), and converting the cache at every step costs more than reading twice the
    bytes.
    """
    return torch.float32 if model.device.type == "cpu" and model.dtype.itemsize == 2 else model.dtype


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


def fill_holes(count: int, ended: Collection[int]) -> list[int]:
    """Places to keep of ``count`` without ``ended``: rows from the end move into the holes, the others stay put."""
    tail = [place for place in range(count - len(ended), count) if place not in ended]
    return [tail.pop() if place in ended else place for place in range(count - len(ended))]
