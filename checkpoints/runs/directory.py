"""A run's directory: its settings, what it has finished, and the states it can go on from.

runs/NAME/run.json        settings, command, versions; written first
runs/NAME/results.json    what each finished step measured
runs/NAME/state/STAGE/    weights and optimizer of a stage, the newest
runs/NAME/base/           the tiny base, when it was trained here
runs/NAME/model/          the mixture;  adapter/ the dense baseline;  mixtral/ the mixture as full experts
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from checkpoints.model_card import RESULTS_FILE, RUN_FILE
from checkpoints.runs.state import has_train_state, load_train_state, save_train_state
from checkpoints.storage.files import read_json_object
from moe.errors import UserError
from moe.files import json_bytes, replace_file
from moe.training.trainer import StageState


def resume_command(path: Path) -> str:
    """What to type to go on with a run."""
    return f"python train.py --resume {shlex.quote(str(path))}"


class RunDirectory:
    """One run on disk; make it with :meth:`create` or :meth:`resume`."""

    def __init__(self, path: Path, settings: dict[str, Any], results: dict[str, Any]):
        self.path, self.settings, self.results = path, settings, results

    @classmethod
    def create(cls, path: Path, settings: Mapping[str, Any]) -> RunDirectory:
        """Starts a run in a directory that does not exist yet."""
        cls.check_new(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror}); give another --runs directory") from None
        replace_file(path / RUN_FILE, json_bytes(dict(settings)))
        return cls(path, dict(settings), {})

    @staticmethod
    def check_new(path: Path) -> None:
        """Raises :class:`UserError` where no run can be started."""
        if path.exists():
            raise UserError(f"{path} exists; give another --name, or continue that run with: {resume_command(path)}")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            what = "a directory that cannot be written to" if parent.is_dir() else "no directory"
            raise UserError(f"{path} cannot be made ({parent} is {what}); give another --runs directory")

    @classmethod
    def resume(cls, path: Path) -> RunDirectory:
        """Opens a run that was interrupted (or is finished)."""
        if not (path / RUN_FILE).is_file():
            raise UserError(f"{path} is no run: it has no {RUN_FILE}; expected a directory that train.py made")
        results = read_json_object(path / RESULTS_FILE) if (path / RESULTS_FILE).is_file() else {}
        return cls(path, read_json_object(path / RUN_FILE), results)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out while this one works on the run; the system frees it when a process dies."""
        with open(self.path / RUN_FILE, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is being trained by another process; wait for it or end it") from None
            except OSError:
                pass  # a file system without locks
            yield

    def once(self, step: str, work: Callable[[], Any]) -> Any:
        """What ``step`` measured: from ``results.json`` when it is there, else done now and noted."""
        if step not in self.results:
            self.note(step, work())
        return self.results[step]

    def note(self, step: str, result: Any) -> None:
        """Notes a JSON-able result; the file is replaced as a whole."""
        self.results[step] = result
        replace_file(self.path / RESULTS_FILE, json_bytes(self.results))

    def save_state(self, state: StageState) -> None:
        """Keeps a stage's state, in place of its older one."""
        save_train_state(self.path / "state" / state.stage, state.tensors, {"step": state.step, "stage": state.stage})

    def has_state(self, stage: str) -> bool:
        """Whether a stage has been started."""
        return has_train_state(self.path / "state" / stage)

    def load_state(self, stage: str) -> StageState | None:
        """The newest state of a stage; None when there is none."""
        directory = self.path / "state" / stage
        if not has_train_state(directory):
            return None
        tensors, meta = load_train_state(directory)
        return StageState(stage, meta["step"], tensors)
