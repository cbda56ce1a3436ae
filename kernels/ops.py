"""The operations of this package; the rest of the project calls these and nothing else.

Shapes, dtypes and devices are checked here, once, with one-line errors; `kernels.custom_ops` then chooses the code by
device: contiguous segments and BLAS on the CPU, Triton kernels on a GPU. All of them trace under
``torch.compile(fullgraph=True)``.

Shape legend: T tokens, K experts per token, R routed rows sorted by expert, E experts, D model width, F hidden width,
r rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import custom_ops as library
from kernels import custom_ops_int4 as library_int4
from kernels import int4
from kernels.cpu.decode import experts_decode
from kernels.cpu.delta import delta_experts_decode
from kernels.cpu.experts import grouped_linear_dw
from kernels.cpu.experts import linear as cpu_linear
from kernels.dispatch import ExpertDispatch, LowRank, sort_by_expert
from kernels.int4 import Int4Weight

__all__ = [
    "ExpertDispatch",
    "Int4Weight",
    "LowRank",
    "accumulate_weight_gradient",
    "delta_experts_forward",
    "experts_forward",
    "grouped_linear",
    "int4_experts_forward",
    "linear",
    "sort_by_expert",
]


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


def _same_kind(x: Tensor, **others: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"x: expected a floating dtype, got {x.dtype}")
    for name, tensor in others.items():
        if tensor.dtype != x.dtype:
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


def _check_offsets(offsets: Tensor, x: Tensor) -> None:
    _check(offsets.dim() == 1 and offsets.numel() > 1, f"offsets: expected shape [E + 1], got {list(offsets.shape)}")
    _check(offsets.dtype in (torch.int32, torch.int64), f"offsets: expected int32, got {offsets.dtype}")
    _same_device(x, "offsets", offsets)


def _check_int4_input(x: Tensor) -> None:
    """The kernels multiply bf16 by decoded weights, which are bf16."""
    if x.is_cuda and library.uses_triton(x):
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
    return torch.compiler.is_compiling() or not plain or library.uses_triton(x)


def _decodes_on_cpu(x: Tensor) -> bool:
    """One row that goes around the operators, whose wrapping would take as long as the work."""
    return x.shape[0] == 1 and x.device.type == "cpu" and not _traced(x)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` by the routine that the base products of `delta_experts_forward` use.

    A dense feed-forward that calls this and experts that equal it round alike, so their outputs are the same bits.
    x [..., D], weight [N, D] -> [..., N]. Differentiable in both.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight)
    rows = x.reshape(-1, x.shape[-1])
    y = library.linear(rows, weight) if _wants_grad(x, weight) else cpu_linear(rows, weight)
    return y.view(*x.shape[:-1], weight.shape[0])


def grouped_linear(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """``y[i] = weight[e] @ x[i]`` for the expert e with ``offsets[e] <= i < offsets[e + 1]``.

    x [R, D] sorted by expert, weight [E, N, D], offsets [E + 1] int32 -> [R, N]. Differentiable in x and weight.
    Raises ValueError for shapes or dtypes that do not fit and for offsets that do not run from 0 to R.
    """
    _check(x.dim() == 2, f"x: expected shape [R, D], got {list(x.shape)}")
    _check(weight.dim() == 3, f"weight: expected shape [E, N, {x.shape[1]}], got {list(weight.shape)}")
    _shape("weight", weight, (weight.shape[0], weight.shape[1], x.shape[1]))
    _shape("offsets", offsets, (weight.shape[0] + 1,))
    _check_offsets(offsets, x)
    x, weight = _autocast(x, weight)
    _same_kind(x, weight=weight)
    return library.grouped_linear(x, weight, offsets)


def accumulate_weight_gradient(x: Tensor, dy: Tensor, offsets: Tensor, grad: Tensor) -> None:
    """Adds the weight gradient of `grouped_linear`, ``dy[i] outer x[i]`` per expert, to ``grad`` [E, N, D] in place.

    x [R, D], dy [R, N] sorted by expert; ``grad`` may be float32 while x and dy are bf16, which keeps small gradients
    of many micro-batches. Raises ValueError for shapes that do not fit.
    """
    _check(x.dim() == 2 and dy.dim() == 2, f"x, dy: expected [R, D] and [R, N], got {list(x.shape)}, {list(dy.shape)}")
    _check_offsets(offsets, x)
    _shape("dy", dy, (x.shape[0], dy.shape[1]))
    _check(grad.is_floating_point(), f"grad: expected a floating dtype, got {grad.dtype}")
    _same_device(x, "grad", grad)
    _shape("grad", grad, (offsets.numel() - 1, dy.shape[1], x.shape[1]))
    _same_kind(x, dy=dy)
    if library.uses_triton(x) and grad.is_contiguous():
        from kernels.gpu import launch

        dispatch = ExpertDispatch(offsets, offsets, offsets.to(torch.int32).contiguous())
        x, dy = x.contiguous(), dy.contiguous()
        launch.weight_gradient(x, dy, dispatch, x.shape[0], grad.shape[0], out=grad)
    else:
        grad.add_(grouped_linear_dw(x, dy, offsets))


def experts_forward(x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
    """Mixture of SwiGLU experts, ``sum_j gates[t, j] * w2[e] @ (silu(w1[e] @ x[t]) * (w3[e] @ x[t]))``.

    x [T, D]; w1, w3 [E, F, D]; w2 [E, D, F]; gates [T, K] float32; expert_ids [T, K] integers -> [T, D] in x's dtype.
    The gates multiply the experts' outputs in float32 and the sum is cast once. Weights that do not require a gradient
    cost no gradient product. Raises ValueError for shapes, dtypes or ids that do not fit.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    _check(w1.dim() == 3, f"w1: expected shape [E, F, {x.shape[1]}], got {list(w1.shape)}")
    num_experts, hidden = w1.shape[:2]
    _shape("w1", w1, (num_experts, hidden, x.shape[1]))
    _shape("w3", w3, (num_experts, hidden, x.shape[1]))
    _shape("w2", w2, (num_experts, x.shape[1], hidden))
    gates = _routing(x, gates, expert_ids)
    x, w1, w2, w3 = _autocast(x, w1, w2, w3)
    _same_kind(x, w1=w1, w2=w2, w3=w3)
    save = _wants_grad(x, w1, w2, w3, gates)
    if not save and _decodes_on_cpu(x):
        return experts_decode(x, w1, w2, w3, gates, expert_ids)
    return library.experts(x, w1, w2, w3, gates, expert_ids, save)[0]


def int4_experts_forward(
    x: Tensor, w1: Int4Weight, w2: Int4Weight, w3: Int4Weight, gates: Tensor, expert_ids: Tensor
) -> Tensor:
    """`experts_forward` with int4 weights (`kernels.int4.pack`): w1, w3 stand for [E, F, D], w2 for [E, D, F].

    Differentiable in x and the gates. x is bf16 on a GPU, any float on the CPU. Raises ValueError for what does not
    fit, such as widths that are no multiple of 128.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    num_experts, hidden, _ = w1.shape3
    int4.check("w1", w1, (num_experts, hidden, x.shape[1]))
    int4.check("w3", w3, (num_experts, hidden, x.shape[1]))
    int4.check("w2", w2, (num_experts, x.shape[1], hidden))
    gates = _routing(x, gates, expert_ids)
    (x,) = _autocast(x)
    _check_int4_input(x)
    return library_int4.int4_experts(x, [*w1, *w2, *w3], gates, expert_ids, _wants_grad(x, gates))[0]


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
    w1: Tensor | Int4Weight,
    w2: Tensor | Int4Weight,
    w3: Tensor | Int4Weight,
    shared: LowRank | None,
    experts: LowRank | None,
    gates: Tensor,
    expert_ids: Tensor,
    scale: float = 1.0,
    shared_scale: float = 1.0,
) -> Tensor:
    """Experts ``W + shared_scale * B0 A0 + scale * B_e A_e`` that share one dense base; base products once per token.

    x [T, D]; w1, w3 [F, D]; w2 [D, F]; ``shared``: factors a1 [r, D], b1 [F, r], a2 [r, F], b2 [D, r], a3, b3, or None;
    ``experts``: the same with a leading E, or None; gates [T, K] float32; expert_ids [T, K] integers -> [T, D].
    The base may be int4 (`kernels.int4.pack`), for training deltas on a 4-bit model. A base that does not require a
    gradient costs no gradient product. Raises ValueError for what does not fit.
    """
    _check(x.dim() == 2, f"x: expected shape [T, D], got {list(x.shape)}")
    width = x.shape[1]
    packed = [isinstance(w, Int4Weight) for w in (w1, w2, w3)]
    _check(len(set(packed)) == 1, "w1, w2, w3: expected all dense or all int4")
    if packed[0]:
        hidden = w1.shape3[1]
        for name, weight, shape in (
            ("w1", w1, (1, hidden, width)),
            ("w2", w2, (1, width, hidden)),
            ("w3", w3, (1, hidden, width)),
        ):
            int4.check(name, weight, shape)
        base = [*w1, *w2, *w3]
    else:
        _check(w1.dim() == 2, f"w1: expected shape [F, {width}], got {list(w1.shape)}")
        hidden = w1.shape[0]
        _shape("w1", w1, (hidden, width))
        _shape("w3", w3, (hidden, width))
        _shape("w2", w2, (width, hidden))
        base = [w1, w2, w3]
    if shared is not None:
        _check_low_rank("shared", shared, width, hidden, ())
    if experts is not None:
        _check_low_rank("experts", experts, width, hidden, (experts.a1.shape[0],))
    gates = _routing(x, gates, expert_ids)
    if experts is None and expert_ids.shape[1] != 1:  # all choices are the same network: one choice, the gates' sum
        gates, expert_ids = gates.sum(1, keepdim=True), expert_ids[:, :1]
    if packed[0]:
        (x,) = _autocast(x)
        _check_int4_input(x)
    else:
        x, *base = _autocast(x, *base)
        _same_kind(x, w1=base[0], w2=base[1], w3=base[2])
    low, high = (
        [t.to(x.dtype) if torch.is_autocast_enabled(x.device.type) else t for t in lr or ()] for lr in (shared, experts)
    )
    _same_kind(x, **{f"shared.{n}": t for n, t in zip(LowRank._fields, low)})
    _same_kind(x, **{f"experts.{n}": t for n, t in zip(LowRank._fields, high)})
    save = _wants_grad(x, gates, *(() if packed[0] else base), *low, *high)
    if not save and not packed[0] and _decodes_on_cpu(x):
        pairs = (LowRank(*low) if low else None, LowRank(*high) if high else None)
        return delta_experts_decode(x, *base, *pairs, gates, expert_ids, float(scale), float(shared_scale))
    return library.delta_experts(x, base, low, high, gates, expert_ids, float(scale), float(shared_scale), save)[0]
