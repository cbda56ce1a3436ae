"""A run's directory: its settings, its results, and the states it resumes from.

runs/NAME/run.json        settings, command, versions; written first
runs/NAME/results.json    measurements of each finished step
runs/NAME/state/STAGE/    newest weights and optimizer state of a stage
runs/NAME/base/           the tiny base, if it was trained here
runs/NAME/model/          the mixture;  adapter/ the dense baseline;  mixtral/ the mixture as full experts
"""

from __future__ import annotations

import datetime
import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import script_command
from checkpoints.model_card import RESULTS_FILE, RUN_FILE
from checkpoints.runs.state import has_train_state, load_train_state, save_train_state
from checkpoints.storage.files import read_json_object
from moe.errors import UserError
from moe.files import json_bytes, replace_file
from moe.training.config import RunConfig
from moe.training.trainer import StageState


def resume_command(path: Path) -> str:
    """The command that continues a run."""
    return f"{script_command('train')} --resume {shlex.quote(str(path))}"


class RunDirectory:
    """One run on disk; :meth:`create` starts one, :meth:`resume` opens one."""

    def __init__(self, path: Path, settings: dict[str, Any], results: dict[str, Any], config: RunConfig, new: bool):
        self.path, self.settings, self.results, self.config, self.new = path, settings, results, config, new

    @classmethod
    def create(cls, path: Path, config: RunConfig, arguments: Sequence[str]) -> RunDirectory:
        """Starts a run in a directory that does not exist yet; ``arguments`` are those of its command line."""
        cls.check_new(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror}); give another --runs directory") from None
        settings = {
            "config": config.to_dict(),
            "command": f"{script_command('train')} {shlex.join(arguments)}".rstrip(),
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
        }
        replace_file(path / RUN_FILE, json_bytes(settings))
        return cls(path, settings, {}, config, new=True)

    @staticmethod
    def check_new(path: Path) -> None:
        """Raises :class:`UserError` where no run can be started."""
        if path.exists():
            raise UserError(f"{path} exists; give another --name, or continue that run with: {resume_command(path)}")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            what = "a directory that cannot be written to" if parent.is_dir() else "not a directory"
            raise UserError(f"{path} cannot be made ({parent} is {what}); give another --runs directory")

    @classmethod
    def resume(cls, path: Path) -> RunDirectory:
        """Opens a run that was interrupted (or is finished)."""
        if not (path / RUN_FILE).is_file():
            raise UserError(f"{path} is not a run: it has no {RUN_FILE}; expected a directory created by train.py")
        results = read_json_object(path / RESULTS_FILE) if (path / RESULTS_FILE).is_file() else {}
        settings = read_json_object(path / RUN_FILE)
        config = RunConfig.from_dict(settings.get("config"), str(path / RUN_FILE))
        return cls(path, settings, results, config, new=False)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the run against other processes; the lock ends with the process.

        A :class:`UserError` before the first finished step removes a directory that this process created.
        """
        with open(self.path / RUN_FILE, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path} is being trained by another process; wait for it or stop it") from None
            except OSError:
                pass  # a file system without locks
            try:
                yield
            except UserError:
                if self.new and not any((self.path / name).exists() for name in ("state", RESULTS_FILE)):
                    shutil.rmtree(self.path, ignore_errors=True)
                raise

    def once(self, step: str, work: Callable[[], Any]) -> Any:
        """The result of ``step``: from ``results.json`` if it is there, else of ``work``, which is then noted."""
        if step not in self.results:
            self.note(step, work())
        return self.results[step]

    def note(self, step: str, result: Any) -> None:
        """Adds a JSON-able result to ``results.json``; the write is atomic."""
        self.results[step] = result
        replace_file(self.path / RESULTS_FILE, json_bytes(self.results))

    def save_state(self, state: StageState) -> None:
        """Saves a stage's state in place of its older one."""
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
