"""A chat: a line is a prompt, a line that begins with a slash is a command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moe.data.prompt import instruction_for
from moe.errors import UserError, did_you_mean
from moe.inference.answers import Question
from moe.inference.sampling import GREEDY, Sampling
from moe.languages import LANGUAGES, get_language

QUOTES = '"""'
HELP = """\
Type what the code should do; the model also sees what was said before. A prompt of several lines stands between
lines of \"\"\".
  /language NAME   write in this language ({names}); /language none mentions none
  /temperature T   0: the most likely tokens; above it draws
  /new             forget what was said
  /trace FILE      write a page on which expert wrote each token of the last answer
  /help            this text
  /quit            leave (also Ctrl-D)
Ctrl-C stops an answer."""


class Chat:
    """Reads lines until the end and has each prompt answered.

    Args:
        answer: called with a question, its number, from 0, and how to sample; it shows the answer and returns it.
        language: what the first question is to be answered in; None mentions no language.
        read: returns the next line, given the text to prompt for it with; None at the end of the input.
        write: shows a message of the chat itself.
        interactive: whether a person types: greets, and continues after Ctrl-C.
        trace: called with the name of a file to write about the last answer; returns what to say.
    """

    def __init__(
        self,
        answer: Callable[[Question, int, Sampling], str],
        language: str | None,
        read: Callable[[str], str | None],
        write: Callable[[str], object],
        interactive: bool = False,
        trace: Callable[[str], str] | None = None,
        sampling: Sampling = GREEDY,
    ):
        self._answer, self.language, self._read, self._write = answer, language, read, write
        self._interactive, self._trace, self.sampling = interactive, trace, sampling
        self._asked = 0
        self.history: tuple[tuple[str, str], ...] = ()
        self._commands = {
            "language": self._set_language,
            "temperature": self._set_temperature,
            "new": self._forget,
            "trace": self._write_trace,
            "help": lambda _: HELP.format(names=", ".join(LANGUAGES)),
        }

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
        if line.startswith(QUOTES):
            line = self._block(line.removeprefix(QUOTES))
        if line:
            self._ask(line)
        return True

    def _block(self, line: str) -> str:
        """The lines up to closing quotes, or the end of the input."""
        lines = [line]
        while not lines[-1].rstrip().endswith(QUOTES):
            following = self._read("... ")
            if following is None:
                return "\n".join(lines).strip("\n")
            lines.append(following.rstrip("\r\n"))
        return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")

    def _ask(self, text: str) -> None:
        question = Question(text, self.language, history=self.history) if text.strip() else None
        if question is None:
            return
        try:
            said = self._answer(question, self._asked, self.sampling)
            self.history += (("user", instruction_for(text, self.language)), ("assistant", said))
        except UserError as error:
            self._write(f"error: {error}")
        finally:
            self._asked += 1

    def _command(self, name: str = "help", argument: str = "") -> bool:
        if name == "quit":
            return False
        try:
            if name not in self._commands:
                hint = did_you_mean(name, (*self._commands, "quit"))
                raise UserError(f"unknown command {'/' + name!r}{hint}; /help lists the commands")
            self._write(self._commands[name](argument.strip()))
        except (UserError, OSError) as error:
            self._write(f"error: {error}")
        return True

    def _set_language(self, name: str) -> str:
        if name:
            self.language = None if name == "none" else get_language(name).key
        return f"language: {self.language or 'none'}"

    def _set_temperature(self, value: str) -> str:
        if value:
            try:
                number = float(value)
            except ValueError:
                raise UserError(f"temperature is {value!r}, expected a number such as 0.8") from None
            self.sampling = replace(self.sampling, temperature=number)
        return f"temperature: {self.sampling.temperature:g}"

    def _forget(self, _: str) -> str:
        self.history = ()
        return "what was said is forgotten"

    def _write_trace(self, path: str) -> str:
        if not path:
            raise UserError("/trace needs a file, such as /trace trace.html")
        if self._trace is None:
            raise UserError("there is nothing to trace here")
        return self._trace(path)
