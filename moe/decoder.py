""":class:`~moe.model.Transformer` for one token a row of a cache, on a CPU, in as few calls as possible.

A step of a small model is all overhead: a call of torch takes as long as reading tens of kilobytes of weights. So what
can be done once is done when decoding starts: matrices with the same input become one (:mod:`kernels.cpu.stacked`),
experts a list, and no module is called.
"""

# B rows, D model dim, F hidden dim, H query heads, G key/value heads, C head dim, L keys, E experts

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops, packed
from kernels.cpu.decode import HAS_AMX, mix_experts
from kernels.cpu.experts import FEW_ROWS, has_onednn_linear
from kernels.cpu.stacked import DeltaDecoder, Stacked
from kernels.packed import PackedWeights
from moe.cache import Step
from moe.errors import UserError
from moe.experts import MoEAttention, MoEFeedForward
from moe.layers import FeedForward, Shares, rms_norm
from moe.model import ModelOutput, Transformer
from moe.router import RouterContext, Routing


class Decoder:
    """Runs the steps of a model whose weights stay as they are; the weights become views of joined ones.

    Raises ValueError for a model that :meth:`fits` excludes.
    """

    def __init__(self, model: Transformer):
        if not self.fits(model):
            raise ValueError("the decoder runs models of one dtype on a CPU")
        self.model = model
        with torch.inference_mode(False), torch.no_grad():
            self.layers = [_Layer(block, model.config.window(i), i) for i, block in enumerate(model.layers)]
        half = torch.ones(model.config.head_dim // 2)
        self._sign = torch.cat((-half, half)).to(model.dtype)

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Whether the model is one for :class:`Decoder`: routers may be wider than the rest; no shards of a model."""
        scaling = model.config.rope_scaling
        if hasattr(model, "reshard"):  # FSDP: its weights are elsewhere, too
            return False
        for block in model.layers:
            ffn: Any = block.feed_forward
            if isinstance(ffn, MoEFeedForward):
                weight = ffn.experts.w1 if ffn.experts is not None else ffn.base.w1.weight  # type: ignore[union-attr]
                if not isinstance(weight, Tensor | PackedWeights):  # int4 in the order of the GPU's kernels
                    return False
        own = {p.dtype for name, p in model.named_parameters() if not name.endswith("feed_forward.gate.weight")}
        return model.device.type == "cpu" and len(own) == 1 and not (scaling is not None and scaling.kind == "dynamic")

    def __call__(self, tokens: Tensor, step: Step, expert_bias: Tensor | None = None) -> ModelOutput:
        """What ``model(tokens, cache=step, expert_bias=expert_bias)`` gives; tokens [B, 1]."""
        model, config = self.model, self.model.config
        table: Any = model.tok_embeddings.weight
        x = table.rows(tokens, model.dtype) if isinstance(table, PackedWeights) else F.embedding(tokens, table)
        x = x[:, 0]  # [B, D]
        cos, sin = (part[:, :, 0] for part in model.rotary(step.positions, x.dtype, step))  # [B, 1, C]
        sin = sin * self._sign  # of what is added to the other half
        context = None
        if config.router_context != "none":
            context = RouterContext(config, (len(tokens), 1), tokens.device, None, step)
        masks = {window: _added(mask, step.cache.dtype) for window, mask in step.masks.items()}
        routing: list[Routing] = []
        for layer in self.layers:
            decided = routing[0] if routing and config.router_layers == "first" else None
            router = (context, len(routing), expert_bias)
            x, decided = layer.attend(x, cos, sin, step, masks[layer.window], decided, *router)
            x, found = layer.feed(x, decided, *router)
            if found is not None:
                routing.append(found)
        hidden = rms_norm(x, model.norm.weight, model.norm.eps)[:, None]  # [B, 1, D]
        return ModelOutput(hidden, ops.linear(hidden, model.output_weight), routing)


def _added(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask as numbers added to the scores, which attention would make of it in every layer."""
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


class _Layer:
    """The weights of a block, ready to be multiplied."""

    def __init__(self, block: Any, window: int | None, index: int):
        self.window, self.index = window, index
        attention, ffn = block.attention, block.feed_forward
        self.heads, self.groups, self.size = attention.n_heads, attention.n_kv_heads, attention.head_dim
        self.norms = block.attention_norm.weight, block.ffn_norm.weight
        self.eps = block.ffn_norm.eps
        inputs = (attention.wq, attention.wk, attention.wv)
        self.qkv, self.out = Stacked(*(linear.weight for linear in inputs)), Stacked(attention.wo.weight)
        self.qkv_bias = self.out_bias = None
        if attention.wo.bias is not None:
            self.qkv_bias, self.out_bias = torch.cat([linear.bias for linear in inputs]), attention.wo.bias
        self.attention = attention if isinstance(attention, MoEAttention) else None
        self.dense = isinstance(ffn, FeedForward)
        self.ffn: Any = ffn
        self.mix: Any = None  # (x, gates, ids) -> [1, D]
        if isinstance(ffn, FeedForward):
            self.up, self.down = Stacked(ffn.w1.weight, ffn.w3.weight), Stacked(ffn.w2.weight)
        elif isinstance(ffn, MoEFeedForward):
            self.mix = _mixture(ffn)

    def attend(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        step: Step,
        mask: Tensor | None,
        decided: Routing | None,
        *router: Any,
    ) -> tuple[Tensor, Routing | None]:
        """Attention and residual: x [B, D] -> [B, D], and the decision where attention has experts."""
        rows, turning = len(x), self.heads + self.groups
        normed = rms_norm(x, self.norms[0], self.eps)
        heads = self.qkv.product(normed)
        if self.qkv_bias is not None:
            heads = heads + self.qkv_bias
        shares: Shares = ()
        if self.attention is not None:
            decided = self.ffn.route(normed, *router) if decided is None else decided
            shares = self.attention.shares(decided)
            if rows == 1:  # of the experts that the token visits alone
                shares = [(expert, share) for expert, share in shares if share.item()]
            parts = zip("qkv", heads.split([n * self.size for n in (self.heads, self.groups, self.groups)], -1))
            heads = torch.cat([self.attention.add(name, part, normed, shares) for name, part in parts], -1)
        heads = heads.view(rows, -1, self.size)  # [B, H + 2G, C]
        turned = heads[:, :turning]
        turned.copy_((turned * cos).add_(turned.roll(self.size // 2, -1).mul_(sin)))
        keys, values = step.store_both(self.index, heads[:, self.heads :, None])  # [B, G, L, C]
        q = heads[:, : self.heads].reshape(rows, self.groups, -1, self.size).to(keys.dtype)  # [B, G, H / G, C]
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        mixed = out.reshape(rows, -1).to(x.dtype)
        out = self.out.product(mixed)
        out = out if self.out_bias is None else out + self.out_bias
        return x + (out if self.attention is None else self.attention.add("o", out, mixed, shares)), decided

    def feed(
        self, x: Tensor, decided: Routing | None, context: RouterContext | None, slot: int, bias: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        """Feed-forward and residual: x [B, D] -> [B, D], and the router's decision."""
        normed = rms_norm(x, self.norms[1], self.eps)
        if self.dense:
            h = self.up.product(normed)  # [B, 2F]
            gate, value = h.chunk(2, 1)
            return x + self.down.product(F.silu(gate).mul_(value)), None
        if len(x) > 1:
            out, routing = self.ffn(normed, decided, context, slot, bias)
            return x + out, routing
        routing = self.ffn.route(normed, context, slot, bias) if decided is None else decided
        gates, ids = ([1.0], [0]) if routing is None else (routing.gates[0].tolist(), routing.expert_ids[0].tolist())
        return x + self.mix(normed, gates, ids), routing


def _mixture(ffn: MoEFeedForward) -> Any:
    """What multiplies one token by the experts of its choice."""
    if ffn.experts is not None:
        w1, w2, w3 = (list(weight) for weight in (ffn.experts.w1, ffn.experts.w2, ffn.experts.w3))  # E matrices each
        return lambda x, gates, ids: mix_experts(x, w1, w2, w3, gates, ids)
    assert ffn.base is not None, "deltas change a base"
    base: Any = (ffn.base.w1.weight, ffn.base.w2.weight, ffn.base.w3.weight)
    shared, experts = (d if d is None else d.weights() for d in (ffn.shared_delta, ffn.expert_deltas))
    return DeltaDecoder(base, shared, experts, ffn.delta_scale, ffn.top_k)


def most_invariant_rows(model: Transformer, draft: int = 0) -> int:
    """The most rows of a step whose products give each row the bits that it has alone: 32, or 8 with packed weights.

    In float32 that holds from two rows on, and not for delta experts. Raises :class:`UserError` where it does not hold:
    on a GPU, in other dtypes than float32 by oneDNN and bfloat16 by AMX, and with drafts.
    """
    holds = {torch.float32: has_onednn_linear(), torch.bfloat16: HAS_AMX}.get(model.dtype, False)
    if model.device.type != "cpu" or not holds:
        found = f"{str(model.dtype).removeprefix('torch.')} on this {model.device.type}"
        raise UserError(f"batch_invariant: found {found}; expected device cpu and dtype float32, or bfloat16 with AMX")
    if draft:
        raise UserError(f"batch_invariant: a pass over drafts rounds differently; draft is {draft}, expected 0")
    return packed.FEW_ROWS if any(isinstance(part, PackedWeights) for part in model.modules()) else FEW_ROWS
