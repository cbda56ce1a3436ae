"""Weights on disk: readers of the usual formats, a streaming writer, upcycling, and the state of a training run.

The names below are imported when they are first used, so that a command line that needs none of them starts at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from checkpoints.model_io import LoadedModel, load_model, read_config, save_model
    from checkpoints.smollm2 import find_smollm2
    from checkpoints.train_state import load_train_state, save_train_state
    from checkpoints.upcycle import upcycle_model

__all__ = [
    "LoadedModel",
    "find_smollm2",
    "load_model",
    "load_train_state",
    "read_config",
    "save_model",
    "save_train_state",
    "upcycle_model",
]
_HOME = {
    "LoadedModel": "model_io",
    "load_model": "model_io",
    "read_config": "model_io",
    "save_model": "model_io",
    "find_smollm2": "smollm2",
    "load_train_state": "train_state",
    "save_train_state": "train_state",
    "upcycle_model": "upcycle",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"checkpoints.{_HOME[name]}"), name)
