"""A chat of single questions: a line is a prompt, a line that begins with a slash is a command."""

from __future__ import annotations

from collections.abc import Callable

from moe.errors import UserError, did_you_mean
from moe.inference.answers import Question
from moe.languages import LANGUAGES, get_language

HELP = """\
Type what the code should do; each prompt stands alone.
  /language NAME   write in this language ({names}); /language none mentions none
  /help            this text
  /quit            leave (also Ctrl-D)
Ctrl-C stops an answer."""


class Chat:
    """Reads lines until the end and has each prompt answered.

    Args:
        answer: called with a question and its number, from 0; it shows the answer itself.
        language: what the first question is to be answered in; None mentions no language.
        read: returns the next line, given the text to prompt for it with; None at the end of the input.
        write: shows a message of the chat itself.
        interactive: whether a person types: greets, and continues after Ctrl-C.
    """

    def __init__(
        self,
        answer: Callable[[Question, int], object],
        language: str | None,
        read: Callable[[str], str | None],
        write: Callable[[str], object],
        interactive: bool = False,
    ):
        self._answer, self.language, self._read, self._write = answer, language, read, write
        self._interactive = interactive
        self._asked = 0

    def run(self) -> None:
        """Continues until ``/quit`` or the end of the input."""
        if self._interactive:
            self._write(f"language: {self.language or 'none'}; /help lists the commands, Ctrl-D leaves")
        while True:
            try:
                line = self._read(f"{self.language or '?'}> ")
                if line is None or not self.handle(line):
                    return
            except KeyboardInterrupt:
                self._write("\nstopped" + ("; /quit or Ctrl-D leaves" if self._interactive else ""))
                if not self._interactive:
                    raise

    def handle(self, line: str) -> bool:
        """Answers a prompt or obeys a command; False for the command to leave."""
        line = line.strip()
        if line.startswith("/"):
            return self._command(*line[1:].split(maxsplit=1))
        if line:
            try:
                self._answer(Question(line, self.language), self._asked)
            except UserError as error:
                self._write(f"error: {error}")
            finally:
                self._asked += 1
        return True

    def _command(self, name: str = "help", argument: str = "") -> bool:
        if name == "quit":
            return False
        if name == "help":
            self._write(HELP.format(names=", ".join(LANGUAGES)))
        elif name == "language":
            try:
                if argument:
                    self.language = None if argument == "none" else get_language(argument).key
                self._write(f"language: {self.language or 'none'}")
            except UserError as error:
                self._write(f"error: {error}")
        else:
            hint = did_you_mean(name, ("language", "help", "quit"))
            self._write(f"error: unknown command {'/' + name!r}{hint}; /help lists the commands")
        return True
