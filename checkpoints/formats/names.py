"""Tensor names: Mistral's reference names (used in memory and between formats) and Hugging Face's.

Between formats every tensor is flat, one expert at a time, under the names of Mistral's own checkpoints:
``layers.L.feed_forward.experts.E.w1.weight``. In memory the experts of a layer are stacked:
``layers.L.feed_forward.experts.w1`` of shape [E, F, D].
"""

# D model dim, F hidden dim, V vocabulary, E experts, H heads, G key/value heads, C head dim

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from checkpoints.storage.safetensors_file import StoredTensor, slice_of
from moe.config import ModelConfig
from moe.errors import UserError
from moe.hardware import dtype_name

_TOP = {
    "model.embed_tokens.weight": "tok_embeddings.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm.weight": "attention_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_proj.weight": "attention.wq.weight",
    "self_attn.k_proj.weight": "attention.wk.weight",
    "self_attn.v_proj.weight": "attention.wv.weight",
    "self_attn.o_proj.weight": "attention.wo.weight",
    "mlp.gate_proj.weight": "feed_forward.w1.weight",
    "mlp.down_proj.weight": "feed_forward.w2.weight",
    "mlp.up_proj.weight": "feed_forward.w3.weight",
    "block_sparse_moe.gate.weight": "feed_forward.gate.weight",
    **{f"self_attn.{kind}_proj.bias": f"attention.w{kind}.bias" for kind in "qkvo"},
}
_TOP_BACK = {ours: theirs for theirs, ours in _TOP.items()}
_LAYER_BACK = {ours: theirs for theirs, ours in _LAYER.items()}
_HF_LAYER = re.compile(r"model\.layers\.(0|[1-9]\d{0,4})\.(.+)", re.ASCII)
_OUR_LAYER = re.compile(r"layers\.(0|[1-9]\d{0,4})\.(.+)", re.ASCII)
_HF_EXPERT = re.compile(r"block_sparse_moe\.experts\.(0|[1-9]\d{0,4})\.(w[123])\.weight", re.ASCII)
_OUR_EXPERT = re.compile(r"feed_forward\.experts\.(0|[1-9]\d{0,4})\.(w[123])\.weight", re.ASCII)
_STACKED = re.compile(
    r"model\.layers\.(0|[1-9]\d{0,4})\.mlp\.(?:(gate)\.weight|(experts\.(?:gate_up|down)_proj)(?:\.weight)?)", re.ASCII
)
_IGNORED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq|rope\.freqs", re.ASCII)


def from_huggingface(name: str) -> str | None:
    """Turns a Hugging Face tensor name into ours; None when it is not a tensor of a supported architecture."""
    if name in _TOP:
        return _TOP[name]
    if not (match := _HF_LAYER.fullmatch(name)):
        return None
    layer, rest = match.groups()
    if rest in _LAYER:
        return f"layers.{layer}.{_LAYER[rest]}"
    if expert := _HF_EXPERT.fullmatch(rest):
        return f"layers.{layer}.feed_forward.experts.{expert[1]}.{expert[2]}.weight"
    return None


def to_huggingface(name: str) -> str:
    """Turns one of our flat tensor names into Hugging Face's (classic Mixtral names for experts)."""
    if name in _TOP_BACK:
        return _TOP_BACK[name]
    match = _OUR_LAYER.fullmatch(name)
    assert match, name
    layer, rest = match.groups()
    if expert := _OUR_EXPERT.fullmatch(rest):
        return f"model.layers.{layer}.block_sparse_moe.experts.{expert[1]}.{expert[2]}.weight"
    return f"model.layers.{layer}.{_LAYER_BACK[rest]}"


def unstacked(tensors: Mapping[str, StoredTensor], source: Path) -> dict[str, StoredTensor]:
    """Mixtral's tensors one expert at a time; transformers 5 can save those of all experts in one.

    ``mlp.experts.gate_up_proj`` [E, 2F, D] holds w1 over w3, ``mlp.experts.down_proj`` [E, D, F] is w2, and the router
    is ``mlp.gate``. Raises :class:`UserError` for such a tensor of another shape.
    """
    result = {}
    for name, tensor in tensors.items():
        match = _STACKED.fullmatch(name)
        if match is None:
            result[name] = tensor
            continue
        prefix = f"model.layers.{match[1]}.block_sparse_moe"
        if match[2]:
            result[f"{prefix}.gate.weight"] = tensor
            continue
        joined = match[3] == "experts.gate_up_proj"
        if len(tensor.shape) != 3 or (joined and tensor.shape[1] % 2) or tensor.where is None:
            raise UserError(f"{source}: tensor {name!r} has shape {list(tensor.shape)}, expected all experts, stacked")
        weights = ("w1", "w3") if joined else ("w2",)
        rows = tensor.shape[1] // len(weights)
        for index in range(tensor.shape[0] * len(weights)):
            expert, weight = divmod(index, len(weights))
            own = f"{prefix}.experts.{expert}.{weights[weight]}.weight"
            result[own] = slice_of(tensor, own, index * rows, (rows, tensor.shape[2]))
    return result


def is_ignored(name: str) -> bool:
    """True for tensors of old checkpoints that follow from the config (inverse RoPE frequencies)."""
    return _IGNORED.fullmatch(name) is not None


def expected_tensors(
    config: ModelConfig, has_router: Callable[[int], bool] | None = None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the flat names and shapes of all tensors of a dense model, or of one with full experts.

    ``has_router`` says which layers have one; None: as the config says.

    They repeat what :class:`moe.model.Transformer` builds: building it takes 60 ms on the meta device, and a damaged
    config with a billion layers must cost nothing. As this is a generator, checks stop at the first missing tensor.
    """
    dim, hidden = config.dim, config.hidden_dim
    query, key = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    yield "tok_embeddings.weight", (config.vocab_size, dim)  # [V, D]
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}"
        yield f"{prefix}.attention_norm.weight", (dim,)
        yield f"{prefix}.attention.wq.weight", (query, dim)  # [H*C, D]
        yield f"{prefix}.attention.wk.weight", (key, dim)  # [G*C, D]
        yield f"{prefix}.attention.wv.weight", (key, dim)
        yield f"{prefix}.attention.wo.weight", (dim, query)
        if config.attention_bias:
            for name, width in (("wq", query), ("wk", key), ("wv", key), ("wo", dim)):
                yield f"{prefix}.attention.{name}.bias", (width,)
        yield f"{prefix}.ffn_norm.weight", (dim,)
        owners = [f"{prefix}.feed_forward"]
        if config.is_moe and layer in config.sparse_layers:
            if layer in config.router_places if has_router is None else has_router(layer):
                yield f"{prefix}.feed_forward.gate.weight", (config.num_experts, dim)  # [E, D]
            owners = [f"{prefix}.feed_forward.experts.{expert}" for expert in range(config.num_experts)]
        for owner in owners:
            yield f"{owner}.w1.weight", (hidden, dim)  # [F, D]
            yield f"{owner}.w2.weight", (dim, hidden)
            yield f"{owner}.w3.weight", (hidden, dim)
    yield "norm.weight", (dim,)
    if not config.tie_embeddings:
        yield "output.weight", (config.vocab_size, dim)


def check_tensors(
    tensors: Mapping[str, StoredTensor],
    config: ModelConfig,
    source: Path,
    shown: Callable[[str], str],
    has_router: Callable[[int], bool] | None = None,
) -> None:
    """Raises :class:`UserError` for the first tensor that is missing, unexpected, misshapen or not floating-point.

    ``shown`` maps our names to the names in the file, for the messages.
    """
    known: set[str] = set()
    for name, shape in expected_tensors(config, has_router):
        if name not in tensors:
            raise UserError(
                f"{source}: tensor {shown(name)!r} is missing, the config asks for it; download all shards again"
            )
        tensor = tensors[name]
        if tensor.shape != shape:
            raise UserError(
                f"{source}: tensor {shown(name)!r} has shape {list(tensor.shape)}, the config asks for {list(shape)}; "
                "take config and weights from the same model"
            )
        if not tensor.dtype.is_floating_point:
            raise UserError(
                f"{source}: tensor {shown(name)!r} has dtype {dtype_name(tensor.dtype)}; expected a "
                "floating-point dtype: give the unquantized checkpoint"
            )
        known.add(name)
    extra = next((name for name in tensors if name not in known), None)
    if extra is not None:
        raise UserError(
            f"{source}: tensor {shown(extra)!r} is not one that the config describes; "
            "take config and weights from the same model"
        )


def stacked_name(name: str) -> tuple[str, int | None]:
    """Splits a flat expert name into its stacked parameter and the expert's index; other names get None."""
    match = _OUR_LAYER.fullmatch(name)
    expert = _OUR_EXPERT.fullmatch(match[2]) if match else None
    if not match or not expert:
        return name, None
    return f"layers.{match[1]}.feed_forward.experts.{expert[2]}", int(expert[1])


def flat_name(layer: int, weight: str, expert: int) -> str:
    """The flat name of one expert's weight (``weight`` is w1, w2 or w3)."""
    return f"layers.{layer}.feed_forward.experts.{expert}.{weight}.weight"
