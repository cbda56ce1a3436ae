"""Errors that a user can cause, told in one line.

Everything that a user can get wrong (a path, a file, a flag, a size) raises :class:`UserError` with one sentence
saying what was found, what was expected and what to type. Broken invariants of our own code use ``assert``.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake of the user's, explained in one line; command lines print it and exit with code 2."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the closest choice, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@contextmanager
def exit_on_user_error(debug: bool = False, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turns a :class:`UserError` (or one of ``also``) into one line on stderr and exit code 2.

    Ctrl-C ends with code 130 and no trace. With ``debug`` every exception keeps its trace. A reader of the output that
    went away (``| head``) is no mistake: :class:`BrokenPipeError` passes.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except (UserError, *also) as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
