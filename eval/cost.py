"""What a model costs: parameters trained, parameters and floating-point operations active for a token."""

# S tokens, T = S rows of a layer, D model dim, F hidden dim, E experts, K top-k, r rank

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from kernels import custom_ops  # noqa: F401  # registers the operators
from moe.config import ModelConfig
from moe.model import Transformer
from moe.training.interrupt import DelayedInterrupt
from moe.training.stages import is_expert, is_router

TOKENS = 512  # length of the text that operations are counted on


@dataclass(frozen=True)
class Cost:
    """Sizes of a model.

    Attributes:
        parameters: of the whole model, tied ones once.
        trained: those of its experts or adapter, and of its routers; 0 for a dense model.
        active: those that one token meets: all but the experts that it does not visit.
        flops_per_token: of a forward pass over :data:`TOKENS` tokens (or the context, if shorter), logits included,
            divided by their number. A multiplication and an addition count as two.
    """

    parameters: int
    trained: int
    active: int
    flops_per_token: float


def model_cost(config: ModelConfig) -> Cost:
    """The cost of a model of this config; counted on fake tensors, so a large one takes no memory."""
    with FakeTensorMode():
        model = Transformer(config)
        length = min(TOKENS, config.max_seq_len)
        flops = count_flops(model, length)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    trained = sum(n for name, n in sizes.items() if is_expert(name) or is_router(name))
    visited = config.num_experts_per_tok / config.num_experts if config.is_moe else 1.0
    own = sum(n for name, n in sizes.items() if ".experts." in name or "expert_deltas" in name)
    total = sum(sizes.values())
    return Cost(total, trained, round(total - own * (1 - visited)), flops / length)


def count_flops(model: Transformer, length: int) -> int:
    """Operations of a forward pass over one text of ``length`` tokens, by the operators that training calls."""
    tokens = torch.zeros(1, length, dtype=torch.int64)
    operators = torch.ops.language_experts
    formulas: dict[Any, Any] = {
        operators.linear: _linear_flops,
        operators.experts: _experts_flops,
        operators.delta_experts: _delta_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,  # torch counts the GPU's
    }
    # An exception of a signal's handler that passes through torch's dispatcher would abort the process.
    with DelayedInterrupt(lambda: None), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        model(tokens)
    return counter.get_total_flops()


# The formulas get shapes in the place of tensors.


def _linear_flops(x: Sequence[int], weight: Sequence[int], scales: Any = None, out_shape: Any = None) -> int:
    return 2 * x[0] * weight[0] * weight[1]


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, out_shape: Any = None, **__: Any
) -> int:
    batch, heads, length, size = query  # torch 2.11's own formula refuses grouped heads
    return 2 * batch * heads * length * key[2] * (size + value[3])


def _experts_flops(
    x: Sequence[int], w1: Sequence[int], w2: Any, w3: Any, s1: Any, s2: Any, s3: Any, gates: Sequence[int], *_: Any,
    out_shape: Any = None,
) -> int:  # fmt: skip
    hidden, width = w1[1:]  # [E, F, D]
    return 2 * gates[0] * gates[1] * 3 * hidden * width


def _delta_flops(
    x: Sequence[int],
    base: Sequence[Sequence[int]],
    shared: Sequence[Sequence[int]],
    factors: Sequence[Sequence[int]],
    gates: Sequence[int],
    *_: Any,
    out_shape: Any = None,
) -> int:
    """Base and shared delta once per token, an expert's delta once per visit."""
    tokens, visits = gates[0], gates[0] * gates[1]
    hidden, width = base[0]
    total = 2 * tokens * 3 * hidden * width
    if shared:
        total += 2 * tokens * 3 * shared[0][0] * (hidden + width)  # a1 [r, D]
    if factors:
        total += 2 * visits * 3 * factors[0][1] * (hidden + width)  # a1 [E, r, D]
    return total
