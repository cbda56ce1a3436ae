"""User errors and notices, each one line.

Everything that a user can get wrong (a path, a file, a setting, a size) raises :class:`UserError` with one sentence
saying what was found and what was expected. Broken invariants of our own code use ``assert``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake of the user's, explained in one line; command lines print it and exit with code 2."""


class Notice(UserWarning):
    """A remark that a user should see though nothing failed; command lines print it as one line on stderr."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the closest choice, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
