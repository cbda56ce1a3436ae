"""Properties that hold for all texts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.codebleu import LANGUAGES, codebleu
from eval.codebleu.counts import EQUAL_WEIGHTS, merge_all, reference_score
from eval.codebleu.reference.native import SWITCH
from eval.codebleu.score import make_scorer

WORDS = st.sampled_from(["x", "y", "=", "+", "1", "if", "(", ")", "{", "}", ";", ":", "\n", "return", "'s'", "#", "é"])
TEXTS = st.lists(WORDS, max_size=25).map(" ".join)
REFERENCE = [language for language in LANGUAGES if language != "typescript"]
FEW = settings(max_examples=25, deadline=None, derandomize=True)


@FEW
@given(TEXTS, TEXTS, st.sampled_from(REFERENCE))
def test_scores_are_from_0_to_1(reference, hypothesis, language):
    score = codebleu([reference], [hypothesis], language).as_dict()
    assert all(0 <= value <= 1 + 1e-12 for value in score.values())


@pytest.mark.parametrize("language", REFERENCE)
def test_identical_texts_match(language):
    text = "<?php\n$x = 1 + 2;\n" if language == "php" else "x = 1 + 2;\ny = x;\n"
    score = codebleu([text], [text], language)
    assert score.syntax_match_score >= 0.99 and score.ngram_match_score >= 0.99


@FEW
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4))
def test_counts_of_the_pairs_make_the_corpus(pairs):
    references, hypotheses = zip(*pairs)
    scorer = make_scorer("python")
    counts = [scorer.count([reference], hypothesis) for reference, hypothesis in pairs]
    assert reference_score(merge_all(counts), EQUAL_WEIGHTS) == codebleu(references, hypotheses, "python")


def test_the_hash_seed_changes_nothing(root):
    code = (
        "from eval.codebleu import codebleu\n"
        "a = 'function f(a) { let r = []; for (const x of a) { if (x) r.push(x); } return r; }'\n"
        "b = 'const f = (a) => { let o = []; a.forEach(x => { if (x == 0) { o.push(x); } }); return o; };'\n"
        "print(codebleu([[a, b]], [b], 'javascript'), codebleu([a], [b], 'javascript'))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1 and "CodeBLEUScore" in found.pop()


@pytest.mark.parametrize("switch", ["0", "1"])
@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_nested_loops_take_no_exponential_time(monkeypatch, mode, switch):
    monkeypatch.setenv(SWITCH, switch)
    depth = 40  # 2**40 visits of the innermost loop if every loop were visited twice
    text = "int f(int a) {" + "while (a > 0) { a = b + c; if (c) b = a; " * depth + "}" * depth + "}"
    assert codebleu([text], [text], "java", mode=mode).dataflow_match_score == 1


@pytest.mark.parametrize("language", ["python", "java", "cpp"])
def test_deep_text_is_scored(language):
    text = "x = " + "(" * 5000 + "1" + ")" * 5000
    assert codebleu([text], [text], language).syntax_match_score >= 0.99
