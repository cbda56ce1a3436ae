"""Steps of generation as CUDA graphs: a GPU replays a thousand recorded launches without waiting for Python.

A graph runs the same operations on the same memory each time, so everything a step depends on is in tensors: tokens and
positions of the rows, from which masks and places in the cache follow. Rows and keys are rounded up to powers of two,
and a graph is recorded for each pair of them when it is first needed.
"""

# B rows, R rows of a graph, L keys, V vocabulary, E experts

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe.cache import KVCache, Step, Track
from moe.gpu_decoder import GPUDecoder
from moe.model import ModelOutput, Transformer
from moe.router import Routing

FEWEST_KEYS = 128  # a graph attends to at least so many, where the cache has them


class GraphDecoder:
    """Runs the steps of a model on a GPU whose weights stay where they are, one token a row.

    The first step of each size runs as the model would run it, and is then recorded. A size whose recording fails is
    reported once, and all steps run without graphs from then on; where a fused step fails, the model's own layers are
    recorded. Graphs of a cache that grew are dropped.
    """

    def __init__(self, model: Transformer):
        self.model = model
        self._step = GPUDecoder(model) if GPUDecoder.fits(model) else model
        self._recorder: Any = None
        self._graphs: dict[tuple[int, int, bool], _Graph] = {}
        self._memory: Any = None  # addresses and shapes that the graphs know
        self._failed = False

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Whether the model is on a GPU, whole, and its rotary angles do not depend on how long a text became."""
        scaling = model.config.rope_scaling
        if hasattr(model, "reshard"):  # FSDP: weights move between the steps
            return False
        return model.device.type == "cuda" and not (scaling is not None and scaling.kind == "dynamic")

    @torch.inference_mode()
    def __call__(
        self, tokens: Tensor, step: Step, expert_bias: Tensor | None = None, routing: bool = True
    ) -> ModelOutput:
        """What ``model(tokens, cache=step, expert_bias=expert_bias)`` gives; tokens [B, 1] on the CPU.

        The output is the caller's to keep. Without ``routing`` it has none, which saves some calls.
        """
        cache, rows = step.cache, step.rows
        if self._failed:
            device = self.model.device
            return self.model(tokens.to(device, non_blocking=True), cache=step, expert_bias=expert_bias)
        memory = [(part.data_ptr(), part.shape) for part in (*_buffers(cache), cache.router_states)]
        if self._recorder is None or memory != self._memory:
            self._graphs.clear()
            self._recorder, self._memory = Recorder(self.model.device), memory  # with a pool of memory of its own
        padded = min(power_of_two(rows), cache.batch)
        keys = min(max(FEWEST_KEYS, power_of_two(step.end)), cache.max_len)
        key = (padded, keys, expert_bias is not None)
        graph = self._graphs.get(key)
        if graph is None:
            inputs = _Inputs(padded, self.model, expert_bias)
            inputs.fill(tokens, cache.lengths, expert_bias)

            def run() -> list[Tensor]:
                return _run(self._step, cache, inputs, keys)

            states = cache.router_states.clone()
            try:
                found = self._recorder.run(run)
            except Exception as error:
                if self._step is self.model:
                    raise
                self._step = self.model  # whose kernels prompts have compiled
                self._graphs.clear()  # they read what the fused step owns
                cache.router_states.copy_(states)
                reason = str(error).split("\n")[0]
                warnings.warn(f"decoding takes the model's own layers: a fused step failed ({reason})", stacklevel=2)
                return self(tokens, step, expert_bias, routing)
            try:
                replay, outputs = self._recorder.record(run)
            except Exception as error:
                self._failed = True
                self._graphs.clear()
                reason = str(error).split("\n")[0]
                warnings.warn(f"decoding goes on without CUDA graphs: recording one failed ({reason})", stacklevel=2)
            else:
                self._graphs[key] = _Graph(inputs, replay, outputs, self.model.rope_table)
        else:
            graph.inputs.fill(tokens, cache.lengths, expert_bias)
            graph.replay()
            found = graph.outputs
        hidden, logits = (part[:rows].clone() for part in found[:2])
        layers = [part[:, :rows].clone().unbind() for part in found[2:]] if routing else []
        return ModelOutput(hidden, logits, [Routing(*parts) for parts in zip(*layers)])


class _Inputs:
    """What a graph reads anew each time: tokens and positions [R], and what is added to the router's logits [R, E]."""

    def __init__(self, rows: int, model: Transformer, bias: Tensor | None):
        self.numbers = torch.zeros(2, rows, dtype=torch.int64, device=model.device)
        self.bias = None if bias is None else bias.new_zeros(rows, bias.shape[1])

    def fill(self, tokens: Tensor, lengths: list[int], bias: Tensor | None) -> None:
        """One copy for all numbers; rows that are not in use read token 0 at position 0."""
        numbers = torch.zeros(self.numbers.shape, dtype=torch.int64)
        numbers[0, : len(tokens)] = tokens[:, 0]
        numbers[1, : len(tokens)] = torch.tensor(lengths)
        self.numbers.copy_(numbers, non_blocking=True)
        if self.bias is not None and bias is not None:
            self.bias[: len(tokens)] = bias


class _Graph(NamedTuple):
    """A recorded step; it keeps alive what it reads and nothing else owns."""

    inputs: _Inputs
    replay: Callable[[], Any]
    outputs: list[Tensor]
    rope_table: Any


class GraphStep(Step):
    """The next token of each row, where no number of the host's depends on the positions [R].

    Args:
        keys: no row is longer than this, with its new token.
    """

    def __init__(self, cache: KVCache, positions: Tensor, keys: int):
        self.cache, self.count = cache, 1
        self.rows, self.end, self.longest = len(positions), keys, keys
        self.positions = positions[:, None]

    def _mask(self, track: Track) -> Tensor:
        """[R, 1, 1, L] added to scores: 0 or -inf, as attention would make it anew in each layer of a bool."""
        capacity = track.capacity
        slots = torch.arange(min(self.end, capacity), device=self.positions.device)
        ages = (self.positions - slots) % capacity  # [R, L], of what each slot holds
        hidden = ages > self.positions  # never written
        if track.window is not None:
            hidden |= ages >= track.window
        mask = torch.zeros(hidden.shape, dtype=track.buffer.dtype, device=hidden.device)
        return mask.masked_fill(hidden, float("-inf"))[:, None, None]

    def remember(self, router: int, states: Tensor) -> None:
        self.cache.router_states[router, : self.rows] = states[:, -1]


def _run(model: Transformer | GPUDecoder, cache: KVCache, inputs: _Inputs, keys: int) -> list[Tensor]:
    """Hidden states [R, 1, D], logits [R, 1, V], and of all layers router logits [layers, R, E], gates and ids."""
    tokens, positions = inputs.numbers
    step = GraphStep(cache, positions, keys)
    output = model(tokens[:, None], cache=step, expert_bias=inputs.bias)
    assert output.logits is not None
    layers = [(r.router_logits, r.gates, r.expert_ids) for r in output.routing]
    return [output.hidden, output.logits, *(torch.stack(parts) for parts in zip(*layers))]


def _buffers(cache: KVCache) -> list[Tensor]:
    return [track.buffer for track in cache.tracks.values()]


def power_of_two(number: int) -> int:
    """The smallest one that is not below ``number``."""
    return 1 << (number - 1).bit_length()


class Recorder:
    """Records functions as CUDA graphs that share a pool of memory."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], Any]) -> Any:
        """Runs a function on the stream that records, which compiles kernels and makes the libraries' workspaces."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        try:
            with torch.cuda.stream(self.stream):
                return function()
        finally:  # also of a function that fails halfway: what it has launched runs before what follows
            current.wait_stream(self.stream)

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], Any], Any]:
        """What runs a function again, and its result, which each run overwrites; nothing runs yet.

        Raises what the function raises, and RuntimeError for an operation that a graph cannot hold.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            # The outer context restores the stream where the inner one cannot. Other threads may use the GPU meanwhile.
            with (
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
            ):
                found = function()
        except Exception:
            torch.cuda.synchronize(self.device)
            raise
        return graph.replay, found
