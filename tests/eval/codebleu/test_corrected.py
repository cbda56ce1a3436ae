"""Mode ``corrected``: every fix that its module lists, next to what mode ``reference`` does."""

from __future__ import annotations

import pytest

from eval.codebleu import CodeBLEUError, codebleu
from eval.codebleu.corrected.scorer import CorrectedScorer
from eval.codebleu.reference.dataflow import RELATIONS

C_LIKE = ("java", "javascript", "cpp", "c", "c_sharp", "go", "rust")


def both(reference, hypothesis, language="python", weights=(0.25,) * 4):
    """The scores of modes ``corrected`` and ``reference``."""
    references = reference if isinstance(reference, list) else [reference]
    return [codebleu([references], [hypothesis], language, weights, mode) for mode in ("corrected", "reference")]


def edges(text, language):
    """The dataflow edges of a text in words, each once."""
    found = CorrectedScorer(language).read(text).edges
    return {f"{name} {RELATIONS[relation]} {source}" for name, relation, source in found}


def test_1_no_dataflow_is_not_perfect_dataflow():
    corrected, reference = both("f(1)\ng(2)", "f(1)\nh(2)")  # no edge in the reference
    assert corrected.dataflow_match_score == 0
    assert corrected.codebleu == pytest.approx(sum(list(corrected.as_dict().values())[1:4]) / 3)
    assert reference.codebleu == pytest.approx(sum(list(reference.as_dict().values())[1:4]) / 4 + 0.25)
    corrected, reference = both("y = x\nz = y", "print(1)")  # edges, and none of them matched
    assert corrected.codebleu == pytest.approx(sum(list(corrected.as_dict().values())[1:]) / 4)
    assert reference.codebleu >= 0.25 > corrected.codebleu
    corrected, _ = both("print(1)", "print(1)", weights=(0, 0, 0, 1))  # all weight on the part that does not count
    assert corrected.codebleu == 1


def test_2_the_weighted_match_is_a_precision_with_a_brevity_penalty():
    text = "for x in y:\n    if x:\n        return f(x, y, z)\n"
    longer, longer_reference = both(text, text + "while a:\n    b = c(d)\n    e = g(h)\n")
    assert longer.weighted_ngram_match_score < 0.8  # words that are not meant cost
    assert longer_reference.weighted_ngram_match_score == 1  # published: a recall
    shorter, _ = both(text, "for x in y:\n    if x:\n        return f(x)\n")
    fewer = codebleu(["for x in y:\n    if x:\n        return f(x)\n"], [text], "python", mode="corrected")
    assert shorter.weighted_ngram_match_score < fewer.weighted_ngram_match_score + 0.2 < 1
    # a wrong keyword costs more than another wrong word
    keyword, _ = both("a = not b\nreturn a", "a = pass b\nreturn a")
    other, _ = both("a = not b\nreturn a", "a = not c\nreturn a")
    assert keyword.weighted_ngram_match_score < keyword.ngram_match_score
    assert other.weighted_ngram_match_score > keyword.weighted_ngram_match_score


@pytest.mark.parametrize("text", ["x = 1", "f()", "x", "return"])
def test_3_short_code_can_be_perfect(text):
    corrected, reference = both(text, text)
    assert corrected.codebleu == 1 and corrected.ngram_match_score == corrected.weighted_ngram_match_score == 1
    assert reference.ngram_match_score < 1


def test_4_the_best_of_several_references_counts():
    text = "a = b + c\nreturn a\n"
    alone, alone_reference = both(text, text)
    more, more_reference = both(["while True:\n    pass\n", text, "def f(x): yield x"], text)
    assert more == alone and more.codebleu == 1
    assert more_reference.syntax_match_score < alone_reference.syntax_match_score


def test_5_subtrees_match_one_to_one():
    corrected, reference = both("f(a);\n" * 4, "f(a);", "javascript")
    assert corrected.syntax_match_score < 0.3 < 0.9 < reference.syntax_match_score


@pytest.mark.parametrize("language", C_LIKE)
def test_6_operators_are_visible(language):
    corrected, reference = both("x = a + b;", "x = a - b;", language)
    assert corrected.syntax_match_score < 1 == reference.syntax_match_score


def test_6_modifiers_are_visible():
    corrected, reference = both("class A { static int f; }", "class A { final int f; }", "java")
    assert corrected.syntax_match_score < 1 == reference.syntax_match_score


@pytest.mark.parametrize(
    ("language", "plain", "commented"),
    [
        ("python", "def f(a):\n    return a\n", 'def f(a):  # one\n    """Two."""\n    # three\n    return a\n'),
        ("ruby", "def f(a)\n  a\nend\n", "# one\ndef f(a) # two\n  a\nend\n=begin\nthree\n=end\n"),
        ("php", "<?php\n$a = $b;\n", "<?php\n# one\n$a = $b; // two\n/* three */\n"),
        ("java", "int a = b;", "/** one */ int a = /* two */ b; // three"),
        ("rust", "let a = b;", "/* one /* two */ */ let a = b; // three"),
    ],
)
def test_7_comments_count_in_no_part(language, plain, commented):
    corrected, reference = both(plain, commented, language)
    assert list(corrected.as_dict().values()) == [1] * 5
    assert reference.ngram_match_score < 1


def test_7_no_literal_is_mistaken_for_a_comment():
    corrected, reference = both("let u = `http://x/${a}`; g(u);", "let u = `http://y/${b}`; h(v);", "javascript")
    assert corrected.dataflow_match_score < 1 and corrected.syntax_match_score <= 1
    texts = "let u = `http://x/${a}`; f(g(u) + 1);", "let u = `http://x/${a}`; f(u);"
    corrected, reference = both(*texts, "javascript")
    assert corrected.syntax_match_score < 1 == reference.syntax_match_score  # published: all after // is gone


def test_8_tokens_come_from_the_tree():
    corrected, reference = both("x = f(a+b, c)", "x=f(a + b,c)")
    assert corrected.codebleu == 1 and reference.ngram_match_score == 0


def test_9_positions_are_right_after_other_characters():
    assert edges("ñ = é + 漢\nb = ñ\n", "python") >= {"ñ computedFrom é", "ñ computedFrom 漢", "b computedFrom ñ"}


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("c", "void f() { int b = a + c; b += d; }", {"b comesFrom a", "b comesFrom c", "b computedFrom d"}),
        ("cpp", "void f() { auto b = a; for (auto x : b) c = x; }", {"b comesFrom a", "x computedFrom b"}),
        ("c_sharp", "class A { void F() { int b = a; foreach (var x in b) c = x; } }", {"b comesFrom a"}),
        (
            "java",
            "class A { void f() { int b = a; for (int x : b) { c = x; } } }",
            {"b comesFrom a", "c computedFrom x"},
        ),
        ("javascript", "x = a; let y = x; [p, q] = [y, x];", {"x computedFrom a", "y comesFrom x", "p computedFrom y"}),
        ("typescript", "const y: number = a; x = y;", {"y comesFrom a", "x computedFrom y"}),
        (
            "go",
            "package p\nfunc f() { a, b := c, d; e = a }",
            {"a computedFrom c", "b computedFrom d", "e computedFrom a"},
        ),
        ("rust", "fn f() { let mut b = a; b += c; for x in b { d = x; } }", {"b comesFrom a", "b computedFrom c"}),
        ("php", "<?php $b = $a; foreach ($b as $x) { $c = $x; }", {"b computedFrom a", "x computedFrom b"}),
        ("ruby", "a, b = c, d\ne = a\n", {"a computedFrom c", "b computedFrom d", "e computedFrom a"}),
        ("python", "a, b = c, d\nif (n := a): pass\n", {"a computedFrom c", "b computedFrom d", "n comesFrom a"}),
        ("python", "with open(p) as f: x = f\nx += y\n", {"f comesFrom p", "x computedFrom f", "x computedFrom x"}),
    ],
)
def test_10_every_language_has_its_own_dataflow(language, text, expected):
    assert edges(text, language) >= expected


def test_10_a_node_that_lacks_a_part_does_not_end_the_dataflow():
    text = "<?php foreach ($a as list($k, $v)) { $b = $k; } $c = $b;"
    assert "c computedFrom b" in edges(text, "php")
    broken = "y = x\nfor in y:\n  z = y\nw = z\n"
    assert {"y computedFrom x", "w computedFrom z"} <= edges(broken, "python")


def test_11_renamed_variables_are_no_difference_and_wrong_ones_are():
    text = "def f(a, b):\n    total = a + b\n    rest = total - a\n    return rest\n"
    renamed = text.replace("total", "sum_").replace("rest", "left")
    corrected, reference = both(text, renamed)
    assert corrected.codebleu == 1 and reference.ngram_match_score < 1
    wrong, wrong_reference = both(text, text.replace("total - a", "total - b"))
    assert wrong.codebleu < 1 and wrong.dataflow_match_score < 1
    assert wrong.codebleu < corrected.codebleu and wrong_reference.codebleu > reference.codebleu


def test_11_one_more_variable_does_not_rename_all_others():
    text = "b = a\nc = b\nd = c\n"
    corrected, reference = both(text, "e = 0\nprint(e, e)\n" + text)
    assert corrected.dataflow_match_score == 1 > reference.dataflow_match_score


def test_nul_characters_are_scored():
    text = "\0 = 1\nx = \0\nfor y in x: z = \0 + y\n"
    assert codebleu([text], [text], "python", mode="corrected").codebleu == 1


def test_12_typescript():
    text = "function f(a: number): string { const b: string = g(a); return b; }"
    assert codebleu([text], [text], "ts", mode="corrected").codebleu == 1
    with pytest.raises(CodeBLEUError, match="not known to mode 'reference'"):
        codebleu([text], [text], "ts")
