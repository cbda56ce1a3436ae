"""What the command line of ``train.py`` opens: a new run, one on top of a finished run, or one to resume."""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

from checkpoints.config_flags import flag_of, given_settings, read_settings
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.models import config_on
from moe.training.config import ADJUSTABLE, TINY, RunConfig

POLICIES = {"preferences": "preferences", "tests": "learn_from_tests"}  # stages, and the settings that ask for them


def open_run(arguments: argparse.Namespace) -> tuple[RunDirectory | None, RunConfig, list[str]]:
    """The run to resume, if there is one; its settings, or those of a new run; warnings about them."""
    parser = arguments.parser
    for flag in ("config", "name", "runs", "resume"):
        if getattr(arguments, flag) == "":
            parser.error(f"--{flag} is empty")
    if arguments.name and (Path(arguments.name).name != arguments.name or arguments.name == ".."):
        parser.error(f"--name is {arguments.name!r}, expected a plain name; --runs DIR says where it goes")
    if arguments.accept_new_data and not arguments.resume:
        parser.error("--accept-new-data goes with --resume DIR; a new run takes the data as they are")
    given = given_settings(arguments)
    policies = [flag_of(name) for name in POLICIES.values() if given.get(name)]
    if bool(arguments.add_language) > bool(arguments.to) or (arguments.to and not (arguments.add_language or policies)):
        parser.error("--add-language LANGUAGE and --to RUN go together: the language, and the run that gains it")
    if bool(arguments.add_language) + len(policies) > 1:
        parser.error("--add-language, --preferences and --learn-from-tests are a run each; give one of them")
    if policies and arguments.epochs is not None:
        parser.error("--epochs sets the steps of the mix stage; give --policy-steps N")
    if not arguments.resume and arguments.to:
        if arguments.config or arguments.preset:
            parser.error("--to RUN takes the settings of that run; leave --config and --preset out")
        config = config_on(Path(arguments.to), arguments.add_language, given)
        return None, config, config.without_effect(given)
    if not arguments.resume:
        config, warnings = read_settings(arguments)
        if config.policy:
            parser.error(f"{flag_of(POLICIES[config.policy])} and --to RUN go together: the run that learns is missing")
        return None, config, warnings
    others = (
        arguments.add_language,
        arguments.to,
        arguments.config,
        arguments.preset,
        arguments.name,
        arguments.epochs,
    )
    if any(others) or not given_settings(arguments).keys() <= set(ADJUSTABLE):
        free = " ".join(flag_of(name) for name in ADJUSTABLE)
        parser.error(f"--resume continues with the run's own settings and name; leave the others out (but {free})")
    directory = RunDirectory.resume(Path(arguments.resume))
    if "pretrain_lr" in given_settings(arguments) and (directory.path / "base").exists():
        parser.error("--pretrain-lr: the tiny base of this run is trained already; leave it out")
    return directory, directory.config, []


def run_path(arguments: argparse.Namespace) -> Path:
    """Where a new run goes."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    name = arguments.name or f"{Path(arguments.config or arguments.preset or TINY).stem}-{stamp}"
    return Path(arguments.runs) / name
