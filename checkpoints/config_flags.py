"""The settings of a run on the command line: one typed flag each, ``--set``, a TOML file, or those of a run."""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, NoReturn

from checkpoints.model_card import check_hub_id
from moe.errors import UserError
from moe.training.config import (
    TINY,
    RunConfig,
    load_preset,
    load_settings,
    make_config,
    parse_setting,
    preset_names,
    setting_types,
)
from moe.training.values import RENAMED

PREFIX = "setting_"
_RATES = "each part has its own learning rate: --branch-lr (experts) and --mix-lr (router)"
# What to say to a flag that other programs have.
HINTS = {
    "--lr": _RATES,
    "--learning-rate": _RATES,
    "--batch-size": "batches are packed by tokens: --tokens-per-batch N",
    "--output": "a run goes to DIR/TEXT of --runs DIR and --name TEXT",
    "--output-dir": "a run goes to DIR/TEXT of --runs DIR and --name TEXT",
}


def flag_of(name: str) -> str:
    """``--branch-steps`` for ``branch_steps``."""
    return "--" + name.replace("_", "-")


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the preset, files of settings, and ``--branch-steps N`` and so on; those not given keep the preset's value.

    Flags of earlier versions and of other programs stay out of the help, and say what to type instead.
    """
    parser.add_argument("--preset", choices=preset_names(), help=f"settings to start from (default: {TINY})")
    parser.add_argument("--config", metavar="FILE", help="a TOML file of settings that change the preset's")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting; repeatable")
    parser.add_argument(
        "--epochs", type=_epochs, metavar="X", help="passes over the training data, which set mix_steps in its place"
    )
    kinds = setting_types()
    group: Any = parser
    about: str | None = (
        "Each is also a --set NAME=VALUE and a line of a TOML file. Presets change some of the defaults."
    )
    for item in fields(RunConfig):
        if not item.metadata.get("flag", True):  # set by another flag
            continue
        kind, flag = kinds[item.name], flag_of(item.name)
        if "group" in item.metadata:
            group, about = parser.add_argument_group(f"{item.metadata['group']} settings", about), None
        options: dict[str, Any] = {"dest": PREFIX + item.name, "default": argparse.SUPPRESS}
        shown = (" ".join(item.default) or "none") if isinstance(item.default, tuple) else item.default
        options["help"] = f"{item.metadata['help']} (default: {shown})".replace("%", "%%")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif typing.get_origin(kind) is tuple:
            group.add_argument(flag, nargs="+", metavar="NAME", **options)
        else:
            metavar = {int: "N", float: "X", str: "TEXT"}[kind]
            group.add_argument(flag, type=_Parser(item.name), metavar=metavar, **options)
    add_hints(parser, HINTS | renamed_flags(RENAMED))


def add_hints(parser: argparse.ArgumentParser, hints: Mapping[str, str]) -> None:
    """Flags that stay out of the help and say what to type instead."""
    for old, hint in hints.items():
        parser.add_argument(old, action=_Hint, hint=hint, nargs="?", help=argparse.SUPPRESS, default=argparse.SUPPRESS)


def renamed_flags(names: Iterable[str]) -> dict[str, str]:
    """Hints for the flags of settings that are called something else now."""
    hints = {flag_of(old): f"it is now called {flag_of(RENAMED[old])}" for old in names}
    switches = [(old, new) for old in names if setting_types()[new := RENAMED[old]] is bool]
    return hints | {flag_of(f"no_{old}"): f"it is now called {flag_of(f'no_{new}')}" for old, new in switches}


class _Hint(argparse.Action):
    """Ends with an error that says what to type instead."""

    def __init__(self, *args: Any, hint: str, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.hint = hint

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> NoReturn:
        parser.error(f"{option_string}: {self.hint}")


def _epochs(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0")
    return value


class _Parser:
    """Turns a flag's text into its setting's type, with our own error line."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, text: str) -> Any:
        try:
            return parse_setting(self.name, text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given as flags or with ``--set``."""
    given = {k.removeprefix(PREFIX): v for k, v in vars(arguments).items() if k.startswith(PREFIX)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    for text in arguments.set:
        name, separator, value = text.partition("=")
        if not separator:
            arguments.parser.error(f"--set {text}: expected NAME=VALUE")
        given[name] = parse_setting(name, value)
    return given


def read_settings(arguments: argparse.Namespace) -> tuple[RunConfig, list[str]]:
    """A new run's settings: the preset's, changed by the file, the flags and ``--set``; and warnings about them."""
    given = given_settings(arguments)
    if arguments.epochs is not None and "mix_steps" in given:
        arguments.parser.error("--epochs and --mix-steps say the same thing; give one of them")
    changes = load_settings(arguments.config) if arguments.config else {}
    config = make_config(load_preset(arguments.preset or TINY), changes, given).with_absolute_paths()
    if config.base_id != "auto":
        check_hub_id(config.base_id)
    warnings = config.without_effect([*changes, *given])
    if config.router_has_no_gradient:
        warnings.append(
            "with one expert per token and frozen experts the mix stage's router learns to balance alone; "
            "set --num-experts-per-tok 2 or --mix-trains-experts"
        )
    return config, warnings
