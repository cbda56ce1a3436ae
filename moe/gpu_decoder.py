""":class:`~moe.model.Transformer` for one token a row of a cache, on a GPU, in few kernels.

Inside a CUDA graph a step is a chain of kernels, and each costs some microseconds however little it does. So queries,
keys and values are one product, and three kernels a layer (:mod:`kernels.gpu.decode`) do what the model's modules do in
twenty: residual and norm (for one row together with the product), attention with rotary embeddings and cache, residual
and norm with the router's decision.
"""

# R rows, D model dim, H query heads, G key/value heads, C head dim

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import ops
from kernels.cpu.stacked import join
from kernels.custom_ops import uses_triton
from moe.cache import Step
from moe.experts import MoEFeedForward
from moe.layers import FeedForward
from moe.model import ModelOutput, Transformer
from moe.router import RouterContext, Routing

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class GPUDecoder:
    """Runs the steps of a model whose weights stay as they are; those of queries, keys and values become views of one.

    Raises ValueError for a model that :meth:`fits` excludes.
    """

    def __init__(self, model: Transformer):
        if not self.fits(model):
            raise ValueError("the decoder runs models of one dtype, of 16 or 32 bits, where Triton runs")
        from kernels.gpu import launch_decode  # needs triton

        self.model, self.kernels = model, launch_decode
        self.joined: list[tuple[Tensor, Tensor | None]] = []  # weight and bias of queries, keys and values
        for block in model.layers:
            attention: Any = block.attention
            parts = (attention.wq, attention.wk, attention.wv)
            place = attention.wk.weight.data_ptr()
            with torch.inference_mode(False), torch.no_grad():
                bias = None if attention.wq.bias is None else torch.cat([part.bias for part in parts])
                self.joined.append((join([part.weight for part in parts]), bias))
            if model.device.type == "cuda" and attention.wk.weight.data_ptr() != place:
                torch.cuda.empty_cache()  # the holes that the parts left fit nothing

    @staticmethod
    def fits(model: Transformer) -> bool:
        """Whether the kernels have room for the model, and its weights are dense, contiguous and of one dtype.

        Feed-forwards may be int4, deltas and routers wider than the rest.
        """
        config, scaling = model.config, model.config.rope_scaling
        if not uses_triton(model.norm.weight) or (scaling is not None and scaling.kind == "dynamic"):
            return False
        if config.attention_experts:
            return False
        from kernels.gpu import launch_decode

        own: set[torch.dtype] = set()
        gates: set[torch.dtype] = set()
        for name, parameter in model.named_parameters():
            if not parameter.is_contiguous():
                return False
            if "_delta" not in name:
                (gates if name.endswith("feed_forward.gate.weight") else own).add(parameter.dtype)
        dense = all(isinstance(block.attention.wq.weight, Tensor) for block in model.layers)  # type: ignore[union-attr]
        sizes = config.dim, config.n_heads, config.n_kv_heads, config.head_dim, config.num_experts
        return dense and len(own) == 1 and own | gates <= set(DTYPES) and launch_decode.fits(*sizes)

    def __call__(self, tokens: Tensor, cache: Step, expert_bias: Tensor | None = None) -> ModelOutput:
        """What ``model(tokens, cache=cache, expert_bias=expert_bias)`` gives; tokens [R, 1]."""
        model, config, kernels = self.model, self.model.config, self.kernels
        table = model.angles(cache.cache.max_len, model.dtype, tokens.device)
        positions = cache.positions[:, 0].contiguous()
        context = None
        if config.router_context != "none":
            context = RouterContext(config, (len(tokens), 1), tokens.device, None, cache)
        x, y = F.embedding(tokens[:, 0], model.tok_embeddings.weight), None  # [R, D]; y is yet to be added to x
        routing: list[Routing] = []
        for index, (weight, bias) in enumerate(self.joined):
            block: Any = model.layers[index]
            attention, ffn = block.attention, block.feed_forward
            window, place = cache.cache.places[index]
            buffer = cache.cache.tracks[window].buffer[place]  # [B, 2G, capacity, C]
            norm = block.attention_norm
            x, heads = kernels.linear(x, y, norm.weight, norm.eps, weight, bias)
            y = kernels.attend(heads, positions, table, buffer, attention.n_heads, window, cache.end)
            y = kernels.linear(y, None, None, 0.0, attention.wo.weight, attention.wo.bias)[1]
            decided = routing[0] if routing and config.router_layers == "first" else None
            gate = ffn.gate if isinstance(ffn, MoEFeedForward) and context is None else None
            normed, found = kernels.add_norm(
                x, y, block.ffn_norm.weight, block.ffn_norm.eps,
                *(() if gate is None else (gate.weight, expert_bias, ffn.top_k)),
            )  # fmt: skip
            if isinstance(ffn, FeedForward):
                y = ffn(normed)
                continue
            y, made = ffn(normed, decided if found is None else Routing(*found), context, len(routing), expert_bias)
            if made is not None:
                routing.append(made)
        hidden = kernels.add_norm(x, y, model.norm.weight, model.norm.eps)[0][:, None]  # [R, 1, D]
        return ModelOutput(hidden, ops.linear(hidden, model.output_weight), routing)
