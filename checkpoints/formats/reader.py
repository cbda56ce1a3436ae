"""Typed values out of a settings object, with errors that name the file and the key."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe.errors import UserError

_MAX_SIZE = 1 << 31


class ConfigReader:
    """Reads typed values from a settings object; errors name the file and the key."""

    def __init__(self, settings: Mapping[str, Any], source: Path) -> None:
        self.settings, self.source = settings, source

    def fail(self, key: str, value: Any, expected: str) -> UserError:
        """Returns the error for the value of one key."""
        return UserError(f"{self.source}: {key} is {str(value)[:80]!r}; expected {expected}")

    def size(self, key: str, default: int | None = None) -> int:
        """A positive integer; a missing key or null gives ``default``, or an error without one."""
        value = self.settings.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MAX_SIZE:
            raise self.fail(key, value, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number; a missing key or null gives ``default``, or an error without one."""
        value = self.settings.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.fail(key, value, "a positive number")
        return float(value)

    def optional_size(self, key: str, default: int | None) -> int | None:
        """A positive integer or null; a missing key gives ``default``."""
        if self.settings.get(key, default) is None:
            return None
        return self.size(key, default)


@contextmanager
def naming(source: Path) -> Iterator[None]:
    """Prefixes a :class:`UserError` with the file's name unless it has it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(source) in str(error) else f"{source}: {error}") from None
