"""Mistral's own directories: ``params.json`` and ``consolidated.safetensors``, or ``consolidated-0000N-of-0000M``.

Tensor names are the reference names. The rows of wq and wk are interleaved head by head, because the rotary embedding
there rotates pairs of adjacent elements; reading reorders them to the Hugging Face layout.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.config_keys import is_neutral
from checkpoints.formats.huggingface import read_named_tensors, weight_files
from checkpoints.formats.names import check_tensors
from checkpoints.formats.reader import ConfigReader, naming
from checkpoints.formats.rotary import from_interleaved_rotary
from checkpoints.formats.tied import resolve_tied
from checkpoints.storage.files import read_json_object
from checkpoints.storage.safetensors_file import StoredTensor
from moe.config import ModelConfig
from moe.errors import UserError

PARAMS = "params.json"
_FILES = re.compile(r"consolidated(-\d{5}-of-\d{5}|\.\d{2})?\.safetensors", re.ASCII)
_PART = re.compile(r"consolidated-\d{5}-of-(\d{5})\.safetensors", re.ASCII)
_QUERY = re.compile(r"layers\.\d+\.attention\.w([qk])\.weight", re.ASCII)
_BLOCK_SPARSE = ".block_sparse_moe."  # the name of feed-forwards in early Mixtral files
_READ = set(
    """
    dim n_layers n_heads n_kv_heads head_dim hidden_dim norm_eps vocab_size rope_theta max_seq_len
    max_position_embeddings sliding_window tied_embeddings moe
    """.split()
)
_HARMLESS = {"max_batch_size", "model_parallel", "dtype"}
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {"use_biases": (False,), "causal": (True,), "model_type": ("transformer",)}
_EXPERTS = {"num_experts", "num_experts_per_tok"}


def parse_params(params: Mapping[str, Any], source: Path, has_output: bool) -> ModelConfig:
    """Turns ``params.json`` into a :class:`ModelConfig`; raises :class:`UserError` naming the key.

    The oldest files have no ``rope_theta``; as in mistral-inference it is then 1e6, or 1e4 with a sliding window.
    """
    reader = ConfigReader(params, source)
    for key, value in params.items():
        if key not in _READ and key not in _HARMLESS and not is_neutral(key, value, _NEUTRAL):
            raise reader.fail(key, value, "it to be absent: models with this key are unsupported")
    dim, heads, n_layers = reader.size("dim"), reader.size("n_heads"), reader.size("n_layers")
    windows = _windows(reader, n_layers)
    moe: dict[str, Any] = {}
    if params.get("moe") is not None:
        if not isinstance(params["moe"], Mapping):
            raise reader.fail("moe", params["moe"], "an object with num_experts and num_experts_per_tok")
        inner = ConfigReader(params["moe"], source)
        if unknown := [
            key for key, value in params["moe"].items() if key not in _EXPERTS and not is_neutral(key, value)
        ]:
            raise reader.fail(f"moe.{unknown[0]}", params["moe"][unknown[0]], "it to be absent")
        moe = {
            "num_experts": inner.size("num_experts"),
            "num_experts_per_tok": inner.size("num_experts_per_tok"),
            "expert_form": "full",
        }
    return ModelConfig(
        vocab_size=reader.size("vocab_size"),
        dim=dim,
        n_layers=n_layers,
        n_heads=heads,
        n_kv_heads=reader.size("n_kv_heads", heads),
        head_dim=reader.size("head_dim", dim // heads or 1),
        hidden_dim=reader.size("hidden_dim"),
        norm_eps=reader.number("norm_eps", 1e-5),
        rope_theta=reader.number("rope_theta", 1e4 if windows["sliding_window"] else 1e6),
        max_seq_len=reader.size("max_seq_len", reader.size("max_position_embeddings", 32768)),
        **windows,
        tie_embeddings=bool(params.get("tied_embeddings", False)) or not has_output,
        **moe,
    )


def _windows(reader: ConfigReader, n_layers: int) -> dict[str, Any]:
    """The sliding window; a list is a pattern of windows that repeats over the layers, null for none."""
    value = reader.settings.get("sliding_window")
    if not isinstance(value, list):
        return {"sliding_window": reader.optional_size("sliding_window", None)}
    sizes = {one for one in value if one is not None}
    if not value or n_layers % len(value) or len(sizes) > 1 or not all(type(one) is int and one > 0 for one in sizes):
        raise reader.fail("sliding_window", value, f"one window, or null, for each of {n_layers} layers")
    sliding = tuple(layer for layer in range(n_layers) if value[layer % len(value)] is not None)
    return {"sliding_window": max(sizes, default=None), "sliding_layers": sliding or None}


def _complete(files: list[Path], directory: Path) -> list[Path]:
    totals = {int(match[1]) for file in files if (match := _PART.fullmatch(file.name))}
    if totals and (len(totals) > 1 or totals != {len(files)}):
        raise UserError(f"{directory} has {len(files)} of {max(totals)} consolidated files; download the missing ones")
    return files


def _in_our_layout(tensor: StoredTensor, heads: int) -> StoredTensor:
    return replace(tensor, read=lambda: from_interleaved_rotary(tensor.read(), heads), where=None)


def open_consolidated(directory: Path) -> Checkpoint:
    """Opens a directory in Mistral's own format and checks every tensor against ``params.json``.

    Raises:
        UserError: a missing or damaged file, an unsupported model, or tensors that do not fit.
    """
    params_path = directory / PARAMS
    params = read_json_object(params_path)
    index = directory / "consolidated.safetensors.index.json"
    if index.is_file():
        files, weight_map = weight_files(directory, index, directory / "consolidated.safetensors")
    else:
        files, weight_map = sorted(f for f in directory.iterdir() if _FILES.fullmatch(f.name)), None
        if not files:
            raise UserError(f"{directory} has {PARAMS} but no consolidated.safetensors; download the whole model")
        files = _complete(files, directory)
    found = read_named_tensors(files, weight_map, index if weight_map else params_path)
    with naming(params_path):
        config = parse_params(params, params_path, "output.weight" in found)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in found.items():
        name = name.replace(_BLOCK_SPARSE, ".feed_forward.")
        match = _QUERY.fullmatch(name)
        if match and len(tensor.shape) == 2:
            heads = config.n_heads if match[1] == "q" else config.n_kv_heads
            if tensor.shape[0] == heads * config.head_dim:  # otherwise the check below names the shape
                tensor = _in_our_layout(tensor, heads)
        tensors[name] = tensor
    config, tensors = resolve_tied(config, tensors, params_path)
    check_tensors(tensors, config, files[0] if len(files) == 1 else directory, lambda name: name)
    return Checkpoint(directory, "consolidated", config, tensors, tuple(files), params)
