"""The decoder: embeddings, blocks of attention and feed-forward, a final norm and the output projection."""

# B batch, S sequence, T = B*S tokens, D model dim, C head dim, V vocabulary

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import ops
from kernels.packed import Int4Weights, PackedWeights
from moe.cache import KVCache, Prompts, Step
from moe.config import ModelConfig
from moe.experts import LowRankDelta, MoEAttention, MoEFeedForward
from moe.layers import Attention, AttentionPattern, FeedForward, Linear, RMSNorm, Shares, make_pattern
from moe.rope import rope_angles
from moe.router import RouterContext, Routing, force_experts

Observer = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class ModelOutput:
    """Result of a forward pass.

    Attributes:
        hidden: [B, S, D] final hidden states, after the last norm.
        logits: [B, S, V], or None if not requested.
        routing: one :class:`Routing` for each sparse layer, in order (the first one's where it decides for all);
            empty for a dense model.
    """

    hidden: Tensor
    logits: Tensor | None
    routing: list[Routing] = field(default_factory=list)


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residual connections."""

    def __init__(self, config: ModelConfig, sparse: bool, has_router: bool = True):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = (MoEAttention if sparse and config.attention_experts else Attention)(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = MoEFeedForward(config, has_router) if sparse else FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pattern: AttentionPattern,
        cache: Step | Prompts | None,
        layer: int,
        decided: Routing | None,
        context: RouterContext | None,
        slot: int,
        observer: Observer | None,
        expert_bias: Tensor | None,
    ) -> tuple[Tensor, Routing | None]:
        read = self.attention_norm(x)
        shares: Shares | None = None
        if isinstance(self.attention, MoEAttention) and isinstance(self.feed_forward, MoEFeedForward):
            if decided is None:  # one decision for both parts
                decided = self.feed_forward.route(read.flatten(0, 1), context, slot, expert_bias)
            shares = self.attention.shares(decided)
        x = x + self.attention(read, cos, sin, pattern, cache, layer, shares or ())
        normed = self.ffn_norm(x)
        if observer is not None:
            observer(layer, normed if shares is None else read)
        if isinstance(self.feed_forward, FeedForward):
            return x + self.feed_forward(normed), None
        tokens = normed.reshape(-1, normed.shape[-1])  # [T, D]
        out, routing = self.feed_forward(tokens, decided, context, slot, expert_bias)
        return x + out.view_as(x), routing


class Transformer(nn.Module):
    """A Mistral-family decoder, dense or sparse, as :class:`ModelConfig` says.

    Weights are uninitialized until :meth:`reset` or a checkpoint fills them, so a model can be created on the meta
    device and filled shard by shard.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        # nn.Embedding would draw values, for which the meta device imports torch's compiler: two seconds
        self.tok_embeddings = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, config.dim), freeze=False)
        sparse, routers = config.sparse_layers, config.router_places
        self.layers = nn.ModuleList(Block(config, i in sparse, i in routers) for i in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)
        self.rope_table: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def reset(self, seed: int = 0, std: float = 0.02) -> Transformer:
        """Initializes all weights and returns the model.

        Matrices are normal with standard deviation ``std``, norms 1; low-rank deltas start as no change.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, std, generator=generator)
        for module in self.modules():
            if isinstance(module, LowRankDelta):
                module.reset(generator)
        return self

    @property
    def output_weight(self) -> Any:
        """[V, D] weights of the output projection (the embeddings when tied)."""
        return self.tok_embeddings.weight if self.output is None else self.output.weight

    @property
    def device(self) -> torch.device:
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: KVCache | Step | None = None,
        documents: tuple[int, ...] | None = None,
        forced_experts: Tensor | None = None,
        expert_bias: Tensor | None = None,
        observer: Observer | None = None,
        activation_checkpointing: bool = False,
        logits: bool = True,
        last_only: bool = False,
        depth: int | None = None,
    ) -> ModelOutput:
        """Runs the model.

        Args:
            tokens: [B, S] int64.
            cache: keys and values of earlier tokens; these tokens are added to it. With ``documents`` each of these
                becomes a new row of it. A pass over a cache (:meth:`KVCache.step`) leaves it to the caller to end it.
            documents: lengths of documents packed in one row (B = 1): each has its own positions and sees only itself.
            forced_experts: [T] int64, the expert of each token with gate 1, in the place of the router.
            expert_bias: [T, E], added to what each token's router decides by; -inf excludes an expert.
            observer: called with (layer, [B, S, D]) for what each router reads: what enters the feed-forward, or with
                experts in attention what enters that.
            activation_checkpointing: keep only each layer's input for the backward pass and recompute the rest.
            depth: run only the first ``depth`` layers.
            logits: whether to compute logits; ``last_only``: of the last position alone, [B, 1, V], or of each
                document's, [1, N, V].
        """
        batch, length = tokens.shape
        if documents is not None and batch != 1:
            raise ValueError("packed documents need a batch of one row")
        step: Step | Prompts | None
        if isinstance(cache, KVCache):
            step = cache.step(batch, length) if documents is None else cache.prompts(documents)
        else:
            step = cache
        if isinstance(step, Step):
            positions = step.positions
            patterns = {window: AttentionPattern(mask=mask) for window, mask in step.masks.items()}
        else:
            positions = _positions(length, documents, tokens.device)
            windows = self.config.windows
            patterns = {window: make_pattern(length, window, documents, tokens.device) for window in windows}
        table: Any = self.tok_embeddings.weight
        packed = isinstance(table, PackedWeights)
        x = table.rows(tokens, self.dtype) if packed else self.tok_embeddings(tokens)  # [B, S, D]
        cos, sin = self.rotary(positions, x.dtype, step)  # [B or 1, 1, S, C]
        context = None
        if self.config.router_context != "none" and forced_experts is None:
            context = RouterContext(self.config, (batch, length), tokens.device, documents, step)
        forced = None if forced_experts is None or not self.config.is_moe else force_experts(forced_experts)
        routing: list[Routing] = []
        for index, block in enumerate(self.layers[:depth]):
            earlier = routing[0] if routing and self.config.router_layers == "first" else None
            pattern = patterns[self.config.window(index)]
            before = (step, index, forced or earlier, context, len(routing), observer, expert_bias)
            if activation_checkpointing and torch.is_grad_enabled():
                x, decided = checkpoint(block, x, cos, sin, pattern, *before, use_reentrant=False)
            else:
                x, decided = block(x, cos, sin, pattern, *before)
            if decided is not None:
                routing.append(decided)
        if isinstance(cache, KVCache) and step is not None:
            step.advance()
        if last_only:
            x = x[:, -1:] if documents is None else x[:, _last_positions(documents, x.device)]
        hidden = self.norm(x)  # [B, S or 1, D]
        return ModelOutput(hidden, ops.linear(hidden, self.output_weight) if logits else None, routing)

    def rotary(self, positions: Tensor, dtype: torch.dtype, step: Step | Prompts | None) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B or 1, 1, S, C]; a step of generation looks them up, as computing them takes ten calls."""
        scaling = self.config.rope_scaling
        if not isinstance(step, Step) or (scaling is not None and scaling.kind == "dynamic"):
            return rotary(self.config, positions, dtype)
        cos, sin = (part[positions][:, None] for part in self.angles(step.cache.max_len, dtype, positions.device))
        return cos, sin

    def angles(self, longest: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """A table of cosine and sine, each [``longest`` or more, C], which the model keeps."""
        table = self.rope_table
        if table is None or len(table[0]) < longest or table[0].dtype != dtype or table[0].device != device:
            cos, sin = rotary(self.config, torch.arange(longest, device=device)[None], dtype)
            self.rope_table = table = cos[0, 0], sin[0, 0]
        return table


def rotary(config: ModelConfig, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [B, 1, S, C] of a model's rotary angles for positions [B, S]."""
    scaling, context = config.rope_scaling, config.max_seq_len
    return rope_angles(positions, config.head_dim, config.rope_theta, dtype, scaling, context)


def _positions(length: int, documents: tuple[int, ...] | None, device: torch.device) -> Tensor:
    """[1, S] int64 positions that start at 0 in every document."""
    if documents is None:
        return torch.arange(length, device=device)[None]
    return torch.cat([torch.arange(n, device=device) for n in documents])[None]


def _last_positions(documents: tuple[int, ...], device: torch.device) -> Tensor:
    """[N] the last position of each packed document."""
    return torch.tensor(documents, device=device).cumsum(0) - 1


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once, and of the weights that packed ones stand for."""
    packed = (part for part in model.modules() if isinstance(part, PackedWeights | Int4Weights))
    return sum(p.numel() for p in model.parameters()) + sum(math.prod(part.shape) for part in packed)
