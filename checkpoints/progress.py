"""Progress on a terminal: of counted work (with lines in a log file where there is none) and of bytes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

PLAIN_SECONDS = 10.0  # between two lines where the output is not a terminal


class CountDisplay:
    """Progress of anything that is counted: ``with CountDisplay(...) as show: work(on_progress=show)``."""

    def __init__(self, console: Console, title: str):
        self.console, self.title = console, title
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None)
        self._started = self._last = time.monotonic()

    def __enter__(self) -> CountDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)
        if not self.console.is_terminal and (time.monotonic() - self._last > PLAIN_SECONDS or done == total):
            self._last = time.monotonic()
            seconds = self._last - self._started
            self.console.print(f"{self.title} {done}/{total}, {seconds:.0f} s", highlight=False, soft_wrap=True)


@contextmanager
def byte_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    """Shows bytes, speed and remaining time on stderr, if that is a terminal; yields a function to add bytes with."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=total)
        yield lambda count: progress.advance(task, count)


class LastingStream:
    """A text stream whose end (a closed terminal, ``| head``, a full disk) is no error: what follows is dropped."""

    def __init__(self, stream: TextIO):
        self.stream: Any = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError:  # what is buffered goes the same way, now and at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def lasting_output() -> Iterator[None]:
    """Within the block nobody has to read stdout and stderr: work goes on when a terminal or a pipe is closed."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def make_console() -> Console:
    """The console that training prints to; wide enough not to break lines in a log file."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)


def say(console: Console, text: str) -> None:
    """Prints a line as it is, unless it is empty: no markup, no colors, no breaks."""
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
