"""Continuous batching: requests enter and leave a running batch, each as if it were alone.

    engine = Engine(model, max_rows=32)
    engine.submit(Request(prompt_ids, 200, Sampling(0.8, seed=1), stop_ids, on_token=show))
    engine.run()                      # or: while engine.step(): ...

A step first reads the prompts of waiting requests, packed one after another into one pass; equal prompts are read once.
Then it adds a token to each row, or several where a draft of them was right. Finished rows leave at once.
"""

# B rows, S tokens of each in a step, N prompts, V vocabulary, E experts

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from moe.cache import KVCache, Row
from moe.decoder import Decoder, most_invariant_rows
from moe.graphs import GraphDecoder
from moe.inference.drafts import Lookup
from moe.inference.sampling import GREEDY, Sampling, choose, number_stream
from moe.model import ModelOutput, Transformer
from moe.router import Routing

# Prompts are read this many tokens at a time: more is no faster, and activations need memory for each.
TOKENS_PER_PASS = 8192
FIRST_CAPACITY = 256  # tokens that a row has room for at first


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        tokens: ids of the answer, without the stop token.
        finished: "stop" (a stop token, or the caller ended it) or "length" (no tokens were left).
        prompt_tokens: length of the prompt.
        drafted, accepted: tokens that were guessed, and how many of them the model would have written.
    """

    tokens: list[int]
    finished: str
    prompt_tokens: int
    drafted: int = 0
    accepted: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt and how to continue it.

    Attributes:
        prompt: token ids, not empty, and at least ``max_new_tokens`` fewer than the model's context.
        stop_ids: tokens that end the answer; they are not part of it.
        row_id: with ``sampling.seed`` it seeds the random numbers, whatever else is in the batch.
        expert_bias: one number an expert, added to the router's logits: -inf excludes it. None: the router alone.
        key: for the caller.
        on_token: called with each token of the answer; a true result ends it.
        on_finished: called with the answer.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    stop_ids: Collection[int] = ()
    row_id: int = 0
    expert_bias: tuple[float, ...] | None = None
    key: object = None
    on_token: Callable[[int], object] | None = None
    on_finished: Callable[[Generation], object] | None = None


# (requests in the batch, what the model gave at the position of each that its next token comes from)
OnOutput = Callable[[list[Request], ModelOutput], object]


@dataclass(eq=False)
class _Row:
    """A request in the batch; the last of ``text`` is the token that the model has not read yet."""

    request: Request
    text: list[int]
    numbers: np.random.Generator | None
    lookup: Lookup | None
    answer: list[int] = field(default_factory=list)
    finished: str | None = None
    drafted: int = 0
    accepted: int = 0

    def draft(self, count: int) -> list[int]:
        """Up to ``count`` tokens that may follow, none beyond the end of the answer."""
        left = self.request.max_new_tokens - len(self.answer) - 1
        return [] if self.lookup is None else self.lookup.guess(min(count, left))

    def take(self, token: int) -> None:
        """Adds the model's next token, and ends the row where it has to."""
        request = self.request
        if self.finished is None and token in request.stop_ids:
            self.finished = "stop"
        if self.finished is not None:
            return
        self.text.append(token)
        self.answer.append(token)
        if self.lookup is not None:
            self.lookup.push(token)
        if request.on_token is not None and request.on_token(token):
            self.finished = "stop"
        elif len(self.answer) == request.max_new_tokens:
            self.finished = "length"


class Engine:
    """Runs requests in a batch of up to ``max_rows`` rows.

    Args:
        draft: how many tokens to guess a step from what the text says already (prompt look-up decoding); 0: none.
            It changes no answer.
        on_output: called after each token with the requests that it was chosen for.
        cuda_graphs: whether a GPU replays the steps that add one token to each row as CUDA graphs.
        batch_invariant: whether a request gets the same logits whatever else runs (delta experts: but for last bits).
            A prompt has a pass of its own; rows are at most :func:`~moe.decoder.most_invariant_rows`, which raises.
    """

    def __init__(
        self,
        model: Transformer,
        max_rows: int,
        draft: int = 0,
        on_output: OnOutput | None = None,
        cuda_graphs: bool = True,
        batch_invariant: bool = False,
    ):
        self._alone = batch_invariant
        # In float32 a product of one row rounds differently from those of two and more: a row alone is computed twice.
        self._fewest = 1 + (batch_invariant and model.dtype == torch.float32 and not model.config.is_delta)
        self._twin: object = None  # the row, and the cache's size, whose keys the second row of the cache has, too
        max_rows = min(max_rows, most_invariant_rows(model, draft)) if batch_invariant else max_rows
        self.model, self.max_rows, self.draft, self.on_output = model, max_rows, draft, on_output
        self._decoder = Decoder(model) if Decoder.fits(model) else None
        self._graphs = GraphDecoder(model) if cuda_graphs and GraphDecoder.fits(model) else None
        self.waiting: deque[Request] = deque()
        self.rows: list[_Row] = []
        self._cancelled: set[Request] = set()
        self._cache: KVCache | None = None
        self._shared: tuple[object, Row, ModelOutput] | None = None

    def submit(self, *requests: Request) -> None:
        """Adds requests; they are started in this order. May be called from callbacks and from other threads."""
        self.waiting.extend(requests)

    def cancel(self, request: Request) -> None:
        """Ends a request at its next token ("stop"); one that is done stays as it is."""
        if request in self.waiting or any(row.request is request for row in self.rows):
            self._cancelled.add(request)

    def run(self) -> None:
        """Works until nothing is left."""
        while self.step():
            pass

    @torch.inference_mode()
    def step(self) -> bool:
        """Starts what fits and adds a token, or more, to each row; False when nothing is left."""
        self._admit()
        if self.rows:
            self._decode()
        return bool(self.rows or self.waiting)

    # ------------------------------------------------------------------------------------------------- prompts

    def _admit(self) -> None:
        """Reads the prompts of as many waiting requests as there is room for."""
        while self.waiting and len(self.rows) < self.max_rows:
            new = [self.waiting.popleft()]
            tokens = len(new[0].prompt)
            while self.waiting and len(self.rows) + len(new) < self.max_rows:
                tokens += 0 if _same(self.waiting[0], new[-1]) else len(self.waiting[0].prompt)
                if tokens > TOKENS_PER_PASS or self._alone:
                    break
                new.append(self.waiting.popleft())
            self._start([request for request in new if not self._ends_early(request)])

    def _ends_early(self, request: Request) -> bool:
        """Whether a request was canceled before it started; it ends without a token."""
        if request not in self._cancelled:
            return False
        self._cancelled.discard(request)
        if request.on_finished is not None:
            request.on_finished(Generation([], "stop", len(request.prompt)))
        return True

    def _start(self, requests: list[Request]) -> None:
        if not requests:
            return
        cache = self._room(len(self.rows) + len(requests), max(len(r.prompt) for r in requests))
        groups: list[list[Request]] = []
        for request in requests:  # those with the same prompt one after another
            if groups and _same(groups[-1][0], request):
                groups[-1].append(request)
            else:
                groups.append([request])
        output = self._read([group[0] for group in groups], cache)
        first = len(cache.lengths) - len(groups)
        ordered: list[Request] = [group[0] for group in groups]
        origin = list(range(len(groups)))
        for place, group in enumerate(groups):
            for request in group[1:]:
                cache.set_row(len(cache.lengths), cache.row(first + place))
                ordered.append(request)
                origin.append(place)
        rows = [self._new_row(request) for request in ordered]
        self.rows += rows
        self._choose(rows, _pick(output, origin))
        self._drop_finished()

    def _new_row(self, request: Request) -> _Row:
        sampling = request.sampling
        numbers = None if sampling.greedy else number_stream(sampling.seed, request.row_id)
        return _Row(request, list(request.prompt), numbers, Lookup(request.prompt) if self.draft else None)

    def _read(self, requests: list[Request], cache: KVCache) -> ModelOutput:
        """Reads prompts, each into a new row; the output has the last position of each. A prompt is read once."""
        outputs, new = [], requests
        if self._shared is not None and self._shared[0] == _prompt_key(requests[0]):
            _, kept, output = self._shared
            cache.set_row(len(cache.lengths), kept)
            outputs, new = [output], requests[1:]
        if new:
            lengths = tuple(len(request.prompt) for request in new)
            tokens = torch.tensor([[token for r in new for token in r.prompt]], device=self.model.device)
            bias = self._biases(new, lengths)
            found = self.model(tokens, cache=cache, documents=lengths, expert_bias=bias, last_only=True)
            last = torch.tensor(lengths, device=tokens.device).cumsum(0) - 1
            routing = [_pick_routing(r, last) for r in found.routing]
            outputs.append(ModelOutput(found.hidden.transpose(0, 1), found.logits.transpose(0, 1), routing))
        output = _joined(outputs)
        wanted = self.waiting[0] if self.waiting else None
        if wanted is None or not _same(wanted, requests[-1]):
            self._shared = None
        elif self._shared is None or self._shared[0] != _prompt_key(wanted):
            parts, states, length = cache.row(len(cache.lengths) - 1)
            kept = Row([part.clone() for part in parts], states.clone(), length)
            self._shared = (_prompt_key(wanted), kept, _pick(output, [len(requests) - 1]))
        return output

    def _biases(self, requests: Sequence[Request], counts: Sequence[int]) -> Tensor | None:
        """[T, E] what each request adds to the router's logits of its tokens; None when no request has a say."""
        if all(request.expert_bias is None for request in requests):
            return None
        nothing = (0.0,) * self.model.config.num_experts
        biases = torch.tensor([r.expert_bias or nothing for r in requests])  # [B, E]
        return biases.repeat_interleave(torch.tensor(counts), 0).to(self.model.device, non_blocking=True)

    def _room(self, rows: int, tokens: int) -> KVCache:
        """The cache, with room for this many rows of ``tokens`` tokens; both double when they have to grow."""
        batch, longest = 1, FIRST_CAPACITY
        while batch < rows:
            batch *= 2
        while longest < tokens:
            longest *= 2
        batch = max(min(batch, self.max_rows), self._fewest)
        options = (cache_dtype(self.model), self.model.device, self.draft, self._alone)
        self._cache = self._cache or KVCache(self.model.config, batch, longest, *options)
        self._cache.grow(batch, longest)
        return self._cache

    # -------------------------------------------------------------------------------------------------- tokens

    def _decode(self) -> None:
        """One pass over the newest token of each row and its draft; keeps what the model would have written."""
        assert self._cache is not None
        rows = self.rows
        drafts = [row.draft(self.draft) for row in rows]
        longest = max(map(len, drafts))
        inputs = [[row.text[-1], *draft] + [0] * (longest - len(draft)) for row, draft in zip(rows, drafts)]
        cache = self._room(len(rows), max(self._cache.lengths) + longest + 1)
        twin = (rows[0], cache.max_len) if (twice := len(rows) < self._fewest) else None
        if twice and twin == self._twin:
            cache.lengths *= 2
        elif twice:
            cache.set_row(1, cache.row(0))
        self._twin = twin
        tokens = torch.tensor(inputs * 2 if twice else inputs)  # [B, S]
        step = cache.step(*tokens.shape)
        bias = self._biases([row.request for row in rows] * (1 + twice), [longest + 1] * len(tokens))
        if self._graphs is not None and not longest:
            output = self._graphs(tokens, step, bias, routing=self.on_output is not None)
        elif self._decoder is not None and not longest:
            output = self._decoder(tokens, step, bias)
        else:
            tokens = tokens.to(self.model.device, non_blocking=True)
            output = self.model(tokens, cache=step, expert_bias=bias)
        if not longest:
            step.advance()
            del cache.lengths[len(rows) :]
            self._choose(rows, _pick(output, [0]) if twice else output)
        else:
            counts = [1] * len(rows)
            for row, draft in zip(rows, drafts):
                row.drafted += len(draft)
            alive = list(range(len(rows)))
            for place in range(longest + 1):
                picked = _pick(output, [b * (longest + 1) + place for b in alive])
                self._choose([rows[b] for b in alive], picked)
                alive = [
                    b
                    for b in alive
                    if rows[b].finished is None and place < len(drafts[b]) and rows[b].text[-1] == drafts[b][place]
                ]
                for b in alive:
                    counts[b] = place + 2
                    rows[b].accepted += 1
                if not alive:
                    break
            step.advance(counts)
        self._drop_finished()

    def _choose(self, rows: list[_Row], output: ModelOutput) -> None:
        """Chooses the next token of each row from an output of one position a row."""
        if self.on_output is not None:
            self.on_output([row.request for row in rows], output)
        assert output.logits is not None
        samplings = [row.request.sampling for row in rows]
        numbers = [0.0 if row.numbers is None else row.numbers.random() for row in rows]
        chosen = choose(output.logits[:, 0], samplings, numbers, [row.text for row in rows])
        for row, token in zip(rows, chosen):
            if row.request in self._cancelled:
                row.finished = "stop"
            row.take(token)

    def _drop_finished(self) -> None:
        ended = [place for place, row in enumerate(self.rows) if row.finished is not None]
        if not ended:
            return
        assert self._cache is not None
        finished = [self.rows[place] for place in ended]
        self.rows = [self.rows[place] for place in self._cache.drop_rows(ended)]
        for row in finished:
            request = row.request
            self._cancelled.discard(request)
            if request.on_finished is not None:
                reason = row.finished or "stop"
                request.on_finished(Generation(row.answer, reason, len(request.prompt), row.drafted, row.accepted))


def _prompt_key(request: Request) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    return tuple(request.prompt), request.expert_bias


def _same(one: Request, other: Request) -> bool:
    """Whether two requests give the model the same to read."""
    same = one.prompt is other.prompt or (
        len(one.prompt) == len(other.prompt) and list(one.prompt) == list(other.prompt)
    )
    return same and one.expert_bias == other.expert_bias


def _pick_routing(routing: Routing, places: Tensor) -> Routing:
    logits = None if routing.router_logits is None else routing.router_logits[places]
    return Routing(logits, routing.gates[places], routing.expert_ids[places])


def _pick(output: ModelOutput, places: list[int]) -> ModelOutput:
    """The given ones of all positions [B S] of an output, as rows of one position."""
    assert output.logits is not None
    hidden, logits = output.hidden.flatten(0, 1), output.logits.flatten(0, 1)
    if places == list(range(len(logits))):
        return replace(output, hidden=hidden[:, None], logits=logits[:, None])
    index = torch.tensor(places, device=hidden.device)
    routing = [_pick_routing(r, index) for r in output.routing]
    return ModelOutput(hidden[index][:, None], logits[index][:, None], routing)


def _joined(outputs: list[ModelOutput]) -> ModelOutput:
    """Outputs of one position a row, one after another."""
    if len(outputs) == 1:
        return outputs[0]
    routing = []
    for parts in zip(*(output.routing for output in outputs)):
        decided = [part.router_logits for part in parts if part.router_logits is not None]
        gates, ids = (torch.cat([getattr(part, name) for part in parts]) for name in ("gates", "expert_ids"))
        routing.append(Routing(torch.cat(decided) if decided else None, gates, ids))
    hidden, logits = (torch.cat([getattr(output, name) for output in outputs]) for name in ("hidden", "logits"))
    return ModelOutput(hidden, logits, routing)


def cache_dtype(model: Transformer) -> torch.dtype:
    """What keys and values are kept in: the model's dtype, but float32 for 16-bit models on a CPU.

    The fused attention of CPUs without native bfloat16 is 5 to 8 times slower for one bfloat16 query than in float32
    (torch 2.13: 5.1 ms against 0.6 ms at 32 rows of 150 keys), and converting the cache at every step costs more than
    reading twice the bytes.
    """
    return torch.float32 if model.device.type == "cpu" and model.dtype.itemsize == 2 else model.dtype
