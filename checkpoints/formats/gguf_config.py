"""Metadata of GGUF files of the ``llama`` architecture, turned into a :class:`ModelConfig`.

Every ``llama.`` key is read, known to change nothing, or refused by name. What llama.cpp does with a key decides
(src/llama-model.cpp, ggml's rope): it computes ``theta / factor`` for linear scaling, whether or not a type is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints.formats.reader import ConfigReader
from moe.config import ModelConfig
from moe.errors import UserError
from moe.rope import RopeScaling, yarn_attention_factor

_PREFIX = "llama."
_READ = set(
    """
    embedding_length block_count context_length feed_forward_length expert_count expert_used_count
    attention.head_count attention.head_count_kv attention.key_length attention.value_length
    attention.layer_norm_rms_epsilon attention.sliding_window attention.sliding_window_pattern
    rope.dimension_count rope.freq_base rope.scale_linear rope.scaling.type rope.scaling.factor
    rope.scaling.attn_factor rope.scaling.yarn_attn_factor rope.scaling.original_context_length
    rope.scaling.yarn_ext_factor rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow
    """.split()
)
_HARMLESS = {"vocab_size", "tensor_data_layout", "rope.scaling.finetuned", "attention.layer_norm_epsilon"}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("logit_scale", "residual_scale", "embedding_scale", "attention.output_scale"), (0, 1)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "router_logit_softcapping"), (0,)),
    **dict.fromkeys(("attention.max_alibi_bias", "attention.clamp_kqv", "attention.scale"), (0,)),
    **dict.fromkeys(("expert_shared_count", "leading_dense_block_count", "nextn_predict_layers"), (0,)),
    **dict.fromkeys(("expert_group_count", "expert_group_used_count", "rope.scaling.yarn_log_multiplier"), (0,)),
    "expert_weights_scale": (0, 1),
    "expert_weights_norm": (True,),
    "expert_gating_func": (0, 1),  # softmax
    "use_parallel_residual": (False,),
    "attention.causal": (True,),
    "pooling_type": (0,),
    "interleave_moe_layer_step": (0, 1),
}


def gguf_config(
    fields: Mapping[str, Any],
    source: Path,
    vocab_size: int,
    tied: bool,
    biases: bool = False,
    factors: Sequence[float] | None = None,
) -> ModelConfig:
    """The config that a GGUF file describes.

    Args:
        biases: whether the projections of the attention have biases.
        factors: what each rotary frequency is divided by (the tensor ``rope_freqs.weight``).

    Raises:
        UserError: naming the key that is missing, makes no sense, or changes the model in a way that is not supported.
    """
    architecture = fields.get("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{source}: general.architecture is {str(architecture)[:80]!r}; supported in GGUF files: 'llama' "
            "(Llama, Mistral and Mixtral models)"
        )
    if (kind := fields.get("general.type", "model")) != "model":
        raise UserError(
            f"{source}: general.type is {str(kind)[:40]!r}; expected a whole model (merge an adapter first)"
        )
    if fields.get("split.count", 1) not in (0, 1):
        raise UserError(
            f"{source} is one part of a split file; join them: llama-gguf-split --merge FIRST-PART OUT.gguf"
        )
    reader = ConfigReader(fields, source)
    _refuse_unknown(reader)
    dim, heads = reader.size("llama.embedding_length"), reader.size("llama.attention.head_count")
    head_dim = reader.size("llama.attention.key_length", reader.size("llama.rope.dimension_count", dim // heads))
    if reader.size("llama.attention.value_length", head_dim) != head_dim:
        raise reader.fail(
            "llama.attention.value_length", fields["llama.attention.value_length"], f"{head_dim} as for keys"
        )
    if reader.size("llama.rope.dimension_count", head_dim) != head_dim:
        raise reader.fail(
            "llama.rope.dimension_count", fields["llama.rope.dimension_count"], f"{head_dim}, the head's size"
        )
    moe: dict[str, Any] = {}
    if fields.get("llama.expert_count", 0):
        moe = {
            "num_experts": reader.size("llama.expert_count"),
            "num_experts_per_tok": reader.size("llama.expert_used_count"),
            "expert_form": "full",
        }
    context, n_layers = reader.size("llama.context_length"), reader.size("llama.block_count")
    return ModelConfig(
        vocab_size=vocab_size,
        dim=dim,
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=reader.size("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        hidden_dim=reader.size("llama.feed_forward_length"),
        norm_eps=_decimal(reader.number("llama.attention.layer_norm_rms_epsilon")),
        rope_theta=_decimal(reader.number("llama.rope.freq_base", 10000.0)),
        rope_scaling=_scaling(reader, context, factors),
        max_seq_len=context,
        attention_bias=biases,
        tie_embeddings=tied,
        **_sliding(reader, n_layers),
        **moe,
    )


def _refuse_unknown(reader: ConfigReader) -> None:
    for key, value in reader.settings.items():
        name = key.removeprefix(_PREFIX)
        if name == key or name in _READ or name in _HARMLESS:
            continue
        neutral = _NEUTRAL.get(name, ())
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            known = f"{' or '.join(map(str, neutral))} or nothing" if neutral else "nothing"
            raise reader.fail(key, value, f"{known}: models with this key are unsupported")


def _sliding(reader: ConfigReader, n_layers: int) -> dict[str, Any]:
    key = "llama.attention.sliding_window_pattern"
    value = reader.settings.get("llama.attention.sliding_window")
    window = None if value == 0 else reader.optional_size("llama.attention.sliding_window", None)  # 0: none
    pattern = reader.settings.get(key)
    if window is None or pattern in (None, 0):
        return {"sliding_window": window}
    if not isinstance(pattern, list) or len(pattern) != n_layers or not all(isinstance(one, bool) for one in pattern):
        raise reader.fail(key, pattern, f"true or false for each of {n_layers} layers")
    sliding = tuple(layer for layer, has in enumerate(pattern) if has)
    return {"sliding_window": window if sliding else None, "sliding_layers": sliding or None}


def _scaling(reader: ConfigReader, context: int, factors: Sequence[float] | None) -> RopeScaling | None:
    prefix = "llama.rope.scaling."
    kind = reader.settings.get(prefix + "type", "linear")  # as in llama.cpp
    if kind not in ("none", "linear", "yarn"):
        raise reader.fail(prefix + "type", kind, "'none', 'linear' or 'yarn'")
    factor = 1.0
    for key in (prefix + "factor", "llama.rope.scale_linear"):
        if reader.settings.get(key, 0) != 0:  # 0: not set
            factor = _decimal(reader.number(key))
            break
    sizes = {key: _decimal(reader.number(prefix + key, 1.0)) for key in ("attn_factor", "yarn_attn_factor")}
    size = math.prod(sizes.values())
    if kind == "none":
        factor = 1.0
    if kind == "yarn":
        if factors is not None:
            raise reader.fail(prefix + "type", kind, "'none' or 'linear' in a file with rope_freqs.weight")
        if reader.settings.get(prefix + "yarn_ext_factor", 1.0) not in (1, -1):  # -1: the type decides
            raise reader.fail(prefix + "yarn_ext_factor", reader.settings[prefix + "yarn_ext_factor"], "1")
        return RopeScaling(
            kind,
            factor,
            reader.size(prefix + "original_context_length", context),
            attention_factor=size * yarn_attention_factor(factor),
            beta_fast=_decimal(reader.number(prefix + "yarn_beta_fast", 32.0)),
            beta_slow=_decimal(reader.number(prefix + "yarn_beta_slow", 1.0)),
        )
    if reader.settings.get(prefix + "yarn_ext_factor", 0) not in (0, -1):
        value = reader.settings[prefix + "yarn_ext_factor"]
        raise reader.fail(prefix + "yarn_ext_factor", value, f"0 or nothing with type {kind!r}")
    if factors is not None:
        return RopeScaling("factors", attention_factor=size, frequency_factors=tuple(one * factor for one in factors))
    if not math.isclose(size, 1.0):
        key = next(key for key, value in sizes.items() if value != 1.0)
        raise reader.fail(prefix + key, sizes[key], f"1 with type {kind!r}")
    return None if factor == 1.0 else RopeScaling("linear", factor)


def _decimal(value: float) -> float:
    """The shortest decimal that rounds to this float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
