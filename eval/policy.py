"""What a finished mixture learns from beside pairs: preferences, or answers of its own that the judge runs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from checkpoints.model_io import LoadedModel
from checkpoints.progress import say
from moe.data.preferences import read_preferences
from moe.data.sources import Pairs
from moe.errors import UserError
from moe.training import distributed
from moe.training.config import RunConfig
from moe.training.policy import LearningFromPreferences, Policy


def policy(config: RunConfig, train: Pairs, base: LoadedModel, console: Console) -> Policy:
    """What the stage ``config.policy`` learns from.

    Args:
        train: the run's training pairs; those with tests are the tasks of ``learn_from_tests``.

    Raises:
        UserError: there is nothing to learn from, or several processes are to.
    """
    assert base.tokenizer is not None, "a run's base has one"
    if distributed.world() > 1:
        raise UserError("learning from preferences and from tests takes one process; leave torchrun out")
    preferences = read_preferences(Path(config.preferences), config.languages)
    found = LearningFromPreferences(config, preferences, base.tokenizer, base.template)
    for language, count in found.too_long.items():
        if count:
            say(console, f"left out {count} {language} preferences of more than {config.max_tokens} tokens")
    counts = ", ".join(f"{len(pairs):,} {language}" for language, pairs in found.pairs.items())
    say(console, f"preferences: {counts}")
    return found
