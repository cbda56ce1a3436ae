"""Feed-forwards made of experts, in two forms behind one router, and attention with experts in its projections.

``full``: independent copies (the Mixtral form). ``delta``: one shared frozen feed-forward, one low-rank delta shared
by all languages and one per expert; since ``sum_e g_e W2 a_e = W2 sum_e g_e a_e``, the base matrices are multiplied
once per token however many experts a token visits.
"""

# T = B*S tokens, D model dim, F hidden dim, E experts, K top-k, r rank

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import ops
from kernels.packed import Int4Weights
from moe.config import ModelConfig
from moe.layers import Attention, FeedForward, Shares
from moe.router import RouterContext, Routing, select_top_k


class Experts(nn.Module):
    """Stacked weights of E independent SwiGLU feed-forwards: w1 and w3 [E, F, D], w2 [E, D, F]."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        experts, dim, hidden = config.num_experts, config.dim, config.hidden_dim
        self.w1 = nn.Parameter(torch.empty(experts, hidden, dim))
        self.w2 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.w3 = nn.Parameter(torch.empty(experts, hidden, dim))

    def forward(self, x: Tensor, gates: Tensor, expert_ids: Tensor) -> Tensor:
        """x [T, D], gates [T, K], expert_ids [T, K] -> [T, D], each token's experts weighted by their gates."""
        w1, w2, w3 = operands(self.w1, self.w2, self.w3)
        return ops.experts_forward(x, w1, w2, w3, gates, expert_ids)


class LowRankDelta(nn.Module):
    """Low-rank changes ``B A`` of some matrices (Hu et al., 2021); with ``experts`` one of each per expert.

    B starts at zero, so that the model starts as its base; A as a Kaiming-uniform linear layer.

    Args:
        sizes: inputs and outputs of each matrix by its short name n; its factors are ``an`` [r, in] and ``bn`` [out, r]
            (a1, b1 and so on), with a leading E for experts.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], rank: int, experts: int | None = None):
        super().__init__()
        lead = () if experts is None else (experts,)
        self.names = tuple(sizes)
        for name, (inputs, outputs) in sizes.items():
            self.register_parameter(f"a{name}", nn.Parameter(torch.empty(*lead, rank, inputs)))
            self.register_parameter(f"b{name}", nn.Parameter(torch.empty(*lead, outputs, rank)))

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None) -> None:
        """Draws A from U(-1/sqrt(in), 1/sqrt(in)) and sets B to zero."""
        for a, b in map(self.pair, self.names):
            draw_low_rank(a, generator)
            b.zero_()

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """A and B of one matrix; training may keep them wider than the base."""
        return getattr(self, f"a{name}"), getattr(self, f"b{name}")

    def weights(self) -> ops.LowRank:
        """The six factors of a feed-forward."""
        return ops.LowRank(*self.pair("1"), *self.pair("2"), *self.pair("3"))


def low_rank_deltas(config: ModelConfig, part: str) -> dict[str, LowRankDelta]:
    """The delta that all languages share and those of the experts, as far as a sparse layer's part has them."""
    sizes, found = {name: config.matrix_sizes[name] for name in config.delta_names[part]}, {}
    if config.shared_rank:
        found["shared_delta"] = LowRankDelta(sizes, config.shared_rank)
    if config.is_moe:
        found["expert_deltas"] = LowRankDelta(sizes, config.expert_rank, config.num_experts)
    return found


def widen_trainable(model: nn.Module) -> None:
    """Keeps low-rank deltas and routers in float32 (optimizers round small steps away in bfloat16); in place."""
    for module in model.modules():
        if isinstance(module, LowRankDelta):
            module.float()
        elif isinstance(module, MoEFeedForward) and module.gate is not None:
            module.gate.float()


def draw_low_rank(a: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fills A [..., r, in] in place from U(-1/sqrt(in), 1/sqrt(in)), as a Kaiming-uniform linear layer starts."""
    bound = 1.0 / math.sqrt(a.shape[-1])
    return a.uniform_(-bound, bound, generator=generator)


def operands(*weights: Any) -> list[Any]:
    """Weights as :mod:`kernels.ops` takes them."""
    return [weight.weight() if isinstance(weight, Int4Weights) else weight for weight in weights]


class MoEFeedForward(nn.Module):
    """A router and its experts in place of a dense feed-forward; without experts, a dense one with an adapter.

    The layer in plain torch, for tokens x [T, D] that visit K of E experts (`kernels.ops` computes it faster)::

        gates, expert_ids = select_top_k(gate(x), K)  # [T, K]; a token's gates sum to 1
        out = torch.zeros_like(x)  # [T, D]
        for e in range(E):
            token, choice = torch.where(expert_ids == e)
            rows = x[token]
            hidden = F.silu(rows @ w1[e].T) * (rows @ w3[e].T)  # [rows, F]
            out[token] += gates[token, choice, None] * (hidden @ w2[e].T)

    ``full``: every expert e owns w1, w2, w3 [e]. ``delta``: each of them is ``W + delta_scale * (B0 A0 + B_e A_e)``,
    with W frozen and shared. An adapter is the delta form without experts: ``W + delta_scale * B0 A0``, gate 1.
    """

    def __init__(self, config: ModelConfig, has_router: bool = True):
        super().__init__()
        self.top_k, self.delta_scale = config.num_experts_per_tok, config.delta_scale
        self.gate: nn.Linear | None = None
        self.experts: Experts | None = None
        self.base: FeedForward | None = None
        self.shared_delta: LowRankDelta | None = None
        self.expert_deltas: LowRankDelta | None = None
        if config.is_moe and has_router:
            self.gate = nn.Linear(config.dim, config.num_experts, bias=False)
        if not config.is_delta:
            self.experts = Experts(config)
            return
        self.base = FeedForward(config)
        for name, deltas in low_rank_deltas(config, "feed_forward").items():
            setattr(self, name, deltas)

    def route(
        self, x: Tensor, context: RouterContext | None = None, slot: int = 0, bias: Tensor | None = None
    ) -> Routing | None:
        """Chooses the experts of the tokens x [T, D]; None without a router (a dense adapter).

        ``bias`` [T, E] is added to the logits that decide; -inf excludes an expert, whose gate is then 0.
        """
        if self.gate is None:
            return None
        x = x.to(self.gate.weight.dtype)
        # [T, E]; without gradients by the product that gives a row the same bits whatever the others
        router_logits = self.gate(x) if torch.is_grad_enabled() else ops.linear(x, self.gate.weight)
        if context is not None:
            router_logits = context.decide(router_logits, slot)
        if bias is not None:
            router_logits = router_logits + bias.to(router_logits.dtype)
        return Routing(router_logits, *select_top_k(router_logits, self.top_k))

    def forward(
        self,
        x: Tensor,
        decided: Routing | None = None,
        context: RouterContext | None = None,
        slot: int = 0,
        bias: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        """x [T, D] -> [T, D] and the router's decision: ``decided`` where given (forced, or an earlier layer's)."""
        routing = self.route(x, context, slot, bias) if decided is None else decided
        if self.experts is not None:
            assert routing is not None, "full experts have a router"
            return self.experts(x, routing.gates, routing.expert_ids), routing
        if routing is None:  # every token on one expert that has no delta of its own
            gates = torch.ones(x.shape[0], 1, dtype=torch.float32, device=x.device)
            expert_ids = torch.zeros(x.shape[0], 1, dtype=torch.int64, device=x.device)
        else:
            gates, expert_ids = routing.gates, routing.expert_ids
        assert self.base is not None, "deltas change a base"
        w1, w2, w3 = operands(self.base.w1.weight, self.base.w2.weight, self.base.w3.weight)
        out = ops.delta_experts_forward(
            x,
            w1,
            w2,
            w3,
            self.shared_delta.weights() if self.shared_delta is not None else None,
            self.expert_deltas.weights() if self.expert_deltas is not None else None,
            gates,
            expert_ids,
            scale=self.delta_scale,
            shared_scale=self.delta_scale,
        )
        return out, routing


class MoEAttention(Attention):
    """Attention whose projections change with each token's experts: ``W x + s (B0 A0 x + sum_e g_e B_e A_e x)``.

    The gates are those of the block's feed-forward. A token's keys and values are its own experts', so a cache holds
    what a pass over the whole text computes. Every expert's product is computed for every token, with gate 0 where it
    is not visited: it is small beside the projection, and one after the other they give the same bits however many
    other experts there are.
    """

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.names, self.num_experts = config.attention_experts, config.num_experts
        self.delta_scale = config.delta_scale
        self.shared_delta: LowRankDelta | None = None
        self.expert_deltas: LowRankDelta | None = None
        for name, deltas in low_rank_deltas(config, "attention").items():
            setattr(self, name, deltas)

    def shares(self, routing: Routing | None) -> Shares:
        """Each expert and what its product is multiplied by for each token [T, 1]; none without a router."""
        if routing is None:
            return ()
        gates = routing.gates.new_zeros(len(routing.gates), self.num_experts)
        gates = self.delta_scale * gates.scatter_add(1, routing.expert_ids, routing.gates)  # [T, E]
        return list(enumerate(gates.split(1, 1)))

    def project(self, name: str, x: Tensor, shares: Shares) -> Tensor:
        y = super().project(name, x, shares)
        return self.add(name, y.flatten(0, 1), x.flatten(0, 1), shares).view_as(y)

    def add(self, name: str, y: Tensor, x: Tensor, shares: Shares) -> Tensor:
        """What the deltas of a projection make of its result: x [T, inputs], y [T, outputs] -> [T, outputs]."""
        if name not in self.names:
            return y
        if self.shared_delta is not None:
            a, b = (factor.to(x.dtype) for factor in self.shared_delta.pair(name))
            y = y + self.delta_scale * F.linear(F.linear(x, a), b)
        if self.expert_deltas is None:
            return y
        down, up = (factor.to(x.dtype).unbind() for factor in self.expert_deltas.pair(name))  # E [r, in], E [out, r]
        for expert, share in shares:
            hidden = F.linear(x, down[expert]) * share  # [T, r]
            y = y + F.linear(hidden.to(x.dtype), up[expert])
        return y
