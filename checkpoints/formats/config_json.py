"""``config.json`` of Hugging Face Mistral, Llama and Mixtral models, to and from :class:`ModelConfig`.

Every key is read, known to change nothing, or refused by name (``config_keys.py``). transformers keeps keys that it
does not know, such as our ``expert_languages`` and ``moe_layers``.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints.formats.config_keys import refuse_unknown
from checkpoints.formats.foreign import refuse_foreign
from checkpoints.formats.reader import ConfigReader, naming
from checkpoints.formats.rope_settings import read_rope, write_rope
from checkpoints.storage.files import read_json_object
from moe.config import ModelConfig
from moe.errors import UserError, did_you_mean

# Mixtral whose routers see context. Its own name, so that no other program takes it for Mixtral and routes by token.
CONTEXT_MODEL_TYPE = "context_mixtral"
MODELING_FILE = "modeling_context_mixtral.py"  # is copied into such a model's directory, and loads it in transformers
MODEL_TYPES = ("mistral", "ministral", "llama", "mixtral", CONTEXT_MODEL_TYPE)
DELTA_MODEL_TYPE = "mixtral_delta"  # our own format: low-rank experts and a reference to their base
_CAUSAL = {
    "mistral": "MistralForCausalLM",
    "ministral": "MinistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "context_mixtral": "ContextMixtralForCausalLM",
    "llama": "LlamaForCausalLM",
}
ROUTER_KEYS = ("router_context", "router_half_life", "router_layers")
_LAYER_TYPES = ("sliding_attention", "full_attention")
# transformers' defaults for keys that an older config.json omits
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 131072, "sliding_window": 4096},
    "mixtral": {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072, "sliding_window": None},
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048, "sliding_window": None},
}
_DEFAULTS |= {CONTEXT_MODEL_TYPE: _DEFAULTS["mixtral"], "ministral": _DEFAULTS["mistral"]}


def _layers(reader: ConfigReader, model_type: str, n_layers: int, window: int | None) -> dict[str, Any]:
    """The sliding window, and the layers that have it where ``layer_types`` says that not all do."""
    kinds = reader.settings.get("layer_types")
    if model_type == "llama" and window is not None:
        raise reader.fail("sliding_window", window, "null: transformers' Llama models have no window")
    if kinds is None:
        return {"sliding_window": window}
    if not isinstance(kinds, list) or len(kinds) != n_layers or not set(map(str, kinds)) <= set(_LAYER_TYPES):
        raise reader.fail("layer_types", kinds, f"{' or '.join(_LAYER_TYPES)} for each of {n_layers} layers")
    sliding = tuple(layer for layer, kind in enumerate(kinds) if kind == _LAYER_TYPES[0])
    if sliding and window is None:
        raise reader.fail("layer_types", kinds, f"no {_LAYER_TYPES[0]}, as sliding_window is null")
    if model_type == "mixtral" and window is not None and len(sliding) < n_layers:
        raise reader.fail("layer_types", kinds, "all layers to be alike, as in all Mixtral models")
    return {"sliding_window": window if sliding else None, "sliding_layers": sliding or None}


def parse_config(settings: Mapping[str, Any], source: Path) -> ModelConfig:
    """Turns the content of a ``config.json`` into a :class:`ModelConfig`.

    Raises:
        UserError: an unsupported or invalid value; names the file and the key.
    """
    refuse_foreign(settings, source)
    model_type = settings.get("model_type")
    if model_type not in MODEL_TYPES:
        if model_type == DELTA_MODEL_TYPE:
            raise UserError(
                f"{source.parent} has delta experts on a base; expected a dense model or full experts: give its base, "
                f"or type: python -m checkpoints merge {shlex.quote(str(source.parent))} OUT"
            )
        hint = did_you_mean(str(model_type), MODEL_TYPES)
        raise UserError(
            f"{source}: model_type is {str(model_type)[:80]!r}{hint}; supported: {', '.join(MODEL_TYPES)}: give a "
            "model of one of these architectures"
        )
    reader = ConfigReader(settings, source)
    mixture = model_type in ("mixtral", CONTEXT_MODEL_TYPE)
    refuse_unknown(settings, source, mixture)
    for key in ("tie_word_embeddings", "attention_bias"):
        if not isinstance(settings.get(key), bool | None):
            raise reader.fail(key, settings[key], "true or false")
    if settings.get("attention_bias") and model_type not in ("llama", CONTEXT_MODEL_TYPE):
        raise reader.fail("attention_bias", True, "false: of these models only Llama can have biases")
    if (activation := settings.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise reader.fail("hidden_act", activation, "'silu', the only activation supported")
    defaults = _DEFAULTS[model_type]
    dim, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    if settings.get("head_dim") is None and dim % heads:
        raise reader.fail("num_attention_heads", heads, f"a divisor of hidden_size {dim}, or head_dim to be given")
    moe: dict[str, Any] = {}
    if mixture:
        languages = settings.get("expert_languages") or []
        if not isinstance(languages, list) or not all(isinstance(name, str) for name in languages):
            raise reader.fail("expert_languages", languages, "a list of language names")
        moe = {
            "num_experts": reader.size("num_local_experts", 8),
            "num_experts_per_tok": reader.size("num_experts_per_tok", 2),
            "expert_form": "full",
            "expert_languages": tuple(languages),
            "moe_layers": settings.get("moe_layers"),
        }
        if model_type == CONTEXT_MODEL_TYPE:
            moe |= {name: str(settings.get(name)) for name in ("router_context", "router_layers")}
            moe["router_half_life"] = reader.number("router_half_life")
        for theirs, ours in (("router_aux_loss_coef", "balance_loss_weight"), ("router_z_loss_coef", "z_loss_weight")):
            value = settings.get(theirs)
            if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
                moe[ours] = float(value)
    n_layers = reader.size("num_hidden_layers")
    context = reader.size("max_position_embeddings", defaults["max_position_embeddings"])
    window = reader.optional_size("sliding_window", defaults["sliding_window"])
    # transformers takes 8 where the key is missing, and as many as for queries where it is null
    groups = heads if model_type == "llama" or "num_key_value_heads" in settings else 8
    with naming(source):
        theta, scaling = read_rope(reader, defaults["rope_theta"], context)
        return ModelConfig(
            vocab_size=reader.size("vocab_size"),
            dim=dim,
            n_layers=n_layers,
            n_heads=heads,
            n_kv_heads=reader.size("num_key_value_heads", groups),
            head_dim=reader.size("head_dim", dim // heads),
            hidden_dim=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", defaults["rms_norm_eps"]),
            rope_theta=theta,
            rope_scaling=scaling,
            max_seq_len=context,
            attention_bias=bool(settings.get("attention_bias")),
            tie_embeddings=bool(settings.get("tie_word_embeddings")),
            **_layers(reader, model_type, n_layers, window),
            **moe,
        )


def read_config_json(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a ``config.json``; returns the model's config and the whole object."""
    settings = read_json_object(path)
    return parse_config(settings, path), settings


def written_type(config: ModelConfig) -> str:
    """The ``model_type`` under which a dense model, or one with full experts, is written.

    Raises:
        UserError: no architecture of transformers has all of its settings.
    """
    lacking = None
    if config.is_moe and (config.attention_bias or config.sliding_layers is not None):
        lacking = "attention_bias" if config.attention_bias else "layer_types"
    elif config.attention_bias and config.sliding_window is not None:
        lacking = "attention_bias with sliding_window"
    if lacking is not None:
        kind = "Mixtral models" if config.is_moe else "dense models"
        remedy = "; keep the experts as deltas (--expert-form delta, no merge)" if config.is_moe else ""
        raise UserError(f"transformers has no {kind} with {lacking}, so config.json cannot say it{remedy}")
    if config.is_moe:
        return "mixtral" if config.is_mixtral else CONTEXT_MODEL_TYPE
    return "llama" if config.attention_bias else "mistral" if config.sliding_layers is None else "ministral"


def to_config_json(
    config: ModelConfig,
    dtype: str,
    token_ids: Mapping[str, int | None] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds the ``config.json`` of a dense model (Mistral, or what else has its settings) or of a Mixtral one.

    Raises:
        UserError: see :func:`written_type`.

    Args:
        dtype: torch's name for the tensors' dtype, e.g. ``bfloat16``.
        token_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.
        extra: further keys.
    """
    assert config.num_experts == 0 or config.expert_form == "full", "delta experts have their own directory format"
    model_type = written_type(config)
    document: dict[str, Any] = {
        "architectures": [_CAUSAL[model_type]],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.hidden_dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        **write_rope(config),
        "max_position_embeddings": config.max_seq_len,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
        **(token_ids or {}),
    }
    if config.num_experts:
        document |= {
            "num_local_experts": config.num_experts,
            "num_experts_per_tok": config.num_experts_per_tok,
            "output_router_logits": False,
            "router_aux_loss_coef": config.balance_loss_weight,
            "router_z_loss_coef": config.z_loss_weight,
            "expert_languages": list(config.expert_languages),
        }
    if model_type == CONTEXT_MODEL_TYPE:
        document |= {name: getattr(config, name) for name in ROUTER_KEYS}
        module = MODELING_FILE.removesuffix(".py")
        document["auto_map"] = {
            "AutoConfig": f"{module}.ContextMixtralConfig",
            "AutoModelForCausalLM": f"{module}.{_CAUSAL[model_type]}",
        }
    if config.moe_layers is not None:
        document["moe_layers"] = list(config.moe_layers)
    if config.sliding_layers is not None:
        document["layer_types"] = [_LAYER_TYPES[config.window(layer) is None] for layer in range(config.n_layers)]
    if config.attention_bias:
        document["attention_bias"] = True
    return document | dict(extra or {})
