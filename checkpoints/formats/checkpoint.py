"""What every reader returns: a config, tensors that can be had one at a time, and the files they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.storage.safetensors_file import StoredTensor
from moe.config import ModelConfig


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened and checked, with no tensor read yet.

    Attributes:
        path: the directory or file that the user named.
        format: ``huggingface``, ``consolidated`` or ``gguf``.
        config: what the model is.
        tensors: flat reference name -> tensor, complete and of the shapes of ``config``.
        weight_files: the files that hold the tensors.
        settings: the file's own config (config.json, params.json or GGUF metadata).
    """

    path: Path
    format: str
    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    weight_files: tuple[Path, ...]
    settings: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def directory(self) -> Path:
        """The directory in which tokenizer files would lie."""
        return self.path if self.path.is_dir() else self.path.parent
