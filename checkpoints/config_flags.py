"""Command-line flags made from the settings of a run: one typed flag each, with its help and unit."""

from __future__ import annotations

import argparse
import typing
from dataclasses import fields
from typing import Any

from moe.errors import UserError
from moe.training.config import RunConfig, parse_setting, setting_types

PREFIX = "setting_"


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Adds ``--branch-steps N`` and so on; flags that are not given leave the preset's value."""
    group = parser.add_argument_group("settings (each also as --set NAME=VALUE or in a TOML file)")
    kinds = setting_types()
    for item in fields(RunConfig):
        kind = kinds[item.name]
        flag = "--" + item.name.replace("_", "-")
        options: dict[str, Any] = {"dest": PREFIX + item.name, "default": argparse.SUPPRESS}
        shown = " ".join(item.default) if isinstance(item.default, tuple) else item.default
        options["help"] = f"{item.metadata['help']} (default: {shown}, unless the preset differs)".replace("%", "%%")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
        elif typing.get_origin(kind) is tuple:
            group.add_argument(flag, nargs="+", metavar="NAME", **options)
        else:
            metavar = {int: "N", float: "X", str: "TEXT"}[kind]
            group.add_argument(flag, type=_Parser(item.name), metavar=metavar, **options)


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
    """The settings that were given as flags."""
    given = {k.removeprefix(PREFIX): v for k, v in vars(arguments).items() if k.startswith(PREFIX)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
