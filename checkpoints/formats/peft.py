"""PEFT LoRA adapters of a layer's matrices: ``adapter_config.json`` and ``adapter_model.safetensors``, both ways.

An adapter changes ``W`` to ``W + lora_alpha / r * B A``, as one expert of the delta form does. What a low-rank change
of these matrices cannot represent is refused by name.
Format: https://huggingface.co/docs/peft/developer_guides/checkpoint
"""

# D model dim, F hidden dim, r rank

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.formats.config_json import ConfigReader
from checkpoints.storage.files import read_json_object
from checkpoints.storage.safetensors_file import SafetensorsFile, StoredTensor
from moe.config import ATTENTION_EXPERTS, ModelConfig
from moe.errors import UserError

ADAPTER_CONFIG, ADAPTER_STEM = "adapter_config.json", "adapter_model"
ADAPTER_WEIGHTS = f"{ADAPTER_STEM}.safetensors"
# Modules of a layer, and our short names: w1, w2, w3 and the attention's wq, wk, wv, wo.
MODULES = {"mlp.gate_proj": "1", "mlp.down_proj": "2", "mlp.up_proj": "3"}
MODULES |= {f"self_attn.{name}_proj": name for name in ATTENTION_EXPERTS}
_NAME = re.compile(
    r"base_model\.model\.(?:model\.)?layers\.(0|[1-9]\d{0,4})\."
    rf"({'|'.join(map(re.escape, MODULES))})\.lora_([AB])\.weight",
    re.ASCII,
)
_EXPECTED = "a plain LoRA adapter of feed-forward and attention projections"
_REMEDY = f"train {_EXPECTED}, or merge this one into a dense model with peft"
# Settings that do not change what an adapter computes, or that the tensors and scales below account for.
_NEUTRAL = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out"),
    *("bias", "use_rslora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_core", "qalora_group_size", "eva_config", "runtime_config"),
}
# Starts that leave the base as it is; the others (pissa, olora, corda, loftq, lora_ga) subtract from it.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}  # settings, and their values for some modules
_PLAIN_PATTERN = re.compile(r"\^?(?:\w|\\?\.)+", re.ASCII)

Place = tuple[int, str]  # layer and short name


@dataclass(frozen=True)
class LowRankPair:
    """``scale * B A`` of one matrix: a [r, in], b [out, r]."""

    a: StoredTensor
    b: StoredTensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk, opened and checked; tensors are read later. ``base`` is the base that it names, or empty."""

    path: Path
    pairs: Mapping[Place, LowRankPair]
    base: str


def tensor_name(layer: int, module: str, side: str) -> str:
    """PEFT's name of A or B of one matrix."""
    return f"base_model.model.model.layers.{layer}.{module}.lora_{side}.weight"


def changed_modules(config: ModelConfig) -> dict[str, str]:
    """Those of :data:`MODULES` that a model's deltas change in a sparse layer."""
    names = [name for part in config.delta_names.values() for name in part]
    return {module: name for module, name in MODULES.items() if name in names}


def adapter_config(
    base: str, rank: int, scale: float, layers: tuple[int, ...] | None, modules: Iterable[str]
) -> dict[str, Any]:
    """An ``adapter_config.json`` for pairs of rank ``rank`` in ``layers`` (None: all), each times ``scale``."""
    alpha = scale * rank
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": 0.0,
        "target_modules": [module.rpartition(".")[2] for module in modules],
        "layers_to_transform": None if layers is None else list(layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def open_adapter(directory: Path, config: ModelConfig | None = None) -> Adapter:
    """Opens an adapter and checks it, against the dense model ``config`` where that is given.

    Raises:
        UserError: a missing or damaged file, sizes that do not fit, or what an expert cannot represent.
    """
    source = directory / ADAPTER_CONFIG
    if not source.is_file():
        found = sorted(path.parent.name for path in directory.glob(f"*/{ADAPTER_CONFIG}"))
        inside = f": name the adapters in it ({', '.join(found)})" if found else "; give the folder of a PEFT adapter"
        raise UserError(f"{directory} has no {ADAPTER_CONFIG}{inside}")
    settings = read_json_object(source)
    _check_settings(settings, source)
    weights = directory / ADAPTER_WEIGHTS
    if not weights.is_file():
        found_bin = (directory / f"{ADAPTER_STEM}.bin").exists()
        also = f" ({ADAPTER_STEM}.bin is pickled, which is never read)" if found_bin else ""
        raise UserError(f"{weights} is missing{also}; save the adapter with save_pretrained")
    sides: dict[Place, dict[str, StoredTensor]] = {}
    for name, tensor in SafetensorsFile(weights).tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{weights}: tensor {name[:160]!r} is not one that an expert can represent; {_REMEDY}")
        sides.setdefault((int(match[1]), MODULES[match[2]]), {})[match[3]] = tensor
    if not sides:
        raise UserError(f"{weights} has no tensors; expected {_EXPECTED}")
    pairs = {place: _pair(place, sides[place], settings, weights, config) for place in sorted(sides)}
    return Adapter(directory, pairs, str(settings.get("base_model_name_or_path") or ""))


def _check_settings(settings: Mapping[str, Any], source: Path) -> None:
    if settings.get("peft_type") != "LORA":
        raise UserError(f"{source}: peft_type is {str(settings.get('peft_type'))[:80]!r}; expected 'LORA': {_REMEDY}")
    if settings.get("bias", "none") != "none":
        raise UserError(f"{source}: bias is {str(settings['bias'])[:80]!r}; expected 'none': {_REMEDY}")
    if settings.get("init_lora_weights") not in _STARTS:
        raise UserError(
            f"{source}: init_lora_weights is {str(settings['init_lora_weights'])[:80]!r}, which also changes the base; "
            "expected true: save it again with path_initial_model_for_weight_conversion (see PEFT's manual)"
        )
    for key, value in settings.items():
        if value and key not in _NEUTRAL:
            raise UserError(f"{source}: {key} is {str(value)[:80]}, which an expert cannot represent; {_REMEDY}")


def _pattern(settings: Mapping[str, Any], key: str, module: str, source: Path) -> Any:
    """The value of ``rank_pattern`` or ``alpha_pattern`` for a module, found as PEFT does; None without one.

    Names alone are taken: a regular expression in a hostile file may take forever.
    """
    patterns = settings.get(key) or {}
    names = list(patterns) if isinstance(patterns, Mapping) else [str(patterns)]
    strange = next((name for name in names if not _PLAIN_PATTERN.fullmatch(name)), None)
    if strange is not None or not isinstance(patterns, Mapping):
        found = str(patterns if strange is None else strange)[:80]
        raise UserError(f"{source}: {key} has {found!r}; expected names of modules, such as layers.3.mlp.up_proj")
    return next((patterns[name] for name in names if re.match(rf"(.*\.)?({name})$", module)), None)


def _check_applied(settings: Mapping[str, Any], layer: int, name: str, source: Path) -> None:
    """Raises :class:`UserError` where the settings leave out a module with tensors: PEFT would not load these."""
    wanted, excluded = settings.get("target_modules"), settings.get("exclude_modules")
    layers = settings.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers

    def among(names: Any) -> bool:
        return any(name == str(one) or name.endswith(f".{one}") for one in names)

    left_out = {
        "layers_to_transform": bool(layers) and not (isinstance(layers, list) and layer in layers),
        "target_modules": isinstance(wanted, list) and not among(wanted),
        "exclude_modules": isinstance(excluded, list) and among(excluded),
    }
    for key, left in left_out.items():
        if left:
            raise UserError(
                f"{source}: {key} is {str(settings[key])[:80]}, which leaves out {name}, but the adapter has tensors "
                "of it; correct that setting, or save the adapter again"
            )


def _pair(
    place: Place,
    sides: Mapping[str, StoredTensor],
    settings: Mapping[str, Any],
    source: Path,
    config: ModelConfig | None,
) -> LowRankPair:
    layer, short = place
    name = f"model.layers.{layer}.{next(module for module in MODULES if MODULES[module] == short)}"
    if lacking := {"A", "B"} - sides.keys():
        raise UserError(f"{source}: lora_{lacking.pop()} of {name} is missing; save the adapter again")
    a, b = sides["A"], sides["B"]
    config_file = source.with_name(ADAPTER_CONFIG)
    _check_applied(settings, layer, name, config_file)
    own = {key: _pattern(settings, pattern, name, config_file) for key, pattern in _PATTERNS.items()}
    reader = ConfigReader(
        {key: settings.get(key) if value is None else value for key, value in own.items()}, config_file
    )
    rank, alpha = reader.size("r"), reader.number("lora_alpha")
    inner, outer = a.shape[-1:], b.shape[:1]
    if config is not None:
        if layer >= config.n_layers:
            raise UserError(
                f"{source}: {name} is adapted, and the base has {config.n_layers} layers; give its own base"
            )
        inner, outer = ((size,) for size in config.matrix_sizes[short])
    for side, tensor, shape in (("A", a, (rank, *inner)), ("B", b, (*outer, rank))):
        if tensor.shape != shape or not tensor.dtype.is_floating_point:
            raise UserError(
                f"{source}: lora_{side} of {name} is {tensor.dtype} {list(tensor.shape)}; rank and base ask for a "
                f"floating-point tensor of shape {list(shape)}: give the adapter's own base"
            )
    return LowRankPair(a, b, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank))
