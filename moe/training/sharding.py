"""Sharding with FSDP2: each rank holds 1/N of the frozen weights and of full experts, and gathers a block to use it.

Low-rank deltas and routers are small and float32: they stay whole on every rank, and data parallelism sums their
gradients. So do packed weights, which are buffers. With expert parallelism full experts are not gathered: tokens travel
to them (:mod:`moe.training.expert_parallel`). Where all ranks run the model they gather together; where rank 0 runs or
writes it alone (:func:`on_main`) it tells the others which block or parameter to gather with it.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils.weak import WeakIdKeyDictionary

from moe.experts import MoEFeedForward
from moe.model import Transformer
from moe.training import distributed
from moe.training.expert_parallel import ParallelExperts
from moe.training.stages import is_delta, is_router

T = TypeVar("T")
_DONE = -1
_gathered: list[weakref.ref[Any]] = []  # modules and parameters, in the same order on all ranks
_numbers = WeakIdKeyDictionary()
_leading = False
_last: tuple[int, Tensor] | None = None  # what rank 0 gathered last: experts are read from their stack one by one


def shard(model: Transformer, device: torch.device, expert_parallel: bool = False) -> Transformer:
    """Leaves this rank's part of each weight of a model, which may lie elsewhere, on ``device``; in place.

    All ranks call it with the same model. A block at a time is whole on the device. Views, such as equal experts, get
    memory of their own. With ``expert_parallel`` full experts are dealt out to :func:`expert_ranks`; where there are
    more ranks, as many share an expert by FSDP.
    """
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # which nobody changes in place
    mesh, dealt = init_device_mesh(device.type, (distributed.world(),)), []
    kept = {p for name, p in model.named_parameters() if is_delta(name) or is_router(name)}
    for parameter in kept:
        parameter.data = parameter.data.to(device)
    if expert_parallel and model.config.is_moe and not model.config.is_delta:
        owners = expert_ranks(model.config.num_experts, distributed.world())
        sizes = distributed.world() // owners, owners
        grid = init_device_mesh(device.type, sizes, mesh_dim_names=("fsdp", "experts"))
        for module in model.modules():
            if isinstance(module, MoEFeedForward) and module.experts is not None:
                module.experts = ParallelExperts(module.experts, grid["experts"], lambda: _leading)
                dealt.append(module.experts)
                if owners == distributed.world():
                    kept.update(module.experts.parameters())
                else:
                    _shard_module(module.experts, grid["fsdp"], kept)
    for module in (*model.layers, model):
        for parameter in module.parameters():
            if parameter not in kept and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device).contiguous()
        _shard_module(module, mesh, kept)
    for module in (*dealt, *model.layers, model):
        module.register_forward_pre_hook(_announce, prepend=True)
    with torch.no_grad():  # buffers made in inference mode would not take part in training
        model(torch.zeros(1, 1, dtype=torch.int64, device=device), logits=False)
    reshard(model)
    model.requires_grad_(False)
    for target in (*dealt, *model.layers, model, *model.parameters()):
        _numbers[target] = len(_gathered)
        _gathered.append(weakref.ref(target))
    return model


def _shard_module(module: nn.Module, mesh: DeviceMesh, kept: set[nn.Parameter]) -> None:
    for parameter in module.parameters():
        parameter.requires_grad_(True)  # FSDP takes the dtype of gradients from what learns in the first pass
    place = partial(_placement, ranks=mesh.size())
    fully_shard(module, mesh=mesh, shard_placement_fn=place, ignored_params=kept)
    assert isinstance(module, FSDPModule)
    module.set_gradient_divide_factor(1.0)  # a step's loss is a sum over ranks
    module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    module.set_custom_all_gather(_AllGather())
    module.set_custom_reduce_scatter(_ReduceScatter())


def expert_ranks(experts: int, ranks: int) -> int:
    """Over how many of the ranks full experts are dealt out, the same number of them to each; 1: they cannot be."""
    return math.gcd(experts, ranks)


def _placement(parameter: nn.Parameter, ranks: int) -> Shard:
    return Shard(split_dim(parameter.shape, ranks))


def split_dim(shape: Sequence[int], ranks: int) -> int:
    """The dimension by which a weight is split: the first, where the last ranks may get fewer rows, or none.

    Stacked experts [E, F, D] may be fewer than the ranks: they are split inside each one, where sizes allow it.
    """
    inner = [dim for dim in range(1, len(shape)) if shape[dim] % ranks == 0]
    return inner[0] if len(shape) == 3 and inner else 0


def part_numel(shape: Sequence[int], ranks: int) -> int:
    """Elements of a weight that the first rank holds."""
    rows = shape[split_dim(shape, ranks)]
    return math.prod(shape) // rows * -(-rows // ranks)


class _AllGather(DefaultAllGather):
    """Counts the bytes of the gathered weights."""

    def __call__(self, output_tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        distributed.count_traffic("weights to all-gather", output_tensor.nbytes)
        return super().__call__(output_tensor, *arguments, **options)


class _ReduceScatter(DefaultReduceScatter):
    """Counts the bytes of the whole gradients."""

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        distributed.count_traffic("gradients to reduce-scatter", input_tensor.nbytes)
        return super().__call__(output_tensor, input_tensor, *arguments, **options)


def reshard(model: nn.Module) -> None:
    """Frees the gathered weights of the root, which FSDP keeps after a forward pass; the blocks freed theirs."""
    if isinstance(model, FSDPModule):
        model.reshard()


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds a part of the tensor."""
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Of a sharded one every rank asks for it at the same time, or rank 0 alone in :func:`on_main`."""
    if not isinstance(tensor, DTensor):
        return tensor
    if not _leading:
        return _full(tensor)
    global _last
    number = _numbers[tensor]
    if _last is None or _last[0] != number:
        _last = None  # frees its memory first
        distributed.number_from_main(number)
        _last = number, _full(tensor)
    return _last[1]


@torch.no_grad()
def _full(tensor: DTensor) -> Tensor:
    found: Any = tensor.full_tensor()
    return found


@torch.no_grad()
def like(value: Tensor, tensor: Tensor) -> Tensor:
    """The whole ``value`` on the device of ``tensor``, sharded as that is."""
    value = value.to(tensor.device)
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    return distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copies the whole ``value`` into a tensor that may be sharded."""
    local(tensor).copy_(local(like(value, tensor)))


def zero_first_experts(gradient: Tensor) -> None:
    """Sets the gradient [E, ...] of all experts but the last to zero."""
    first = 0
    if isinstance(gradient, DTensor):
        _, (first, *_) = compute_local_shape_and_global_offset(
            gradient.shape, gradient.device_mesh, gradient.placements
        )
    local(gradient)[: max(0, len(gradient) - 1 - first)] = 0.0


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], most: float) -> Tensor:
    """The norm of all gradients, which are scaled down to ``most`` (0: not)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    mine = [local(gradient) for gradient in gradients]
    parts = [local(gradient) for gradient in gradients if is_sharded(gradient)]
    norm = torch.nn.utils.get_total_norm([gradient for gradient in gradients if not is_sharded(gradient)])
    if parts:
        square = torch.nn.utils.get_total_norm(parts).double() ** 2
        distributed.sum_over_ranks("gradient norm", [square])
        norm = (square + norm.to(square) ** 2).sqrt().float()
    if most:
        torch._foreach_mul_(mine, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


def on_main(work: Callable[[], T]) -> T | None:
    """The result of ``work`` on rank 0, None on the others, which take part in gathering what it needs."""
    global _leading, _last
    if distributed.world() == 1:
        return work()
    result = None
    if distributed.is_main():
        _leading = True
        try:
            result = work()
        finally:
            _leading, _last = False, None
        distributed.number_from_main(_DONE)
    else:
        while (number := distributed.number_from_main()) != _DONE:
            _gather_with_main(_gathered[number]())
    for target in [made() for made in _gathered]:
        if isinstance(target, Transformer):
            reshard(target)
    return result


def _announce(module: nn.Module, _arguments: Any) -> None:
    if _leading:
        distributed.number_from_main(_numbers[module])


def _gather_with_main(target: Any) -> None:
    if isinstance(target, DTensor):
        _full(target)
        return
    if isinstance(target, FSDPModule):
        target.unshard()
    if isinstance(target, ParallelExperts):
        target.gather()
    if not isinstance(target, Transformer):
        reshard(target)
