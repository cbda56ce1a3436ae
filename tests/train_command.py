"""Runs train.py in this process, with settings that take seconds."""

from __future__ import annotations

import contextlib
import functools
import io
from dataclasses import dataclass
from unittest import mock

import train as train_script
from checkpoints.cli import run
from eval import evaluate
from eval.reporting import page
from moe.training import memory_plan

SMALL = (
    "--train-pairs 60 --pretrain-steps 3 --branch-steps 3 --mix-steps 2 --router-documents 40 --eval-pairs 2 "
    "--test-pairs 1 --loss-pairs 4 --max-new-tokens 8 --languages python cpp --shared-rank 2 --expert-rank 2"
).split(" ")
CONTEXT = SMALL  # as the preset routes
SMALL = [*SMALL, *"--router-context none --router-layers each --merge".split(" ")]


# Runs of one shape are planned alike.
count_memory, count_cost = functools.cache(memory_plan._fake_step), functools.cache(evaluate.model_cost)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def train(*arguments, check: bool = True, judge: bool = False) -> Done:
    """Runs the script's main in this process, as its command line would.

    With ``judge`` only, answers meet their tests and plots are drawn: compilers take longer than all the rest.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(memory_plan, "_fake_step", count_memory))
        stack.enter_context(mock.patch.object(evaluate, "model_cost", count_cost))
        if not judge:
            stack.enter_context(mock.patch.object(evaluate.Evaluation, "test"))
            stack.enter_context(mock.patch.object(page, "can_plot", lambda: False))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            code = run(train_script.make_parser(), train_script.main, [str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code or 0
    done = Done(code, out.getvalue(), err.getvalue())
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
