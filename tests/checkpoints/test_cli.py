"""The command lines' shared parts: the version, unknown flags of subcommands, progress of bytes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.console import Console

from checkpoints import progress
from checkpoints.cli import CommandParser, script_command
from kernels.version import __version__


@pytest.mark.parametrize("program", [["-m", "checkpoints"], ["-m", "eval"], ["train.py"], ["generate.py"]])
def test_every_command_line_states_the_version(root, program):
    done = subprocess.run([sys.executable, *program, "--version"], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"language-experts {__version__}\n" and not done.stderr


@pytest.mark.parametrize(
    ("started", "typed"),
    [(["-m", "train"], "python -m train"), (["ROOT/train.py"], "python ROOT/train.py")],
)
def test_printed_commands_start_the_same_way(root, tmp_path, started, typed):
    """From another folder, as a module that is installed and as a file."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "run.json").touch()
    started, typed = [x.replace("ROOT", str(root)) for x in started], typed.replace("ROOT", str(root))
    command = [sys.executable, *started, "--runs", str(tmp_path), "--name", "taken", "--train-pairs", "2", "--dry-run"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert f"continue that run with: {typed} --resume {tmp_path / 'taken'}" in done.stderr


def test_commands_of_the_other_script_are_beside_this_one(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["../own code/train.py", "--resume", "x"])
    assert script_command("generate") == "python '../own code/generate.py'"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    assert script_command("generate") == "python generate.py"


def test_a_subcommand_reports_unknown_flags(capsys):
    parser = CommandParser(prog="tool")
    parser.commands.add_parser("copy").add_argument("--force", action="store_true")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["copy", "--forse"])
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert "unrecognized arguments: --forse (did you mean '--force'?)" in error and "see tool copy --help" in error


def test_flags_that_share_only_their_dashes_are_not_alike(capsys):
    parser = CommandParser(prog="tool")
    parser.commands.add_parser("copy").add_argument("--layers")
    with pytest.raises(SystemExit):
        parser.parse_args(["copy", "--lr", "1"])
    assert capsys.readouterr().err == "error: unrecognized arguments: --lr 1; see tool copy --help\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_of_bytes_is_for_terminals(monkeypatch, capsys, terminal):
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(stderr=stderr, force_terminal=terminal, width=100, no_color=True)
    )
    with progress.byte_progress(3 << 20, "upcycle") as advance:
        advance(1 << 20)
        advance(2 << 20)
    shown = capsys.readouterr()
    assert not shown.out
    assert ("upcycle" in shown.err and "3.0/3.0 MiB" in shown.err) if terminal else not shown.err
