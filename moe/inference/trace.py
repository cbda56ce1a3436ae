"""Which expert wrote each token, and what the others would have written: the numbers, and a page that shows them.

An answer is read again, at once, with the router's decisions. Then, from its last token back to its first, each
expert alone predicts the token from the state that all earlier tokens left in the cache.
"""

# P prompt tokens, A answer tokens, n = P + A, L layers with a router, E experts, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor

from moe.cache import KVCache
from moe.errors import UserError
from moe.files import replace_file
from moe.inference.engine import cache_dtype
from moe.inference.expert_choice import expert_names
from moe.inference.routing_stats import dense_gates
from moe.model import Transformer
from moe.tokenizer import Tokenizer

CHOICES = 3  # likely tokens that are shown for each expert


@dataclass(frozen=True)
class Trace:
    """The routing of a text. A token's decision is the one at the position before it, where it was predicted.

    Attributes:
        tokens: [n] prompt and answer; the first ``prompt_tokens`` are the prompt.
        gates: [n - 1, L, E] of every token but the first.
        probabilities: [A] of the answer's tokens.
        forced: [A, E] their probabilities had this expert alone predicted them.
        likely: [A, E, C, 2] the tokens that the expert finds most likely, and their probabilities.
    """

    tokens: list[int]
    prompt_tokens: int
    gates: Tensor
    probabilities: Tensor
    forced: Tensor
    likely: Tensor


@torch.inference_mode()
def trace(
    model: Transformer, prompt: Sequence[int], answer: Sequence[int], expert_bias: Sequence[float] | None = None
) -> Trace:
    """Traces an answer that the model wrote to a prompt; ``expert_bias`` as in its request.

    Raises :class:`UserError` for a model without experts.
    """
    config, device = model.config, model.device
    if not config.is_moe:
        raise UserError("the model has no experts, so there is nothing to trace")
    tokens, read, written = [*prompt, *answer], len(prompt), len(answer)
    experts, choices = config.num_experts, min(CHOICES, config.vocab_size)
    ids = torch.tensor(tokens, device=device)
    bias = None if expert_bias is None else torch.tensor(expert_bias, device=device)[None]  # [1, E]
    cache = KVCache(config, experts, len(tokens) + 1, cache_dtype(model), device, slack=written)

    def say(count: int) -> Tensor | None:
        return None if bias is None else bias.expand(count, -1)

    first = model(ids[None, :read], cache=cache, documents=(read,), expert_bias=say(read), last_only=True)
    assert first.logits is not None
    gates, logits = [dense_gates(first.routing, experts)], [first.logits[0]]
    if written > 1:
        rest = model(ids[None, read:-1], cache=cache, expert_bias=say(written - 1))
        gates.append(dense_gates(rest.routing, experts))
        logits.append(rest.logits[0])
    found = torch.cat(gates)[: max(len(tokens) - 1, 0)]
    probabilities = torch.cat(logits)[:written].float().softmax(-1).gather(1, ids[read:, None])[:, 0]
    for row in range(1, experts):
        cache.set_row(row, cache.row(0))
    every = torch.arange(experts, device=device)
    forced = torch.zeros(written, experts)
    likely = torch.zeros(written, experts, choices, 2, dtype=torch.float64)
    for place in reversed(range(written)):  # what a pass leaves behind lies after all that is read later
        before = read + place - 1
        cache.lengths[:] = [before] * experts
        step = cache.step(experts, 1)
        output = model(ids[before].expand(experts, 1), cache=step, forced_experts=every)
        shares = output.logits[:, 0].float().softmax(-1)  # [E, V]
        forced[place] = shares[:, tokens[before + 1]].cpu()
        best = shares.topk(choices, -1)
        likely[place] = torch.stack((best.indices.double(), best.values.double()), -1).cpu()
    return Trace(tokens, read, found, probabilities.cpu(), forced, likely)


def trace_page(traced: Trace, tokenizer: Tokenizer, names: Sequence[str], layers: Sequence[int], title: str) -> str:
    """The page, self-contained HTML.

    Args:
        names: the experts'.
        layers: numbers of the layers that have a router.
    """
    read = traced.prompt_tokens
    texts = _texts(tokenizer, traced.tokens[:read]) + _texts(tokenizer, traced.tokens[read:])
    by_layer = traced.gates  # [n - 1, L, E]
    shares = by_layer.mean(1)  # [n - 1, E]
    written = shares[read - 1 :]
    data: list[dict[str, Any]] = []
    for place, text in enumerate(texts):
        token: dict[str, Any] = {"text": text, "id": traced.tokens[place]}
        if place:
            token["gates"] = [[round(gate, 4) for gate in layer] for layer in by_layer[place - 1].tolist()]
            token["share"] = [round(share, 4) for share in shares[place - 1].tolist()]
            token["entropy"] = round(entropy(shares[place - 1].tolist()), 3)
        answered = place - read
        if answered >= 0:
            token["probability"] = float(f"{traced.probabilities[answered]:.4g}")
            token["forced"] = [float(f"{value:.4g}") for value in traced.forced[answered].tolist()]
            token["likely"] = [
                [[_piece(tokenizer, traced.tokens[place - 1], int(i)), float(f"{p:.4g}")] for i, p in expert]
                for expert in traced.likely[answered].tolist()
            ]
        data.append(token)
    overall = written.mean(0).tolist() if len(written) else [0.0] * len(names)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("trace.html.jinja").render(
        title=title,
        names=list(names),
        hues=[round(25 + 137.5 * number) % 360 for number in range(len(names))],
        layers=list(layers),
        tokens=data,
        prompt_tokens=read,
        overall=overall,
        entropy=entropy(overall),
        token_entropy=sum(entropy(share) for share in written.tolist()) / max(1, len(written)),
    )


def write_trace(
    path: str | Path,
    model: Transformer,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    answer: Sequence[int],
    expert_bias: Sequence[float] | None,
    title: str,
) -> None:
    """Writes the page of an answer to a file."""
    config = model.config
    traced = trace(model, prompt, answer, expert_bias)
    page = trace_page(traced, tokenizer, expert_names(config), config.sparse_layers, title)
    replace_file(Path(path), page.encode("utf-8", "replace"))


def entropy(shares: Sequence[float]) -> float:
    """In bits."""
    return -sum(share * math.log2(share) for share in shares if share > 0)


def _texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """The text of each token; a character of several tokens is the last one's."""
    stream = tokenizer.stream(skip_special=False)
    texts = [stream.push(token) for token in tokens]
    return [*texts[:-1], texts[-1] + stream.flush()] if texts else []


def _piece(tokenizer: Tokenizer, before: int, token: int) -> str:
    """A token's text as it stands after another, where no leading space is dropped."""
    stream = tokenizer.stream(skip_special=False)
    stream.push(before)
    return stream.push(token) + stream.flush()
