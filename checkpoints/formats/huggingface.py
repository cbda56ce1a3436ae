"""Hugging Face directories: ``config.json`` and one ``model.safetensors``, or shards with an index."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.config_json import read_config_json
from checkpoints.formats.dense_layers import stores_router, without_copies
from checkpoints.formats.foreign import refuse_directory, refuse_tensors, unreadable
from checkpoints.formats.names import check_tensors, from_huggingface, is_ignored, to_huggingface, unstacked
from checkpoints.formats.quantized import is_quantized, join_quantized
from checkpoints.formats.tied import resolve_tied
from checkpoints.storage.files import inside, read_json_object
from checkpoints.storage.safetensors_file import SafetensorsFile, StoredTensor
from moe.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_UNREAD = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def weight_files(directory: Path, index_path: Path, single: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Finds the weight files of a directory and, if it has an index, the map from tensor to file name.

    Raises:
        UserError: no safetensors files, a damaged index, or a shard name that leaves the directory.
    """
    if index_path.is_file():
        weight_map = read_json_object(index_path).get("weight_map")
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(name, str) for name in weight_map.values())
        ):
            raise UserError(f"{index_path} has no weight_map from tensor to file names; download it again")
        names = sorted(set(weight_map.values()))
        files = [inside(directory, name, index_path) for name in names]
        for file in files:
            if file.suffix != ".safetensors":
                raise UserError(f"{index_path} names {file.name!r}; only .safetensors files are read")
        return files, weight_map
    if single.is_file():
        return [single], None
    refuse_directory(directory)
    if any((directory / name).exists() for name in _UNREAD):
        raise UserError(
            f"{directory} has only pickled weights (.bin), which are never read; convert to safetensors first"
        )
    raise UserError(f"{directory} has neither {WEIGHTS} nor {INDEX}; give the directory of a downloaded model")


def read_named_tensors(files: list[Path], weight_map: dict[str, str] | None, source: Path) -> dict[str, StoredTensor]:
    """Opens and checks the files; returns all tensors by their names in the files.

    Raises:
        UserError: a missing or damaged file, a tensor in two files, or files that disagree with the index.
    """
    tensors: dict[str, StoredTensor] = {}
    places: dict[str, str] = {}
    for file in files:
        if not file.is_file():
            raise UserError(f"{file} is missing; {source} names it: download all shards")
        try:
            opened = SafetensorsFile(file).tensors
        except UserError as error:
            raise unreadable(error, file) from None
        for name, tensor in opened.items():
            if name in tensors:
                raise UserError(
                    f"tensor {name!r} is both in {places[name]} and in {file}; download the checkpoint again"
                )
            tensors[name], places[name] = tensor, file.name
    for name, shard in (weight_map or {}).items():
        if name not in tensors:
            raise UserError(f"{source}: tensor {name!r} is missing from {shard}; download that shard again")
        if (found := places[name]) != shard:
            raise UserError(f"{source} says that tensor {name!r} is in {shard}, it is in {found}; download both again")
    return tensors


def open_huggingface(directory: Path) -> Checkpoint:
    """Opens a Mistral, Llama or Mixtral directory and checks every tensor against its config.

    Raises:
        UserError: a damaged file, a key or tensor of a model that is not supported, or tensors that do not fit.
    """
    config, settings = read_config_json(directory / "config.json")
    files, weight_map = weight_files(directory, directory / INDEX, directory / WEIGHTS)
    source = directory / (INDEX if weight_map is not None else WEIGHTS)
    stored = read_named_tensors(files, weight_map, source)
    if is_quantized(settings):
        stored = join_quantized(stored, source)
    else:
        refuse_tensors(stored, source)
    if config.is_moe:
        stored = unstacked(stored, source)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        if is_ignored(name):
            continue
        ours = from_huggingface(name)
        if ours is None:
            raise UserError(f"{source}: tensor {name!r} belongs to no supported architecture")
        tensors[ours] = tensor
    config, tensors = resolve_tied(config, tensors, source)
    check_tensors(tensors, replace(config, moe_layers=None), source, to_huggingface, partial(stores_router, config))
    if config.moe_layers is not None:
        tensors = without_copies(tensors, config, source)
    return Checkpoint(directory, "huggingface", config, tensors, tuple(files), settings)
