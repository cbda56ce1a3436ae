"""Ctrl-C waits for a safe place."""

from __future__ import annotations

import signal
import threading

import pytest

from moe.training.interrupt import DelayedInterrupt


def test_ctrl_c_is_raised_at_the_end_of_the_block():
    calls, handler = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), DelayedInterrupt(lambda: calls.append("notified")) as interrupt:
        assert not interrupt.requested
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested
        calls.append("safe")
    assert calls == ["notified", "safe"] and signal.getsignal(signal.SIGINT) is handler


def test_a_second_ctrl_c_is_raised_at_once():
    calls = []
    with pytest.raises(KeyboardInterrupt), DelayedInterrupt(lambda: calls.append("notified")):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        calls.append("never")
    assert calls == ["notified"]


def test_an_error_of_the_work_is_not_hidden():
    with pytest.raises(ZeroDivisionError), DelayedInterrupt(lambda: None):
        signal.raise_signal(signal.SIGINT)
        raise ZeroDivisionError


def test_without_ctrl_c_nothing_happens():
    handler = signal.getsignal(signal.SIGINT)
    with DelayedInterrupt(pytest.fail):
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_other_threads_leave_signals_alone():
    handler, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with DelayedInterrupt(pytest.fail):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handler]
