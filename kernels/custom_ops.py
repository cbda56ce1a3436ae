"""The operations as `torch.library` custom operators: with fake kernels and autograd, so that
``torch.compile(fullgraph=True)`` traces through them, and dispatch by device.

CPU tensors go to `kernels.cpu.experts`; CUDA tensors to the Triton layers, or, where triton is missing, to the
same torch code as the CPU. A result that was not asked for is an empty tensor (an operator's outputs have a fixed
number).

Shape legend: T tokens, K experts per token, R = T*K rows sorted by expert, E experts, D model width, F hidden width.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels import int4
from kernels.cpu import decode as cpu_decode
from kernels.cpu import delta as cpu_delta
from kernels.cpu import experts as cpu
from kernels.cpu.delta import DeltaNeeds
from kernels.dispatch import ExpertDispatch, LowRank
from kernels.int4 import Int4Weight


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def uses_triton(tensor: Tensor) -> bool:
    """CUDA tensors where triton is there, and CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

    Float64 stays with torch: Triton has no float64 products on tensor cores.
    """
    if tensor.dtype == torch.float64 or not has_triton():
        return False
    return tensor.is_cuda or os.environ.get("TRITON_INTERPRET", "0") == "1"


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(0)


def _given(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    return [t if n else None for t, n in zip(tensors, needs)]


# -------------------------------------------------------------------------------------------------------- linear


@torch.library.custom_op("language_experts::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor) -> Tensor:
    return cpu.linear(x, weight)


@linear.register_fake
def _(x, weight):
    return x.new_empty(x.shape[0], weight.shape[0])


def _linear_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _linear_grad(ctx, dy):
    x, weight = ctx.saved_tensors
    need_x, need_weight = ctx.needs_input_grad
    return cpu.linear(dy, weight.t()) if need_x else None, dy.t() @ x if need_weight else None


linear.register_autograd(_linear_grad, setup_context=_linear_setup)


# ------------------------------------------------------------------------------------------------ grouped linear


@torch.library.custom_op("language_experts::grouped_linear", mutates_args=())
def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    if uses_triton(x):
        from kernels.gpu import launch

        return launch.grouped_gemm(x.contiguous(), weight.contiguous(), _segments(offsets), x.shape[0])
    return cpu.grouped_linear_fwd(x, weight, offsets)


@torch.library.custom_op("language_experts::grouped_linear_backward", mutates_args=())
def grouped_linear_backward(
    dy: Tensor, x: Tensor, weight: Tensor, offsets: Tensor, need_x: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    dx, dw = _empty(x), _empty(x)
    if uses_triton(x):
        from kernels.gpu import launch

        dispatch, dy = _segments(offsets), dy.contiguous()
        if need_x:
            dx = launch.grouped_gemm(dy, weight.contiguous(), dispatch, dy.shape[0], transposed=True)
        if need_weight:
            dw = launch.weight_gradient(x.contiguous(), dy, dispatch, dy.shape[0], weight.shape[0])
        return dx, dw
    if need_x:
        dx = cpu.grouped_linear_dx(dy, weight, offsets)
    if need_weight:
        dw = cpu.grouped_linear_dw(x, dy, offsets)
    return dx, dw


def _segments(offsets: Tensor) -> ExpertDispatch:
    """A dispatch for rows that are sorted already; nothing reads its order."""
    return ExpertDispatch(offsets, offsets, offsets.to(torch.int32).contiguous())


@grouped_linear.register_fake
def _(x, weight, offsets):
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_linear_backward.register_fake
def _(dy, x, weight, offsets, need_x, need_weight):
    return (
        x.new_empty(x.shape) if need_x else x.new_empty(0),
        weight.new_empty(weight.shape) if need_weight else x.new_empty(0),
    )


def _grouped_linear_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _grouped_linear_grad(ctx, dy):
    needs = ctx.needs_input_grad[:2]
    grads = grouped_linear_backward(dy, *ctx.saved_tensors, *needs)
    return *_given(grads, needs), None


grouped_linear.register_autograd(_grouped_linear_grad, setup_context=_grouped_linear_setup)


# -------------------------------------------------------------------------------------------------- full experts


@torch.library.custom_op("language_experts::experts", mutates_args=())
def experts(
    x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, expert_ids: Tensor, save: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output [T, D], then h1, h3 [R, F], order, inverse [R], offsets [E + 1]: empty unless ``save``."""
    if uses_triton(x):
        from kernels.gpu import layers

        inputs = (t.contiguous() for t in (x, w1, w2, w3, gates, expert_ids))
        out, saved = layers.experts_forward(*inputs, save)
        h1, h3, dispatch = saved if saved is not None else (None, None, None)
    elif x.shape[0] == 1 and not save and not x.is_cuda:
        out = cpu_decode.experts_decode(x, w1, w2, w3, gates, expert_ids)
    else:
        out, h1, h3, dispatch = cpu.experts_fwd(x, w1, w2, w3, gates, expert_ids)
    if not save:
        return out, *(_empty(x) for _ in range(5))
    return out, h1, h3, *dispatch


@experts.register_fake
def _(x, w1, w2, w3, gates, expert_ids, save):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not save:
        return out, *(x.new_empty(0) for _ in range(5))
    return out, *_fake_saved(x, expert_ids, w1.shape[1], w1.shape[0])


def _fake_saved(x: Tensor, expert_ids: Tensor, hidden: int, num_experts: int) -> tuple[Tensor, ...]:
    rows = expert_ids.shape[0] * expert_ids.shape[1]
    return (
        x.new_empty(rows, hidden),
        x.new_empty(rows, hidden),
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(rows, dtype=torch.int64),
        x.new_empty(num_experts + 1, dtype=torch.int32),
    )


@torch.library.custom_op("language_experts::experts_backward", mutates_args=())
def experts_backward(
    dout: Tensor, x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, h1: Tensor, h3: Tensor, order: Tensor,
    inverse: Tensor, offsets: Tensor, needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dispatch = ExpertDispatch(order, inverse, offsets)
    if uses_triton(x):
        from kernels.gpu import layers

        dout, x, w1, w2, w3, gates = (t.contiguous() for t in (dout, x, w1, w2, w3, gates))
        grads = layers.experts_backward(dout, x, w1, w2, w3, gates, layers.Saved(h1, h3, dispatch), tuple(needs))
    else:
        grads = cpu.experts_bwd(dout, x, w1, w2, w3, gates, h1, h3, dispatch, tuple(needs))
    return tuple(_empty(x) if g is None else g for g in grads)


@experts_backward.register_fake
def _(dout, x, w1, w2, w3, gates, h1, h3, order, inverse, offsets, needs):
    return tuple(t.new_empty(t.shape) if n else x.new_empty(0) for t, n in zip((x, w1, w2, w3, gates), needs))


def _experts_setup(ctx, inputs, output):
    x, w1, w2, w3, gates, _, _ = inputs
    ctx.save_for_backward(x, w1, w2, w3, gates, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _experts_grad(ctx, dout, *_):
    needs = list(ctx.needs_input_grad[:5])
    grads = experts_backward(dout, *ctx.saved_tensors, needs)
    return *_given(grads, needs), None, None


experts.register_autograd(_experts_grad, setup_context=_experts_setup)


# ------------------------------------------------------------------------------------------------- delta experts


def _low_rank(factors: Sequence[Tensor]) -> LowRank | None:
    return LowRank(*factors) if len(factors) else None


def _base(weights: Sequence[Tensor], kind: Any = None) -> tuple[Tensor | Int4Weight, ...]:
    """Three dense weights, or three (packed, scales) pairs."""
    if len(weights) == 3:
        return tuple(weights)
    return tuple(Int4Weight(weights[i], weights[i + 1]) for i in (0, 2, 4))


def _base_on_cpu(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(int4.unpack(w, dtype)[0] if isinstance(w, Int4Weight) else w for w in _base(weights))


def base_columns(weights: Sequence[Tensor]) -> int:
    """F of a dense or an int4 base."""
    return weights[0].shape[0] if len(weights) == 3 else weights[0].shape[2]


def _delta_on_gpu(x: Tensor, factors: Sequence[Tensor]) -> bool:
    return len(factors) > 0 and uses_triton(x)


@torch.library.custom_op("language_experts::delta_experts", mutates_args=())
def delta_experts(
    x: Tensor, base: Sequence[Tensor], shared: Sequence[Tensor], factors: Sequence[Tensor], gates: Tensor,
    expert_ids: Tensor, scale: float, shared_scale: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [T, D], then h1, h3 [R, F] and the dispatch (empty on the CPU, which sorts again)."""
    dispatch: ExpertDispatch | None = None
    if _delta_on_gpu(x, factors):
        from kernels.gpu import layers

        weights = _base([t.contiguous() for t in base])
        out, saved = layers.delta_forward(
            x.contiguous(), *weights, _low_rank(shared), _low_rank([t.contiguous() for t in factors]),
            gates.contiguous(), expert_ids.contiguous(), scale, shared_scale, save,
        )  # fmt: skip
        h1, h3, dispatch = saved if saved is not None else (None, None, None)
    else:
        out, h1, h3 = cpu_delta.delta_experts_fwd(
            x, *_base_on_cpu(base, x.dtype), _low_rank(shared), _low_rank(factors), gates, expert_ids, scale,
            shared_scale,
        )  # fmt: skip
    if not save:
        return out, *(_empty(x) for _ in range(5))
    return out, h1, h3, *(dispatch if dispatch is not None else (_empty(x) for _ in range(3)))


@delta_experts.register_fake
def _(x, base, shared, factors, gates, expert_ids, scale, shared_scale, save):
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not save:
        return out, *(x.new_empty(0) for _ in range(5))
    saved = _fake_saved(x, expert_ids, base_columns(base), factors[0].shape[0] if factors else 1)
    if _delta_on_gpu(x, factors):
        return out, *saved
    return out, *saved[:2], *(x.new_empty(0) for _ in range(3))


@torch.library.custom_op("language_experts::delta_experts_backward", mutates_args=())
def delta_experts_backward(
    dout: Tensor, x: Tensor, base: Sequence[Tensor], shared: Sequence[Tensor], factors: Sequence[Tensor],
    gates: Tensor, expert_ids: Tensor, h1: Tensor, h3: Tensor, order: Tensor, inverse: Tensor, offsets: Tensor,
    scale: float, shared_scale: float, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of x, w1, w2, w3, the 6 or 0 shared factors, the 6 or 0 expert factors, the gates; empty: unwanted."""
    wanted = DeltaNeeds(*needs)
    low, high = _low_rank(shared), _low_rank(factors)
    if _delta_on_gpu(x, factors):
        from kernels.gpu import layers

        grads = layers.delta_backward(
            dout.contiguous(), x.contiguous(), *_base([t.contiguous() for t in base]), low,
            LowRank(*(t.contiguous() for t in factors)), gates.contiguous(),
            layers.Saved(h1, h3, ExpertDispatch(order, inverse, offsets)), scale, shared_scale, wanted,
        )  # fmt: skip
    else:
        grads = cpu_delta.delta_experts_bwd(
            dout, x, *_base_on_cpu(base, x.dtype), low, high, gates, expert_ids, h1, h3, scale, shared_scale, wanted
        )
    flat = [grads.x, grads.w1, grads.w2, grads.w3]
    flat += list(grads.shared or [None] * len(shared)) + list(grads.experts or [None] * len(factors)) + [grads.gates]
    return [_empty(x) if g is None else g for g in flat]


@delta_experts_backward.register_fake
def _(
    dout, x, base, shared, factors, gates, expert_ids, h1, h3, order, inverse, offsets, scale, shared_scale, needs
):  # fmt: skip
    n = DeltaNeeds(*needs)

    def like(tensor, wanted):
        return tensor.new_empty(tensor.shape) if wanted else x.new_empty(0)

    weights = [like(t, w) for t, w in zip(base, (n.w1, n.w2, n.w3))] if len(base) == 3 else [x.new_empty(0)] * 3
    weights = [t.clone() if t.numel() == 0 else t for t in weights]
    return [
        like(x, n.x),
        *weights,
        *(like(t, n.shared) for t in shared),
        *(like(t, n.experts) for t in factors),
        like(gates, n.gates),
    ]


def _delta_setup(ctx, inputs, output):
    x, base, shared, factors, gates, expert_ids, scale, shared_scale, _ = inputs
    ctx.save_for_backward(x, gates, expert_ids, *output[1:], *base, *shared, *factors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.config = (len(base), len(shared), len(factors), scale, shared_scale)


def _delta_grad(ctx, dout, *_):
    bases, shares, count, scale, shared_scale = ctx.config
    x, gates, expert_ids, h1, h3, order, inverse, offsets, *rest = ctx.saved_tensors
    base, shared, factors = rest[:bases], rest[bases : bases + shares], rest[bases + shares :]
    need_x, need_base, need_shared, need_factors, need_gates, *_ = ctx.needs_input_grad
    need_base = list(need_base) if isinstance(need_base, Sequence) else [need_base] * bases
    dense = [need and t.is_floating_point() for need, t in zip(need_base, base)] if bases == 3 else [False] * 3

    def any_of(need: Any) -> bool:
        return any(need) if isinstance(need, Sequence) else bool(need)

    needs = DeltaNeeds(
        need_x, *dense, shares > 0 and any_of(need_shared), count > 0 and any_of(need_factors), need_gates
    )
    grads = delta_experts_backward(
        dout, x, base, shared, factors, gates, expert_ids, h1, h3, order, inverse, offsets, scale, shared_scale,
        list(needs),
    )  # fmt: skip
    dbase = _given(grads[1:4], dense) if bases == 3 else [None] * bases
    dshared = _given(grads[4 : 4 + shares], [needs.shared] * shares)
    dfactors = _given(grads[4 + shares : 4 + shares + count], [needs.experts] * count)
    dx = grads[0] if need_x else None
    return dx, dbase, dshared, dfactors, grads[-1] if need_gates else None, None, None, None, None


delta_experts.register_autograd(_delta_grad, setup_context=_delta_setup)
