"""Writes a new model directory from an opened one: its tensors changed, its small files along, a model card on top."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from checkpoints.card_facts import base_license, base_name, run_facts
from checkpoints.formats import Checkpoint
from checkpoints.formats.config_json import to_config_json
from checkpoints.formats.delta import EXPERTS, DeltaCheckpoint, open_delta
from checkpoints.formats.extras import (
    carried_files,
    checkpoint_tokenizer,
    find_template,
    original_settings,
    token_ids,
    with_chat_template,
)
from checkpoints.formats.parameters import main_dtype
from checkpoints.model_card import model_card
from checkpoints.model_io import dtype_name, small_files
from checkpoints.storage.files import DiskUsage, free_bytes
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import MAX_SHARD_BYTES, Output, Progress, job_identity, write_model_directory
from checkpoints.transforms.merge import full_config, merged_tensors
from moe.config import ModelConfig
from moe.data.chat_template import TEMPLATE_FILE
from moe.errors import UserError
from moe.tokenizer import Tokenizer

Source = DeltaCheckpoint | Checkpoint
MERGED = "Low-rank experts were added to the dense weights and written out in full"


def dense_part(source: Source) -> Checkpoint:
    """The checkpoint with the full-size tensors: a delta's base, or the source itself."""
    return source.base if isinstance(source, DeltaCheckpoint) else source


def source_files(source: Source) -> list[Path]:
    """The files that decide a model's weights; for delta experts their own and their base's."""
    files = list(dense_part(source).weight_files)
    if isinstance(source, DeltaCheckpoint):
        files += [source.path / EXPERTS, source.path / "config.json"]
    return files


def source_identity(source: Source) -> list[list[Any]]:
    """Names, sizes and times of the files that a job reads, to tell whether a rerun reads the same."""
    return [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in source_files(source)]


def small_parts(
    source: Source, template: str | None = None
) -> tuple[dict[str, Any], dict[str, bytes | Path], dict[str, Any]]:
    """The small files that go along with a model's weights: JSON documents, files, and the config's token ids."""
    base = dense_part(source)
    found = {} if base.format == "gguf" else carried_files(base.directory)
    if isinstance(source, DeltaCheckpoint):
        found |= carried_files(source.path)
    files: Mapping[str, bytes | Path] = found
    carried = any(name.startswith("tokenizer") for name in found)
    tokenizer = None if carried else checkpoint_tokenizer(base)
    if template is None and TEMPLATE_FILE not in found:
        template = _own_template(source, tokenizer)
    elif template is not None and carried and (known := checkpoint_tokenizer(base)):
        files = with_chat_template(found, known, template)
    documents, contents = small_files(tokenizer, template, files)
    ids = original_settings(base) or token_ids(tokenizer)
    if isinstance(source, DeltaCheckpoint):
        ids |= {
            key: source.settings[key]
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
            if key in source.settings
        }
    return documents, contents, ids


def _own_template(source: Source, tokenizer: Tokenizer | None) -> str | None:
    """What :func:`find_template` finds; None for a model without a tokenizer, which nobody can prompt."""
    base = dense_part(source)
    places: list[tuple[Path, Mapping[str, Any]]] = [(base.directory, base.settings)]
    if isinstance(source, DeltaCheckpoint):
        places.insert(0, (source.path, {}))
    with contextlib.suppress(UserError):  # a tokenizer of an unknown kind is copied all the same
        tokenizer = tokenizer or checkpoint_tokenizer(base)
    return None if tokenizer is None else find_template(source.path, places, tokenizer)


def card(
    source: Source,
    config: ModelConfig,
    action: str,
    recipe: Mapping[str, str] | None = None,
    same_function: bool = False,
) -> bytes:
    """The model card of what is made from ``source``; see :func:`write_rewritten`."""
    base = dense_part(source)
    facts = run_facts(source.path) if same_function else None
    recipe = {**(facts.recipe if facts else {}), **(recipe or {})}
    scores = facts.scores if facts else None
    return model_card(config, base_name(base), action, recipe, scores, base_license(base)).encode()


def write_rewritten(
    source: Source,
    target: Path,
    config: ModelConfig,
    tensors: Iterable[StoredTensor],
    *,
    action: str,
    job: list[Any],
    recipe: Mapping[str, str] | None = None,
    same_function: bool = False,
    dtype: torch.dtype | None = None,
    template: str | None = None,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    files: Mapping[str, bytes | Path] | None = None,
    extra_config: Mapping[str, Any] | None = None,
    progress: Progress = lambda count: None,
    disk_free: DiskUsage = free_bytes,
) -> dict[str, Any]:
    """Writes a Hugging Face directory of ``config`` and returns its manifest.

    Args:
        tensors: under Hugging Face names, complete.
        action: what was done, in words, for the model card.
        recipe: settings of the making, for the model card.
        same_function: the new model computes what the source does, so the scores of a training run hold for it.
        job: JSON-able description of everything else that decides the output; with the source's files it tells a rerun
            which finished shards are its own.

    Raises:
        UserError: the target exists, the disk is too small, or the source is damaged.
    """
    documents, contents, ids = small_parts(source, template)
    stored = dtype_name(dtype or main_dtype(dense_part(source).tensors))
    documents["config.json"] = to_config_json(config, stored, ids, extra_config)
    contents["README.md"] = card(source, config, action, recipe, same_function)
    contents |= dict(files or {})
    output = Output(list(tensors), documents, contents, max_shard_bytes=max_shard_bytes)
    planned = [[tensor.name, dtype_name(tensor.dtype), tensor.shape] for tensor in output.tensors]
    small = {name: hashlib.sha256(_content(content)).hexdigest() for name, content in contents.items()}
    identity = job_identity({"job": [job, source_identity(source), max_shard_bytes, planned, documents, small]})
    return write_model_directory(
        target,
        output,
        force=force,
        identity=identity,
        progress=progress,
        disk_free=disk_free,
        reads=source_files(source),
    )


def _content(file: bytes | Path) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def merge_directory(source: Path, target: Path) -> None:
    """Writes the delta model in ``source`` as a Mixtral directory; raises as :func:`write_rewritten` does."""
    delta = open_delta(source)
    write_rewritten(
        delta,
        target,
        full_config(delta.config),
        merged_tensors(delta),
        action=MERGED,
        job=["merge"],
        same_function=True,
    )
