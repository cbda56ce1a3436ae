"""A run's directory: its settings, its results, and the states it resumes from.

runs/NAME/run.json        settings, command, versions; written first
runs/NAME/results.json    measurements of each finished step
runs/NAME/state/STAGE/    the last two states of a stage: weights, optimizer, counts
runs/NAME/base/           the tiny base, if it was trained here
runs/NAME/model/          the mixture;  adapter/ the dense baseline;  mixtral/ the mixture as full experts
"""

from __future__ import annotations

import datetime
import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch

from checkpoints.cli import script_command
from checkpoints.model_card import RESULTS_FILE, RUN_FILE
from checkpoints.runs.state import KEPT, drop_train_states, has_train_state, load_train_state, save_train_state
from checkpoints.storage.files import new_directory, read_json_object, remove_abandoned, write_json
from moe.errors import UserError
from moe.files import json_bytes, replace_file, replacing
from moe.training import distributed, sharding
from moe.training.config import RunConfig
from moe.training.progress import StageState
from moe.training.trainer import Diverged


def resume_command(path: Path) -> str:
    """The command that continues a run, with as many processes as this one."""
    command = f"{script_command('train')} --resume {shlex.quote(str(path))}"
    ranks = distributed.local_world()
    return command if ranks == 1 else f"torchrun --nproc-per-node {ranks} {command.removeprefix('python ')}"


class RunDirectory:
    """One run on disk; :meth:`create` starts one, :meth:`resume` opens one.

    Of several processes that train together only the main one writes; the others read what it wrote.
    """

    def __init__(self, path: Path, settings: dict[str, Any], results: dict[str, Any], config: RunConfig, new: bool):
        self.path, self.settings, self.results, self.config, self.new = path, settings, results, config, new
        self._locked: list[IO[bytes]] = []

    @classmethod
    def create(cls, path: Path, config: RunConfig, arguments: Sequence[str]) -> RunDirectory:
        """Starts a run in a directory that does not exist yet; ``arguments`` are those of its command line."""
        if not distributed.is_main():
            distributed.wait_for_all()
            return cls.resume(path)
        cls.check_new(path)
        settings = {
            "config": config.to_dict(),
            "command": f"{script_command('train')} {shlex.join(arguments)}".rstrip(),
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
        }
        try:
            with new_directory(path) as temporary:
                write_json(temporary / RUN_FILE, settings)
        except OSError as error:
            raise UserError(f"{path} cannot be made ({error.strerror}); give another --runs directory") from None
        distributed.wait_for_all()
        return cls(path, settings, {}, config, new=True)

    @staticmethod
    def check_new(path: Path) -> None:
        """Raises :class:`UserError` where no run can be started."""
        if (path / RUN_FILE).exists():
            raise UserError(f"{path} exists; give another --name, or continue that run with: {resume_command(path)}")
        if path.exists():
            raise UserError(f"{path} exists and is no run that --resume could continue; give another --name")
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
        trained = (path / "model").is_dir()  # the last that it was needed for is written
        config = RunConfig.from_dict(settings.get("config"), str(path / RUN_FILE), trained)
        return cls(path, settings, results, config, new=False)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Locks the run against other processes; the lock ends with the process.

        A :class:`UserError` before the first finished step removes a directory that this process created, but for one
        that a resumed run can avoid (:class:`Diverged`).
        """
        if not distributed.is_main():
            yield
            return
        try:
            self._lock(self.path / RUN_FILE)
            for folder in [self.path, *(path for path in self.path.rglob("*") if path.is_dir())]:
                if folder.exists():  # was not abandoned itself
                    remove_abandoned(folder)
            yield
        except UserError as error:
            if self.new and not self.holds_work and not isinstance(error, Diverged | distributed.LostRank):
                shutil.rmtree(self.path, ignore_errors=True)
            raise
        finally:
            for file in self._locked:
                file.close()

    @property
    def holds_work(self) -> bool:
        """Whether a step was finished or a state saved, by this process or an earlier one."""
        return not self.new or any((self.path / name).exists() for name in ("state", RESULTS_FILE))

    def _lock(self, path: Path) -> None:
        file = path.open("rb")
        self._locked.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path} is being trained by another process; wait for it or stop it") from None
        except OSError:
            pass  # a file system without locks

    def once(self, step: str, work: Callable[[], Any]) -> Any:
        """The result of ``step``: from ``results.json`` if it is there, else of ``work``, which is then noted.

        The main process does the work while the others wait.
        """
        if step not in self.results:
            result = sharding.on_main(work)
            if distributed.is_main():
                self.note(step, result)
            distributed.wait_for_all()
            if not distributed.is_main():
                self.results[step] = read_json_object(self.path / RESULTS_FILE)[step]
        return self.results[step]

    def note(self, step: str, result: Any) -> None:
        """Adds a JSON-able result to ``results.json``; the write is atomic."""
        self.results[step] = result
        if distributed.is_main():
            replace_file(self.path / RESULTS_FILE, json_bytes(self.results))

    def adjust(self, changes: Mapping[str, Any]) -> None:
        """Changes settings of a run that is :meth:`held`, and notes the new ones in ``run.json``."""
        self.config = replace(self.config, **changes)
        self.settings = {**self.settings, "config": self.config.to_dict()}
        if not distributed.is_main():
            return
        with replacing(self.path / RUN_FILE) as temporary:
            temporary.write_bytes(json_bytes(self.settings))
            self._lock(temporary)  # before it takes the old file's place

    def save_state(self, state: StageState, keep: int = KEPT) -> None:
        """Saves a stage's state, sharded tensors as whole ones, one at a time; ``keep`` says how many stay."""
        meta = {"step": state.step, "stage": state.stage}
        if distributed.is_main():
            save_train_state(self.path / "state" / state.stage, state.tensors, meta, keep)
        else:
            for tensor in state.tensors.values():
                sharding.whole(tensor)  # for the main process, which writes it
        distributed.wait_for_all()

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

    def drop_states(self, stage: str, step: int) -> None:
        """Removes the states of a stage of ``step`` and later."""
        if not distributed.is_main():
            return
        drop_train_states(self.path / "state" / stage, step)
