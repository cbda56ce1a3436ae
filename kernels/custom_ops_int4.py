"""`torch.library` operator of int4 experts: gradients for the input and the gates, the packed weights are frozen.

Shape legend: T tokens, K experts per token, R = T*K rows sorted by expert, E experts, D model width, F hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import int4
from kernels.cpu import experts as cpu
from kernels.custom_ops import uses_triton
from kernels.dispatch import ExpertDispatch
from kernels.int4 import Int4Weight


def _weights(packed: Sequence[Tensor]) -> tuple[Int4Weight, Int4Weight, Int4Weight]:
    """(packed, scales) of w1, w2, w3."""
    return Int4Weight(*packed[:2]), Int4Weight(*packed[2:4]), Int4Weight(*packed[4:])


@torch.library.custom_op("language_experts::int4_experts", mutates_args=())
def int4_experts(
    x: Tensor, packed: Sequence[Tensor], gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output [T, D], then h1, h3 [R, F], order, inverse [R], offsets [E + 1]: empty unless ``save``."""
    if uses_triton(x):
        from kernels.gpu import layers

        weights = _weights([t.contiguous() for t in packed])
        out, saved = layers.int4_experts_forward(
            x.contiguous(), *weights, gates.contiguous(), expert_ids.contiguous(), save
        )
        h1, h3, dispatch = saved if saved is not None else (None, None, None)
    else:
        full = [int4.unpack(w, x.dtype) for w in _weights(packed)]
        out, h1, h3, dispatch = cpu.experts_fwd(x, *full, gates, expert_ids)
    if not save:
        return out, *(x.new_empty(0) for _ in range(5))
    return out, h1, h3, *dispatch


@int4_experts.register_fake
def _(x, packed, gates, expert_ids, save):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not save:
        return out, *(x.new_empty(0) for _ in range(5))
    rows, (experts, _, hidden) = expert_ids.shape[0] * expert_ids.shape[1], packed[1].shape
    return (
        out,
        x.new_empty(rows, hidden),
        x.new_empty(rows, hidden),
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(experts + 1, dtype=torch.int32),
    )


@torch.library.custom_op("language_experts::int4_experts_backward", mutates_args=())
def int4_experts_backward(
    dout: Tensor, x: Tensor, packed: Sequence[Tensor], gates: Tensor, h1: Tensor, h3: Tensor, order: Tensor,
    inverse: Tensor, offsets: Tensor, need_x: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x (empty if unwanted) and of the gates."""
    dispatch = ExpertDispatch(order, inverse, offsets)
    if uses_triton(x):
        from kernels.gpu import layers

        weights = _weights([t.contiguous() for t in packed])
        dx, dgates = layers.int4_experts_backward(
            dout.contiguous(), *weights, gates.contiguous(), layers.Saved(h1, h3, dispatch), need_x
        )
    else:
        full = [int4.unpack(w, x.dtype) for w in _weights(packed)]
        needs = (need_x, False, False, False, True)
        dx, _, _, _, dgates = cpu.experts_bwd(dout, x, *full, gates, h1, h3, dispatch, needs)
    return x.new_empty(0) if dx is None else dx, dgates


@int4_experts_backward.register_fake
def _(dout, x, packed, gates, h1, h3, order, inverse, offsets, need_x):
    return x.new_empty(x.shape) if need_x else x.new_empty(0), gates.new_empty(gates.shape)


def _setup(ctx, inputs, output):
    x, packed, gates, _, _ = inputs
    ctx.save_for_backward(x, gates, *output[1:], *packed)
    ctx.mark_non_differentiable(*output[1:])


def _grad(ctx, dout, *_):
    x, gates, h1, h3, order, inverse, offsets, *packed = ctx.saved_tensors
    need_x, _, need_gates, *_ = ctx.needs_input_grad
    dx, dgates = int4_experts_backward(dout, x, packed, gates, h1, h3, order, inverse, offsets, need_x)
    return dx if need_x else None, [None] * len(packed), dgates if need_gates else None, None, None


int4_experts.register_autograd(_grad, setup_context=_setup)
