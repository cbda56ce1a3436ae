"""Ctrl-C that waits for a safe place: between two training steps, where weights and optimizer belong together."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Within ``with Interrupt(message) as interrupt:`` the first Ctrl-C prints ``message`` and sets ``interrupt.came``.

    The work looks at ``came`` where it can stop. A second Ctrl-C raises :class:`KeyboardInterrupt` at once. Signals
    reach the main thread alone; in another one nothing is changed.
    """

    def __init__(self, message: str):
        self.message, self.came = message, False
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self._restore()
        print(self.message, file=sys.stderr, flush=True)

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
