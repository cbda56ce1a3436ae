"""Chats: what was said before, commands, mistakes, interruptions."""

from __future__ import annotations

import pytest

from moe.errors import UserError
from moe.inference.answers import Question
from moe.inference.chat import Chat
from moe.inference.sampling import Sampling


def converse(
    text: str, language: str | None = None, fail: type[BaseException] | None = None, interactive: bool = False
):
    asked, said, lines = [], [], iter(text.splitlines())

    def answer(question: Question, number: int, sampling: Sampling) -> str:
        asked.append((question.text, question.language, number))
        if fail is not None and question.text == "fail":
            raise fail("as raised")
        return f"answer {number}"

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

    Chat(lambda *_: "", None, read, lambda text: None).run()
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


def test_what_was_said_before_goes_along():
    seen, lines = [], iter(["one", "/language cpp", "two", "fail", "three", "/new", "four", None])

    def answer(question: Question, number: int, sampling: Sampling) -> str:
        seen.append(question.history)
        if question.text == "fail":
            raise UserError("too long")
        return f"answer {number}"

    Chat(answer, None, lambda prompt: next(lines), lambda text: None).run()
    first = (("user", "one"), ("assistant", "answer 0"))
    second = (("user", "Write a C++ function. two"), ("assistant", "answer 1"))
    assert seen == [(), first, first + second, first + second, ()]


def test_a_prompt_of_several_lines():
    chat, asked, _ = converse('"""\nsum a list\n  of numbers\n"""\n"""one"""\n"""\n"""\n"""\nto the end\n/quit')
    chat.run()
    assert [text for text, _, _ in asked] == ["sum a list\n  of numbers", "one", "to the end\n/quit"]


def test_temperature_and_trace():
    lines = iter(
        "a\n/temperature 0.5\nb\n/temperature x\n/temperature -1\n/temperature\n/trace\n/trace t.html".split("\n")
    )
    temperatures, said = [], []

    def answer(question: Question, number: int, sampling: Sampling) -> str:
        temperatures.append((sampling.temperature, sampling.seed))
        return ""

    Chat(
        answer,
        None,
        lambda _: next(lines, None),
        said.append,
        False,
        lambda path: f"wrote {path}",
        Sampling(1.5, seed=3),
    ).run()
    assert temperatures == [(1.5, 3), (0.5, 3)]
    assert said[0] == "temperature: 0.5" and "'x', expected a number" in said[1] and "-1.0, expected 0" in said[2]
    assert said[3] == "temperature: 0.5" and "needs a file" in said[4] and said[5] == "wrote t.html"
