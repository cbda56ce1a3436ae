"""Mixtral that routes by document context, for transformers 5: AutoModelForCausalLM.from_pretrained(DIRECTORY,
trust_remote_code=True). A copy of this file lies in every such model's directory.

A token's gate logits are averaged over its document so far, by a plain mean or one that forgets half in
``router_half_life`` tokens. Each row of a batch is a document; ``attention_mask`` [B, L] marks its left padding. Top-k
and experts are Mixtral's. The logits of earlier tokens lie in the key/value cache as further layers, so that beam
search, cropping and batch selection move them along with keys and values.
"""

# B rows, S new tokens, L tokens so far, D hidden size, E experts, K top-k

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, MixtralModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

QUERIES = 512  # positions averaged at once

# Weights are stored as Mixtral's.
register_checkpoint_conversion_mapping("context_mixtral", get_checkpoint_conversion_mapping("mixtral"), overwrite=True)


class ContextMixtralConfig(MixtralConfig):
    """Mixtral's settings, and ``router_context`` (mean, ema or none), ``router_half_life``, ``router_layers`` (each,
    first) and ``moe_layers`` (None: all)."""

    model_type = "context_mixtral"


class Document:
    """What the routers of one forward pass know about the tokens before theirs."""

    def __init__(self, config: Any, mask: Tensor | None, cache: Cache | None):
        self.decay = {"none": 0.0, "mean": 1.0}.get(config.router_context, 0.5 ** (1.0 / config.router_half_life))
        self.mask, self.cache, self.layers = mask, cache, config.num_hidden_layers
        self.decision: tuple[Tensor, Tensor, Tensor] | None = None  # of the first router

    def mean(self, logits: Tensor, slot: int) -> Tensor:
        """logits [B, S, E] -> their means over each row's tokens so far, [B, S, E]; computed in float64."""
        length = logits.shape[1]
        if self.cache is not None:
            while len(self.cache.layers) <= self.layers + slot:
                self.cache.layers.append(DynamicLayer())
            # As keys [B, 1, L, E]; the values have no columns.
            layer: Any = self.cache.layers[self.layers + slot]
            whole = layer.update(logits[:, None], logits[:, None, :, :0])[0][:, 0]  # [B, L, E]
        else:
            whole = logits
        total = whole.shape[1]
        real = whole.new_ones(whole.shape[:2]) if self.mask is None else self.mask[:, -total:].to(whole.device)
        table = torch.cat((whole, real[..., None].to(whole)), -1).double() * real[..., None]  # [B, L, E + 1]
        places = torch.arange(total, device=whole.device)
        means = []
        for rows in places[total - length :].split(QUERIES):
            ages = rows[:, None] - places  # [rows, L]
            weights = torch.full_like(ages, self.decay, dtype=torch.float64) ** ages.clamp_min(0) * (ages >= 0)
            sums = weights @ table  # [B, rows, E + 1]; the last column is the sum of the weights
            means.append(sums[..., :-1] / sums[..., -1:].clamp_min(torch.finfo(torch.float64).tiny))
        return torch.cat(means, 1).to(logits.dtype)


class ContextRouter(MixtralTopKRouter):
    """Mixtral's router on averaged logits."""

    document: Document | None = None
    slot = 0
    batch = 1

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.document is not None, "ContextMixtralModel sets it"
        logits = F.linear(hidden_states.reshape(self.batch, -1, self.hidden_dim), self.weight)  # [B, S, E]
        logits = self.document.mean(logits, self.slot).view(-1, self.num_experts)
        probabilities = torch.softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
        gates, experts = torch.topk(probabilities, self.top_k, dim=-1)  # [B * S, K]
        decision = logits, gates / gates.sum(dim=-1, keepdim=True), experts
        if self.document.decision is None:
            self.document.decision = decision
        return decision


class SameDecision(nn.Module):
    """In place of the routers after the first, where the first decides for all."""

    document: Document | None = None
    batch = 1

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert self.document is not None and self.document.decision is not None, "the first router decides"
        logits, gates, experts = (tensor.to(hidden_states.device) for tensor in self.document.decision)
        return logits, gates, experts


class ContextMixtralModel(MixtralModel):
    """Mixtral's decoder with routers that see the document."""

    config_class = ContextMixtralConfig

    def __init__(self, config: ContextMixtralConfig):
        super().__init__(config)
        sparse = getattr(config, "moe_layers", None)
        sparse = list(range(config.num_hidden_layers)) if sparse is None else sparse
        self.routers: list[Any] = []  # a plain list: the layers own them
        for index in sparse:  # the others hold equal experts behind a router of zeros
            shared = config.router_layers == "first" and index != sparse[0]
            router = SameDecision() if shared else ContextRouter(config)
            if isinstance(router, ContextRouter):
                router.slot = len(self.routers)
            self.layers[index].mlp.gate = router
            self.routers.append(router)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ):
        if attention_mask is not None and (not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2):
            raise ValueError("attention_mask must be [batch, tokens], of 1 and 0: the routers read it, too")
        if attention_mask is None and position_ids is not None and bool((position_ids.diff(dim=-1) != 1).any()):
            raise ValueError("position_ids restart: the routers take each row for one document; pad rows, do not pack")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if past_key_values is not None and not isinstance(past_key_values, DynamicCache):
            raise ValueError(f"the cache is a {type(past_key_values).__name__}; routers with context need DynamicCache")
        given: Any = inputs_embeds if input_ids is None else input_ids
        document = Document(self.config, attention_mask, past_key_values)
        for router in self.routers:
            router.document, router.batch = document, len(given)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class ContextMixtralForCausalLM(MixtralForCausalLM):
    """:class:`ContextMixtralModel` with an output projection."""

    config_class = ContextMixtralConfig

    def __init__(self, config: ContextMixtralConfig):
        super().__init__(config)
        self.model = ContextMixtralModel(config)
        self.post_init()
