"""Explanations: what they name, in the terminal and as an HTML page."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser

import pytest

from eval.__main__ import main
from eval.codebleu import CodeBLEUError, codebleu
from eval.codebleu.explain.explanation import explain
from eval.codebleu.explain.html import render_html
from eval.codebleu.explain.text import write_text

REFERENCE = "def f(a, b):\n    c = a + b\n    if c > 1:\n        return c\n    return '<i>é</i>' & a\n"
HYPOTHESIS = "def f(a, b):\n    c = a\n    return c & b\n"


class Page(HTMLParser):
    """Checks that tags are closed in order, and gathers texts by tag."""

    VOID = frozenset(("meta", "br", "link"))

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.titles, self.tags = [], {}, [], set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag == "mark":
            self.titles.append(dict(attributes)["title"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in set(self.open):
            self.texts.setdefault(tag, []).append(data)


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_names_what_is_missed(mode):
    found = explain(REFERENCE, HYPOTHESIS, "python", mode=mode)
    assert found.score == codebleu([REFERENCE], [HYPOTHESIS], "python", mode=mode)
    assert any(one.what.startswith("if_statement: if c > 1") and one.line == 3 for one in found.subtrees)
    assert all(one in found.subtrees for one in found.innermost) and len(found.innermost) < len(found.subtrees)
    assert ("if",) in dict(found.ngrams[1]) and ("def",) not in dict(found.ngrams[1])
    source = found.reference.encode()
    for one in (*found.subtrees, *found.edges):
        assert source[: one.start].count(b"\n") + 1 == one.line and one.start <= one.end <= len(source)
    missed = explain("y = x\nz = y\n", "print(1)", "python", mode=mode).edges
    assert "y computedFrom x" in [one.what for one in missed]


@pytest.mark.parametrize("mode", ["reference", "corrected"])
def test_nothing_is_missed_of_equal_texts(mode):
    found = explain(REFERENCE, REFERENCE, "python", mode=mode)
    assert not found.subtrees and not found.edges and not found.added and not any(found.ngrams.values())


def test_page_is_well_formed_and_complete():
    found = explain(REFERENCE, HYPOTHESIS, "python")
    text = render_html(found, "CodeBLEU of <b>&\"'")
    page = Page(text)
    assert page.texts["title"] == page.texts["h1"] == ["CodeBLEU of <b>&\"'"]
    assert not {"script", "link", "img", "b", "i"} & page.tags  # needs nothing else, and the code is no markup
    assert text.count("<mark") == len(page.titles) > 0 and "http" not in text
    shown = "".join(page.texts["pre"])
    assert "return '<i>é</i>' & a" in shown and "return c & b" in shown
    headings = " ".join(page.texts["h2"])
    for name, items in {"Subtrees": found.subtrees, "Dataflow edges": found.edges, "2-grams": found.ngrams[2]}.items():
        assert f"{name} missed: {len(items) or 'none'}" in headings
    codes = page.texts["code"]
    assert all(one.what in codes for one in found.edges)
    cells = " ".join(page.texts["table"])
    for value in found.score.as_dict().values():
        assert f"{value:.4f}" in cells


def test_page_marks_the_innermost_missed_subtrees():
    found = explain("x = 1\nif a:\n    b(c)\n", "x = 1\n", "python")
    left, right = render_html(found, "t").split('<section class="added">')
    pattern = r'<mark title="([^"]*)">([^<]*)</mark>'
    assert re.findall(pattern, left) == [("argument_list: (c)", "(c)")]
    assert {title for title, _ in re.findall(pattern, right)} <= {one.what for one in found.added}


def test_page_names_renamed_variables():
    found = explain(
        "def f(a):\n    b = a\n    return b\n", "def f(x):\n    y = x\n    return y\n", "python", mode="corrected"
    )
    assert found.score.codebleu == 1
    assert found.partners == {"x": "a", "y": "b"}
    text = render_html(found, "t")
    assert "<code>x</code> is <code>a</code>" in text and "<code>y</code> is <code>b</code>" in text


def test_text_shows_both_sides():
    out = io.StringIO()
    write_text(explain(REFERENCE, HYPOTHESIS, "python"), out)
    text = out.getvalue()
    assert "if_statement" in text and "return c & b" in text and "reference" in text


@pytest.mark.parametrize(
    ("reference", "hypothesis", "language"),
    [("", "", "python"), ("x = (1", "x = 1)", "python"), ("é = 漢\n\0", "\r\n\t#", "ruby"), ("int a[", "}{", "cpp")],
)
def test_odd_texts_have_pages(reference, hypothesis, language):
    for mode in ("reference", "corrected"):
        Page(render_html(explain(reference, hypothesis, language, mode=mode), "t"))


def test_command_writes_the_page_of_the_best_reference(tmp_path, capsys):
    pairs, page = tmp_path / "pairs.jsonl", tmp_path / "page.html"
    row = {"id": "p<1>", "lang": "python", "hypothesis": "x = a + 1", "references": ["while y: pass", "x = a + 2"]}
    bad = {"id": "s", "lang": "python", "hypothesis": "\ud800", "references": ["x"]}
    pairs.write_text(json.dumps(row) + "\n" + json.dumps(bad) + "\n")
    assert main(["codebleu", "--pairs", str(pairs), "--explain", "p<1>", "--html", str(page)]) == 0
    assert "reference 2 of 2" in Page(page.read_text("utf-8")).texts["title"][0]
    assert main(["codebleu", "--pairs", str(pairs), "--explain"]) == 0
    assert "CodeBLEU of p<1>, reference 1 of 2" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["codebleu", "--pairs", str(pairs), "--explain", "s", "--html", str(tmp_path / "none.html")])
    assert capsys.readouterr().err.startswith("error: line 2 (id s): 'hypothesis' holds a lone surrogate")
    assert not (tmp_path / "none.html").exists()
    with pytest.raises(CodeBLEUError, match="unknown mode"):
        explain("x", "x", "python", mode="other")
