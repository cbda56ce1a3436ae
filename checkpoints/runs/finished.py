"""Finds finished runs."""

from __future__ import annotations

from pathlib import Path

from checkpoints.cli import script_command
from checkpoints.model_card import RUN_FILE
from checkpoints.runs.directory import resume_command
from moe.errors import UserError


def finished_models(runs: str | Path = "runs") -> list[Path]:
    """Directories ``RUNS/NAME/model`` that hold a model, the newest first.

    A run writes its model directory atomically at its end, so ``config.json`` tells that it is finished, and when.
    """
    configs = []
    for config in Path(runs).glob("*/model/config.json"):
        try:
            configs.append((config.stat().st_mtime_ns, config.parent))
        except FileNotFoundError:  # removed between being listed and being looked at
            continue
    return [model for _, model in sorted(configs, reverse=True)]


def model_of(path: str | Path) -> Path:
    """``path``, or the model of the run that it is; raises :class:`UserError` for a run that has none yet."""
    path = Path(path)
    if not (path / RUN_FILE).is_file() or (path / "config.json").is_file():
        return path
    if not (path / "model" / "config.json").is_file():
        raise UserError(f"the run {path} is not finished; continue it with: {resume_command(path)}")
    return path / "model"


def newest_model(runs: str | Path = "runs") -> Path:
    """The model of the newest finished run; raises :class:`UserError` when there is none, saying what to type."""
    models = finished_models(runs)
    if models:
        return models[0]
    started = sum(1 for run in Path(runs).glob("*/run.json"))
    found = f"{started} unfinished run{'s' if started > 1 else ''} and no finished one" if started else "no run"
    raise UserError(f"found {found} in {runs}; type: {script_command('train')}, or name a model with --model DIR")
