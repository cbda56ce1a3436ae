"""One thread runs the engine for everyone: requests enter its batch as they come, and leave it when nobody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from moe.inference.answers import Writer
from moe.inference.engine import Generation, Request
from moe.inference.routing_stats import RoutingShares, routing_of


class Full(Exception):
    """As many requests are waiting as may; another one may be sent later."""


class Stopping(Exception):
    """The server takes no more requests."""


class Batcher:
    """Answers requests of many threads with one engine.

    Args:
        writer: makes the engine.
        rows: requests that are answered at once.
        waiting: how many more may wait for a place.
    """

    def __init__(self, writer: Writer, rows: int, waiting: int):
        self._writer, self._rows, self.most = writer, rows, rows + waiting
        config = writer.model.config
        self._shares = RoutingShares(config, self.most) if config.is_moe else None
        self._changed = threading.Condition()
        self._inbox: list[tuple[Any, bool]] = []  # and whether it is to be canceled
        self._taken: dict[int, tuple[Request, Callable[[str], object]]] = {}  # by slot: and what to do if it fails
        self._slots = list(range(self.most))
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Requests that have not ended."""
        return len(self._taken)

    def submit(
        self, requests: Sequence[Request], on_routing: Callable[[int, Any], object], on_failure: Callable[[str], object]
    ) -> list[Request]:
        """Takes all of the requests or none, and returns them as :meth:`cancel` knows them.

        Callbacks come from the engine's thread.

        Args:
            on_routing: called with a request's place and the share of each expert, before its ``on_finished``.
            on_failure: called with one line, at most once a request, where it will never be finished.

        Raises :class:`Full` or :class:`Stopping`.
        """
        with self._changed:
            if self._stopping:
                raise Stopping("the server is stopping")
            if len(requests) > len(self._slots):
                raise Full(f"{len(self._taken)} requests are being answered or waiting; send this one again later")
            taken = []
            for place, request in enumerate(requests):
                slot = self._slots.pop()
                finished = partial(self._finish, slot, request.on_finished, partial(on_routing, place))
                taken.append(replace(request, key=slot, on_finished=finished))
                self._taken[slot] = taken[-1], on_failure
            self._inbox += [(request, False) for request in taken]
            self._changed.notify()
        return taken

    def cancel(self, requests: Sequence[Request]) -> None:
        """Nobody waits for these any more; those that have ended are left alone."""
        with self._changed:
            self._inbox += [(request, True) for request in requests]
            self._changed.notify()

    def stop(self) -> None:
        """Fails what is left and ends the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -------------------------------------------------------------------------------------- in the engine's thread

    def _work(self) -> None:
        engine, busy = self._engine(), False
        while True:
            with self._changed:
                while not (self._inbox or busy or self._stopping):
                    self._changed.wait()
                inbox, self._inbox = self._inbox, []
                stopping = self._stopping
            if stopping:
                return self._fail("the server is stopping")
            try:
                for request, canceled in inbox:
                    if not canceled:
                        engine.submit(request)
                    elif request in engine.waiting:
                        engine.waiting.remove(request)
                        self._release(request.key)
                    elif request is self._taken.get(request.key, (None, None))[0]:
                        engine.cancel(request)
                busy = engine.step()
            except Exception as error:  # the memory may have run out: what runs is lost, the server goes on
                self._fail(f"{type(error).__name__}: {error}")
                engine, busy = self._engine(), False

    def _engine(self) -> Any:
        return self._writer.engine(self._rows, self._shares)

    def _finish(
        self,
        slot: int,
        then: Callable[[Generation], object] | None,
        on_routing: Callable[[Any], object],
        found: Generation,
    ) -> None:
        if self._shares is not None and found.tokens:
            on_routing(routing_of(self._shares, slot))
        self._release(slot)
        if then is not None:
            then(found)

    def _release(self, slot: int) -> None:
        with self._changed:
            del self._taken[slot]
            if self._shares is not None:
                self._shares.clear(slot)
            self._slots.append(slot)

    def _fail(self, message: str) -> None:
        for slot, (_, on_failure) in list(self._taken.items()):
            self._release(slot)
            on_failure(" ".join(message.split())[:300])
