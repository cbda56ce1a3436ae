"""Memory that a run needs, computed from the config alone before it starts.

A training step is run on fake tensors, which have shapes and no memory, and its storages are counted: what the
backward pass keeps, the logits of a chunk, and what exists only for a moment. The allocator's fragmentation, a GPU's
context (0.5 to 1 GiB) and buffers inside a kernel come on top.
"""

# T tokens in a batch, D model dim

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe.config import ModelConfig
from moe.losses import token_losses
from moe.model import Transformer
from moe.training.stages import is_expert, is_router

GIB = 2**30
MEASURED_TOKENS = (2048, 4096)
DOCUMENT = 512  # tokens of each example of the batch that is counted


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose, and parameter counts.

    ``activations`` are what is live beside weights, gradients and optimizer state when most is: what the backward pass
    needs, logits and workspace.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.weights + self.gradients + self.optimizer + self.activations

    def describe(self) -> str:
        """One line for the terminal."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return (
            f"{self.parameters / 1e6:,.1f} M parameters, {self.trainable / 1e6:,.1f} M of them trained; "
            f"{self.total / GIB:.2f} GiB: {listed}"
        )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make and that are still held; ``peak`` is the most at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def hold(self, tensors: Any) -> None:
        """Takes tensors that were there before as counted elsewhere."""
        for tensor in tensors:
            self._known.add(id(storage := tensor.untyped_storage()))
            weakref.finalize(storage, self._known.discard, id(storage))

    def _add(self, storage: Any) -> None:
        if id(storage) in self._known:
            return
        self._known.add(id(storage))
        self.now += storage.nbytes()
        weakref.finalize(storage, self._drop, id(storage), storage.nbytes())

    def _drop(self, identity: int, nbytes: int) -> None:
        self._known.discard(identity)
        self.now -= nbytes


def learns(config: ModelConfig, name: str) -> bool:
    """Whether the largest stage trains the parameter: experts and routers, or all of a dense model."""
    return is_expert(name) or is_router(name) if config.is_moe or config.is_delta else True


def training_step(model: Transformer, tokens: int, activation_checkpointing: bool) -> None:
    """Forward and backward pass over ``tokens`` tokens, all of them learned."""
    lengths = [DOCUMENT] * (tokens // DOCUMENT) + ([tokens % DOCUMENT] if tokens % DOCUMENT else [])
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    output = model(ids, documents=tuple(lengths), activation_checkpointing=activation_checkpointing, logits=False)
    token_losses(output.hidden[0], model.output_weight, ids[0]).sum().backward()


def count_step(model: Transformer, tokens: int, activation_checkpointing: bool) -> int:
    """Most bytes that are live at once in a :func:`training_step`, gradients included, weights not."""
    with LiveBytes() as live:
        live.hold(model.parameters())
        training_step(model, tokens, activation_checkpointing)
    return live.peak


def _fake_step(config: ModelConfig, tokens: int, dtype: torch.dtype, activation_checkpointing: bool) -> int:
    with FakeTensorMode():
        model = Transformer(config)
        for name, parameter in list(model.named_parameters()):
            own = is_expert(name) or is_router(name)
            values = torch.empty(parameter.shape, dtype=torch.float32 if own else dtype)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=learns(config, name)))
        return count_step(model, tokens, activation_checkpointing)


def _without_most_layers(config: ModelConfig) -> tuple[Callable[[int, int], ModelConfig], int, int]:
    """Makes the config of (sparse, dense) layers in learning order; and how many of each ``config`` has.

    Frozen layers below the first one with experts keep nothing, so they are left out.
    """
    sparse = len(config.sparse_layers) or config.n_layers
    first = config.sparse_layers[0] if config.sparse_layers else 0
    dense = config.n_layers - first - sparse

    def make(some: int, between: int) -> ModelConfig:
        layers = None if config.moe_layers is None else (0, *range(1 + between, some + between))
        return replace(config, n_layers=some + between, moe_layers=layers, sliding_layers=None)

    return make, sparse, dense


def plan_memory(config: ModelConfig, tokens: int, dtype: torch.dtype, activation_checkpointing: bool) -> MemoryPlan:
    """Memory of the mix stage (the largest) for batches of ``tokens`` tokens.

    Deltas and routers are float32 with two float32 Adam moments. A step of two or three layers is counted; further
    layers and tokens add the same bytes each.
    """
    with torch.device("meta"):
        model = Transformer(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(n for name, n in sizes.items() if learns(config, name) and not is_router(name))
    small = sum(n for name, n in sizes.items() if is_expert(name) or is_router(name)) if config.is_delta else 0
    total = sum(sizes.values())
    width = dtype.itemsize
    make, sparse, dense = _without_most_layers(config)

    def live(some: int, between: int) -> int:
        return _fake_step(make(some, between), tokens, dtype, activation_checkpointing)

    if sparse + dense <= 3:
        most = live(sparse, dense)
    else:
        two = live(2, 0)
        most = two + (sparse - 2) * (live(3, 0) - two) + (dense * (live(2, 1) - two) if dense else 0)
    gradients = trained * (4 if config.is_delta else max(4, width))
    return MemoryPlan(
        parameters=total,
        trainable=trained,
        weights=(total - small) * width + small * 4,
        gradients=gradients,
        optimizer=trained * 8,
        activations=max(0, most - gradients),
    )


def most_tokens(config: ModelConfig, dtype: torch.dtype, activation_checkpointing: bool, available: int) -> int:
    """The most tokens of a batch with which everything fits into ``available`` bytes, to 256; 0 if none does.

    Bytes grow evenly with tokens: two batches tell how.
    """
    few, more = (plan_memory(config, n, dtype, activation_checkpointing).total for n in MEASURED_TOKENS)
    each = (more - few) / (MEASURED_TOKENS[1] - MEASURED_TOKENS[0])
    fitting = MEASURED_TOKENS[1] + (available - more) / each
    return max(0, int(fitting) // 256 * 256)
