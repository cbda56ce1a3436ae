"""Delta directories: low-rank experts and routers in ``experts.safetensors``, and a reference to their dense base.

``config.json`` has ``model_type: mixtral_delta``, our config under ``model``, and under ``base`` the path of the base
and the size and SHA-256 of its files. The base is looked up by its relative path (so that both can move together),
then by its absolute path. File sizes are always checked, checksums if the base is small; ``python -m checkpoints
verify`` checks everything.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.config_json import DELTA_MODEL_TYPE
from checkpoints.formats.detect import open_checkpoint
from checkpoints.formats.parameters import meta_model
from checkpoints.storage.files import read_json_object, sha256_file
from checkpoints.storage.safetensors_file import SafetensorsFile, StoredTensor
from moe.config import ModelConfig
from moe.errors import UserError

EXPERTS = "experts.safetensors"
_HASH_ON_LOAD = 1 << 30  # bytes; a base up to this size is hashed at each load, in less than a second


@dataclass(frozen=True)
class BaseReference:
    """A dense model on disk and the checksums of its files, which identify a copy that was moved.

    Attributes:
        path: the directory or GGUF file.
        files: name -> (bytes, SHA-256).
    """

    path: Path
    files: Mapping[str, tuple[int, str]]

    def to_json(self, directory: Path) -> dict[str, Any]:
        """The ``base`` entry of a delta directory's config."""
        return {
            "path": str(self.path.absolute()),
            "relative_path": os.path.relpath(self.path.absolute(), directory.absolute()),
            "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in self.files.items()},
        }


def base_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that determine a base's function: tensor files and the config."""
    configs = [checkpoint.directory / name for name in ("config.json", "params.json")]
    extra = [path for path in configs if checkpoint.format != "gguf" and path.is_file()]
    return [*checkpoint.weight_files, *extra]


def base_reference(checkpoint: Checkpoint) -> BaseReference:
    """Hashes the files of a dense model (about a second per GB)."""
    files = {path.name: (path.stat().st_size, sha256_file(path)) for path in base_files(checkpoint)}
    return BaseReference(checkpoint.path, files)


def dense_sizes(config: ModelConfig) -> tuple[Any, ...]:
    """The settings that determine the dense model's function."""
    return (
        *(config.vocab_size, config.dim, config.n_layers, config.n_heads, config.n_kv_heads, config.head_dim),
        *(config.hidden_dim, config.norm_eps, config.rope_theta, config.rope_scaling, config.tie_embeddings),
        *(config.sliding_window, config.sliding_layers, config.attention_bias),
    )


@dataclass(frozen=True)
class DeltaCheckpoint:
    """A delta directory, opened and checked; tensors are read later.

    ``tensors`` are named as the parameters in memory: routers, deltas, and any other parameter that differs from the
    base.
    """

    path: Path
    config: ModelConfig
    base: Checkpoint
    tensors: Mapping[str, StoredTensor]
    settings: Mapping[str, Any]


def is_delta(path: Path) -> bool:
    """True for a delta directory."""
    config = path / "config.json"
    return config.is_file() and read_json_object(config).get("model_type") == DELTA_MODEL_TYPE


def read_delta_config(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads the config of a delta directory; raises :class:`UserError` naming the file."""
    source = path / "config.json"
    settings = read_json_object(source)
    model = settings.get("model")
    if not isinstance(model, dict):
        raise UserError(f"{source} has no 'model' object; write the delta directory again")
    try:
        config = ModelConfig.from_dict(model)
    except (UserError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None
    if not config.is_delta:
        raise UserError(f"{source} describes no delta experts; write the delta directory again")
    return config, settings


def read_reference(settings: Mapping[str, Any], source: Path) -> tuple[list[Path], dict[str, tuple[int, str]]]:
    """Returns the paths to try for the base, in order, and its files; raises :class:`UserError` for a damaged entry."""
    base: Any = settings.get("base")
    try:
        files = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in base["files"].items()}
        return [source.parent / base["relative_path"], Path(base["path"])], files
    except (TypeError, KeyError, AttributeError, ValueError):
        raise UserError(f"{source} has no usable 'base' entry; write the delta directory again") from None


def mismatch(checkpoint: Checkpoint, files: Mapping[str, tuple[int, str]], thorough: bool) -> str | None:
    """Describes how a base differs from the recorded files, or None; ``thorough`` hashes files of any size."""
    found = {path.name: path for path in base_files(checkpoint)}
    if set(found) != set(files):
        return f"it has the files {', '.join(sorted(found))}, expected {', '.join(sorted(files))}"
    for name, (size, _) in files.items():
        if found[name].stat().st_size != size:
            return f"{name} has {found[name].stat().st_size} bytes, expected {size}"
    if thorough or sum(size for size, _ in files.values()) <= _HASH_ON_LOAD:
        for name, (_, digest) in files.items():
            if sha256_file(found[name]) != digest:
                return f"{name} has another SHA-256 than the base that the experts were made for"
    return None


def find_base(path: Path, settings: Mapping[str, Any], base: Path | None = None, thorough: bool = False) -> Checkpoint:
    """Opens the base of a delta directory, at ``base`` if given.

    Raises:
        UserError: the base has moved or is another model; says what to type.
    """
    places, files = read_reference(settings, path / "config.json")
    hint = f"type: python -m checkpoints relink {shlex.quote(str(path))} PATH-OF-THE-BASE"
    place = base if base is not None else next((place for place in places if place.exists()), None)
    if place is None:
        raise UserError(f"the base of {path} is not at {places[1]} any more; if it moved, {hint}")
    checkpoint = open_checkpoint(Path(os.path.normpath(place)))
    if (difference := mismatch(checkpoint, files, thorough)) is not None:
        raise UserError(f"{place} is not the base of {path}: {difference}; if the base is elsewhere, {hint}")
    return checkpoint


def open_delta(path: Path, base: Path | None = None) -> DeltaCheckpoint:
    """Opens a delta directory and its base, and checks the names and shapes of all tensors.

    Raises:
        UserError: a damaged file, a tensor that does not fit, or a base that moved or changed.
    """
    config, settings = read_delta_config(path)
    checkpoint = find_base(path, settings, base)
    if dense_sizes(checkpoint.config) != dense_sizes(config) or checkpoint.config.num_experts:
        raise UserError(f"{path / 'config.json'} and its base {checkpoint.path} disagree in sizes; write it again")
    file = SafetensorsFile(path / EXPERTS)
    shapes = {name: tuple(parameter.shape) for name, parameter in meta_model(config).named_parameters()}
    for name, tensor in file.tensors.items():
        if name not in shapes:
            raise UserError(f"{file.path}: tensor {name!r} is not one of this model; write the directory again")
        if tensor.shape != shapes[name] or not tensor.dtype.is_floating_point:
            raise UserError(
                f"{file.path}: tensor {name!r} is {tensor.dtype} {list(tensor.shape)}; the config asks for a "
                f"floating-point tensor of shape {list(shapes[name])}"
            )
    for name in shapes:
        if is_own(name) and name not in file.tensors:
            raise UserError(f"{file.path}: tensor {name!r} is missing; copy the file again")
    return DeltaCheckpoint(path, config, checkpoint, file.tensors, settings)


def is_own(name: str) -> bool:
    """True for parameters that a delta model adds to its base: routers and low-rank deltas."""
    return ".feed_forward.gate." in name or "_delta." in name or "_deltas." in name
