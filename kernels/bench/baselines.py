"""Other implementations of the same expert layer, for the GPU benchmark: those that are installed.

Every baseline takes the same weights, gates and ids. The benchmark measures a baseline only after its output agreed
with float64, and otherwise reports why not.
"""

# T tokens, D model dim, F hidden dim, E experts, K top-k, R = T*K routed rows

from __future__ import annotations

import functools
import importlib
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import int4
from kernels.dispatch import sort_by_expert


class Layer(NamedTuple):
    """bf16 weights w1, w3 [E, F, D] and w2 [E, D, F], and one routing: gates, ids [T, K]."""

    w1: Tensor
    w2: Tensor
    w3: Tensor
    gates: Tensor
    ids: Tensor


@dataclass
class Forward:
    """A layer's forward, x [T, D] -> [T, D].

    Attributes:
        parameters: parameters of its own, whose gradients a training step must drop too.
        exact: the layer that it computes where its weights are rounded differently; as large as the layer in float32.
    """

    run: Callable[[Tensor], Tensor]
    parameters: Sequence[Tensor] = ()
    exact: Layer | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.run(x)


Build = Callable[[Layer], Forward]


def expert_loop(layer: Layer) -> Forward:
    """One cuBLAS product per expert and projection; reads the counts on the host, as such loops do."""

    def forward(x: Tensor) -> Tensor:
        top_k = layer.ids.shape[1]
        order, _, offsets = sort_by_expert(layer.ids, layer.w1.shape[0])
        token = order // top_k
        gate = layer.gates.reshape(-1)[order].unsqueeze(1)
        counts = offsets.diff().tolist()
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        weights = (w.unbind() for w in (layer.w1, layer.w2, layer.w3))  # their gradients are stacked once
        for w1, w2, w3, rows, share in zip(*weights, token.split(counts), gate.split(counts), strict=True):
            part = x[rows]
            y = F.linear(F.silu(F.linear(part, w1)) * F.linear(part, w3), w2)
            out = out.index_add(0, rows, y.float() * share)
        return out.to(x.dtype)

    return Forward(forward)


def torch_grouped_mm(layer: Layer) -> Forward:
    """`torch.nn.functional.grouped_mm` on sorted rows."""
    grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm

    def forward(x: Tensor) -> Tensor:
        top_k = layer.ids.shape[1]
        order, inverse, offsets = sort_by_expert(layer.ids, layer.w1.shape[0])
        xs, ends = x[order // top_k], offsets[1:]
        h1 = grouped_mm(xs, layer.w1.transpose(1, 2), offs=ends)
        h3 = grouped_mm(xs, layer.w3.transpose(1, 2), offs=ends)
        y = grouped_mm(F.silu(h1) * h3, layer.w2.transpose(1, 2), offs=ends)
        y = y[inverse].view(x.shape[0], top_k, -1).float() * layer.gates.unsqueeze(-1)
        return y.sum(1).to(x.dtype)

    return Forward(forward)


def transformers_experts(implementation: str) -> Build:
    """transformers' MixtralExperts with one of its implementations."""

    def build(layer: Layer) -> Forward:
        from transformers import MixtralConfig
        from transformers.models.mixtral.modeling_mixtral import MixtralExperts

        experts, hidden, width = layer.w1.shape
        config = MixtralConfig(
            hidden_size=width,
            intermediate_size=hidden,
            num_local_experts=experts,
            num_experts_per_tok=layer.ids.shape[1],
        )
        config._experts_implementation = implementation
        with torch.device("meta"):
            module = MixtralExperts(config)
        module.gate_up_proj = torch.nn.Parameter(torch.cat((layer.w1, layer.w3), 1).detach())
        module.down_proj = torch.nn.Parameter(layer.w2.detach())
        return Forward(lambda x: module(x, layer.ids, layer.gates.to(x.dtype)), list(module.parameters()))

    return build


def scattermoe(layer: Layer) -> Forward:
    """scattermoe's GLUMLP."""
    from scattermoe.mlp import GLUMLP

    experts, hidden, width = layer.w1.shape
    module = GLUMLP(width, hidden, experts, layer.ids.shape[1], activation=torch.nn.SiLU()).to(layer.w1)
    with torch.no_grad():
        module.experts.weight.copy_(torch.cat((layer.w3, layer.w1), 1))  # up half first, then the gated half
        module.output_experts.weight.copy_(layer.w2)
    return Forward(lambda x: module(x, layer.gates.to(x.dtype), layer.ids), list(module.parameters()))


@functools.cache
def _liger_function() -> Any:
    """Liger Kernel's fused MoE; its autotuners choose among a few tiles, as all of them take minutes to compile."""
    from liger_kernel.ops import fused_moe_kernels as kernels
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    Tiles = dict[str, tuple[int, ...]]
    product: Tiles = {"BLOCK_N": (128,), "BLOCK_K": (64,), "num_warps": (8,), "num_stages": (2, 3)}
    gradient: Tiles = {"BLOCK_M": (128,), "BLOCK_N": (128,), "BLOCK_K": (32,), "num_warps": (8,)}
    few: dict[str, Tiles] = {
        "_fused_up_proj_swiglu_kernel": product,
        "_fused_down_proj_kernel": {**product, "num_warps": (4, 8), "num_stages": (4,)},
        "_token_gather_weighted_sum_kernel": {"BLOCK_H": (512,), "BLOCK_K": (2,), "num_warps": (4,)},
        "_moe_bwd_down_proj_kernel": product,
        "_moe_bwd_dX_expanded_kernel": product,
        "_moe_bwd_dW1_kernel": gradient,
        "_moe_bwd_dW2_kernel": gradient,
    }
    for name, tiles in few.items():
        kernel = getattr(kernels, name)
        chosen = [c for c in kernel.configs if all(c.all_kwargs()[key] in values for key, values in tiles.items())]
        kernel.configs = chosen or kernel.configs
    return LigerFusedMoEFunction


def liger(layer: Layer) -> Forward:
    """Liger Kernel's fused MoE."""
    function, ids = _liger_function(), layer.ids.int()
    gate_up = torch.cat((layer.w1, layer.w3), 1).detach().requires_grad_(layer.w1.requires_grad)
    return Forward(lambda x: function.apply(x, gate_up, layer.w2, ids, layer.gates.to(x.dtype)), [gate_up])


@functools.cache
def _unsloth_interface() -> Any:
    """unsloth's grouped GEMM alone: importing unsloth patches transformers and needs packages that a GEMM does not."""

    def bare(name: str, **names: Any) -> None:
        if (spec := find_spec(name)) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.modules[name] = module_from_spec(spec)
        vars(sys.modules[name]).update(names)

    if "unsloth" not in sys.modules:
        bare("unsloth", DEVICE_TYPE="cuda")
        cards = range(torch.cuda.device_count())
        bare("unsloth.device_type", cuda_visible_capabilities=lambda: [*map(torch.cuda.get_device_capability, cards)])
        bare("unsloth.kernels")
        bare("unsloth.kernels.utils", torch_gpu_device=torch.cuda.device)
    no_pandas = find_spec("pandas") is None  # it prints tables of the library's tuner
    if no_pandas:
        sys.modules["pandas"] = types.ModuleType("pandas")
    try:
        return importlib.import_module("unsloth.kernels.moe.grouped_gemm.interface")
    finally:
        if no_pandas:
            del sys.modules["pandas"]


def unsloth(layer: Layer) -> Forward:
    """unsloth's grouped GEMM: the first product gathers the rows, the second scatters them.

    Its autotuner compiles a hundred tiles for each product. These are large ones of its search space, with weights
    loaded by TMA where the card has it, as its documentation recommends.
    """
    library = _unsloth_interface()
    tma = library.supports_tma()
    wide, launch = 256 if tma else 128, {"num_warps": 8, "num_stages": 3}

    def configs(first: bool) -> dict[str, Any]:
        return {
            "kernel_config_fwd": library.KernelConfigForward(
                128, wide, 64, use_tma_load_w=tma, use_tma_load_x=tma and not first, **launch
            ),
            "kernel_config_bwd_dX": library.KernelConfigBackward_dX(
                128, 64, wide, use_tma_load_w=tma, use_tma_load_dy=tma and first, **launch
            ),
            # without TMA, which would describe an empty tensor where the first expert has no rows
            "kernel_config_bwd_dW": library.KernelConfigBackward_dW(64, 128, wide, **launch),
            "is_first_gemm": first,
        }

    first, second = configs(True), configs(False)
    gate_up = torch.cat((layer.w1, layer.w3), 1).detach().requires_grad_(layer.w1.requires_grad)

    def forward(x: Tensor) -> Tensor:
        top_k = layer.ids.shape[1]
        order, _, offsets = sort_by_expert(layer.ids, layer.w1.shape[0])
        routing = offsets.diff(), top_k, order
        h1, h3 = library.grouped_gemm(x, gate_up, *routing, permute_x=True, **first).chunk(2, -1)
        y = library.grouped_gemm(F.silu(h1) * h3, layer.w2, *routing, permute_y=True, **second)
        return (y.view(x.shape[0], top_k, -1) * layer.gates.to(x.dtype).unsqueeze(-1)).sum(1)

    return Forward(forward, [gate_up])


def int4pack_loop(layer: Layer) -> Forward:
    """torch's own int4 product, one expert at a time, on weights quantized as this package does it."""

    def convert(weight: Tensor) -> tuple[Tensor, Tensor]:
        packed = int4.pack(weight)
        _, columns, width = packed.shape3
        low, high = packed.packed & 0xF, packed.packed >> 4
        q = torch.cat((low, high), -1)[0].transpose(0, 1).reshape(columns, width)  # [N, K] values 0..15
        pairs = (q[:, ::2] << 4 | q[:, 1::2]).to(torch.uint8).contiguous()
        scales = packed.scales[0].unsqueeze(-1)  # [K / 128, N, 1]
        return torch._convert_weight_to_int4pack(pairs, 8), torch.cat(
            (scales, torch.zeros_like(scales)), -1
        ).contiguous()

    count = layer.w1.shape[0]
    w1, w2, w3 = ([convert(w[e]) for e in range(count)] for w in (layer.w1, layer.w2, layer.w3))

    def product(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm(x, weight[0], int4.GROUP, weight[1])

    def forward(x: Tensor) -> Tensor:
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        ids = layer.ids.tolist()
        for e in range(count):
            rows = [t for t, chosen in enumerate(ids) if e in chosen]
            if rows:
                index = torch.tensor(rows, device=x.device)
                part = x[index]
                y = product(F.silu(product(part, w1[e])) * product(part, w3[e]), w2[e])
                gate = (layer.gates[index] * (layer.ids[index] == e)).sum(1, keepdim=True)
                out.index_add_(0, index, y.float() * gate)
        return out.to(x.dtype)

    return Forward(forward)


def grouped_nf4(layer: Layer) -> Forward:
    """grouped-nf4-gemm: the weights in NF4, blocks of 64; group sizes are host lists by its contract.

    One token needs no sorting: every chosen expert is a group of one row, which is how the library decodes.
    """
    from nf4_grouped import dequant_ref, gemm_4bit_grouped
    from nf4_pack_ref import quantize_pack_nf4

    os.environ.setdefault("GNF4_GEMV_BW", "1")  # its faster product for one row, which it uses on cards it knows

    def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
        packed, scales = zip(*(quantize_pack_nf4(expert) for expert in weight.detach()), strict=True)
        return torch.stack(packed), torch.stack(scales)

    def restore(weight: Tensor, quantized: tuple[Tensor, Tensor]) -> Tensor:
        return torch.stack([dequant_ref(*expert, *weight.shape[1:]) for expert in zip(*quantized, strict=True)])

    weights = layer.w1, layer.w2, layer.w3
    gate, down, up = quantized = [quantize(weight) for weight in weights]
    gate_up = [torch.cat(pair, 1) for pair in zip(gate, up, strict=True)]

    def forward(x: Tensor) -> Tensor:
        tokens, top_k = layer.ids.shape
        groups: tuple[list[int], list[int] | Tensor]
        if tokens == 1:
            groups = [1] * top_k, layer.ids.flatten()
            h1, h3 = gemm_4bit_grouped(x, *gate_up, *groups, gather_div=top_k).chunk(2, -1)
            y = gemm_4bit_grouped(F.silu(h1) * h3, *down, *groups)
        else:
            order, inverse, offsets = sort_by_expert(layer.ids, layer.w1.shape[0])
            counts = offsets.diff().tolist()
            used = [e for e, count in enumerate(counts) if count]
            groups = [counts[e] for e in used], used
            h1, h3 = gemm_4bit_grouped(x[order // top_k], *gate_up, *groups).chunk(2, -1)
            y = gemm_4bit_grouped(F.silu(h1) * h3, *down, *groups)[inverse]
        return (y.view(tokens, top_k, -1).float() * layer.gates.unsqueeze(-1)).sum(1).to(x.dtype)

    w1, w2, w3 = (restore(*pair) for pair in zip(weights, quantized, strict=True))
    return Forward(forward, exact=layer._replace(w1=w1, w2=w2, w3=w3))


BASELINES: dict[str, Build] = {
    "expert loop": expert_loop,
    "grouped_mm": torch_grouped_mm,
    "transformers eager": transformers_experts("eager"),
    "transformers grouped_mm": transformers_experts("grouped_mm"),
    "transformers batched_mm": transformers_experts("batched_mm"),
    "scattermoe": scattermoe,
    "liger": liger,
    "unsloth": unsloth,
}
INT4_BASELINES: dict[str, Build] = {"int4pack loop": int4pack_loop, "grouped nf4": grouped_nf4}
MAX_TOKENS = {
    "transformers batched_mm": 32,  # copies the weights for every token: more do not fit in memory
    "int4pack loop": 64,  # a product for small batches, with lists of tokens made on the host
}
