"""Command lines of this project: argparse with one-line errors and exit code 2."""

from __future__ import annotations

import argparse
import errno
import os
import re
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, TextIO

from kernels.version import __version__
from moe.errors import Notice, UserError

SCRIPTS = ("train", "generate")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults, except those of switches and of optional values that are unset."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default == []
        return action.help if says_nothing else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, suggestions for misspelled flags, defaults in ``--help``, and two more flags.

    ``--version`` prints the version of the project, ``--debug`` shows the traceback of an error.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        if not any(action.dest == "debug" for action in self._actions):
            self.add_argument(
                "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of an error"
            )
            self.add_argument("--version", action="version", version=f"language-experts {__version__}")

    def error(self, message: str) -> NoReturn:
        flags = {flag.lstrip("-"): flag for action in self._actions for flag in action.option_strings}
        unknown = [word for word in re.findall(r"(?<!\S)--?[\w-]+", message)[:1] if word not in flags.values()]
        # Compared without dashes, which would make all flags alike.
        close = [name for word in unknown for name in get_close_matches(word.lstrip("-"), flags, n=1)]
        hint = "".join(f" (did you mean {flags[name]!r}?)" for name in close)
        print(f"error: {' '.join(message.split())}{hint}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


class CommandParser(ArgumentParser):
    """A parser with subcommands, which are added to :attr:`commands`; each sets ``main``, the function that runs it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.commands = self.add_subparsers(
            dest="command", required=True, metavar="COMMAND", parser_class=ArgumentParser
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As in argparse, except that the subcommand reports unknown flags: it can suggest the one meant."""
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.commands.choices[arguments.command].error(f"unrecognized arguments: {' '.join(unknown)}")
        return arguments


def script_command(script: str) -> str:
    """The command for ``train`` or ``generate`` in the way this process was started: as a module, or as a file."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.name in SCRIPTS:
        return f"python -m {script}"
    started = Path(sys.argv[0])
    folder = started.parent if started.stem in SCRIPTS else Path()
    return shlex.join(["python", str(folder / f"{script}.py")])


def add_fields_argument(parser: argparse.ArgumentParser) -> None:
    """``--fields``: which fields of the data hold what."""
    parser.add_argument(
        "--fields", nargs="+", default=[], metavar="PART=FIELD", help="what is what: text=a+b code=c language=d id=e"
    )


def check_output_file(path: str | Path, force: bool = False) -> Path:
    """Raises :class:`UserError` if a file ``path`` cannot be written; to be called before the work."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a directory; expected the name of a file to write")
    if path.exists() and not force:
        raise UserError(f"{path} exists; give another --output or --force to replace it")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} does not exist; create it first: mkdir -p {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} cannot be written to; give another --output")
    return path


@contextmanager
def exit_on_user_error(debug: bool = False, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns a :class:`UserError` (or one of ``also``) into one line on stderr and exit code 2.

    Ctrl-C exits with code 130 and no traceback, another signal that was raised with 128 + its number. With ``debug``
    every exception keeps its traceback. A closed pipe (``| head``) is not an error: :class:`BrokenPipeError` passes.
    """
    expected: tuple[type[Exception], ...] = (UserError, *also)
    try:
        yield
    except BrokenPipeError:
        raise
    except expected as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt as interrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + getattr(interrupt, "number", signal.SIGINT)) from None


@contextmanager
def printed_notices() -> Iterator[None]:
    """Prints each different :class:`Notice` as one line on stderr; other warnings are shown as usual."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", Notice)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, Notice):
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def run(
    parser: ArgumentParser,
    main: Callable[[argparse.Namespace], int | None],
    argv: Sequence[str] | None = None,
    also: tuple[type[Exception], ...] = (),
) -> int:
    """Parses ``argv`` and runs ``main``.

    User errors, system errors (:class:`OSError`) and ``also`` give one line and exit code 2 (a traceback with
    ``--debug``). If the reader of the output goes away (``| head``), the program stops without an error.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # see the head of train.py
        signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = parser.parse_args(argv)
    arguments.debug = getattr(arguments, "debug", False)
    try:
        with printed_notices(), exit_on_user_error(arguments.debug, also=(OSError, *also)):
            try:
                return main(arguments) or 0
            except OSError as error:
                plain = isinstance(error, (BrokenPipeError, *also)) or not isinstance(error.filename, str | bytes)
                if plain:
                    raise
                full = error.errno in (errno.ENOSPC, errno.EDQUOT)
                remedy = "free some space" if full else "check that the path can be read or written"
                message = f"{os.fsdecode(error.filename)}: {error.strerror}; {remedy}"
                raise UserError(message) from error
            except RuntimeError as error:  # of Path.resolve, before Python 3.13
                if not str(error).startswith("Symlink loop"):
                    raise
                raise UserError(f"{error}, which leads to no file; give another path") from error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout at exit
        return 0
