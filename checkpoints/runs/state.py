"""The state of a training run on disk: tensors as safetensors, everything else as JSON; nothing is pickled.

Each state is a directory ``step-00000120``, published by one rename; the one before it is kept. A run killed while
saving still has both, and a damaged newest state falls back to the older one with a warning.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
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
from checkpoints.storage.safetensors_file import SafetensorsFile, save_tensors
from moe.errors import Notice, UserError

TENSORS, META = "state.safetensors", "state.json"
KEPT = 2  # the newest state and the one before it
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
    keep: int = KEPT,
    disk_free: DiskUsage = free_bytes,
) -> Path:
    """Saves a training state.

    Args:
        directory: holds the states of one run; made when it is not there.
        tensors: trainable parameters, optimizer tensors, random states (as uint8 tensors), by name.
        meta: JSON-able; must have the whole number ``step``.
        keep: how many states stay: this one and those before it. Later ones, which were damaged, are removed.

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
    states = _states(directory)
    place = states.index(target)
    for other in (*states[:place], *states[place + keep :]):
        shutil.rmtree(other)
    return target


def has_train_state(directory: Path | str) -> bool:
    """Whether there is a state to resume from."""
    return bool(_states(Path(directory)))


def drop_train_states(directory: Path | str, step: int) -> None:
    """Removes the states of ``step`` and later."""
    for state in _states(Path(directory)):
        if int(state.name.removeprefix("step-")) >= step:
            shutil.rmtree(state)


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of a file by name; each is read when it is asked for, and not kept."""

    def __init__(self, path: Path):
        self._stored = SafetensorsFile(path).tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def load_train_state(directory: Path | str) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Opens the newest undamaged state: tensors by name (on the CPU) and the meta object.

    Warns (:class:`Notice`) where that is not the newest.

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
            if not isinstance(meta, dict) or state.name != f"step-{meta.get('step'):08}":
                raise UserError(f"{state / META} does not belong to {state.name}; it is damaged")
            if document.get("sha256") != sha256_file(state / TENSORS):
                raise UserError(f"{state / TENSORS} does not have the checksum noted in {META}; it is damaged")
            tensors = SavedTensors(state / TENSORS)
            if problem is not None:
                warnings.warn(f"{problem}; going on from the state before it, {state.name}", Notice, stacklevel=2)
            return tensors, meta
        except FileNotFoundError:
            problem = problem or UserError(f"{state} lacks {TENSORS}; it is damaged")
        except UserError as error:
            problem = problem or error
    raise UserError(f"no undamaged training state in {directory}: {problem}; remove it to train that stage anew")
