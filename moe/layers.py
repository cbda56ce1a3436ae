"""The dense parts of a Mistral-family decoder: RMSNorm, grouped-query attention, SwiGLU.

Rounding follows the released models' reference code (norms in float32), so logits agree with other
implementations to the last bits.
"""

# B batch, S sequence, D model dim, F hidden dim, H query heads, G key/value heads, C head dim, L keys

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import ops
from kernels.packed import Int4Weights
from moe.cache import Prompts, Step
from moe.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019), computed in float32 at least, cast back before the weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """:class:`RMSNorm` of x [..., D] with its weight [D]."""
    fused = x.is_cuda and x.dtype.itemsize <= 4  # there also forward and backward are one kernel each
    if fused or not torch.is_grad_enabled():  # the same in fewer calls
        if x.dtype.itemsize >= 4:
            return F.rms_norm(x, weight.shape, weight, eps)
        if x.is_cuda:  # one kernel, in float32 inside
            return weight * F.rms_norm(x, weight.shape, None, eps)
        return weight * F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


@dataclass(frozen=True)
class AttentionPattern:
    """Which keys each query may see.

    Attributes:
        window: a query sees itself and the ``window - 1`` tokens before it; None: all tokens before it.
        documents: lengths of the documents packed one after another in a batch of one row; none sees another.
        bounds: on a GPU [documents + 1] int32, where in the row each document starts and the last one ends.
        mask: [B or 1, 1, S, L] bool, True where a query may look, or numbers added to the scores; replaces the causal
            rule. Made once a forward pass.
    """

    window: int | None = None
    documents: tuple[int, ...] | None = None
    bounds: Tensor | None = None
    mask: Tensor | None = None


def make_pattern(
    length: int, window: int | None, documents: tuple[int, ...] | None, device: torch.device
) -> AttentionPattern:
    """Decides how a whole sequence of ``length`` tokens attends to itself."""
    if documents is not None:
        if sum(documents) != length:
            raise ValueError(f"documents hold {sum(documents)} tokens, the sequence has {length}")
        if device.type != "cuda":
            return AttentionPattern(window, documents)
        bounds = torch.tensor([0, *itertools.accumulate(documents)], dtype=torch.int32).pin_memory()
        return AttentionPattern(window, documents, bounds.to(device, non_blocking=True))  # the host need not wait
    if window is not None and length > window:
        return AttentionPattern(mask=banded_mask(length, window, device)[None, None])
    return AttentionPattern()


def banded_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """[S, S] bool: causal, and no further back than ``window`` tokens (the token itself included)."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: AttentionPattern) -> Tensor:
    """Scaled dot-product attention with grouped queries: q [B, H, S, C], k and v [B, G, L, C] -> [B, H, S, C].

    Packed documents take one call of FlashAttention where there is a kernel for them, else one call each: neither does
    work for pairs of tokens that cannot see each other.
    """
    if pattern.documents is not None:
        if pattern.bounds is not None and has_flash_attention(q):
            return attend_packed(q, k, v, pattern.bounds, max(pattern.documents), pattern.window)
        parts = []
        for queries, keys, values in zip(*(x.split(pattern.documents, dim=2) for x in (q, k, v)), strict=True):
            own = make_pattern(queries.shape[2], pattern.window, None, q.device)
            parts.append(attend(queries, keys, values, own))
        return torch.cat(parts, dim=2)
    if q.dtype != k.dtype:  # a cache may be wider than the model
        return attend(q.to(k.dtype), k, v, pattern).to(q.dtype)
    shape, share, single = q.shape, q.shape[1] // k.shape[1], q.shape[2] == 1
    if single:
        # The heads that share keys become queries of one head, which reads the keys once. A single query at the end
        # sees every key it is given, so it needs no causal mask.
        q, share = q.reshape(shape[0], k.shape[1], -1, shape[3]), 1  # [B, G, H / G, C]
    elif share > 1 and pattern.mask is not None and q.is_cuda:
        # No fused GPU kernel takes a mask together with grouped heads; without one, all scores would be stored.
        k, v, share = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1), 1
    causal = pattern.mask is None and not single
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.mask, is_causal=causal, enable_gqa=share > 1)
    return out.reshape(shape)


def has_flash_attention(q: Tensor) -> bool:
    """Whether FlashAttention has a kernel for these queries (:func:`fits_flash_attention`) here: sm_80 or later."""
    return fits_flash_attention(q) and q.is_cuda and torch.cuda.get_device_capability(q.device) >= (8, 0)


def fits_flash_attention(q: Tensor) -> bool:
    """Whether queries are what FlashAttention takes: 16-bit, heads of up to 256 values."""
    return q.dtype in (torch.float16, torch.bfloat16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def attend_packed(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int, window: int | None) -> Tensor:
    """Causal attention inside each document of a row: q [1, H, S, C], k and v [1, G, S, C] -> [1, H, S, C]."""
    from torch.nn.attention.varlen import varlen_attn  # importing it takes as long as importing torch

    share = q.shape[1] // k.shape[1]
    if share > 1:  # torch 2.11 takes as many key heads as query heads
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # [S, H, C]
    behind = -1 if window is None else window - 1
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, window_size=(behind, 0))
    assert isinstance(out, Tensor)  # nothing else was asked for
    return out.transpose(0, 1)[None]


class Linear(nn.Linear):
    """``x @ weight.T + bias`` by the routine that is fast on the device: on a CPU that is not always torch's."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False):
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., inputs] -> [..., outputs]."""
        out = ops.linear(x, self.weight)
        return out if self.bias is None else out + self.bias


Shares = Sequence[tuple[int, Any]]  # experts in attention, and how much each adds


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al., 2023) with rotary embeddings and an optional key/value cache."""

    attention = staticmethod(attend)  # which the memory plan replaces by what a GPU does

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.wq = Linear(config.dim, config.n_heads * config.head_dim, config.attention_bias)
        self.wk = Linear(config.dim, config.n_kv_heads * config.head_dim, config.attention_bias)
        self.wv = Linear(config.dim, config.n_kv_heads * config.head_dim, config.attention_bias)
        self.wo = Linear(config.n_heads * config.head_dim, config.dim, config.attention_bias)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pattern: AttentionPattern,
        cache: Step | Prompts | None = None,
        layer: int = 0,
        shares: Shares = (),
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (self.project(name, x, shares).view(batch, length, -1, self.head_dim) for name in "qkv")
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H, S, C], twice [B, G, S, C]
        if length == 1:  # of few values, in few calls
            q, k = ops.rotate(torch.cat((q, k), 1), cos, sin).split((self.n_heads, self.n_kv_heads), 1)
        else:
            q, k = ops.rotate(q, cos, sin), ops.rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.store(layer, k, v)  # [B, G, L, C]
        out = self.attention(q, k, v, pattern)  # [B, H, S, C]
        return self.project("o", out.transpose(1, 2).reshape(batch, length, -1), shares)

    def project(self, name: str, x: Tensor, shares: Shares) -> Tensor:
        """x [B, S, inputs] -> [B, S, outputs] by wq, wk, wv or wo."""
        linear: Linear = getattr(self, f"w{name}")
        return linear(x)


class FeedForward(nn.Module):
    """SwiGLU feed-forward (Shazeer, 2020): ``w2(silu(w1 x) * w3 x)``, w1 the SwiGLU gate projection."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.w1 = Linear(config.dim, config.hidden_dim)
        self.w2 = Linear(config.hidden_dim, config.dim)
        self.w3 = Linear(config.dim, config.hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        weights: list[Any] = [self.w1.weight, self.w2.weight, self.w3.weight]
        if isinstance(weights[0], Int4Weights):  # one expert that every token visits
            rows = x.reshape(-1, x.shape[-1])
            gates, ids = x.new_ones(len(rows), 1, dtype=torch.float32), rows.new_zeros(len(rows), 1, dtype=torch.int64)
            first, second, third = (w.weight() for w in weights)
            return ops.experts_forward(rows, first, second, third, gates, ids).view(x.shape)
        hidden = F.silu(self.w1(x)) * self.w3(x)  # [..., F]
        return self.w2(hidden)
