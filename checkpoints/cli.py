"""Command lines of this project: argparse whose mistakes are one line with exit code 2."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence

from moe.errors import UserError, did_you_mean, exit_on_user_error


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that say something: not those of switches and of flags that are simply not given."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, suggestions for misspelt flags, defaults in ``--help`` and a ``--debug`` flag."""

    def __init__(self, *args, **kwargs):
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        if not any(action.dest == "debug" for action in self._actions):
            self.add_argument(
                "--debug", action="store_true", default=argparse.SUPPRESS, help="show the trace of an error"
            )

    def error(self, message: str):
        flags = [flag for action in self._actions for flag in action.option_strings]
        words = [word.split("=")[0] for word in re.findall(r"(?<!\S)--?[\w-]+(?:=\S*)?", message)[:1]]
        hint = "".join(did_you_mean(word, flags) for word in words if word not in flags)
        print(f"error: {' '.join(message.split())}{hint}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def run(
    parser: ArgumentParser,
    main: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    also: tuple[type[Exception], ...] = (),
) -> int:
    """Parses ``argv`` and runs ``main``.

    A user's mistake, what the system refuses (:class:`OSError`) and ``also`` are one line and exit code 2 (a trace with
    ``--debug``). A reader of the output that went away (``| head``) ends the work without an error.
    """
    arguments = parser.parse_args(argv)
    arguments.debug = getattr(arguments, "debug", False)
    try:
        with exit_on_user_error(arguments.debug, also=(OSError, *also)):
            try:
                return main(arguments) or 0
            except OSError as error:
                plain = isinstance(error, (BrokenPipeError, *also)) or not isinstance(error.filename, str | bytes)
                if plain:
                    raise
                message = f"{os.fsdecode(error.filename)}: {error.strerror}; check that the path can be read or written"
                raise UserError(message) from error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python still flushes at exit
        return 0
