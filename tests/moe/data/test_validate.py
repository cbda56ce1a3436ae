"""Checks of data: copies and leaks are counted exactly, near copies found, and the command says all of it."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

import pytest

from checkpoints.runs.preflight import check_data
from moe.data import grammars, key_index, overlap
from moe.data.__main__ import main
from moe.data.grammars import parses
from moe.data.overlap import SHINGLE, Benchmarks, ExactCopies, NearCopies
from moe.data.pairs import Pair
from moe.data.sources import DataSets, load_data
from moe.data.validate import Checks, quick_findings, unparsed
from moe.errors import UserError
from moe.training.config import RunConfig
from tests.pair_files import write_pairs


def python(number: int, text: str = "") -> Pair:
    return Pair("python", text or f"Computes the value of case number {number}.", f"def f{number}(x):\n    return x\n")


def lines(data: DataSets) -> list[str]:
    return [finding.text for finding in quick_findings(data)]


def test_the_quick_part_does_without_tree_sitter(monkeypatch):
    """As on a GPU machine; copies and leaks are still found."""
    prose = [Pair("python", f"Case {i}.", f"This is no code, number {i}.") for i in range(60)]
    data = DataSets({"python": prose}, {"test": {"python": prose[:2]}})
    assert len(lines(data)) == 2
    grammars.make_parser.cache_clear()
    monkeypatch.setitem(sys.modules, "tree_sitter", None)
    assert len(lines(data)) == 1


def test_leaks_are_counted_by_kind():
    train = [python(i) for i in range(60)]
    same = [
        Pair("python", f"  computes the VALUE of case number {i}", train[i].code.replace("    ", "\t"))
        for i in range(3)
    ]
    other_text = [python(i, f"Something else {i}.") for i in range(2)]
    new = [python(100 + i) for i in range(4)] + [python(200, train[7].text)]
    data = DataSets({"python": train}, {"test": {"python": same + other_text + new}, "test-b": {"python": new}})
    assert lines(data) == [
        "3 of 10 python test pairs are also in train (same text and code)",
        "2 of 10 python test pairs have their code in train with another text",
        "1 of 10 python test pairs have their text in train with other code",
        "1 of 5 python test-b pairs have their text in train with other code",
    ]
    assert [finding.leak for finding in quick_findings(data)] == [True, False, False, False]
    with pytest.raises(UserError, match=r"3 of 10 python test pairs .*add --allow-leaks"):
        check_data(RunConfig(data="x", languages=("python",), num_experts_per_tok=1), data)
    allowed = RunConfig(data="x", languages=("python",), num_experts_per_tok=1, allow_leaks=True)
    assert len(check_data(allowed, data)) == 4


def test_repeated_pairs_are_counted_once_each():
    data = DataSets({"python": [python(i % 50) for i in range(60)]}, {})
    assert lines(data) == ["10 of 60 python training pairs repeat another"]
    assert not lines(DataSets({"python": [python(i) for i in range(60)]}, {}))


def test_code_of_another_language_and_prose_are_noticed():
    java = [Pair("python", "t", f"public int f{i}(int x) {{ return x; }}") for i in range(20)]
    (found,) = unparsed("python", java, ("python", "java"))
    assert found.text == "20 of 20 python pairs looked at do not parse as Python; 20 of them parse as Java"
    prose = [Pair("java", "t", "The capital of France is Paris, of course.")] * 2
    assert unparsed("java", prose + [Pair("java", "t", "int x;")] * 3)
    assert not unparsed("java", prose + [Pair("java", "t", "int x;")] * 18)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("python", "def f(self):\n    return 1"),
        ("java", "@Override public int f() { return 1; }"),
        ("javascript", "get(x) { return x; }"),
        ("cpp", "explicit X(int a) : a_(a) {}"),
        ("c", "int f(void) { return 1; }"),
        ("go", "func f() int { return 1 }"),
        ("rust", "fn f() -> i32 { 1 }"),
        ("c_sharp", "public int F() => 1;"),
        ("php", "public function f() { return 1; }"),
        ("ruby", "def f = 1"),
        ("typescript", "private f(x: number): void {}"),
    ],
)
def test_fragments_parse_and_broken_code_does_not(language, code):
    assert parses(code, language) and not parses(code + " ) ( }", language)


def mutated(tokens: list[str], changes: int, draw: random.Random) -> str:
    tokens = list(tokens)
    for place in draw.sample(range(len(tokens)), changes):
        tokens[place] = f"other{draw.randrange(10**9)}"
    return " ".join(tokens)


def jaccard(first: str, second: str) -> float:
    def shingles(code):
        words = code.split()
        return {tuple(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}

    a, b = shingles(first), shingles(second)
    return len(a & b) / len(a | b)


def test_an_index_on_disk_finds_what_a_dictionary_finds(monkeypatch):
    monkeypatch.setattr(key_index, "RECENT", 50)
    monkeypatch.setattr(key_index, "MERGED", 300)
    draw, index, expected = random.Random(0), key_index.KeyIndex(), {}
    for number in range(900):
        keys = [draw.randrange(400) << 55 | draw.randrange(2) for _ in range(3)]
        index.add(keys, number)
        for key in keys:
            expected.setdefault(key, []).append(number)
    assert 2 < len(index._sorted) < 20
    for key in range(410):
        for low in (0, 1, 2):
            assert sorted(index.find([key << 55 | low])) == sorted(expected.get(key << 55 | low, []))
    assert len(index.find(list(expected))) == 2700


def test_near_copies_at_the_threshold_are_found():
    """A planted set: of copies at Jaccard 0.8 to 0.85 at least 95% are found, below 0.75 none."""
    draw = random.Random(0)
    near, found, far = NearCopies(), 0, 0
    planted = 0
    for number in range(150):
        tokens = [f"t{number}x{draw.randrange(10**6)}" for _ in range(94)]
        assert not near.add(" ".join(tokens)), "a new document"
        copy = mutated(tokens, 2, draw)
        if 0.8 <= jaccard(" ".join(tokens), copy) <= 0.85:
            planted += 1
            found += near.find(copy)
        far += near.find(mutated(tokens, 6, draw))
    assert planted > 60 and found >= 0.95 * planted and far == 0


def test_words_and_signs_are_those_of_the_regular_expression():
    draw = random.Random(0)
    alphabet = "ab_9 .(\n\t\x1f\x00\u00fc\u2014\u00a0\u3000\U0001f600\u4e2d\u0301"
    texts = ["", " ", "a", "\u2014", "x" * 200, *("".join(draw.choices(alphabet, k=40)) for _ in range(300))]
    for text in texts:
        for pattern, signs in ((r"\w+|[^\w\s]", True), (r"\w+", False)):
            wanted = re.findall(pattern, text)
            found = overlap._tokens(text, signs).tolist()
            assert len(found) == len(wanted), text
            # Signs beyond ASCII count as one; equal words are equal wherever they stand, others differ.
            names = [word if word.isascii() or word.isalnum() else None for word in wanted]
            of_words = {word: value for word, value in zip(names, found) if word is not None}
            assert len(set(of_words.values())) == len(of_words)
            assert all(of_words[word] == value for word, value in zip(names, found) if word is not None)


def test_exact_copies_ignore_white_space_alone():
    exact = ExactCopies()
    assert not exact.add(Pair("c", "Adds.", "int f();")) and exact.add(Pair("c", " adds", "int\n f( );"))
    assert exact.has_code(Pair("c", "Other", "int f();")) and not exact.has(Pair("c", "Other", "int f();"))
    assert not exact.has_code(Pair("c", "Adds.", "int F();"))


def test_benchmarks_share_thirteen_words(tmp_path):
    words = [f"word{i}" for i in range(40)]
    rows = [
        {"task_id": i, "prompt": f"license header of this file all rights reserved by us and them {i}"}
        for i in range(12)
    ]
    rows += [{"task_id": 99, "prompt": " ".join(words), "test": {"inner": ["a short text of six words"]}}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks = Benchmarks([tmp_path / "b.jsonl"])
    assert benchmarks.touch(Pair("c", "x", "start " + " ".join(words[5:18]).upper()))
    assert not benchmarks.touch(Pair("c", "x", "start " + " ".join(words[5:17])))
    assert benchmarks.touch(Pair("c", "A short text of six words!", "x"))
    assert not benchmarks.touch(Pair("c", "license header of this file all rights reserved by us and them too", "x"))


def test_a_sample_of_many_pairs():
    checks = Checks("python")
    for number in range(1000):
        checks.add_train(python(number))
    places = [int(pair.text.split()[-1].rstrip(".")) for pair in checks.sample]
    assert len(set(places)) == 200 and 300 < sum(places) / 200 < 700


def test_the_command(tmp_path: Path, capsys):
    train = [Pair("python", f"Adds {i} to x.", f"def add(x):\n    y = x + {i}\n    return y") for i in range(4)]
    train.append(Pair("python", "A text of over twenty signs.", 'def g():\n    """A text of over twenty signs."""\n'))
    write_pairs([*train, train[0]], tmp_path / "train" / "python.jsonl")
    near = " ".join(f"token{i}" for i in range(80))
    write_pairs([Pair("java", "t", f"int {near};"), Pair("cobol", "t", "x")], tmp_path / "train" / "all.jsonl")
    write_pairs([Pair("java", "u", f"int {near} end;")], tmp_path / "test" / "java.jsonl")
    write_pairs([train[1]], tmp_path / "test" / "python.jsonl")
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "python.jsonl").write_text('{"text": 1}\n')
    assert main(["validate", str(tmp_path)]) == 2, "a broken file"
    out = capsys.readouterr().out
    for line in (
        "error: 1 of 1 python test pairs are also in train (same text and code)",
        "found: 1 of 1 java test pairs have a near copy of their code in train",
        "found: 1 of 6 python training pairs repeat another",
        "found: 1 of 6 python training pairs have their text in their code",
        "found: pairs of unknown languages: 1 'cobol'",
        "found: 1 of 1 java pairs looked at do not parse as Java",
        "python: 6 training pairs, 1 test",
    ):
        assert line in out, out
    assert "validation/python.jsonl, line 1" in out and "no errors" not in out
    (tmp_path / "validation" / "python.jsonl").unlink()
    assert main(["validate", str(tmp_path)]) == 1, "a leak alone"
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_code:
        main(["validate", str(tmp_path / "none")])
    assert exit_code.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_good_data_have_no_findings(tmp_path, capsys):
    write_pairs([python(i) for i in range(30)], tmp_path / "train" / "python.jsonl")
    write_pairs([python(i) for i in range(50, 60)], tmp_path / "test" / "python.jsonl")
    assert main(["validate", str(tmp_path), "--no-near"]) == 0
    out = capsys.readouterr().out
    assert "no errors" in out and "found" not in out


def test_leaked_pairs_of_the_case(shared_data):
    folder = next((shared_data / "cases").glob("22-*")) / "data"
    assert lines(load_data(str(folder), ["python"])) == [
        "10 of 10 python test pairs are also in train (same text and code)"
    ]
