"""Finds out which format a path is in."""

from __future__ import annotations

from pathlib import Path

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.consolidated import PARAMS, open_consolidated
from checkpoints.formats.foreign import refuse_directory
from checkpoints.formats.gguf_llama import open_gguf
from checkpoints.formats.huggingface import INDEX, WEIGHTS, open_huggingface
from moe.errors import UserError

FORMATS = (
    "a Hugging Face directory (config.json and safetensors), a Mistral directory (params.json and "
    "consolidated safetensors) or a GGUF file"
)


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Opens a dense model, or one with full experts, in any supported format.

    Raises:
        UserError: nothing there, no known format, or a damaged checkpoint.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return open_gguf(path)
    if not path.exists():
        raise UserError(f"{path} does not exist; give {FORMATS}")
    if path.is_file():
        raise UserError(f"{path} is not in a known format; give {FORMATS}")
    has_shards = any((path / name).is_file() for name in (INDEX, WEIGHTS))
    if (path / "config.json").is_file() and (has_shards or not (path / PARAMS).is_file()):
        return open_huggingface(path)
    if (path / PARAMS).is_file():
        return open_consolidated(path)
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return open_gguf(found[0])
    if len(found) > 1:
        raise UserError(f"{path} has {len(found)} GGUF files; name one of them, for example {found[0]}")
    refuse_directory(path)
    raise UserError(f"{path} is not in a known format; give {FORMATS}")
