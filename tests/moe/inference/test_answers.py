"""Answers as text: stop strings, streaming, routing shares, files of prompts and answers."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.data.prompt import encode_fill, encode_prompt, instruction_for
from moe.errors import UserError
from moe.inference.answers import Answer, Question, TextStream, Writer
from moe.inference.expert_choice import expert_names
from moe.inference.function_end import FunctionEnd
from moe.inference.generation import generate_many
from moe.inference.questions import answer_row, error_row, read_questions
from moe.inference.routing_stats import RoutingShares
from moe.inference.sampling import Sampling
from moe.tokenizer import train_sentencepiece


class Pieces:
    """A tokenizer whose tokens are the pieces of a given text; the last may be given only when the stream ends."""

    def __init__(self, pieces: list[str], at_end: str = ""):
        self.pieces, self.at_end = pieces, at_end

    def stream(self):
        return self

    def push(self, index: int) -> str:
        return self.pieces[index]

    def flush(self) -> str:
        return self.at_end


def streamed(pieces: list[str], stop: list[str], at_end: str = "") -> tuple[list[str], TextStream]:
    stream = TextStream(Pieces(pieces, at_end), stop)
    shown = []
    for index in range(len(pieces)):
        shown.append(stream.push(index))
        if stream.stopped:
            break
    return [*shown, stream.flush()], stream


def until(text: str, stop: list[str]) -> str:
    """The definition: up to the start of the stop string that is complete first (the longest where two are)."""
    ends = sorted((text.find(s) + len(s), -len(s)) for s in stop if s in text)
    return text[: ends[0][0] + ends[0][1]] if ends else text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("ab\n", max_size=4), max_size=8),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.text("ab", max_size=2),
)
def test_stop_strings(pieces, stop, at_end):
    text = "".join(pieces) + at_end
    shown, stream = streamed(pieces, stop, at_end)
    assert "".join(shown) == stream.text == until(text, stop)
    assert stream.stopped == any(s in text for s in stop)
    certain = ""
    for piece in shown[:-1]:  # nothing shown is ever taken back, and nothing certain is held back
        certain += piece
        assert text.startswith(certain)


def test_text_is_shown_as_soon_as_it_is_certain():
    assert streamed(["def f", "():\n", "\n", "x"], ["\n\n"])[0] == ["def f", "():", "", ""]
    assert streamed(["a", "\n", "b", "\n"], ["\n\n"])[0] == ["a", "", "\nb", "", "\n"]
    assert streamed(["a", "b"], [])[0] == ["a", "b", ""]


@pytest.fixture(scope="module")
def tokenizer():
    texts = ["def add(a, b):\n    return a + b\n", "Write a Python function. Return the sum of a list."] * 20
    return train_sentencepiece(texts, 400, None)


@pytest.fixture
def writer(tiny_config, make_model, tokenizer):
    config = replace(
        tiny_config, vocab_size=tokenizer.vocab_size, num_experts=3, expert_languages=("python", "java", "cpp")
    )
    return Writer(make_model(config, seed=3), tokenizer, "plain", max_new_tokens=24)


def test_one_answer_equals_the_generated_tokens(writer, tokenizer):
    question, shown = Question("Return the sum.", "java"), []
    answer = writer.answer(question, shown.append)
    prompt = encode_prompt(tokenizer, "plain", instruction_for("Return the sum.", "java"))
    wanted = generate_many(writer.model, [prompt], max_new_tokens=24, stop_ids=[tokenizer.eos_id])[0]
    assert answer.text == "".join(shown) == tokenizer.decode(wanted.tokens)
    assert (answer.tokens, answer.prompt_tokens) == (len(wanted.tokens), len(prompt))
    assert answer.finished == wanted.finished and answer.seconds >= 0
    assert writer.answer(Question("Return the sum.")).text != answer.text, "no language, another prompt"


def test_many_answers_equal_single_ones(writer):
    questions = [Question(f"Return {word}.", language) for word in ("a", "the sum of b") for language in ("java", None)]
    for sampling, stop in ((Sampling(), ()), (Sampling(1.0, seed=2), ()), (Sampling(1.0, seed=2), ("e", "a"))):
        progress: list[tuple[int, Answer]] = []
        writer = Writer(writer.model, writer.tokenizer, "plain", 12, sampling, stop)
        many = writer.answer_many(questions, 3, lambda *found, seen=progress: seen.append(found))
        single = [writer.answer(question, number=place) for place, question in enumerate(questions)]
        assert [(a.text, a.finished, a.tokens) for a in many] == [(a.text, a.finished, a.tokens) for a in single]
        assert not any(s in a.text for a in many for s in stop)
        assert sorted(place for place, _ in progress) == [0, 1, 2, 3]
        assert all(many[place] is answer for place, answer in progress)


def test_a_stop_string_ends_the_work(writer):
    text = writer.answer(Question("Return the sum.")).text
    stop = text[3:5]
    short = Writer(writer.model, writer.tokenizer, "plain", 24, stop=(stop,)).answer(Question("Return the sum."))
    assert short.text == until(text, [stop]) and short.finished == "stop"
    assert short.tokens < 24


def test_prompts_that_do_not_fit(writer):
    long = Question("a " * 300, id="p7")
    with pytest.raises(UserError, match=r"prompt 2 \(p7\) has \d+ tokens and leaves no room .* context of 128 tokens"):
        writer.answer_many([Question("a"), long], 2)
    with pytest.raises(UserError, match="a stop string is empty"):
        Writer(writer.model, writer.tokenizer, "plain", stop=("",))
    for text in ("", " \n\t"):
        with pytest.raises(UserError, match="the prompt is empty"):
            Question(text)
    with pytest.raises(UserError, match="lone surrogate at character 2"):
        Question("a\udc80")


def test_an_instruction_without_a_language():
    assert instruction_for("Write it in Java.", None) == "Write it in Java."
    assert "one code block" in instruction_for("Write it.", None, "code-only")


# ------------------------------------------------------------------------------------------------------ routing


def test_routing_shares_count_the_tokens_of_the_answer(writer):
    model, prompts = writer.model, [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    shares = RoutingShares(model.config, 3)
    stop = {generate_many(model, [prompts[0]], max_new_tokens=6)[0].tokens[3]}
    answers = generate_many(model, prompts, batch_size=2, max_new_tokens=6, stop_ids=stop, on_output=shares)
    for place, (prompt, answer) in enumerate(zip(prompts, answers)):
        decided = len(answer.tokens) + (answer.finished == "stop")
        text = [*prompt, *answer.tokens]
        routing = model(torch.tensor([text])).routing
        for layer, wanted in enumerate(routing):
            gates = torch.zeros(len(text), 3, dtype=torch.float64)
            gates.scatter_(1, wanted.expert_ids, wanted.gates)
            gates = gates[len(prompt) - 1 :][:decided]
            assert len(gates) == decided
            expected = gates.sum(0) / gates.sum()
            assert torch.tensor(shares.shares_by_layer(place)[layer]).sub(expected).abs().max() < 1e-6
        assert sum(shares.shares(place)) == pytest.approx(1)
    assert expert_names(model.config) == ["python", "java", "cpp"]
    assert expert_names(replace(model.config, expert_languages=())) == ["expert 0", "expert 1", "expert 2"]


# ------------------------------------------------------------------------------------------------------ files


def test_reading_prompts(tmp_path):
    plain, lines, packed = tmp_path / "p.txt", tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_bytes("\ufeffSum a list.\r\n\n  Sort é.\n".encode())
    assert read_questions(plain, "java") == [Question("Sum a list.", "java"), Question("Sort é.", "java")]
    rows = [
        {"text": "a", "language": "cpp", "id": "x", "package": 1},
        {"text": "b", "language": None, "id": 4},
        {"text": "c", "language": "java"},
    ]
    lines.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    wanted = [Question("a", "cpp", "x"), Question("b", None, "4"), Question("c", "java")]
    assert read_questions(lines) == wanted == read_questions(lines, "python")
    packed.write_bytes(gzip.compress(lines.read_bytes()))
    assert read_questions(packed) == wanted
    lines.write_text('{"text": "a"}\n')
    assert read_questions(lines, "python") == [Question("a", "python")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a", "language": "cpp"}\n{"text": "b"}', "p.jsonl, line 2: lacks the key 'language'; add it"),
        ('{"language": "cpp"}', "line 1: lacks the key 'text'; found 'language'"),
        ('\n{"text": 3, "language": "cpp"}', "line 2: 'text' is a number; expected a string"),
        ('{"text": null, "language": "cpp"}', "line 1: 'text' is null"),
        ('{"text": "a", "language": "cpp", "id": [1]}', "line 1: 'id' is a list"),
        ('{"text": "a", "language": "cpp", "id": true}', "line 1: 'id' is a boolean"),
        ('{"text": " ", "language": "cpp"}', "line 1: the prompt is empty"),
        ('{"text": "\\ud800", "language": "cpp"}', "line 1: 'text' holds a lone surrogate"),
        ('{"text": "a", "language": "c+"}', "line 1: unknown language 'c\\+'"),
        ("[1]", "line 1: found a list"),
        ("{", "line 1: not JSON"),
        ("[" * 100_000, "line 1: not JSON"),
        ("\n \n", "p.jsonl: holds no prompts"),
        (b'{"text": "a", "language": null}\n\xff', "line 2: not UTF-8"),
    ],
)
def test_broken_prompt_files(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message):
        read_questions(path)


def test_prompt_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_questions(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="is not a file"):
        read_questions(tmp_path)
    for content in (b"no gzip", gzip.compress(b"x" * 1000)[:-9]):
        (tmp_path / "p.txt.gz").write_bytes(content)
        with pytest.raises(UserError, match="gzip data are broken or cut short"):
            read_questions(tmp_path / "p.txt.gz")


def test_rows_of_answers():
    question, answer = Question("a", "cpp", "x"), Answer("one", "length", 4, 1, 0.1)
    first = {"id": "x", "language": "cpp", "text": "a"}
    assert answer_row(question, answer) == {
        **first, "answer": "one", "finished": "length", "prompt_tokens": 4, "tokens": 1
    }  # fmt: skip
    assert error_row(question, "too long", 2) == {**first, "sample": 2, "error": "too long"}


# --------------------------------------------------------------------------------------------------- functions

FUNCTIONS = {
    "python": (
        "import math\n\n\n@cache\ndef f(x):\n    def g():\n        return [\n1\n]\n\n    # note\n    return g\n",
        "\nprint(f(1))\n",
    ),
    "java": ('public static int f(int x) {\n    if (x > 0) { return "}".length(); }\n    return 1;\n}', "\nint y;\n"),
    "javascript": ("// adds\nfunction f(x) {\n  const g = (y) => { return y; };\n  return g(x);\n}", "\nf(1);\n"),
    "cpp": ("#include <vector>\nint f(int x) {\n  for (;;) { break; }\n  return x;\n}", "\nint main() {}\n"),
}


@pytest.mark.parametrize("language", FUNCTIONS)
def test_an_answer_stops_at_the_end_of_its_function(language):
    function, rest = FUNCTIONS[language]
    for size in (1, 3, 1000):  # pieces of text that a token stands for
        text = function + rest
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        stream = TextStream(Pieces(pieces), (), FunctionEnd(language))
        for index in range(len(pieces)):
            stream.push(index)
            if stream.stopped:
                break
        assert stream.stopped and stream.text.rstrip("\n") == function.rstrip("\n")
    stream = TextStream(Pieces([function[:-3]]), (), FunctionEnd(language))
    stream.push(0)
    stream.flush()
    assert not stream.stopped and stream.text == function[:-3]


def test_filling_a_gap(chatml):
    class Marked:
        bos_id, add_bos = 7, True

        def __init__(self, *names):
            self.names = names

        def special_id(self, name):
            return 100 + self.names.index(name) if name in self.names else None

        def encode(self, text):
            return list(text.encode())

    star = Marked("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    assert encode_fill(star, "a", "b") == [7, 100, 97, 101, 98, 102]
    assert encode_fill(Marked("[PREFIX]", "[SUFFIX]"), "a", "b") == [7, 101, 98, 100, 97]
    with pytest.raises(UserError, match="no tokens to fill a gap"):
        encode_fill(chatml, "a", "b")


def test_truncated_prompts_keep_their_end_and_room_for_an_answer(writer):
    long = Question("first " + "a " * 300 + "last")
    short = Writer(writer.model, writer.tokenizer, "plain", 24, truncate=True)
    ids, context, whole = short.encode(long), writer.model.config.max_seq_len, short._ids(long)
    assert len(ids) == context - 24 and whole[0] == writer.tokenizer.bos_id
    assert ids == [whole[0], *whole[1 - len(ids) :]], "the token that begins a text stays"
    assert short.answer(long).tokens > 0
    for most in (1, 24, context, 10**9):
        endless = Writer(writer.model, writer.tokenizer, "plain", most, truncate=True)
        assert endless.encode(Question("one")) == endless._ids(Question("one")), "a prompt that fits stays as it is"
        assert len(endless.encode(long)) == context - min(most, context // 4)
