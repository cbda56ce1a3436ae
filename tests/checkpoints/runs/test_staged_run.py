"""Stages are trained once, saved on the way, and go on to equal weights after Ctrl-C and after a kill."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

import moe.training.trainer as trainer_module
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.staged_run import StagedRun
from moe.data.packing import Example, MixedBatches
from moe.training.config import RunConfig
from moe.training.held_out_loss import held_out_loss
from moe.training.interrupt import Interrupted
from moe.training.trainer import Diverged, Trainer

LANGUAGES = ("python", "cpp")
CONFIG = RunConfig(
    languages=LANGUAGES, tokens_per_batch=64, max_tokens=32, branch_steps=5, mix_steps=6, accumulate=2, branch_lr=1e-2
)


class Monitor:
    """Notes which stages were opened and closed, and each step in between."""

    def __init__(self, on_step=lambda report: None):
        self.events, self.on_step = [], on_step

    @contextmanager
    def __call__(self, stage, done):
        def show(report):
            self.events.append((stage.name, report.step))
            self.on_step(report)

        self.events.append(("open", stage.name, done))
        try:
            yield show
        finally:
            self.events.append(("close", stage.name))

    @property
    def steps(self):
        return [event for event in self.events if isinstance(event[1], int)]


@pytest.fixture
def batches() -> MixedBatches:
    examples = {x: [Example(tuple(range(n, 14 + n)), 3, i) for n in range(20)] for i, x in enumerate(LANGUAGES)}
    return MixedBatches(examples, 64, seed=0)


@pytest.fixture
def new_model(tiny_config, make_model):
    config = replace(tiny_config, num_experts=2, expert_form="delta", shared_rank=4, expert_rank=4)
    return lambda: make_model(config, dtype=torch.float32)


def weights(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def undisturbed(tmp_path, new_model, batches):
    """Weights after branch and mix without an interruption."""
    run = StagedRun(RunDirectory.create(tmp_path / "plain", CONFIG, []), CONFIG, Monitor(), pytest.fail)
    model = new_model()
    run.train(model, "branch", batches)
    run.train(model, "mix", batches)
    return weights(model)


def test_a_stage_is_trained_once_and_its_result_loaded_afterwards(tmp_path, new_model, batches):
    directory = RunDirectory.create(tmp_path / "run", CONFIG, [])
    monitor, model = Monitor(), new_model()
    StagedRun(directory, CONFIG, monitor, pytest.fail).train(model, "branch", batches)
    assert monitor.events[0] == ("open", "branch", 0) and monitor.events[-1] == ("close", "branch")
    assert monitor.steps == [("branch", step) for step in range(1, 6)]
    assert not any(parameter.requires_grad for parameter in model.parameters())
    monitor, again = Monitor(), new_model()
    StagedRun(directory, CONFIG, monitor, pytest.fail).train(again, "branch", batches)
    assert monitor.events == [("open", "branch", 5), ("close", "branch")]
    assert equal(weights(again), weights(model))


def test_mix_goes_on_with_the_averages_of_branch(tmp_path, new_model, batches, monkeypatch):
    started = {}
    train_step = Trainer.train_step

    def first_step(trainer):
        name = "layers.0.feed_forward.expert_deltas.b1"
        state = trainer.optimizer.state.get(trainer.parameters[name], {})
        started.setdefault(trainer.stage.name, int(state.get("step", 0)))
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", first_step)
    run = StagedRun(RunDirectory.create(tmp_path / "run", CONFIG, []), CONFIG, Monitor(), pytest.fail)
    model = new_model()
    run.train(model, "branch", batches)
    run.train(model, "mix", batches)
    assert started == {"branch": 0, "mix": CONFIG.branch_steps}


def test_states_are_saved_by_the_clock_and_at_the_end(tmp_path, new_model, batches, monkeypatch):
    saved = []
    monkeypatch.setattr(RunDirectory, "save_state", lambda self, state: saved.append(state.step))
    directory = RunDirectory.create(tmp_path / "run", CONFIG, [])
    for minutes, wanted in ((60.0, [5]), (0.0, [1, 2, 3, 4, 5])):
        saved.clear()
        config = replace(CONFIG, save_minutes=minutes)
        StagedRun(directory, config, Monitor(), pytest.fail).train(new_model(), "branch", batches)
        assert saved == wanted


@pytest.mark.parametrize("stage", ["branch", "mix"])
def test_ctrl_c_saves_the_step_and_the_run_goes_on_to_equal_weights(tmp_path, new_model, batches, undisturbed, stage):
    def press(report):
        if (report.stage, report.step) == (stage, 3):
            signal.raise_signal(signal.SIGINT)

    directory, notes = RunDirectory.create(tmp_path / "run", CONFIG, []), []
    monitor, model = Monitor(press), new_model()
    run = StagedRun(directory, CONFIG, monitor, lambda: notes.append("noted"))
    with pytest.raises(KeyboardInterrupt):
        for name in ("branch", "mix"):
            run.train(model, name, batches)
    assert notes == ["noted"] and monitor.events[-2:] == [(stage, 3), ("close", stage)]
    assert directory.load_state(stage).step == 3

    monitor, model = Monitor(), new_model()
    run = StagedRun(RunDirectory.resume(directory.path), CONFIG, monitor, pytest.fail)
    for name in ("branch", "mix"):
        run.train(model, name, batches)
    assert ("open", stage, 3) in monitor.events and (stage, 3) not in monitor.steps
    assert equal(weights(model), undisturbed)


def test_a_second_ctrl_c_stops_at_once(tmp_path, new_model, batches, monkeypatch):
    train_step = Trainer.train_step

    def pressed_twice(trainer):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        return train_step(trainer)

    monkeypatch.setattr(Trainer, "train_step", pressed_twice)
    directory, monitor = RunDirectory.create(tmp_path / "run", CONFIG, []), Monitor()
    with pytest.raises(KeyboardInterrupt):
        StagedRun(directory, CONFIG, monitor, lambda: None).train(new_model(), "branch", batches)
    assert monitor.events == [("open", "branch", 0), ("close", "branch")] and not directory.has_state("branch")


def test_a_kill_in_the_mix_stage_loses_only_steps_since_the_last_state(
    tmp_path, new_model, batches, undisturbed, run_child
):
    directory = RunDirectory.create(tmp_path / "run", CONFIG, [])
    often = replace(CONFIG, save_minutes=0.0)

    def killed():
        def kill(report):
            if (report.stage, report.step) == ("mix", 4):
                os.kill(os.getpid(), signal.SIGKILL)

        run, model = StagedRun(directory, often, Monitor(kill), lambda: None), new_model()
        run.train(model, "branch", batches)
        run.train(model, "mix", batches)

    assert run_child(killed) == -signal.SIGKILL
    assert directory.load_state("branch").step == 5 and directory.load_state("mix").step == 3
    monitor, model = Monitor(), new_model()
    run = StagedRun(RunDirectory.resume(directory.path), CONFIG, monitor, pytest.fail)
    run.train(model, "branch", batches)
    run.train(model, "mix", batches)
    assert monitor.steps == [("mix", step) for step in (4, 5, 6)]
    assert equal(weights(model), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_save_the_step_too(tmp_path, new_model, batches, number):
    directory = RunDirectory.create(tmp_path / "run", CONFIG, [])
    monitor = Monitor(lambda report: signal.raise_signal(number) if report.step == 2 else None)
    with pytest.raises(Interrupted) as stopped:
        StagedRun(directory, CONFIG, monitor, lambda: None).train(new_model(), "branch", batches)
    assert stopped.value.number == number and directory.load_state("branch").step == 2


def test_a_divergence_keeps_the_states_that_a_good_step_followed(tmp_path, new_model, batches, monkeypatch):
    """Step 3 made the weights bad, which step 4 showed; what is saved of it must not be what the run goes on from."""
    losses, step = trainer_module.batch_losses, [0]

    def poisoned(*arguments):
        step[0] += 1
        return losses(*arguments) * (50.0 if step[0] > 3 * CONFIG.accumulate else 1.0)

    monkeypatch.setattr(trainer_module, "batch_losses", poisoned)
    config = replace(CONFIG, save_minutes=0.0, max_skipped_steps=1)
    directory, monitor = RunDirectory.create(tmp_path / "run", config, []), Monitor()
    with pytest.raises(Diverged, match="lower branch_lr"):
        StagedRun(directory, config, monitor, pytest.fail).train(new_model(), "branch", batches)
    assert directory.load_state("branch").step == 2
    monkeypatch.undo()
    with directory.held():
        directory.adjust({"branch_lr": 1e-3})
    resumed, monitor = RunDirectory.resume(directory.path), Monitor()
    assert resumed.config.branch_lr == 1e-3
    StagedRun(resumed, resumed.config, monitor, pytest.fail).train(new_model(), "branch", batches)
    assert monitor.steps == [("branch", step) for step in (3, 4, 5)]


@pytest.fixture
def held_out() -> dict[str, list[Example]]:
    return {x: [Example(tuple(range(n + 20, 32 + n)), 3, i) for n in range(3)] for i, x in enumerate(LANGUAGES)}


WATCHED = replace(CONFIG, branch_steps=1, mix_steps=30, validation_steps=2, patience=2, branch_lr=0.3, mix_lr=0.1)


def test_a_stage_stops_early_with_its_best_weights(tmp_path, new_model, batches, held_out):
    """High learning rates on data of another kind: the validation loss falls, then rises."""
    reports = []
    directory = RunDirectory.create(tmp_path / "run", WATCHED, [])
    model = new_model()
    run = StagedRun(directory, WATCHED, Monitor(reports.append), pytest.fail)
    line = run.train(model, "mix", batches, held_out)
    measured = {report.step: sum(report.validation) / 2 for report in reports if report.validation}
    best = min(measured, key=measured.get)
    assert list(measured) == list(range(2, len(reports) + 1, 2)) and reports[-1].step == best + 4 < 30
    assert f"stopped early, after step {best + 4} of 30" in line and f"in step {best}, at" in line
    found = held_out_loss(model, held_out, WATCHED.tokens_per_batch)
    assert sum(loss.loss for loss in found.values()) / 2 == measured[best], "the best weights are used"

    monitor, again = Monitor(), new_model()
    run = StagedRun(RunDirectory.resume(directory.path), WATCHED, monitor, pytest.fail)
    assert run.train(again, "mix", batches, held_out) == line and not monitor.steps, "a stage that stopped stays so"
    assert equal(weights(again), weights(model))
    last = replace(WATCHED, keep_best=False)
    run = StagedRun(RunDirectory.create(tmp_path / "last", last, []), last, Monitor(), pytest.fail)
    assert "whose weights are used" not in run.train(other := new_model(), "mix", batches, held_out)
    assert not equal(weights(other), weights(model))


def test_early_stopping_goes_on_where_it_was(tmp_path, new_model, batches, held_out):
    """Interrupted after each step in turn, a run stops early at the same step with the same weights."""
    directory = RunDirectory.create(tmp_path / "plain", WATCHED, [])
    plain = StagedRun(directory, WATCHED, Monitor(), pytest.fail)
    line = plain.train(model := new_model(), "mix", batches, held_out)
    path = RunDirectory.create(tmp_path / "run", WATCHED, []).path
    for _ in range(40):
        monitor = Monitor(lambda report: signal.raise_signal(signal.SIGTERM))
        run = StagedRun(RunDirectory.resume(path), WATCHED, monitor, lambda: None)
        try:
            assert run.train(again := new_model(), "mix", batches, held_out) == line
            break
        except Interrupted:
            pass
    assert equal(weights(again), weights(model))
