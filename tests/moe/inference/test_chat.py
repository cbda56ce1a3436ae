"""Chats of single questions: commands, mistakes, interruptions."""

from __future__ import annotations

import pytest

from moe.errors import UserError
from moe.inference.answers import Question
from moe.inference.chat import Chat


def converse(
    text: str, language: str | None = None, fail: type[BaseException] | None = None, interactive: bool = False
):
    asked, said, lines = [], [], iter(text.splitlines())

    def answer(question: Question, number: int) -> None:
        asked.append((question.text, question.language, number))
        if fail is not None and question.text == "fail":
            raise fail("as raised")

    chat = Chat(answer, language, lambda prompt: next(lines, None), said.append, interactive)
    return chat, asked, said


def test_a_chat():
    chat, asked, said = converse("first\n\n/language cpp\n  second \n/language none\nthird\n/quit\nnever\n", "python")
    chat.run()
    assert asked == [("first", "python", 0), ("second", "cpp", 1), ("third", None, 2)]
    assert said == ["language: cpp", "language: none"]


def test_the_prompt_shows_the_language():
    prompts, lines = [], iter(["/language cpp", None])

    def read(prompt: str) -> str | None:
        prompts.append(prompt)
        return next(lines)

    Chat(lambda *_: None, None, read, lambda text: None).run()
    assert prompts == ["?> ", "cpp> "]


def test_mistakes_do_not_end_a_chat():
    lines = "/language pyton\n/halp\n/\n/language\nfail\nnext"
    chat, asked, said = converse(lines, fail=UserError)
    chat.run()
    assert [text for text, _, _ in asked] == ["fail", "next"]
    text = "\n".join(said)
    assert "did you mean 'python'" in text and "did you mean 'help'" in text and "error: as raised" in text
    assert "/language NAME" in text and "language: none" in text


def test_interrupting_an_answer():
    chat, asked, said = converse("fail\nnext\n", fail=KeyboardInterrupt, interactive=True)
    chat.run()
    assert [text for text, _, _ in asked] == ["fail", "next"]
    assert said == ["language: none; /help lists the commands, Ctrl-D leaves", "\nstopped; /quit or Ctrl-D leaves"]
    piped, asked, said = converse("fail\nnext\n", fail=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        piped.run()
    assert len(asked) == 1 and said == ["\nstopped"]
