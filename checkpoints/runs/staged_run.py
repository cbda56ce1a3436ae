"""The training stages of a run: each is trained once, saves its state on the way, and stops safely at Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from checkpoints.runs.directory import RunDirectory
from moe.data.packing import MixedBatches
from moe.model import Transformer
from moe.training.config import RunConfig
from moe.training.interrupt import DelayedInterrupt
from moe.training.stages import Stage, make_stage
from moe.training.trainer import StepReport, Trainer

Monitor = Callable[[Stage, int], AbstractContextManager[Callable[[StepReport], None]]]


class StagedRun:
    """Trains the stages of one run.

    Args:
        directory: keeps the newest state of each stage.
        config: the run's settings.
        monitor: given a stage and how many of its steps are done, opens what each further step is reported to.
        notify: called when Ctrl-C was pressed and the current step is still to be finished and saved.
    """

    def __init__(self, directory: RunDirectory, config: RunConfig, monitor: Monitor, notify: Callable[[], None]):
        self.directory, self.config, self.monitor, self.notify = directory, config, monitor, notify

    def train(self, model: Transformer, name: str, batches: MixedBatches) -> None:
        """Trains ``model`` in place to the end of the stage ``name``, from the stage's saved state if there is one.

        The state is saved every ``save_minutes`` and after the last step, so a stage that is finished trains no more.

        Raises:
            KeyboardInterrupt: Ctrl-C; the step in progress was finished and saved first.
            UserError: see :meth:`Trainer.train_step`.
        """
        stage = make_stage(name, self.config)
        trainer = Trainer(model, stage, batches, self.config.languages, self.config)
        state = self.directory.load_state(name)
        if state is not None:
            trainer.restore(state)
        saved = time.monotonic()
        with self.monitor(stage, trainer.step) as show, DelayedInterrupt(self.notify) as interrupt:
            for report in trainer.run():
                show(report)
                due = time.monotonic() - saved > 60 * self.config.save_minutes
                if due or trainer.step == stage.steps or interrupt.requested:
                    self.directory.save_state(trainer.state())
                    saved = time.monotonic()
                if interrupt.requested:
                    break
        model.requires_grad_(False)
