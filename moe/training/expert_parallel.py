"""Expert parallelism: each rank holds some experts of every layer, and tokens travel to them and back (all-to-all)."""

# T tokens, K top-k, R = T*K routed rows, D model dim, F hidden dim, E experts, N ranks that share them, L = E / N local

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed._functional_collectives import (
    AsyncCollectiveTensor,
    all_to_all_single,
    all_to_all_single_autograd,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from kernels import ops
from kernels.dispatch import sort_by_expert
from moe.experts import Experts
from moe.training.distributed import count_traffic


class ParallelExperts(Experts):
    """This rank's experts of a layer, of which every rank of ``mesh`` holds as many, in the order of their numbers.

    Args:
        experts: all experts, whose weights may lie on another device than the mesh's.
        alone: whether this rank runs the model by itself: then it computes with all experts, which the others
            :meth:`gather` with it.
    """

    def __init__(self, experts: Experts, mesh: DeviceMesh, alone: Callable[[], bool]):
        nn.Module.__init__(self)
        self.mesh, self.alone = mesh, alone
        for name, weight in experts.named_parameters():
            part = weight.detach().chunk(mesh.size())[mesh.get_local_rank()].to(mesh.device_type, copy=True)  # [L, ...]
            split = DTensor.from_local(part, mesh, [Shard(0)], run_check=False)
            setattr(self, name, nn.Parameter(split, requires_grad=weight.requires_grad))

    @torch.inference_mode(False)  # in which torch 2.11 cannot gather
    @torch.no_grad()
    def gather(self) -> list[Tensor]:
        """The weights of all experts; every rank of the mesh asks at the same time."""
        return [cast(DTensor, weight).full_tensor() for weight in (self.w1, self.w2, self.w3)]

    def forward(self, x: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
        """x [T, D], gates [T, K], expert_ids [T, K] -> [T, D]; every rank of the mesh calls it with its own tokens."""
        if self.alone():
            w1, w2, w3 = self.gather()
            return ops.experts_forward(x, w1, w2, w3, gates, expert_ids)
        w1, w2, w3 = (cast(DTensor, weight).to_local() for weight in (self.w1, self.w2, self.w3))  # [L, ...]
        (tokens, width), top_k, own = x.shape, expert_ids.shape[1], len(w1)
        order, inverse, offsets = sort_by_expert(expert_ids, own * self.mesh.size())  # by rank, too
        sent = offsets.diff()  # [E] rows for each expert
        received = self._exchange(sent)  # [E] rows from each rank for each local expert
        there, here = (rows.view(-1, own).sum(1).tolist() for rows in (sent, received))  # [N]; the host waits
        rows = self._exchange(x[order // top_k], here, there)  # [R, D] -> [rows for this rank, D]
        ids = torch.arange(own, device=x.device).repeat(self.mesh.size()).repeat_interleave(received)
        ones = torch.ones_like(ids, dtype=torch.float32)
        rows = ops.experts_forward(rows, w1, w2, w3, ones[:, None], ids[:, None])
        rows = self._exchange(rows, there, here)[inverse].view(tokens, top_k, width)
        return (rows * gates[..., None]).sum(1).to(x.dtype)  # in float32

    def _exchange(self, rows: Tensor, here: list[int] | None = None, there: list[int] | None = None) -> Tensor:
        """Sends ``there[n]`` rows to rank n, and gets ``here[n]`` from it; its backward pass sends gradients back."""
        count_traffic("tokens to all-to-all", rows.nbytes)
        send = all_to_all_single if torch.is_inference_mode_enabled() else all_to_all_single_autograd  # for torch 2.11
        found = send(rows, here, there, self.mesh.get_group())
        if isinstance(found, AsyncCollectiveTensor):
            found = cast(Tensor, found.wait())
        if found.requires_grad:
            found.register_hook(lambda gradient: count_traffic("tokens to all-to-all", gradient.nbytes))
        return found
