"""Makes a new model directory from an opened one: tensors transformed, small files carried along, a new model card.

Every command that writes a model goes this way: a transform renames or computes the tensors (lazily, one at a time),
:class:`Rewrite` adds what goes beside them, and :func:`write_rewritten` copies all of it to the new directory.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats import Checkpoint
from checkpoints.formats.config_json import to_config_json
from checkpoints.formats.delta import EXPERTS, DeltaCheckpoint, open_delta
from checkpoints.formats.extras import (
    carried_files,
    checkpoint_tokenizer,
    code_files,
    find_template,
    original_settings,
    token_ids,
    with_chat_template,
)
from checkpoints.formats.parameters import main_dtype
from checkpoints.model_card import base_license, base_name, model_card, run_facts, stated_base, training_of
from checkpoints.model_io import small_files
from checkpoints.storage.files import DiskUsage, free_bytes
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import MAX_SHARD_BYTES, Output, Progress, job_identity, write_model_directory
from checkpoints.transforms.merge import full_config, merged_tensors
from moe.config import ModelConfig
from moe.data.chat_template import TEMPLATE_FILE
from moe.data.prompt import OWN
from moe.errors import UserError
from moe.hardware import dtype_name
from moe.tokenizer import Tokenizer
from moe.tokenizer.classes import settled_files

Source = DeltaCheckpoint | Checkpoint


@dataclass(frozen=True)
class Rewrite:
    """A new model made from one on disk: its tensors, and what its config and model card say.

    Attributes:
        config: of the new model.
        tensors: under the names they are written with, complete, in this order.
        action: what was done, in words, for the card.
        job: JSON-able description of everything else that decides the tensors. Together with the source's files it
            tells a rerun which finished shards it can keep.
        recipe: settings of the transform, for the card.
        same_function: the new model computes what the source does, so the scores of a training run hold for it.
        dtype: to which all tensors were converted; None if they keep the source's.
        template: prompt template to store; None keeps the source's.
        base_id: the base's hub id, for the card; None looks for one (:func:`checkpoints.model_card.base_name`).
        extra_config: further keys of ``config.json``.
    """

    source: Source
    config: ModelConfig
    tensors: Sequence[StoredTensor]
    action: str
    job: Sequence[Any]
    recipe: Mapping[str, str] = field(default_factory=dict)
    same_function: bool = False
    dtype: torch.dtype | None = None
    template: str | None = None
    base_id: str | None = None
    extra_config: Mapping[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def card(self) -> bytes:
        """The model card; for a delta source, the hub id of its base may come from the delta's own card."""
        base, base_id = dense_part(self.source), self.base_id
        if base_id is None and isinstance(self.source, DeltaCheckpoint):
            base_id = stated_base(self.source.path)
        facts = run_facts(self.source.path) if self.same_function else None
        trained = training_of(self.source.path)
        recipe = {**(facts.recipe if facts else {}), **({"training": trained} if trained else {}), **self.recipe}
        name, scores = base_name(base, base_id), facts.scores if facts else None
        return model_card(self.config, name, self.action, recipe, scores, base_license(base)).encode()

    def small_parts(self) -> tuple[dict[str, Any], dict[str, bytes | Path], dict[str, Any]]:
        """What goes beside the tensors: JSON documents, other files with the card, and the config's token ids."""
        source, base, template = self.source, dense_part(self.source), self.template
        found = {} if base.format == "gguf" else carried_files(base.directory)
        if isinstance(source, DeltaCheckpoint):
            found |= carried_files(source.path)
        files: Mapping[str, bytes | Path] = found
        carried = any(name.startswith("tokenizer") for name in found)
        tokenizer = None if carried else checkpoint_tokenizer(base)
        known = tokenizer
        if template is None and TEMPLATE_FILE not in found:
            template, known = own_template(source, tokenizer)
        elif template is not None and carried:
            known = checkpoint_tokenizer(base)
        if known is not None and template is not None and (carried and (self.template or template == OWN)):
            files = with_chat_template(found, known, template)
        documents, contents = small_files(tokenizer, template, files)
        if carried:
            contents = settled_files(base.directory, contents)
        ids = original_settings(base) or token_ids(tokenizer)
        if isinstance(source, DeltaCheckpoint):
            names = ("bos_token_id", "eos_token_id", "pad_token_id")
            ids |= {name: source.settings[name] for name in names if name in source.settings}
        return documents, {**contents, "README.md": self.card()}, ids


@dataclass(frozen=True)
class OutputOptions:
    """How a directory is written.

    Attributes:
        force: replace an existing directory, once the new one is complete.
        progress: called with the number of bytes just written.
        disk_free: free bytes at a path.
    """

    force: bool = False
    max_shard_bytes: int = MAX_SHARD_BYTES
    progress: Progress = lambda count: None
    disk_free: DiskUsage = free_bytes


DEFAULT_OUTPUT = OutputOptions()


def write_rewritten(rewrite: Rewrite, target: Path, options: OutputOptions = DEFAULT_OUTPUT) -> None:
    """Writes a rewritten model as a Hugging Face directory; a rerun after a kill keeps the shards that are complete.

    Raises:
        UserError: the target exists, the disk is too small, or the source is damaged.
    """
    documents, files, ids = rewrite.small_parts()
    stored = dtype_name(rewrite.dtype or main_dtype(dense_part(rewrite.source).tensors))
    files |= code_files(rewrite.config)
    documents["config.json"] = to_config_json(rewrite.config, stored, ids, rewrite.extra_config)
    reads = source_files(rewrite.source)
    write_model_directory(
        target,
        Output(rewrite.tensors, documents, files, max_shard_bytes=options.max_shard_bytes),
        force=options.force,
        identity=_identity(rewrite, documents, files, reads, options.max_shard_bytes),
        progress=options.progress,
        disk_free=options.disk_free,
        reads=reads,
    )


def _identity(
    rewrite: Rewrite, documents: Mapping[str, Any], files: Mapping[str, bytes | Path], reads: Sequence[Path], shard: int
) -> str:
    """What tells a rerun that it is the same job: its settings, and names, sizes and times of the files it reads."""
    planned = [[tensor.name, dtype_name(tensor.dtype), tensor.shape] for tensor in rewrite.tensors]
    contents = {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in files.items()}
    small = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    read = [[str(file.absolute()), file.stat().st_size, file.stat().st_mtime_ns] for file in reads]
    return job_identity({"job": [list(rewrite.job), read, shard, planned, documents, small]})


def merge_rewrite(
    delta: Source, dtype: torch.dtype | None = None, base_id: str | None = None, keep_context: bool = False
) -> Rewrite:
    """The Mixtral model (for a lone adapter the dense one) that a delta model is merged into.

    Raises:
        UserError: its routers see context, which no reader of Mixtral does: it would route by token, and badly. With
            ``keep_context`` the result is no Mixtral, and says so.
    """
    if delta.config.is_moe and not delta.config.is_mixtral and not keep_context:
        raise UserError(
            f"{delta.path} routes by document context (router_context {delta.config.router_context}), which readers of "
            "Mixtral do not; add --refit-router --data DIR, which fits token gates and prints the loss, --keep-context "
            "for this project and transformers alone, or take one language out with python -m checkpoints extract"
        )
    return Rewrite(
        delta,
        full_config(delta.config),
        list(merged_tensors(delta, dtype)),
        action="Low-rank experts were added to the dense weights and written out in full",
        job=["merge"],
        same_function=True,
        dtype=dtype,
        base_id=base_id,
    )


def merge_directory(source: Path, target: Path, base_id: str | None = None) -> None:
    """Writes the delta model in ``source`` as a Mixtral directory; raises as :func:`write_rewritten` does."""
    write_rewritten(merge_rewrite(open_delta(source), base_id=base_id), target)


def dense_part(source: Source) -> Checkpoint:
    """The checkpoint with the full-size tensors: a delta's base, or the source itself."""
    return source.base if isinstance(source, DeltaCheckpoint) else source


def source_files(source: Source) -> list[Path]:
    """The files that a model's weights are read from; for delta experts their own and their base's."""
    files = list(dense_part(source).weight_files)
    if isinstance(source, DeltaCheckpoint):
        files += [source.path / EXPERTS, source.path / "config.json"]
    return files


def own_template(source: Source, tokenizer: Tokenizer | None = None) -> tuple[str | None, Tokenizer | None]:
    """What :func:`find_template` finds, and for which tokenizer; None without one, as such a model takes no prompts."""
    base = dense_part(source)
    places: list[tuple[Path, Mapping[str, Any]]] = [(base.directory, base.settings)]
    if isinstance(source, DeltaCheckpoint):
        places.insert(0, (source.path, {}))
    with contextlib.suppress(UserError):  # a tokenizer of an unknown kind is copied all the same
        tokenizer = tokenizer or checkpoint_tokenizer(base)
    return (None if tokenizer is None else find_template(source.path, places, tokenizer)), tokenizer
