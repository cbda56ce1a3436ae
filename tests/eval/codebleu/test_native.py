"""The C extension agrees with the Python code, which specifies mode ``reference``, on every text."""

from __future__ import annotations

import gzip
import json
import os
import random
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.codebleu import CodeBLEUError, codebleu
from eval.codebleu.bench.samples import make_pair
from eval.codebleu.comments import strip_comments
from eval.codebleu.reference import native as native_code
from eval.codebleu.reference.dataflow import edges_of
from eval.codebleu.reference.native import SWITCH, describe_native, load_native, native_module
from eval.codebleu.reference.rules import REFERENCE_RULES
from eval.codebleu.reference.scorer import Scorer
from eval.codebleu.reference.tree import read_tree

LANGUAGES = sorted(REFERENCE_RULES)
PIECES = """( ) [ ] { } , ; : . = == += := + ++ - * / " ' ` # // /* */ \\ \\\n if else elif for while in return x y z
    not is a,b=c,d é 漢 🙂 <?php $a lambda def do end << ? ! @ \""" '''
    unless switch case foreach match let var""".split()
PIECES += [" ", "\n", "\t", "\f", "\x1c", "\r\n", "\0", "\u3000", "\ud800"]

# One text for each rule that moves parts of the program around, and some that break it.
SPECIAL = {
    "python": (
        "a, b = b, a\nfor i, (j, k) in p:\n  a, s = 'x', j\n  x = y = [q for q in r for r in s if q not in r]\n",
        "(a, b), [c] = f(d), [e]\nx += 1\nfor a in b, c: pass\nfor 'ab' in 'cd': x\nfor a, b in 'cd': x\nx: int\n",
        "while a:\n while b:\n  while c:\n   a = b\n   b = c\n   if a: c = d\n   elif b: c = a\n   else: c = e\n",
        "def f(a=b, *c, d=1): return lambda e=a: e\n'''doc''' 'x'\nf'{a}' + f'{b!r:>{c}}'\né, b = ñ, 'é'\né = ñ,\n",
        "for in x:\n for in y:\n  for in z:\n   a\nx = [for in]\n(a for b in\n",
    ),
    "ruby": (
        "a, b = 1, 2\na ||= b\nfor x, y in z do a = x end\nif a then b elsif c then d else e end\nx = if a\nb end\n",
    ),
    "java": ("int a, b = 1; for (int i = 0, j = a; i < j; i++, j--) { a = b; } for (A x : y) { a++; } x = a + a;\n",),
    "javascript": ("for (var i = 0; i < n; i++) { a = b ?? `x${c}`; } ({a, b: c} = d); let [e = 1] = f; a ||= b\n",),
    "php": ("<?php for ($i = 0; $i < 3; $i++) { $a[$i] = $b; } foreach ($a as $k => $v) { $k .= $v; }\n",),
    "go": ("for i := 0; i < n; i++ { a, b = b, a }\nif x := f(); x { y = x } else if z { y = z }\n",),
    "rust": ("fn f(a: i32) -> i32 { if let Some(b) = a { c = b; } else { c = a } loop { c += 1; } }\n",),
}


LINES = st.sampled_from(
    ["a = b", "a, b = b, c", "a += b;", "int a = b, c;", "var a = b;", "a++;", "a := b", "let a = b;", "$a = $b;"]
    + ["if (a) {", "} else if (b) {", "} else {", "while (a) {", "for (a : b) {", "for (int a = 0; a < b; a++) {", "}"]
    + [
        "if a:",
        "elif b:",
        "else:",
        "while a:",
        "for a, b in c:",
        "[a for a in b if c]",
        "def f(a=b):",
        "return a",
        "end",
    ]
    + [
        "end",
        "for a in b do",
        "if a then",
        "foreach ($a as $b) {",
        "for a := range b {",
        "// é",
        "# a",
        "'a b'",
        "(",
        "é = a",
    ]
)
INDENTED = st.tuples(st.integers(0, 3), LINES).map(lambda pair: "    " * pair[0] + pair[1])
TEXTS = st.lists(INDENTED, max_size=20).map("\n".join)


@pytest.fixture(autouse=True)
def built():
    """Skips if the extension is not built, and says why."""
    if isinstance(load_native(), str):
        pytest.skip(load_native())


@pytest.fixture
def optional_data(root):
    """The folder of shared data, which may not exist."""
    return Path(os.environ.get("SHARED_DIR", root.parent / "shared")) / "data"


@cache
def both(language):
    """The scorers of a language: C and Python."""
    with mock.patch.dict(os.environ, {SWITCH: "1"}):
        fast = Scorer(language)
    with mock.patch.dict(os.environ, {SWITCH: "0"}):
        slow = Scorer(language)
    assert fast.native is not None and slow.native is None
    return fast, slow


def texts_of(language, folder, count):
    """Samples, texts for each rule, and real code if there is any."""
    texts = [text for number in range(4) for text in make_pair(language, number)] + list(SPECIAL.get(language, ()))
    path = folder / "pairs" / "test" / f"{language}.jsonl.gz"
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["code"] for line, _ in zip(file, range(count))]
    return texts


def mutated(draw, text, texts):
    """A text with pieces removed, inserted, repeated or taken from other texts."""
    for _ in range(draw.randrange(1, 4)):
        start, end = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        kind = draw.randrange(6)
        if kind == 0:
            text = text[:start] if draw.random() < 0.5 else text[end:]
        elif kind == 1:
            text = text[:start] + text[min(end, start + 50) :]
        elif kind == 2:
            text = text[:start] + " ".join(draw.choices(PIECES, k=draw.randrange(1, 6))) + text[start:]
        elif kind == 3:
            text = text + "\n" + draw.choice(texts)
        elif kind == 4:
            text = text[:start] + text[start:end] * 2 + text[end:]
        else:
            text = text[:start] + draw.choice(texts)[:100] + text[start:]
    return text[:4000]


def counts_or_error(scorer, references, hypothesis):
    try:
        return scorer.count(references, hypothesis)
    except CodeBLEUError as error:
        return str(error)


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(LANGUAGES), TEXTS, TEXTS, st.lists(TEXTS, max_size=1))
def test_counts_agree_on_generated_text(language, hypothesis, reference, more):
    fast, slow = both(language)
    references = [reference, *more]
    assert fast.count(references, hypothesis) == slow.count(references, hypothesis)


@pytest.mark.parametrize("language", LANGUAGES)
def test_counts_agree_on_mutated_code(optional_data, language):
    fast, slow = both(language)
    texts = texts_of(language, optional_data, 60)
    draw = random.Random(language)
    left = 0
    for number in range(300):
        hypothesis, *references = draw.choices(texts, k=draw.choice((2, 2, 2, 3)))
        if number % 4:
            hypothesis = mutated(draw, hypothesis, texts)
            references[0] = mutated(draw, draw.choice((hypothesis, references[0])), texts)
        expected = counts_or_error(slow, references, hypothesis)
        assert counts_or_error(fast, references, hypothesis) == expected, (references, hypothesis)
        left += (
            isinstance(expected, str)
            or fast.count_native([text.strip() for text in references], hypothesis.strip()) is None
        )
    assert left < 100  # most texts, broken ones among them, are not left to Python


@pytest.mark.parametrize("language", LANGUAGES)
def test_readings_agree(optional_data, language):
    fast, slow = both(language)
    texts = texts_of(language, optional_data, 60)
    draw = random.Random(language)
    same = [({}, {}), ({}, {})]
    for number in range(200):
        text = draw.choice(texts) if number % 2 else mutated(draw, draw.choice(texts), texts)
        text = text.replace("\ud800", "")
        found = fast.native.read(text)
        assert found.code == strip_comments(text, language)
        tree = slow.reader.parse(found.code)
        reading = read_tree(tree, found.code, slow.reader.numbers)
        assert found.odd != reading.is_numbered
        edges = edges_of(slow.reader.items(tree, reading))
        # equal numbers where Python's are equal, and only there
        for ours, theirs, (there, back) in zip((found.subtrees, found.edges), (reading.subtrees, edges), same):
            assert len(ours) == len(theirs), text
            for a, b in zip(ours, theirs):
                assert there.setdefault(a, b) == b and back.setdefault(b, a) == a, text


def test_deep_and_long_texts():
    draw = random.Random(0)
    words = ["if (a < b) {", "}", "x = y + z;", "while (x) {", "int y = a, b;", "else {", "for (;;) {"]
    texts = [
        "x = " + "(" * 5000 + "1" + ")" * 5000,
        "void f() {" + "while (a < b) { a = b + c;" * 500 + "}" * 501,
        "void f() {" + "if (a) { b = c; } else " * 1000 + "{} }",
        "x = " + " + ".join(f"a{i}" for i in range(3000)) + ";",
        "(" + " + ".join(f"a{i}" for i in range(200)) + ")++;",
        " ".join(draw.choices(words, k=3000)),
    ]
    for language in ("java", "cpp", "c_sharp"):
        fast, slow = both(language)
        for text in texts:
            assert fast.count([text], text) == slow.count([text], text)


def test_switch_and_description(monkeypatch):
    expected = codebleu(["x = a + b\ny = x"], ["z = a + b\nif z: y = z"], "python")
    assert native_module() is not None and describe_native() == "C"
    monkeypatch.setenv(SWITCH, "0")
    assert native_module() is None and describe_native() == "Python (CODEBLEU_NATIVE=0)"
    assert codebleu(["x = a + b\ny = x"], ["z = a + b\nif z: y = z"], "python") == expected


@pytest.mark.parametrize(("name", "value"), [("VERSION", 0), ("SOURCES", "0123"), ("SOURCES", None)])
def test_a_stale_module_is_not_used(monkeypatch, name, value):
    module = load_native()
    load_native.cache_clear()
    try:
        monkeypatch.setattr(module, name, value)
        assert "it was built f" in load_native() and native_module() is None
        assert describe_native().startswith("Python (it was built f")
        assert codebleu(["x = 1"], ["x = 1"], "python").syntax_match_score == 1
    finally:
        load_native.cache_clear()


def test_another_order_of_sets_is_noticed(monkeypatch):
    monkeypatch.setattr(native_code, "join", lambda left, right: tuple(sorted(set(left))))
    assert not native_code._lists_sets_alike(load_native())


def test_readings_belong_to_their_reader():
    scorer, other = Scorer("python"), Scorer("python")
    reading = scorer.native.read("x = 1")
    with pytest.raises(ValueError, match="not from this reader"):
        scorer.native.forget() or scorer.native.count((reading,), reading)
    for arguments in ((), ((reading,),), ([reading], reading), ((reading,), None), ((None,), reading)):
        with pytest.raises((TypeError, ValueError)):
            other.native.count(*arguments)
    foreign = other.native.read("y = 2")
    with pytest.raises(ValueError, match="not from this reader"):
        scorer.native.count((scorer.native.read("x = 1"),), foreign)
    with pytest.raises(TypeError):
        scorer.native.read(b"x = 1")
    with pytest.raises(TypeError):
        type(scorer.native)()


def test_memory_is_given_back():
    scorer = Scorer("python")
    texts = [f"def f{i}(a, b):\n    a, b = b, a\n    return [x for x in b if x not in '{i} é']\n" for i in range(200)]

    def work():
        for text in texts:
            scorer.count([text], texts[0])
        scorer.forget()
        scorer.native.forget()
        assert scorer.native.size < 100

    for _ in range(5):
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(60):
        work()
        Scorer("python")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4096  # KiB; a leak of 1 byte a token shows


def test_threads():
    texts = [f"int f{i}(int a) {{ int b = a + {i}; return b; }}" for i in range(40)]
    expected = [codebleu([text], [texts[0]], "cpp") for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(lambda text: codebleu([text], [texts[0]], "cpp"), texts)) == expected
