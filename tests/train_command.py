"""Runs train.py in this process, with settings that take seconds."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from unittest import mock

import train as train_script
from checkpoints.cli import run
from eval.evaluate import Evaluation

SMALL = (
    "--train-pairs 60 --pretrain-steps 3 --branch-steps 3 --mix-steps 2 --router-documents 40 --eval-pairs 2 "
    "--test-pairs 1 --loss-pairs 4 --max-new-tokens 8 --languages python cpp --shared-rank 2 --expert-rank 2"
).split(" ")
CONTEXT = SMALL  # as the preset routes
SMALL = [*SMALL, *"--router-context none --router-layers each --merge".split(" ")]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def train(*arguments, check: bool = True, judge: bool = False) -> Done:
    """Runs the script's main in this process, as its command line would.

    Answers meet their tests with ``judge`` only: compilers take longer than all the rest.
    """
    out, err = io.StringIO(), io.StringIO()
    judging = contextlib.nullcontext() if judge else mock.patch.object(Evaluation, "test")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), judging:
        try:
            code = run(train_script.make_parser(), train_script.main, [str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code or 0
    done = Done(code, out.getvalue(), err.getvalue())
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
