"""SIGINT, SIGTERM and SIGHUP: raised at once, or at the next safe place, between two training steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], None]


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to stop; ``number`` says which."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


def _handle_all(handler: Handler) -> dict[int, Any]:
    """Sets the handler of :data:`SIGNALS` and returns the old ones; a SIGHUP that ``nohup`` ignores stays ignored.

    Signals reach the main thread alone; in another one nothing changes. Child processes that inherit the handler keep
    the default action.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            handler(number, frame)
        else:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    wanted = SIGNALS[:-1] if ignored else SIGNALS
    return {number: signal.signal(number, handle) for number in wanted}


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        if signal.getsignal(number) != signal.SIG_IGN:  # see ignore_signals
            signal.signal(number, handler)


def ignore_signals() -> None:
    """From here to its end, which is near, the process ignores :data:`SIGNALS`."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def raised_signals() -> Iterator[None]:
    """Within the block :data:`SIGNALS` raise :class:`Interrupted`: nothing is half written, and nothing lingers."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    before = _handle_all(stop)
    try:
        yield
    finally:
        _restore(before)


class DelayedInterrupt:
    """Within ``with DelayedInterrupt(notify) as interrupt:`` the first signal only sets ``interrupt.requested``.

    It calls ``notify`` and raises :class:`Interrupted` at the end of the block, which the work inside leaves at the
    next safe place. A second Ctrl-C raises at once; further SIGTERM and SIGHUP, which service managers and terminals
    send together, do not.
    """

    def __init__(self, notify: Callable[[], None]):
        self.notify = notify
        self.requested: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> DelayedInterrupt:
        self._before = _handle_all(self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _restore(self._before)
        if self.requested is not None and error is None:
            raise Interrupted(self.requested)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is None:
            self.requested = number
            self.notify()
        elif number == signal.SIGINT:
            raise Interrupted(number)
