"""What a finished mixture learns from beside pairs: preferences, or answers of its own that the judge runs."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from pathlib import Path

from rich.console import Console

from checkpoints.model_io import LoadedModel
from checkpoints.progress import say
from moe.data.preferences import read_preferences
from moe.data.sources import Pairs
from moe.errors import UserError
from moe.training import distributed
from moe.training.config import RunConfig
from moe.training.learning_from_tests import LearningFromTests
from moe.training.policy import LearningFromPreferences, Policy


def policy(config: RunConfig, train: Pairs, base: LoadedModel, console: Console) -> Policy:
    """What the stage ``config.policy`` learns from.

    Args:
        train: the run's training pairs; those with tests are the tasks of ``learn_from_tests``.

    Raises:
        UserError: there is nothing to learn from, nothing contains programs here, or several processes are to learn.
    """
    assert base.tokenizer is not None, "a run's base has one"
    if distributed.world() > 1:
        raise UserError("learning from preferences and from tests takes one process; leave torchrun out")
    found: LearningFromPreferences | LearningFromTests
    items: Mapping[str, Sized]
    if config.preferences:
        preferences = read_preferences(Path(config.preferences), config.languages)
        found = LearningFromPreferences(config, preferences, base.tokenizer, base.template)
        what, items = "preferences", found.pairs
    else:
        from eval.rewards import shares_of_tests, usable_tasks  # here, as they need tree-sitter

        tasks, context = usable_tasks(train), base.config.max_seq_len
        found = LearningFromTests(config, tasks, base.tokenizer, base.template, shares_of_tests, context)
        what, items = "tasks with tests", found.tasks
    for language, count in found.too_long.items():
        if count:
            say(console, f"left out {count} {language} {what}, which do not fit into a batch")
    say(console, f"{what}: {', '.join(f'{len(own):,} {language}' for language, own in items.items())}")
    return found
