"""``config.json`` of Hugging Face Mistral, Llama and Mixtral models, to and from :class:`ModelConfig`.

transformers 5 writes rotary settings as ``rope_parameters``, older versions as ``rope_theta`` and ``rope_scaling``;
both are read and both are written, so that older and newer readers load the same model. transformers keeps keys that
it does not know, such as our ``expert_languages`` and ``moe_layers``.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.formats.quantized import is_quantized
from checkpoints.storage.files import read_json_object
from moe.config import ModelConfig
from moe.errors import UserError, did_you_mean

# Mixtral whose routers see context. Its own name, so that no other program takes it for Mixtral and routes by token.
CONTEXT_MODEL_TYPE = "context_mixtral"
MODELING_FILE = "modeling_context_mixtral.py"  # is copied into such a model's directory, and loads it in transformers
MODEL_TYPES = ("mistral", "llama", "mixtral", CONTEXT_MODEL_TYPE)
DELTA_MODEL_TYPE = "mixtral_delta"  # our own format: low-rank experts and a reference to their base
_CAUSAL = {
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "context_mixtral": "ContextMixtralForCausalLM",
    "llama": "LlamaForCausalLM",
}
# transformers' defaults for keys that an older config.json omits
ROUTER_KEYS = ("router_context", "router_half_life", "router_layers")
_DEFAULTS: dict[str, dict[str, Any]] = {
    "mistral": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 131072, "sliding_window": 4096},
    "mixtral": {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072, "sliding_window": None},
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048, "sliding_window": None},
}
_DEFAULTS[CONTEXT_MODEL_TYPE] = _DEFAULTS["mixtral"]
_MAX_SIZE = 1 << 31


class ConfigReader:
    """Reads typed values from a settings object; errors name the file and the key."""

    def __init__(self, settings: Mapping[str, Any], source: Path) -> None:
        self.settings, self.source = settings, source

    def fail(self, key: str, value: Any, expected: str) -> UserError:
        """Returns the error for the value of one key."""
        return UserError(f"{self.source}: {key} is {str(value)[:80]!r}; expected {expected}")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; a missing key or null gives ``default``, or an error without one."""
        value = self.settings.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MAX_SIZE:
            raise self.fail(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number; a missing key or null gives ``default``, or an error without one."""
        value = self.settings.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.fail(key, value, "a positive number")
        return float(value)

    def optional_size(self, key: str, default: int | None) -> int | None:
        """A positive integer or null; a missing key gives ``default``."""
        if self.settings.get(key, default) is None:
            return None
        return self.size(key, default)


@contextmanager
def naming(source: Path) -> Iterator[None]:
    """Prefixes a :class:`UserError` with the file's name unless it has it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from None


def _rope_theta(reader: ConfigReader, default: float) -> float:
    nested = reader.settings.get("rope_parameters")
    if nested is not None and not isinstance(nested, Mapping):
        raise reader.fail("rope_parameters", nested, "an object with rope_theta and rope_type")
    scaling = reader.settings.get("rope_scaling")
    for key, value in (("rope_parameters", nested), ("rope_scaling", scaling)):
        if value is None:
            continue
        kind = value.get("rope_type", value.get("type", "default")) if isinstance(value, Mapping) else value
        if kind != "default":
            raise reader.fail(
                f"{key}.rope_type", kind, "'default': models with scaled rotary embeddings are unsupported"
            )
    if nested is not None and nested.get("rope_theta") is not None:
        return ConfigReader(nested, reader.source).number("rope_theta")
    return reader.number("rope_theta", default)


def _check_supported(reader: ConfigReader) -> None:
    settings = reader.settings
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if settings.get(key) and not (key == "quantization_config" and is_quantized(settings)):
            raise reader.fail(key, settings[key], "it to be false or absent: this kind of model is unsupported")
    if settings.get("hidden_act", "silu") not in ("silu", "swish"):
        raise reader.fail("hidden_act", settings["hidden_act"], "'silu', the only activation supported")
    if settings.get("pretraining_tp", 1) not in (1, None):
        raise reader.fail("pretraining_tp", settings["pretraining_tp"], "1")


def parse_config(settings: Mapping[str, Any], source: Path) -> ModelConfig:
    """Turns the content of a ``config.json`` into a :class:`ModelConfig`.

    Raises:
        UserError: an unsupported or invalid value; names the file and the key.
    """
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
    _check_supported(reader)
    defaults = _DEFAULTS[model_type]
    dim, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    if settings.get("head_dim") is None and dim % heads:
        raise reader.fail("num_attention_heads", heads, f"a divisor of hidden_size {dim}, or head_dim to be given")
    moe: dict[str, Any] = {}
    if model_type in ("mixtral", CONTEXT_MODEL_TYPE):
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
    with naming(source):
        return ModelConfig(
            vocab_size=reader.size("vocab_size"),
            dim=dim,
            n_layers=reader.size("num_hidden_layers"),
            n_heads=heads,
            n_kv_heads=reader.size("num_key_value_heads", heads),
            head_dim=reader.size("head_dim", dim // heads),
            hidden_dim=reader.size("intermediate_size"),
            norm_eps=reader.number("rms_norm_eps", defaults["rms_norm_eps"]),
            rope_theta=_rope_theta(reader, defaults["rope_theta"]),
            max_seq_len=reader.size("max_position_embeddings", defaults["max_position_embeddings"]),
            sliding_window=None
            if model_type == "llama"
            else reader.optional_size("sliding_window", defaults["sliding_window"]),
            tie_embeddings=bool(settings.get("tie_word_embeddings", False)),
            **moe,
        )


def read_config_json(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads a ``config.json``; returns the model's config and the whole object."""
    settings = read_json_object(path)
    return parse_config(settings, path), settings


def to_config_json(
    config: ModelConfig,
    dtype: str,
    token_ids: Mapping[str, int | None] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Builds the ``config.json`` of a dense model (Mistral) or of one with full experts (Mixtral).

    Args:
        dtype: torch's name for the tensors' dtype, e.g. ``bfloat16``.
        token_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``.
        extra: further keys.
    """
    assert config.num_experts == 0 or config.expert_form == "full", "delta experts have their own directory format"
    model_type = "mixtral" if config.num_experts else "mistral"
    if config.num_experts and not config.is_mixtral:
        model_type = CONTEXT_MODEL_TYPE
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
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
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
    return document | dict(extra or {})
