"""The CPU path of full experts: sorted rows, contiguous slices, no copy of any weight.

`experts_fwd` and `experts_bwd` are plain functions; `kernels.custom_ops` wraps them for autograd. A forward saves only
what takes a matrix product to recompute: of the tensors of shape [R, F], the two pre-activations.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K rows sorted by expert

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.cpu.decode import HAS_AMX, has_avx512, matvec, row_blocks
from kernels.dispatch import sort_by_expert
from kernels.packed import Packed, PackedWeights
from kernels.types import ExpertDispatch, Gradients, Needs, Saved, accumulation_dtype

FEW_ROWS = 32  # from 33 on AMX splits long rows, and the bits depend on the number of rows
SMALL = 4096  # numbers; whether oneDNN multiplies a smaller weight depends, in torch, on the number of rows
ROWS_AT_ONCE = 2048  # of an expert, where nothing is kept: activations of more only take memory


class Window(NamedTuple):
    """An expert's rows ``start:end`` and the rows around them, ``first:last``, that its products are computed on.

    oneDNN generates code for every new row count, which takes longer than a small product itself, and routing gives
    new counts in every layer of every step. So a product covers a few rows more, such that at most 16 counts an octave
    occur; the results of those rows are cut off (`own`) or zeroed (`only_own`). An infinite row also makes its
    neighbors' weight gradients NaN; outputs are not affected.
    """

    expert: int
    start: int
    end: int
    first: int
    last: int

    def rows(self, x: Tensor) -> Tensor:
        """The window's rows of x [R, ...]."""
        return x[self.first : self.last]

    def own(self, x: Tensor) -> Tensor:
        """The expert's rows of a product over the window."""
        return x[self.start - self.first : self.end - self.first]

    def only_own(self, x: Tensor) -> Tensor:
        """A product over the window with zeros outside of the expert's rows; in place."""
        x[: self.start - self.first] = 0
        x[self.end - self.first :] = 0
        return x


def windows(offsets: Tensor, rows: int, most: int | None = None) -> list[Window]:
    """The window of each expert that has rows, from offsets [E + 1] that span the rows; several of ``most`` rows."""
    found = []
    for e, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
        for start in range(begin, end, most or max(1, end - begin)):
            stop = min(end, start + most) if most else end
            size = stop - start
            step = max(8, (1 << (size.bit_length() - 1)) // 16)
            size = -(-size // step) * step
            if size > rows:  # few rows have few counts: the run alone
                found.append(Window(e, start, stop, start, stop))
            else:
                first = min(start, rows - size)
                found.append(Window(e, start, stop, first, first + size))
    return found


@functools.cache
def has_onednn_linear() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, w: Tensor | Packed) -> Tensor:
    """``x @ w.T`` for x [M, D], w [N, D], either of them with any strides.

    In float32 torch uses MKL, whose kernels for few rows run on one thread and, on AMD processors, without AVX-512.
    oneDNN, which torch ships too, is up to twice as fast there and was never slower in our measurements. On processors
    with AVX2 alone that holds for contiguous weights; with transposed ones oneDNN takes up to twice as long as MKL.
    A single row goes to `matvec`, and a few bfloat16 rows to a product that has the weight first: AMX then reads it as
    it lies, at the memory's speed, and gives each row the bits that it has alone, whatever the others.
    """
    if isinstance(w, Packed):
        return w.product(x)
    if 0 < x.shape[0] <= FEW_ROWS and x.dtype == torch.bfloat16 and HAS_AMX and w.stride(-1) == 1:
        if w.numel() <= SMALL:
            return torch.stack([torch.mv(w, row) for row in x])
        if x.shape[0] > 1:
            return torch.mm(w, x.t()).t().contiguous()
    if x.shape[0] == 1 and x.device.type == "cpu" and x.dtype != torch.float64 and row_blocks(w):
        return matvec(x, w)
    fast = x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[0] > 0 and has_onednn_linear()
    if fast and (has_avx512() or w.is_contiguous()):
        return torch.ops.mkldnn._linear_pointwise(x, w, None, "none", [], "")
    return F.linear(x, w)


def part_linear(x: Tensor, w: Tensor | Packed) -> Tensor:
    """`linear` for some rows of a larger batch, with the bits that they have in the product of the whole batch.

    oneDNN rounds a single row differently from each row of two or more, so a single row is doubled.
    """
    return linear(x, w) if x.shape[0] != 1 or x.dtype == torch.float64 else linear(torch.cat((x, x)), w)[:1]


def zero_unused(stacked: Tensor, used: set[int]) -> None:
    """Zeros for experts without rows; all others are fully written by their products."""
    for e in range(stacked.shape[0]):
        if e not in used:
            stacked[e].zero_()


def token_of_row(dispatch: ExpertDispatch, top_k: int) -> Tensor:
    return dispatch.order if top_k == 1 else torch.div(dispatch.order, top_k, rounding_mode="floor")  # [R]


def sum_rows(rows: Tensor, dispatch: ExpertDispatch, top_k: int, weights: Tensor | None = None) -> Tensor:
    """Sum over a token's rows, ``sum_j weights[t, j] * rows[inverse[t, j]]``, in float32 (float64 for float64).

    With weights it is computed as ``s a_0 + sum_j w_j (a_j - a_0)``, s the weights' sum: where all rows of a token are
    equal and s is 1, the result is that row to the last bit, so experts that are copies equal the dense network.
    """
    acc = accumulation_dtype(rows.dtype)
    slots = dispatch.inverse.view(-1, top_k)  # [T, K]
    first = rows.index_select(0, slots[:, 0]).to(acc)  # [T, ...]
    if weights is None:
        for j in range(1, top_k):
            first.add_(rows.index_select(0, slots[:, j]))
        return first.to(rows.dtype)
    total = first * (weights[:, :1] + weights[:, 1:].sum(1, keepdim=True))
    for j in range(1, top_k):
        total.addcmul_(rows.index_select(0, slots[:, j]).to(acc).sub_(first), weights[:, j : j + 1])
    return total.to(rows.dtype)


def swiglu_backward(
    da: Tensor, h1: Tensor, h3: Tensor, silu: Tensor, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of ``silu(h1) * h3``; ``da`` and ``silu`` (= silu(h1)) are overwritten, the first goes to ``out``."""
    dh3 = silu.mul_(da)
    dh1 = torch.empty_like(da) if out is None else out
    torch.ops.aten.silu_backward.grad_input(da.mul_(h3), h1, grad_input=dh1)
    return dh1, dh3


def row_dots(a: Tensor, b: Tensor, dtype: torch.dtype, in_place: bool = False) -> Tensor:
    """``<a[r], b[r]>`` of each row, in ``dtype``: a product and a sum, which take a third of the time of batched dots.

    ``in_place`` overwrites ``a``.
    """
    a, b = a.to(dtype), b.to(dtype)
    return (a.mul_(b) if in_place else a * b).sum(1)  # [R]


def experts_fwd(
    x: Tensor,
    w1: Tensor | PackedWeights,
    w2: Tensor | PackedWeights,
    w3: Tensor | PackedWeights,
    gates: Tensor,
    expert_ids: Tensor,
    *,
    save: bool = True,
) -> tuple[Tensor, Saved]:
    """Output [T, D] and what the backward needs, which is empty without ``save``."""
    top_k = expert_ids.shape[1]
    dispatch = sort_by_expert(expert_ids, w1.shape[0])
    xs = x.index_select(0, token_of_row(dispatch, top_k))  # [R, D]
    h1 = x.new_empty(xs.shape[0] if save else 0, w1.shape[1])  # [R, F]
    h3 = torch.empty_like(h1)
    y = torch.empty_like(xs)  # [R, D]
    product = linear if x.shape[0] == 1 else part_linear
    for run in windows(dispatch.offsets, xs.shape[0], None if save else ROWS_AT_ONCE):
        e, own = run.expert, slice(run.start, run.end)
        gate, up = product(run.rows(xs), w1[e]), product(run.rows(xs), w3[e])  # [rows, F]
        if save:
            h1[own], h3[own] = run.own(gate), run.own(up)
        y[own] = run.own(product(F.silu(gate, inplace=True).mul_(up), w2[e]))
    return sum_rows(y, dispatch, top_k, gates), Saved(h1, h3, dispatch)


def experts_bwd(
    dout: Tensor, x: Tensor, w1: Tensor, w2: Tensor, w3: Tensor, gates: Tensor, saved: Saved, needs: Needs
) -> Gradients:
    """Every wanted gradient.

    The gate's gradient is ``<a, dout @ w2>``, so neither the experts' outputs nor their weighted copy are kept.
    """
    h1, h3, dispatch = saved
    top_k = gates.shape[1]
    token = token_of_row(dispatch, top_k)
    gate = gates.reshape(-1).index_select(0, dispatch.order).to(x.dtype).unsqueeze(1)  # [R, 1]
    dy = dout.index_select(0, token)  # [R, D], not yet gated
    xs = x.index_select(0, token) if needs.w1 or needs.w3 else None
    dxs = torch.empty_like(dy) if needs.x else None
    dw1, dw2, dw3 = (
        torch.empty_like(w) if need else None for w, need in ((w1, needs.w1), (w2, needs.w2), (w3, needs.w3))
    )
    dgate = gates.new_empty(dy.shape[0]) if needs.gates else None
    runs = windows(dispatch.offsets, dy.shape[0])
    for dw in (dw1, dw2, dw3):
        if dw is not None:
            zero_unused(dw, {run.expert for run in runs})
    longest = max((run.last - run.first for run in runs), default=0)
    silus, acts = (h1.new_empty(longest, h1.shape[1]) for _ in range(2))  # the same memory for every expert
    for run in runs:
        e, own, rows = run.expert, slice(run.start, run.end), run.last - run.first
        g, silu, act = run.rows(gate), silus[:rows], acts[:rows]
        da = linear(run.rows(dy), w2[e].t())  # [rows, F], not yet gated
        torch.ops.aten.silu.out(run.rows(h1), out=silu)
        if dgate is not None or dw2 is not None:
            torch.mul(silu, run.rows(h3), out=act)
        if dw2 is not None:
            torch.mm((dy[own] * gate[own]).t(), run.own(act), out=dw2[e])
        if dgate is not None:
            dgate[own] = run.own(row_dots(act, da, gates.dtype, in_place=True))
        dh1, dh3 = swiglu_backward(da.mul_(g), run.rows(h1), run.rows(h3), silu, out=act)
        if dxs is not None:
            dxs[own] = run.own(linear(dh1, w1[e].t()).add_(linear(dh3, w3[e].t())))
        for dw, dh in ((dw1, dh1), (dw3, dh3)):
            if dw is not None and xs is not None:
                torch.mm(run.own(dh).t(), xs[own], out=dw[e])
        del da
    dx = sum_rows(dxs, dispatch, top_k) if dxs is not None else None
    dgates = dgate.index_select(0, dispatch.inverse).view_as(gates) if dgate is not None else None
    return Gradients(dx, dw1, dw2, dw3, dgates)
