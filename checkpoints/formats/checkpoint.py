"""What every reader returns: a config, tensors that are read on demand, and the files they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from checkpoints.storage.safetensors_file import StoredTensor
from moe.config import ModelConfig


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened and checked; tensors are read later.

    Attributes:
        path: the directory or file that was opened.
        format: ``huggingface``, ``consolidated`` or ``gguf``.
        config: the model's sizes and settings.
        tensors: flat reference name -> tensor; complete, with the shapes that ``config`` implies.
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
        """The directory where tokenizer files are looked for."""
        return self.path if self.path.is_dir() else self.path.parent
