"""The training stages of a run: each is trained once, saves its state on the way, and stops safely at a signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from checkpoints.runs.directory import RunDirectory
from moe.data.packing import Example, MixedBatches
from moe.model import Transformer
from moe.training import distributed, sharding
from moe.training.config import RunConfig
from moe.training.interrupt import DelayedInterrupt
from moe.training.policy import Policy
from moe.training.progress import StageState, StepReport
from moe.training.samples import Samples
from moe.training.stages import Stage, make_stage
from moe.training.trainer import Diverged, Trainer
from moe.training.validation import STATE, Validation

Monitor = Callable[[Stage, int], AbstractContextManager[Callable[[StepReport], None]]]


class StagedRun:
    """Trains the stages of one run.

    Args:
        directory: keeps the last states of each stage.
        config: the run's settings.
        monitor: given a stage and how many of its steps are done, opens what each further step is reported to.
        notify: called when a signal came and the current step is still to be finished and saved.

    Attributes:
        samples: what writes sample answers every ``sample_steps``; None for none.
    """

    def __init__(self, directory: RunDirectory, config: RunConfig, monitor: Monitor, notify: Callable[[], None]):
        self.directory, self.config, self.monitor, self.notify = directory, config, monitor, notify
        self.samples: Samples | None = None

    def train(
        self,
        model: Transformer,
        name: str,
        batches: MixedBatches | Policy,
        held_out: Mapping[str, Sequence[Example]] | None = None,
    ) -> str:
        """Trains ``model`` in place to the end of the stage ``name``, from the stage's saved state if there is one.

        The state is saved every ``save_minutes`` and after the last step, so a stage that is finished trains no more.
        With ``held_out`` examples the stage stops early when their loss no longer falls, and, with ``keep_best``, the
        model has the weights of the step where it was lowest.

        Returns:
            what validation changed, in one line; "" where it changed nothing. With several processes a line before it
            has the bytes that each handed to collectives per step, and those of the model that this one holds.

        Raises:
            Interrupted: a signal; the step in progress was finished and saved first.
            Diverged: see :meth:`Trainer.train_step`; the states of weights that no good step followed are removed.
        """
        stage = make_stage(name, self.config)
        trainer = Trainer(model, stage, batches, self.config.languages, self.config)
        watch = Validation(held_out, self.config) if held_out else None
        state = self.directory.load_state(name)
        if state is not None:
            trainer.restore(state)
            if watch is not None:
                watch.restore(state.tensors.get(STATE))
        elif stage.continues and (before := self.directory.load_state(stage.continues)) is not None:
            trainer.continue_from(before)
        distributed.wait_for_all()  # rank 0 may have scored, and written, in the meantime
        distributed.copy_from_main(p.detach() for p in trainer.parameters.values() if not sharding.is_sharded(p))
        done = trainer.step
        try:
            with distributed.counted_traffic() as traffic:
                self._train(trainer, watch)
        except Diverged as error:
            self.directory.drop_states(name, error.step)
            raise
        model.requires_grad_(False)
        steps = max(1, trainer.step - done)
        parts = [f"{what} {size / steps:,.0f}" for what, size in traffic.items()]
        sharding.reshard(model)
        held = sum(sharding.local(parameter).nbytes for parameter in model.parameters())
        sent = f"{name}: bytes in collectives per step and process: {', '.join(parts)}; of the model {held:,}"
        sent = sent if parts else ""
        return "\n".join(filter(None, (sent, "" if watch is None else self._use_best(trainer, watch))))

    def _train(self, trainer: Trainer, watch: Validation | None) -> None:
        stage, model = trainer.stage, trainer.model
        saved = time.monotonic()
        interrupt = DelayedInterrupt(self.notify)
        with self.monitor(stage, trainer.step) as show, interrupt, distributed.lost_ranks():
            for report in trainer.run() if watch is None or not watch.over else ():
                if watch is not None and watch.due(report):
                    report = replace(report, validation=watch.measure(model, report.step))
                    if watch.fruitless == 0 and self.config.keep_best:
                        weights = {n: t for n, t in trainer.state().tensors.items() if n.startswith("weights/")}
                        self.directory.save_state(StageState(_best(stage.name), report.step, weights), keep=1)
                if self.config.sample_steps and report.step % self.config.sample_steps == 0:
                    written = sharding.on_main(lambda: self.samples.write(model) if self.samples else ())
                    report = replace(report, samples=written or ())
                show(report)
                over = trainer.step == stage.steps or (watch is not None and watch.over)
                late = time.monotonic() - saved > 60 * self.config.save_minutes
                due, stop = distributed.agree(late, interrupt.requested or 0)
                interrupt.requested = stop or None  # a signal to one rank is one to all
                if due or over or interrupt.requested:
                    state = trainer.state()
                    if watch is not None:
                        state = replace(state, tensors={**state.tensors, STATE: watch.state()})
                    self.directory.save_state(state)
                    saved = time.monotonic()
                if over or interrupt.requested:
                    break

    def _use_best(self, trainer: Trainer, watch: Validation) -> str:
        stage = trainer.stage
        early = trainer.step < stage.steps
        line = f"{stage.name} stopped early, after step {trainer.step} of {stage.steps}" if early else stage.name
        line += f": validation loss was lowest in step {watch.best_step}, at {watch.best:.4f}"
        best = self.directory.load_state(_best(stage.name)) if self.config.keep_best else None
        if best is None or best.step != watch.best_step:
            return line
        for name, parameter in trainer.parameters.items():
            sharding.fill(parameter, best.tensors[f"weights/{name}"])
        return f"{line}, whose weights are used"


def _best(stage: str) -> str:
    return f"{stage}-best"
