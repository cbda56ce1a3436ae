"""The operations of this package; the rest of the project calls these and nothing else.

Shapes, dtypes and devices are checked here, once, with one-line errors; `kernels.custom_ops` then chooses the code by
device: sorted rows and BLAS on a CPU, Triton kernels on a GPU. All operations trace under
``torch.compile(fullgraph=True)``.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, r rank

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import custom_ops, int4
from kernels.cpu.decode import experts_decode
from kernels.cpu.delta import delta_experts_fwd
from kernels.cpu.experts import experts_fwd
from kernels.cpu.experts import linear as cpu_linear
from kernels.int4 import Int4Weight
from kernels.packed import Packed, PackedWeights
from kernels.types import DeltaWeights, LowRank

__all__ = ["Int4Weight", "LowRank", "delta_experts_forward", "experts_forward", "linear", "rotate"]


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


# The checks that run for every tensor of every call make their message only when it is raised: for one token they would
# otherwise take a tenth of a small layer's time.


def _shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tensor.shape != expected:
        raise ValueError(f"{name}: expected shape {list(expected)}, got {list(tensor.shape)}")


def _same_device(x: Tensor, name: str, tensor: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x has, got {tensor.device}")


def _same_kind(x: Tensor, wider: torch.dtype | None = None, **others: Tensor) -> None:
    """Checks that all have x's dtype, or ``wider`` beside a 16-bit x, and its device."""
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating dtype, got {x.dtype}")
    for name, tensor in others.items():
        if tensor.dtype != x.dtype and (tensor.dtype != wider or x.dtype.itemsize > 2):
            raise ValueError(f"{name}: expected {x.dtype} as x has, got {tensor.dtype}")
        _same_device(x, name, tensor)


def _routing(x: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
    """Checks gates and ids against x [T, D]; returns the gates in float32 (float64 with a float64 x)."""
    if expert_ids.dim() != 2:
        raise ValueError(f"expert_ids: expected shape [T, K], got {list(expert_ids.shape)}")
    _shape("expert_ids", expert_ids, (x.shape[0], expert_ids.shape[1]))
    _shape("gates", gates, expert_ids.shape)
    _check(expert_ids.shape[1] > 0, "expert_ids: expected at least one expert per token, got shape [T, 0]")
    if not gates.is_floating_point():
        raise ValueError(f"gates: expected a floating dtype, got {gates.dtype}")
    if expert_ids.is_floating_point() or expert_ids.dtype == torch.bool:
        raise ValueError(f"expert_ids: expected an integer tensor, got {expert_ids.dtype}")
    _same_device(x, "gates", gates)
    _same_device(x, "expert_ids", expert_ids)
    return gates.to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _check_int4_input(x: Tensor) -> None:
    """The kernels multiply bf16 by decoded weights, which are bf16."""
    if x.is_cuda and custom_ops.uses_triton(x):
        _check(x.dtype == torch.bfloat16, f"x: int4 weights on a GPU need torch.bfloat16, got {x.dtype}")


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors as autocast wants matrix products to see them."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t.to(dtype) if t.dtype != torch.float64 else t for t in tensors)


def _wants_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _traced(x: Tensor) -> bool:
    """Whether what happens to x is being recorded (compile, fake or functional tensors) or run by Triton."""
    plain = type(x) is Tensor or type(x) is torch.nn.Parameter
    return torch.compiler.is_compiling() or not plain or custom_ops.uses_triton(x)


def _around_operators(x: Tensor) -> bool:
    """A CPU's inference goes around the operators, whose wrapping would take as long as a few rows' work."""
    return x.device.type == "cpu" and not _traced(x)


def _weights(x: Tensor, w1: Any, w2: Any, w3: Any, dims: int) -> tuple[Tensor, list[Tensor], int]:
    """x [T, D], the weights and F: checked, and in the dtype that autocast asks for.

    w1, w3 are [E, F, D] and w2 [E, D, F], without E where ``dims`` is 2. The operators take int4 weights as packed
    tensor and scales of each.
    """
    width = x.shape[1]
    if isinstance(w1, Int4Weight) and isinstance(w2, Int4Weight) and isinstance(w3, Int4Weight):
        num_experts, hidden, _ = w1.shape3
        lead = num_experts if dims == 3 else 1
        int4.check("w1", w1, (lead, hidden, width))
        int4.check("w3", w3, (lead, hidden, width))
        int4.check("w2", w2, (lead, width, hidden))
        (x,) = _autocast(x)
        _check_int4_input(x)
        return x, [*w1, *w2, *w3], hidden
    if isinstance(w1, Int4Weight) or isinstance(w2, Int4Weight) or isinstance(w3, Int4Weight):
        raise ValueError("w1, w2, w3: expected all dense or all int4")
    if w1.dim() != dims:
        raise ValueError(f"w1: expected shape [{'E, ' if dims == 3 else ''}F, {width}], got {list(w1.shape)}")
    *stack, hidden, _ = w1.shape
    _shape("w1", w1, (*stack, hidden, width))
    _shape("w3", w3, (*stack, hidden, width))
    _shape("w2", w2, (*stack, width, hidden))
    x, w1, w2, w3 = _autocast(x, w1, w2, w3)
    _same_kind(x, w1=w1, w2=w2, w3=w3)
    return x, [w1, w2, w3], hidden


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding: turns the pairs ``(x[c], x[c + C/2])``, the halves of the Hugging Face layout of q and k.

    x [B, H, S, C]; cosine and sine [B or 1, 1, S, C], whose halves are equal -> [B, H, S, C]. Training on a GPU takes
    one kernel a pass.
    """
    if _wants_grad(x) and custom_ops.uses_triton(x) and not torch.compiler.is_compiling():
        from kernels.gpu.rope import Rotation

        return Rotation.apply(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    if torch.is_grad_enabled():
        return x * cos + torch.cat((-second, first), dim=-1) * sin
    turned = x * cos  # the same bits with fewer passes
    left, right = turned.chunk(2, dim=-1)
    half = sin[..., : left.shape[-1]]
    left.sub_(second * half)
    right.add_(first * half)
    return turned


def linear(x: Tensor, weight: Tensor | PackedWeights) -> Tensor:
    """``x @ weight.T`` by the routine that the base products of `delta_experts_forward` use.

    A dense feed-forward that calls this and experts that equal it round alike, so their outputs are the same bits.
    x [..., D], weight [N, D] -> [..., N]. Differentiable in both.
    """
    rows = x.reshape(-1, x.shape[-1])
    if isinstance(weight, PackedWeights):
        (rows,) = _autocast(rows)
        y = custom_ops.linear(rows, *weight[0]) if _wants_grad(x) else weight[0].product(rows)
        return y.view(*x.shape[:-1], weight.shape[1])
    learns = _wants_grad(x, weight)
    ours = x.dtype == torch.float32 or (x.dtype.itemsize == 2 and (rows.shape[0] == 1 or not learns))
    if not ours or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    y = custom_ops.linear(rows, weight) if learns else cpu_linear(rows, weight)
    return y.view(*x.shape[:-1], weight.shape[0])


def _packed(*weights: Any) -> bool:
    return any(isinstance(weight, PackedWeights) for weight in weights)


def _experts(x: Tensor, *arguments: Any) -> Tensor:
    return experts_decode(x, *arguments) if x.shape[0] == 1 else experts_fwd(x, *arguments, save=False)[0]


def experts_forward(
    x: Tensor,
    w1: Tensor | Int4Weight | PackedWeights,
    w2: Tensor | Int4Weight | PackedWeights,
    w3: Tensor | Int4Weight | PackedWeights,
    gates: Tensor,
    expert_ids: Tensor,
) -> Tensor:
    """Mixture of SwiGLU experts, ``sum_j gates[t, j] * w2[e] @ (silu(w1[e] @ x[t]) * (w3[e] @ x[t]))``.

    x [T, D]; w1, w3 [E, F, D]; w2 [E, D, F]; gates [T, K] float32; expert_ids [T, K] integers -> [T, D] in x's dtype.
    The gates multiply the experts' outputs in float32 and the sum is cast once. Weights that do not require a gradient
    cost no gradient product; int4 ones (`kernels.int4.pack`) have none, and on a GPU they need a bf16 x. Raises
    ValueError for shapes, dtypes or ids that do not fit.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    gates = _routing(x, gates, expert_ids)
    if _packed(w1, w2, w3):
        return _experts(x, w1, w2, w3, gates, expert_ids)
    x, weights, _ = _weights(x, w1, w2, w3, 3)
    save = _wants_grad(x, gates, *weights)
    if len(weights) == 6:
        packed, scales = weights[::2], weights[1::2]
        return custom_ops.experts(x, *packed, *scales, gates, expert_ids, save)[0]
    if not save and _around_operators(x):
        return _experts(x, *weights, gates, expert_ids)
    return custom_ops.experts(x, *weights, None, None, None, gates, expert_ids, save)[0]


def _check_low_rank(name: str, lr: LowRank, width: int, hidden: int, lead: tuple[int, ...]) -> None:
    rank = lr.a1.shape[-2]
    for field, tensor, tail in (
        ("a1", lr.a1, (rank, width)),
        ("b1", lr.b1, (hidden, rank)),
        ("a2", lr.a2, (rank, hidden)),
        ("b2", lr.b2, (width, rank)),
        ("a3", lr.a3, (rank, width)),
        ("b3", lr.b3, (hidden, rank)),
    ):
        _shape(f"{name}.{field}", tensor, (*lead, *tail))


def delta_experts_forward(
    x: Tensor,
    w1: Tensor | Int4Weight | PackedWeights,
    w2: Tensor | Int4Weight | PackedWeights,
    w3: Tensor | Int4Weight | PackedWeights,
    shared: LowRank | None,
    experts: LowRank | None,
    gates: Tensor,
    expert_ids: Tensor,
    scale: float = 1.0,
    shared_scale: float = 1.0,
) -> Tensor:
    """Experts ``W + shared_scale * B A (shared) + scale * B_e A_e`` on one dense base, multiplied once per token.

    x [T, D]; w1, w3 [F, D]; w2 [D, F]; ``shared``: factors a1 [r, D], b1 [F, r], a2 [r, F], b2 [D, r], a3, b3, or None;
    ``experts``: the same with a leading E, or None; gates [T, K] float32; expert_ids [T, K] integers -> [T, D].
    The factors may be float32 beside a 16-bit x: they are cast once, and their gradients are float32.
    The base may be int4 (`kernels.int4.pack`; on a CPU `kernels.packed`), for training deltas on a 4-bit model. A base
    that does not require a gradient costs no gradient product. Raises ValueError for what does not fit.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    width = x.shape[1]
    gates = _routing(x, gates, expert_ids)
    if _packed(w1, w2, w3):
        if experts is None:
            gates, expert_ids = gates.sum(1, keepdim=True), expert_ids[:, :1]
        parts: list[Any] = [w[0] if isinstance(w, PackedWeights) else w for w in (w1, w2, w3)]
        if not _wants_grad(x, gates, *(shared or ()), *(experts or ())):
            first, second, third = parts
            shared, experts = (None if lr is None else lr.to(x.dtype) for lr in (shared, experts))
            packed: DeltaWeights[Any] = DeltaWeights(first, second, third, shared, experts, scale, shared_scale)
            return delta_experts_fwd(x, packed, gates, expert_ids)[0]
        flat = [tensor for w in parts for tensor in (w if isinstance(w, Packed) else (w, w.new_empty(0)))]
        scales = (float(scale), float(shared_scale))
        return custom_ops.delta_experts(x, flat, shared or (), experts or (), gates, expert_ids, *scales, True)[0]
    x, base, hidden = _weights(x, w1, w2, w3, 2)
    if shared is not None:
        _check_low_rank("shared", shared, width, hidden, ())
    if experts is not None:
        _check_low_rank("experts", experts, width, hidden, (experts.a1.shape[0],))
    elif expert_ids.shape[1] != 1:  # all choices are the same network: one choice, the gates' sum
        gates, expert_ids = gates.sum(1, keepdim=True), expert_ids[:, :1]
    low, high = ([*lr] if lr is not None else [] for lr in (shared, experts))
    if torch.is_autocast_enabled(x.device.type):
        low, high = ([t.to(x.dtype) for t in factors] for factors in (low, high))
    for owner, factors in (("shared", low), ("experts", high)):
        _same_kind(x, wider=torch.float32, **{f"{owner}.{n}": t for n, t in zip(LowRank._fields, factors)})
    save = _wants_grad(x, gates, *base, *low, *high)
    if not save and len(base) == 3 and _around_operators(x):
        pairs = (LowRank(*low).to(x.dtype) if low else None, LowRank(*high).to(x.dtype) if high else None)
        weights: DeltaWeights[Any] = DeltaWeights(base[0], base[1], base[2], *pairs, float(scale), float(shared_scale))
        return delta_experts_fwd(x, weights, gates, expert_ids)[0]
    return custom_ops.delta_experts(x, base, low, high, gates, expert_ids, float(scale), float(shared_scale), save)[0]
