"""Memory that a run needs, computed from the config alone before it starts.

A training step is run on fake tensors, which have shapes and no memory, and its storages are counted: what the
backward pass keeps, the logits of a chunk, and what exists only for a moment, for a GPU also inside the expert layers.
The allocator's fragmentation and a GPU's context (0.5 to 1 GiB) come on top.
"""

# T tokens in a batch, D model dim

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kernels import custom_ops
from kernels.int4 import GROUP, Int4Weight, group_of
from kernels.packed import Int4Weights, PackedWeights
from moe.config import ModelConfig
from moe.layers import (
    Attention,
    AttentionPattern,
    FeedForward,
    RMSNorm,
    attend,
    attend_packed,
    fits_flash_attention,
)
from moe.losses import token_losses
from moe.model import Transformer, count_parameters
from moe.training.interrupt import DelayedInterrupt
from moe.training.optimizer import BLOCK
from moe.training.sharding import expert_ranks, part_numel
from moe.training.stages import is_delta, is_expert, is_router

GIB = 2**30
MEASURED_TOKENS = (2048, 4096)
CHECKED_TOKENS = 16384  # a step of more takes long to count
DOCUMENT = 512  # tokens of each example of the batch that is counted
LAYERS = {
    f"language_experts::{name}": getattr(custom_ops, name)._init_fn
    for name in ("experts", "experts_backward", "delta_experts", "delta_experts_backward")
}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose, and parameter counts.

    ``activations`` are what is live beside weights, gradients and optimizer state when most is: what the backward pass
    needs, logits and workspace. Of a sharded model all are one rank's, and ``gathered`` is what it gathers at once.
    """

    parameters: int
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All bytes together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered

    def describe(self) -> str:
        """One line for the terminal."""
        parts = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
        }
        if self.gathered:
            parts["gathered"] = self.gathered
        listed = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        return (
            f"{self.parameters / 1e6:,.1f} M parameters, {self.trainable / 1e6:,.1f} M of them trained; "
            f"{self.total / GIB:.2f} GiB{' on each card' if self.gathered else ''}: {listed}"
        )


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operators make and that are still held; ``peak`` is the most at once.

    With ``gpu`` what the Triton layers make while they run counts, too.
    """

    def __init__(self, gpu: bool = False) -> None:
        super().__init__()
        self.gpu = gpu and custom_ops.HAS_TRITON
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.gpu and (layer := LAYERS.get(func.name())) is not None:
            with custom_ops.without_running(), LiveBytes() as inside:
                layer(*args, **(kwargs or {}))
            self.peak = max(self.peak, self.now + inside.peak)
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


class _Normalize(torch.autograd.Function):
    """What a GPU's norm, one kernel, makes and keeps of x [..., D]: x itself, and float32 [..., 1]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty((*x.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.empty_like(gradients[0])


def as_on_gpu(model: nn.Module) -> None:
    """Has norms and attention of fake tensors on a CPU keep what they keep on a GPU."""

    def norm(module: RMSNorm, x: Tensor) -> Tensor:
        normalized = _Normalize.apply(x)
        return normalized if x.dtype.itemsize >= 4 else module.weight * normalized

    def attention(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
        if pattern.documents is None or not fits_flash_attention(q):
            return attend(q, k, v, pattern)
        bounds = torch.zeros(len(pattern.documents) + 1, dtype=torch.int32)
        return attend_packed(q, k, v, bounds, max(pattern.documents), pattern.window)

    for module in model.modules():
        if isinstance(module, RMSNorm):
            setattr(module, "forward", partial(norm, module))  # noqa: B010 - as below, methods to a type checker
        elif isinstance(module, Attention):
            setattr(module, "attention", attention)  # noqa: B010


def count_step(model: Transformer, tokens: int, activation_checkpointing: bool, gpu: bool = False) -> int:
    """Most bytes that are live at once in a :func:`training_step`, gradients included, weights not."""
    with DelayedInterrupt(lambda: None), LiveBytes(gpu) as live:  # handlers may not raise inside the dispatcher
        live.hold((*model.parameters(), *model.buffers()))
        training_step(model, tokens, activation_checkpointing)
    return live.peak


def pack_feed_forwards(model: nn.Module, gpu: bool = False) -> int:
    """Puts empty int4 weights in the place of dense feed-forwards', in the device's order; returns their bytes."""
    total = 0
    for module in [module for module in model.modules() if isinstance(module, FeedForward)]:
        for linear in (module.w1, module.w2, module.w3):
            rows, columns = linear.weight.shape
            if not (group := group_of(columns)) or (gpu and group != GROUP):
                continue
            if gpu:
                packed = linear.weight.new_empty((1, columns // GROUP, rows, GROUP // 2), dtype=torch.uint8)
                weight = Int4Weight(packed, linear.weight.new_empty((1, columns // GROUP, rows), dtype=torch.bfloat16))
                del linear.weight
                setattr(linear, "weight", Int4Weights(weight))  # noqa: B010 - no parameter any more
                total += weight.packed.nbytes + weight.scales.nbytes
                continue
            levels = linear.weight.new_empty((1, rows, columns // 2), dtype=torch.uint8)
            scales = linear.weight.new_empty((1, columns // group, rows, 2), dtype=torch.bfloat16)
            del linear.weight
            setattr(linear, "weight", PackedWeights(levels, scales))  # noqa: B010 - no parameter any more
            total += levels.nbytes + scales.nbytes
    return total


def _fake_step(
    config: ModelConfig, tokens: int, dtype: torch.dtype, activation_checkpointing: bool, int4: bool, gpu: bool
) -> int:
    with FakeTensorMode():
        model = Transformer(config)
        if int4:
            pack_feed_forwards(model, gpu)
        if gpu:
            as_on_gpu(model)
        for name, parameter in list(model.named_parameters()):
            own = is_router(name) or (config.is_delta and is_expert(name))  # as widen_trainable does
            values = torch.empty(parameter.shape, dtype=torch.float32 if own else dtype)
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(values, requires_grad=learns(config, name)))
        return count_step(model, tokens, activation_checkpointing, gpu)


def _live_bytes(config: ModelConfig, step: Callable[[ModelConfig], int]) -> int:
    """What ``step`` counts for a model of this config, from models of a few of its layers.

    Each further sparse layer adds the same, and so does each dense one between the sparse ones or above them. Frozen
    layers below the first one with experts keep nothing and are left out.
    """
    own = config.sparse_layers or tuple(range(config.n_layers))
    above = config.n_layers - 1 - own[-1]
    sparse, between = len(own), own[-1] + 1 - own[0] - len(own)

    def of(some: int, inside: int, top: int) -> int:
        places = (0, *range(1 + inside, some + inside))
        layers = None if config.moe_layers is None else places
        return step(replace(config, n_layers=some + inside + top, moe_layers=layers, sliding_layers=None))

    if sparse + between + above <= 3:
        return of(sparse, between, above)
    top = min(above, 1)
    least = of(2, 0, top)
    live = least + (sparse - 2) * (of(3, 0, top) - least)
    live += between * (of(2, 1, top) - least) if between else 0
    return live + ((above - top) * (of(2, 0, 2) - least) if above > top else 0)


def plan_memory(
    config: ModelConfig, tokens: int, dtype: torch.dtype, activation_checkpointing: bool, int4: bool = False,
    gpu: bool = False, ranks: int = 1, expert_parallel: bool = False, optimizer_bits: int = 32,
) -> MemoryPlan:  # fmt: skip
    """Memory of the mix stage (the largest) for batches of ``tokens`` tokens.

    Deltas and routers are float32 with two Adam moments: float32, or of 8 bits with a float32 scale per block. A step
    of two or three layers is counted; further layers and tokens add the same bytes each. With ``int4`` the frozen
    feed-forwards of the base are int4. With several ``ranks`` the model is sharded among them, or full experts dealt
    out (``expert_parallel``), and ``tokens`` are those of one rank, to whose experts as many come from the others.
    """
    with torch.device("meta"):
        model = Transformer(config)
    parameters = count_parameters(model)
    packed = pack_feed_forwards(model, gpu) if int4 else 0
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(n for name, n in sizes.items() if learns(config, name) and not is_router(name))
    small = sum(n for name, n in sizes.items() if is_expert(name) or is_router(name)) if config.is_delta else 0
    total = sum(sizes.values())
    width = dtype.itemsize
    live = _live_bytes(config, lambda part: _fake_step(part, tokens, dtype, activation_checkpointing, int4, gpu))
    gradients = trained * (4 if config.is_delta else max(4, width))
    if ranks > 1:
        owners = expert_ranks(config.num_experts, ranks) if expert_parallel else 1
        if owners > 1:
            rows = tokens * config.num_experts_per_tok * config.dim * width
            live += rows * (4 + 2 * (1 if activation_checkpointing else len(config.sparse_layers)))
        return _sharded_plan(model, config, width, ranks, owners, max(0, live - gradients))
    return MemoryPlan(
        parameters=parameters,
        trainable=trained,
        weights=(total - small) * width + small * 4 + packed,
        gradients=gradients,
        optimizer=trained * 8 if optimizer_bits == 32 else trained * 2 + trained * 8 // BLOCK,
        activations=max(0, live - gradients),
    )


def _sharded_plan(
    model: Transformer, config: ModelConfig, width: int, ranks: int, owners: int, activations: int
) -> MemoryPlan:
    """A rank's bytes: its part of the weights, deltas and routers whole, and what FSDP gathers.

    That is the root, two blocks and the buffer that a block arrives in; of full experts a block's gradients and the
    buffer that they leave in, too. Experts that are dealt out to ``owners`` are gathered by the ranks that share one.
    """
    weights = gradients = trained = root = 0
    blocks, learned = Counter[str](), Counter[str]()
    for name, parameter in model.named_parameters():
        replicated, dealt = is_delta(name) or is_router(name), owners > 1 and is_expert(name)
        shape = (len(parameter) // owners, *parameter.shape[1:]) if dealt else parameter.shape
        sharing = 1 if replicated else ranks // owners if dealt else ranks
        part = part_numel(shape, sharing)
        weights += part * (4 if replicated and config.is_delta else width)
        if learns(config, name) and not is_router(name):
            trained += parameter.numel()
            gradients += part * 4
        if sharing == 1:
            continue
        gathered = math.prod(shape) * width
        if not name.startswith("layers."):
            root += gathered
            continue
        block = name.split(".")[1]
        blocks[block] += gathered
        learned[block] += gathered if learns(config, name) else 0
    most = root + 3 * max(blocks.values()) + 2 * max(learned.values(), default=0)
    parameters = count_parameters(model)
    return MemoryPlan(parameters, trained, weights, gradients, 2 * gradients, activations, most)


def most_tokens(plan: Callable[[int], MemoryPlan], available: int) -> int:
    """About the most tokens of a batch whose ``plan`` fits into ``available`` bytes, to 256; 0 if none does.

    More than :data:`CHECKED_TOKENS` are an extrapolation.
    """
    few, more = MEASURED_TOKENS
    least = plan(few).total
    found = plan(more).total
    while True:  # each token adds about the same everywhere
        fitting = int(few + (available - least) * (more - few) / (found - least)) // 256 * 256
        if not 0 < fitting <= CHECKED_TOKENS or (found := plan(fitting).total) <= available:
            return max(0, fitting)
        more = fitting
