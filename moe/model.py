"""The decoder: embeddings, blocks of attention and feed-forward, a final norm and the output projection."""

# B batch, S sequence, T = B*S tokens, D model dim, C head dim, V vocabulary

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels import ops
from moe.cache import KVCache
from moe.config import ModelConfig
from moe.experts import LowRankDelta, MoEFeedForward
from moe.layers import Attention, AttentionPattern, FeedForward, Linear, RMSNorm, make_pattern, rope_angles
from moe.router import Routing

Observer = Callable[[int, Tensor], None]


@dataclass(frozen=True)
class ModelOutput:
    """Result of a forward pass.

    Attributes:
        hidden: [B, S, D] final hidden states, after the last norm.
        logits: [B, S, V], or None if not requested.
        routing: one :class:`Routing` per layer with a router, in order; empty for a dense model.
    """

    hidden: Tensor
    logits: Tensor | None
    routing: list[Routing] = field(default_factory=list)


class Block(nn.Module):
    """Pre-norm attention and feed-forward with residual connections."""

    def __init__(self, config: ModelConfig, sparse: bool):
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward: nn.Module = MoEFeedForward(config) if sparse else FeedForward(config)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        pattern: AttentionPattern,
        cache: KVCache | None,
        layer: int,
        forced_experts: Tensor | None,
        observer: Observer | None,
    ) -> tuple[Tensor, Routing | None]:
        x = x + self.attention(self.attention_norm(x), cos, sin, pattern, cache, layer)
        normed = self.ffn_norm(x)
        if observer is not None:
            observer(layer, normed)
        if isinstance(self.feed_forward, FeedForward):
            return x + self.feed_forward(normed), None
        tokens = normed.reshape(-1, normed.shape[-1])  # [T, D]
        out, routing = self.feed_forward(tokens, forced_experts)
        return x + out.view_as(x), routing


class Transformer(nn.Module):
    """A Mistral-family decoder, dense or sparse, as :class:`ModelConfig` says.

    Weights are uninitialized until :meth:`reset` or a checkpoint fills them, so a model can be created on the meta
    device and filled shard by shard.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config, layer in config.sparse_layers) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = None if config.tie_embeddings else Linear(config.dim, config.vocab_size)

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
    def output_weight(self) -> Tensor:
        """[V, D] weights of the output projection (the embeddings when tied)."""
        return self.tok_embeddings.weight if self.output is None else self.output.weight

    @property
    def device(self) -> torch.device:
        return self.tok_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.tok_embeddings.weight.dtype

    def forward(
        self,
        tokens: Tensor,
        *,
        cache: KVCache | None = None,
        documents: tuple[int, ...] | None = None,
        forced_experts: Tensor | None = None,
        observer: Observer | None = None,
        activation_checkpointing: bool = False,
        logits: bool = True,
        last_only: bool = False,
    ) -> ModelOutput:
        """Runs the model.

        Args:
            tokens: [B, S] int64.
            cache: keys and values of earlier tokens; these tokens are added to it.
            documents: lengths of documents packed in one row (B = 1): each has its own positions and sees only itself.
            forced_experts: [T] int64, the expert of each token with gate 1, in the place of the router.
            observer: called with (layer, [B, S, D]) for what enters each feed-forward.
            activation_checkpointing: keep only each layer's input for the backward pass and recompute the rest.
            logits: whether to compute logits; ``last_only``: of the last position alone, [B, 1, V].
        """
        batch, length = tokens.shape
        if documents is not None and (batch != 1 or cache is not None):
            raise ValueError("packed documents need a batch of one row and no cache")
        if cache is not None:
            positions = cache.positions(length)
            whole = cache.length == 0 and cache.padding is None and not cache.window
            pattern = AttentionPattern() if whole else AttentionPattern(mask=cache.mask(length))
        else:
            positions = _positions(length, documents, tokens.device)
            pattern = make_pattern(length, self.config.sliding_window, documents, tokens.device)
        x = self.tok_embeddings(tokens)  # [B, S, D]
        cos, sin = rope_angles(positions, self.config.head_dim, self.config.rope_theta, x.dtype)  # [B or 1, 1, S, C]
        routing: list[Routing] = []
        for index, block in enumerate(self.layers):
            arguments = (x, cos, sin, pattern, cache, index, forced_experts, observer)
            if activation_checkpointing and torch.is_grad_enabled():
                x, decided = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x, decided = block(*arguments)
            if decided is not None:
                routing.append(decided)
        if cache is not None:
            cache.advance(length)
        hidden = self.norm(x[:, -1:] if last_only else x)  # [B, S or 1, D]
        return ModelOutput(hidden, ops.linear(hidden, self.output_weight) if logits else None, routing)


def _positions(length: int, documents: tuple[int, ...] | None, device: torch.device) -> Tensor:
    """[1, S] int64 positions that start at 0 in every document."""
    if documents is None:
        return torch.arange(length, device=device)[None]
    return torch.cat([torch.arange(n, device=device) for n in documents])[None]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
