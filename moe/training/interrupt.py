"""Ctrl-C that waits for a safe place: between two training steps, where weights and optimizer belong together."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class DelayedInterrupt:
    """Within ``with DelayedInterrupt(notify) as interrupt:`` the first Ctrl-C only sets ``interrupt.requested``.

    It calls ``notify`` and raises :class:`KeyboardInterrupt` at the end of the block, which the work inside leaves at
    the next safe place. A second Ctrl-C raises at once. Signals reach the main thread alone; in another one nothing
    changes.
    """

    def __init__(self, notify: Callable[[], None]):
        self.notify, self.requested = notify, False
        self._before: Any = None

    def __enter__(self) -> DelayedInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self.requested and error is None:
            raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        self.notify()

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
