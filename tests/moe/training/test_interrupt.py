"""Signals wait for a safe place."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from moe.training.interrupt import SIGNALS, DelayedInterrupt, Interrupted, raised_signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_raised_at_the_end_of_the_block(number):
    calls, handlers = [], [signal.getsignal(x) for x in SIGNALS]
    with pytest.raises(Interrupted) as raised, DelayedInterrupt(lambda: calls.append("notified")) as interrupt:
        assert interrupt.requested is None
        signal.raise_signal(number)
        assert interrupt.requested == number
        calls.append("safe")
    assert calls == ["notified", "safe"] and [signal.getsignal(x) for x in SIGNALS] == handlers
    assert raised.value.number == number and isinstance(raised.value, KeyboardInterrupt)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_is_raised_at_once(first):
    calls = []
    with pytest.raises(KeyboardInterrupt), DelayedInterrupt(lambda: calls.append("notified")):
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
        calls.append("never")
    assert calls == ["notified"]


def test_service_managers_and_terminals_may_send_more_than_one_signal():
    calls = []
    with pytest.raises(Interrupted, match="SIGTERM"), DelayedInterrupt(lambda: calls.append("notified")):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
        calls.append("safe")
    assert calls == ["notified", "safe"]


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
        with DelayedInterrupt(pytest.fail), raised_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [handler]


def test_elsewhere_signals_are_raised_at_once_and_nested_blocks_delay_them():
    with raised_signals():
        with pytest.raises(Interrupted, match="SIGHUP"):
            signal.raise_signal(signal.SIGHUP)
        with pytest.raises(Interrupted, match="SIGTERM"), DelayedInterrupt(lambda: None):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with raised_signals(), DelayedInterrupt(pytest.fail):
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_child_processes_end_by_default():
    """A pool that ends its workers by SIGTERM must not wait for their next safe place."""
    with DelayedInterrupt(pytest.fail):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
