"""Checkpoints that other programs quantized or wrapped, and adapters: refused by what they are."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from checkpoints.formats.quantized import is_quantized
from moe.errors import UserError

_PREFIXES = {  # of tensor names, and what writes them
    "base_model.model.": "an adapter of peft, or a model saved with one inside",
    "model.language_model.": "the language model inside a multimodal one",
    "language_model.": "the language model inside a multimodal one",
    "_orig_mod.": "a model saved after torch.compile",
    "module.": "a model saved from a distributed wrapper",
}
_MERGE = (
    "from peft import AutoPeftModelForCausalLM as M; "
    "M.from_pretrained({path!r}).merge_and_unload().save_pretrained('OUT')"
)
_TEXT_ONLY = (
    "from transformers import AutoModelForImageTextToText as M; m = M.from_pretrained({path!r}, dtype='auto'); "
    "t = m.model.language_model; from transformers import AutoModelForCausalLM as A; "
    "c = A.from_config(t.config, dtype=t.dtype); c.model.load_state_dict(t.state_dict()); "
    "c.lm_head.weight = m.lm_head.weight; c.save_pretrained('OUT')"
)
_DEQUANTIZE = "from gptqmodel.utils.model_dequant import dequantize as d; d({path!r}, 'OUT')"
_UNPACK = (
    "from transformers import AutoModelForCausalLM as M; "
    "M.from_pretrained({path!r}, device_map='auto').dequantize().save_pretrained('OUT')"
)
_RENAME = (
    "from safetensors.torch import load_file, save_file; t = load_file({file!r}); "
    "save_file({{k.removeprefix({prefix!r}): v for k, v in t.items()}}, 'OUT.safetensors', {{'format': 'pt'}})"
)


def _python(code: str, **names: str) -> str:
    return f"python -c {shlex.quote(code.format(**names))}"


def refuse_foreign(settings: Mapping[str, Any], source: Path) -> None:
    """Raises :class:`UserError` for a ``config.json`` of a quantized, multimodal or adapter directory."""
    path = str(source.parent)
    if settings.get("quantization") and isinstance(
        settings["quantization"], Mapping
    ):  # MLX writes its own key beside transformers'
        raise _quantized("MLX", source.parent, "")
    if settings.get("quantization_config") and not is_quantized(settings):
        found = settings["quantization_config"]
        method = str(found.get("quant_method", "")) if isinstance(found, Mapping) else ""
        raise _quantized(method.upper() or "another program", source.parent, "quantization_config ")
    text = settings.get("text_config")
    if isinstance(text, Mapping):
        raise UserError(
            f"{source}: text_config: this is a multimodal model (model_type {str(settings.get('model_type'))[:40]!r}) "
            f"around a {str(text.get('model_type'))[:40]!r} one; expected a text model: take it out with: "
            f"{_python(_TEXT_ONLY, path=path)}"
        )


def _quantized(method: str, directory: Path, where: str) -> UserError:
    path = str(directory)
    if method == "MLX":
        command = shlex.join(["python", "-m", "mlx_lm", "convert", "-d", "--hf-path", path, "--mlx-path", "OUT"])
    elif method in ("GPTQ", "AWQ", "FP8", "COMPRESSED-TENSORS", "MODELOPT"):
        command = _python(_DEQUANTIZE, path=path)
    else:
        command = _python(_UNPACK, path=path)
    return UserError(
        f"{directory}: {where}these weights are quantized by {method}; expected the model that they were made from, "
        f"or unpack them with: {command}"
    )


def refuse_directory(directory: Path) -> None:
    """Raises :class:`UserError` for a directory without weights that holds an adapter."""
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{directory} is an adapter of peft, no model; merge it into its base first: "
            f"{_python(_MERGE, path=str(directory))}"
        )


def refuse_tensors(tensors: Mapping[str, Any], file: Path) -> None:
    """Raises :class:`UserError` for tensor names of quantized, wrapped or adapted models, in ``file``."""
    directory = file.parent
    ends = {name.rpartition(".")[2] for name in tensors}
    if {"qweight", "qzeros"} & ends:
        raise _quantized("GPTQ" if "g_idx" in ends else "AWQ", directory, "tensors named qweight: ")
    if {"weight_scale", "weight_scale_inv"} & ends:
        raise _quantized("FP8", directory, "tensors named weight_scale: ")
    if "scales" in ends and "biases" in ends:
        raise _quantized("MLX", directory, "tensors named scales and biases: ")
    if any(end in ends for end in ("absmax", "quant_map")):
        raise _quantized("BITSANDBYTES", directory, "tensors named absmax: ")
    found = _prefix(tensors)
    if found is None:
        return
    what, first = _PREFIXES[found], next(name for name in tensors if name.startswith(found))
    if found == "base_model.model.":
        command = _python(_MERGE, path=str(directory))
    elif "language_model" in found:
        command = _python(_TEXT_ONLY, path=str(directory))
    else:
        command = _python(_RENAME, file=str(file), prefix=found)
    raise UserError(f"{file}: tensor {first!r} is of {what}; expected a plain text model: {command}")


def unreadable(error: UserError, file: Path) -> UserError:
    """The error for a file with tensors of a dtype that is not read: what quantized it, where the dtype says so."""
    for dtype, method in (("'F8_", "FP8"), ("'U32'", "MLX"), ("'F4'", "FP4")):
        if f"has dtype {dtype}" in str(error):
            return _quantized(method, file.parent, f"tensors of dtype {dtype.strip(chr(39))}: ")
    return error


def _prefix(names: Iterable[str]) -> str | None:
    names = list(names)
    return next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in names)), None)
