"""Questions and answers at a terminal: a line is a prompt, a line that begins with a slash is a command."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TextIO

from moe.errors import UserError, did_you_mean
from moe.inference.answers import Question
from moe.languages import LANGUAGES, get_language

HELP = """\
Type what the code shall do; each prompt stands alone.
  /language NAME   write in this language ({names}); /language none names none
  /help            this text
  /quit            leave (also Ctrl-D)
Ctrl-C stops an answer."""


class Session:
    """Reads lines until the end and has each prompt answered.

    Args:
        answer: called with a question and its number, from 0; it shows the answer itself.
        language: what the first question is to be answered in; None names no language.
        lines: where questions come from. On a terminal lines can be edited and called back.
        out: where the session itself writes, apart from the answers.
    """

    def __init__(self, answer: Callable[[Question, int], object], language: str | None, lines: TextIO, out: TextIO):
        self._answer, self.language, self._lines, self._out = answer, language, lines, out
        self._asked = 0

    def run(self) -> int:
        """Goes on until ``/quit`` or the end of the input; returns 0."""
        interactive = self._lines.isatty()
        if interactive:
            _enable_editing()
            self._say(f"language: {self.language or 'none named'}; /help tells what can be typed, Ctrl-D leaves")
        while True:
            try:
                line = self._read(interactive)
                if line is None or self.take(line) is False:
                    return 0
            except KeyboardInterrupt:
                self._say("\nstopped" + ("; /quit or Ctrl-D leaves" if interactive else ""))
                if not interactive:
                    raise

    def take(self, line: str) -> bool:
        """Does what one line says; False when it says to leave."""
        line = line.strip()
        if line.startswith("/"):
            return self._command(*line[1:].split(maxsplit=1))
        if line:
            try:
                self._answer(Question(line, self.language), self._asked)
            except UserError as error:
                self._say(f"error: {error}")
            finally:
                self._asked += 1
        return True

    def _command(self, name: str = "help", argument: str = "", *_: str) -> bool:
        if name == "quit":
            return False
        if name == "help":
            self._say(HELP.format(names=", ".join(LANGUAGES)))
        elif name == "language":
            try:
                if argument:
                    self.language = None if argument == "none" else get_language(argument.strip()).key
                self._say(f"language: {self.language or 'none named'}")
            except UserError as error:
                self._say(f"error: {error}")
        else:
            hint = did_you_mean(name, ("language", "help", "quit"))
            self._say(f"error: unknown command {'/' + name!r}{hint}; /help tells what can be typed")
        return True

    def _read(self, interactive: bool) -> str | None:
        if not interactive:
            return self._lines.readline() or None
        try:
            return input(f"{self.language or '?'}> ")
        except EOFError:
            self._say("")
            return None

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)


def _enable_editing() -> None:
    """Arrow keys and history for ``input``, where the system has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401
