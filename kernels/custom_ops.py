"""The operations as `torch.library` custom operators, so that ``torch.compile(fullgraph=True)`` traces through them.

Each has a fake kernel, autograd and dispatch by device: CPU tensors go to `kernels.cpu`, CUDA tensors to the Triton
layers of `kernels.gpu`, or to the CPU's torch code where Triton is missing. An operator has a fixed number of outputs,
so a result that was not asked for is an empty tensor.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K rows sorted by expert

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kernels import int4
from kernels.cpu import decode as cpu_decode
from kernels.cpu import delta as cpu_delta
from kernels.cpu import experts as cpu
from kernels.int4 import Int4Weight
from kernels.packed import Packed, whole
from kernels.types import DeltaWeights, ExpertDispatch, LowRank, Needs, Saved

# constants, as torch.compile cannot trace the search for a module
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def uses_triton(tensor: Tensor) -> bool:
    """CUDA tensors where Triton is installed, and CPU tensors under Triton's interpreter (TRITON_INTERPRET=1).

    Float64 stays with torch: Triton has no float64 products on tensor cores.
    """
    if tensor.dtype == torch.float64 or not HAS_TRITON:
        return False
    return tensor.is_cuda or INTERPRETED


@contextmanager
def without_running() -> Iterator[None]:
    """Inside the block the operators take the GPU's path wherever tensors lie, and launch nothing.

    What they allocate can so be counted without a GPU.
    """
    global INTERPRETED
    from kernels.gpu.launch import redirected

    before, INTERPRETED = INTERPRETED, True
    try:
        with redirected(lambda made: None):
            yield
    finally:
        INTERPRETED = before


def _given(tensors: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
    return [t if n else None for t, n in zip(tensors, needs)]


def _or_empty(like: Tensor, tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [like.new_empty(0) if t is None else t for t in tensors]


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in tensors]


def _outputs(out: Tensor, saved: Saved | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    if saved is None:
        h1, h3, order, inverse, offsets = (out.new_empty(0) for _ in range(5))
    else:
        h1, h3, (order, inverse, offsets) = saved
    return out, h1, h3, order, inverse, offsets


def _fake_outputs(x: Tensor, expert_ids: Tensor, hidden: int, num_experts: int, save: bool) -> tuple[Tensor, ...]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    if not save:
        return out, *(x.new_empty(0) for _ in range(5))
    rows = expert_ids.shape[0] * expert_ids.shape[1]
    h1, h3 = (x.new_empty(rows, hidden) for _ in range(2))
    order, inverse = (x.new_empty(rows, dtype=torch.int64) for _ in range(2))
    return out, h1, h3, order, inverse, x.new_empty(num_experts + 1, dtype=torch.int32)


# -------------------------------------------------------------------------------------------------------- linear


@torch.library.custom_op("language_experts::linear", mutates_args=())
def linear(x: Tensor, weight: Tensor, scales: Tensor | None = None) -> Tensor:
    """x [M, D], weight [N, D] -> [M, N]; the weight is dense, or packed for a CPU, with scales."""
    return cpu.linear(x, weight if scales is None else Packed(weight, scales))


@linear.register_fake
def _(x, weight, scales=None):
    return x.new_empty(x.shape[0], weight.shape[0])


def _linear_setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _linear_grad(ctx, dy):
    x, weight, scales = ctx.saved_tensors
    need_x, need_weight, *scales_too = ctx.needs_input_grad
    dense = weight if scales is None else Packed(weight, scales)
    dx = cpu.linear(dy, whole(dense, dy.dtype).t()) if need_x else None
    return dx, dy.t() @ x if need_weight else None, *(None for _ in scales_too)


linear.register_autograd(_linear_grad, setup_context=_linear_setup)


# -------------------------------------------------------------------------------------------------- full experts
# The weights are dense, or int4: then they are packed and s1, s2, s3 are their scales.


def _int4_weights(
    w1: Tensor, w2: Tensor, w3: Tensor, s1: Tensor | None, s2: Tensor | None, s3: Tensor | None
) -> tuple[Int4Weight, Int4Weight, Int4Weight] | None:
    """The int4 weights; None where the weights are dense."""
    if s1 is None or s2 is None or s3 is None:
        return None
    first, second, third = (Int4Weight(w.contiguous(), s.contiguous()) for w, s in ((w1, s1), (w2, s2), (w3, s3)))
    return first, second, third


@torch.library.custom_op("language_experts::experts", mutates_args=())
def experts(
    x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, s1: Tensor | None, s2: Tensor | None, s3: Tensor | None,
    gates: Tensor, expert_ids: Tensor, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Output [T, D]; with ``save`` h1, h3 [R, F], order, inverse [R] and offsets [E + 1], else empty tensors."""
    saved: Saved | None
    packed = _int4_weights(w1, w2, w3, s1, s2, s3)
    if uses_triton(x):
        from kernels.gpu import layers

        x, w1, w2, w3, gates, expert_ids = _contiguous(x, w1, w2, w3, gates, expert_ids)
        if packed is None:
            out, saved = layers.experts_forward(x, w1, w2, w3, gates, expert_ids, save)
        else:
            out, saved = layers.int4_experts_forward(x, *packed, gates, expert_ids, save)
    elif packed is not None:
        w1, w2, w3 = (int4.unpack(w, x.dtype) for w in packed)
        out, saved = cpu.experts_fwd(x, w1, w2, w3, gates, expert_ids)
    elif x.shape[0] == 1 and not save and not x.is_cuda:
        out, saved = cpu_decode.experts_decode(x, w1, w2, w3, gates, expert_ids), None
    else:
        out, saved = cpu.experts_fwd(x, w1, w2, w3, gates, expert_ids)
    return _outputs(out, saved if save else None)


@experts.register_fake
def _(x, w1, w2, w3, s1, s2, s3, gates, expert_ids, save):
    return _fake_outputs(x, expert_ids, w1.shape[1] if s1 is None else s1.shape[2], w1.shape[0], save)


@torch.library.custom_op("language_experts::experts_backward", mutates_args=())
def experts_backward(
    dout: Tensor, x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, s1: Tensor | None, s2: Tensor | None,
    s3: Tensor | None, gates: Tensor, h1: Tensor, h3: Tensor, order: Tensor, inverse: Tensor, offsets: Tensor,
    needs: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x, w1, w2, w3 and the gates; empty where unwanted."""
    saved, wanted = Saved(h1, h3, ExpertDispatch(order, inverse, offsets)), Needs(*needs)
    packed = _int4_weights(w1, w2, w3, s1, s2, s3)
    if uses_triton(x):
        from kernels.gpu import layers

        dout, x, w1, w2, w3, gates = _contiguous(dout, x, w1, w2, w3, gates)
        if packed is None:
            grads = layers.experts_backward(dout, x, w1, w2, w3, gates, saved, wanted)
        else:
            grads = layers.int4_experts_backward(dout, *packed, gates, saved, wanted)
    else:
        if packed is not None:
            w1, w2, w3 = (int4.unpack(w, x.dtype) for w in packed)
        grads = cpu.experts_bwd(dout, x, w1, w2, w3, gates, saved, wanted)
    dx, dw1, dw2, dw3, dgates = _or_empty(x, grads[:5])
    return dx, dw1, dw2, dw3, dgates


@experts_backward.register_fake
def _(dout, x, w1, w2, w3, s1, s2, s3, gates, h1, h3, order, inverse, offsets, needs):
    return tuple(t.new_empty(t.shape) if n else x.new_empty(0) for t, n in zip((x, w1, w2, w3, gates), needs))


def _experts_setup(ctx, inputs, output):
    ctx.set_materialize_grads(False)  # else zeros of the size of h1 and h3 are made for them
    ctx.save_for_backward(*inputs[:8], *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _experts_grad(ctx, dout, *_):
    if dout is None:
        return (None,) * 10
    need_x, need_w1, need_w2, need_w3, _, _, _, need_gates, *_ = ctx.needs_input_grad
    needs = [need_x, need_w1, need_w2, need_w3, need_gates]
    dx, dw1, dw2, dw3, dgates = _given(experts_backward(dout, *ctx.saved_tensors, needs), needs)
    return dx, dw1, dw2, dw3, None, None, None, dgates, None, None


experts.register_autograd(_experts_grad, setup_context=_experts_setup)


# ------------------------------------------------------------------------------------------------- delta experts
# ``base`` holds three dense weights, or weight and scales of w1, w2 and w3: int4 for Triton, or packed for a CPU, where
# the scales of a dense one are empty; ``shared`` and ``factors`` hold six low-rank factors or none.


def _delta_weights(
    base: Sequence[Tensor], shared: Sequence[Tensor], factors: Sequence[Tensor], scale: float, shared_scale: float
) -> DeltaWeights[Any]:
    pairs = (LowRank(*shared) if shared else None, LowRank(*factors) if factors else None)
    if len(base) == 3:
        return DeltaWeights(base[0], base[1], base[2], *pairs, scale, shared_scale)
    if base[0].dim() == 2:
        of_cpu = [Packed(w, s) if s.numel() else w for w, s in zip(base[::2], base[1::2])]
        return DeltaWeights(of_cpu[0], of_cpu[1], of_cpu[2], *pairs, scale, shared_scale)
    w1, w2, w3 = (Int4Weight(base[i], base[i + 1]) for i in (0, 2, 4))
    return DeltaWeights(w1, w2, w3, *pairs, scale, shared_scale)


def _on_cpu(weights: DeltaWeights[Any], dtype: torch.dtype) -> DeltaWeights[Tensor | Packed]:
    w1, w2, w3 = (int4.unpack(w, dtype)[0] if isinstance(w, Int4Weight) else w for w in weights[:3])
    shared, own = (None if pair is None else pair.to(dtype) for pair in (weights.shared, weights.experts))
    return DeltaWeights(w1, w2, w3, shared, own, weights.scale, weights.shared_scale)


def _in_dtype_of(factors: Sequence[Tensor], grads: LowRank | None, on_gpu: bool) -> Sequence[Tensor | None]:
    """The gradients in the dtype of the factors; those of Triton are views that share memory: all in one copy."""
    if grads is None:
        return [None] * len(factors)
    if not on_gpu:
        return [g.to(f.dtype) for g, f in zip(grads, factors)]
    own = [torch.empty_like(f) for f in factors]
    torch._foreach_copy_(own, list(grads))  # one kernel only where all gradients have the same dtype
    return own


def _delta_on_gpu(x: Tensor, factors: Sequence[Tensor]) -> bool:
    return len(factors) > 0 and uses_triton(x)


@torch.library.custom_op("language_experts::delta_experts", mutates_args=())
def delta_experts(
    x: Tensor, base: Sequence[Tensor], shared: Sequence[Tensor], factors: Sequence[Tensor], gates: Tensor,
    expert_ids: Tensor, scale: float, shared_scale: float, save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `experts`; without factors the dispatch is empty. The low-rank factors may be wider than x."""
    saved: Saved | None
    if _delta_on_gpu(x, factors):
        from kernels.gpu import layers

        weights = _delta_weights(_contiguous(*base), shared, _contiguous(*factors), scale, shared_scale)
        out, saved = layers.delta_forward(x.contiguous(), weights, gates.contiguous(), expert_ids.contiguous(), save)
    else:
        weights = _on_cpu(_delta_weights(base, shared, factors, scale, shared_scale), x.dtype)
        out, saved = cpu_delta.delta_experts_fwd(x, weights, gates, expert_ids)
    return _outputs(out, saved if save else None)


@delta_experts.register_fake
def _(x, base, shared, factors, gates, expert_ids, scale, shared_scale, save):
    hidden = base[0].shape[0] if base[0].dim() == 2 else base[1].shape[2]
    out, h1, h3, *dispatch = _fake_outputs(x, expert_ids, hidden, factors[0].shape[0] if factors else 1, save)
    if save and not factors:
        dispatch = [expert_ids.new_empty(0) for _ in range(3)]
    return out, h1, h3, *dispatch


@torch.library.custom_op("language_experts::delta_experts_backward", mutates_args=())
def delta_experts_backward(
    dout: Tensor, x: Tensor, base: Sequence[Tensor], shared: Sequence[Tensor], factors: Sequence[Tensor],
    gates: Tensor, h1: Tensor, h3: Tensor, order: Tensor, inverse: Tensor, offsets: Tensor, scale: float,
    shared_scale: float, needs: Sequence[bool],
) -> list[Tensor]:  # fmt: skip
    """Gradients of x, w1, w2, w3, the gates, the shared factors and the experts' factors; empty where unwanted."""
    saved, wanted = Saved(h1, h3, ExpertDispatch(order, inverse, offsets)), Needs(*needs)
    on_gpu = _delta_on_gpu(x, factors)
    if on_gpu:
        from kernels.gpu import layers

        weights = _delta_weights(_contiguous(*base), shared, _contiguous(*factors), scale, shared_scale)
        grads = layers.delta_backward(dout.contiguous(), x.contiguous(), weights, gates.contiguous(), saved, wanted)
    else:
        weights = _on_cpu(_delta_weights(base, shared, factors, scale, shared_scale), x.dtype)
        grads = cpu_delta.delta_experts_bwd(dout, x, weights, gates, saved, wanted)
    pairs = *_in_dtype_of(shared, grads.shared, on_gpu), *_in_dtype_of(factors, grads.experts, on_gpu)
    return _or_empty(x, (*grads[:5], *pairs))


@delta_experts_backward.register_fake
def _(dout, x, base, shared, factors, gates, h1, h3, order, inverse, offsets, scale, shared_scale, needs):
    wanted = Needs(*needs)
    dense = base if len(base) == 3 else [x] * 3  # an int4 base has no gradient
    tensors = (x, *dense, gates, *shared, *factors)
    flags = (*wanted[:5], *[wanted.shared] * len(shared), *[wanted.experts] * len(factors))
    return [t.new_empty(t.shape) if n else x.new_empty(0) for t, n in zip(tensors, flags)]


def _delta_setup(ctx, inputs, output):
    x, base, shared, factors, gates, _, scale, shared_scale, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, gates, *output[1:], *base, *shared, *factors)
    ctx.mark_non_differentiable(*output[1:])
    ctx.sizes, ctx.scales = (len(base), len(shared), len(factors)), (scale, shared_scale)


def _delta_grad(ctx, dout, *_):
    if dout is None:
        bases, shares, count = ctx.sizes
        return None, [None] * bases, [None] * shares, [None] * count, *(None,) * 5
    x, gates, h1, h3, order, inverse, offsets, *weights = ctx.saved_tensors
    bases, shares, count = ctx.sizes
    base, shared, factors = weights[:bases], weights[bases : bases + shares], weights[bases + shares :]
    need_x, need_base, need_shared, need_factors, need_gates, *_ = ctx.needs_input_grad
    dense = list(_flags(need_base, bases)) if bases == 3 else [False] * 3
    needs = Needs(
        need_x, dense[0], dense[1], dense[2], need_gates, any(_flags(need_shared, shares)),
        any(_flags(need_factors, count)),
    )  # fmt: skip
    dx, dw1, dw2, dw3, dgates, *pairs = delta_experts_backward(
        dout, x, base, shared, factors, gates, h1, h3, order, inverse, offsets, *ctx.scales, list(needs)
    )
    dbase = _given([dw1, dw2, dw3], dense) if bases == 3 else [None] * bases
    dshared = _given(pairs[:shares], [needs.shared] * shares)
    dfactors = _given(pairs[shares:], [needs.experts] * count)
    dx, dgates = _given([dx, dgates], [need_x, need_gates])
    return dx, dbase, dshared, dfactors, dgates, None, None, None, None


def _flags(need: bool | Sequence[bool], count: int) -> Sequence[bool]:
    """What autograd says about a list of tensors: a flag for each, or one for all."""
    return need if isinstance(need, Sequence) else [need] * count


delta_experts.register_autograd(_delta_grad, setup_context=_delta_setup)
