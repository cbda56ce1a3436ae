"""The state of a training run on disk: tensors as safetensors, everything else as JSON; nothing is pickled.

Each state is a directory ``step-00000120``, published by one rename; older ones are removed afterwards. A run killed
while saving still has its previous state, and a damaged newest state falls back to an older one if there is any.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoints.storage.files import (
    DiskUsage,
    free_bytes,
    new_directory,
    read_json_object,
    sha256_file,
    write_json,
)
from checkpoints.storage.safetensors_file import load_tensors, save_tensors
from moe.errors import UserError

TENSORS, META = "state.safetensors", "state.json"
_STEP = re.compile(r"step-(\d{8,})", re.ASCII)


def _states(directory: Path) -> list[Path]:
    """Complete state directories, newest first."""
    if not directory.is_dir():
        return []
    found = [path for path in directory.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


def save_train_state(
    directory: Path | str,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    keep: int = 1,
    disk_free: DiskUsage = free_bytes,
) -> Path:
    """Saves a training state.

    Args:
        directory: holds the states of one run; made when it is not there.
        tensors: trainable parameters, optimizer tensors, random states (as uint8 tensors), by name.
        meta: JSON-able; must have the whole number ``step``.
        keep: how many of the newest states stay.

    Returns:
        The directory of this state.

    Raises:
        UserError: not enough disk.
    """
    directory = Path(directory)
    step = meta["step"]
    assert isinstance(step, int) and step >= 0 and keep >= 1
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / f"step-{step:08d}"
    needed = sum(tensor.nbytes for tensor in tensors.values()) + (1 << 20)
    with new_directory(target, force=True, needed=needed, disk_free=disk_free) as temporary:
        save_tensors(temporary / TENSORS, dict(tensors))
        write_json(temporary / META, {"meta": dict(meta), "sha256": sha256_file(temporary / TENSORS)})
    for old in _states(directory)[keep:]:
        shutil.rmtree(old)
    return target


def has_train_state(directory: Path | str) -> bool:
    """Whether there is a state to resume from."""
    return bool(_states(Path(directory)))


def load_train_state(directory: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads the newest undamaged state: tensors by name (on the CPU) and the meta object.

    Raises:
        UserError: there is no state, or every state there is damaged.
    """
    directory = Path(directory)
    states = _states(directory)
    if not states:
        raise UserError(f"{directory} has no training state to resume; start the run without --resume")
    problem: UserError | None = None
    for state in states:
        try:
            document = read_json_object(state / META)
            meta = document.get("meta")
            if not isinstance(meta, dict) or document.get("sha256") != sha256_file(state / TENSORS):
                raise UserError(f"{state / TENSORS} does not have the checksum noted in {META}; it is damaged")
            return load_tensors(state / TENSORS), meta
        except FileNotFoundError:
            problem = problem or UserError(f"{state} lacks {TENSORS}; it is damaged")
        except UserError as error:
            problem = problem or error
    raise UserError(f"no undamaged training state in {directory}: {problem}")
