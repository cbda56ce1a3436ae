"""The report of runs: what it shows, that untrusted text stays text, and how a browser draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

import eval.reporting.page as page
from eval.__main__ import main
from eval.reporting import plots
from eval.reporting.examples import choose_examples, difference
from eval.reporting.page import cell, fenced, write_report
from eval.reporting.plots import loss_curves, routing_layers, smooth
from eval.reporting.record import RunRecord
from moe.errors import UserError
from tests.eval.run_files import REFERENCE, write_run

EVIL = (
    "</pre><script>document.title = 'taken'</script><img src=x onerror=alert(1)> ```\n"
    "# Heading\n| a | b |\n[x](javascript:x)"
)


class Page(HTMLParser):
    """The page's elements and text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def report(folder):
    lines = write_report([RunRecord(folder)], folder)
    return Page((folder / "report.html").read_text(encoding="utf-8")), (folder / "report.md").read_text(), lines


def test_the_baseline_beside_full_experts_is_called_a_full_fine_tune(tmp_path, monkeypatch, capsys):
    models = {"base": 0.2, "dense adapter": 0.7}
    run = write_run(tmp_path / "run", expert_form="full", models=models)
    found, text, _ = report(run)
    assert main(["compare", str(run)]) == 0
    compared = capsys.readouterr().out
    for words in (found.text, text, compared):
        assert "full fine-tune" in words and "dense adapter" not in words
    assert "base → full fine-tune" in text and "Answers of the full fine-tune" in text
    assert "full fine-tune − base" in " ".join(compared.split()) and compared.count("1.353 M") == 4, "two costs"
    monkeypatch.setattr(plots, "_png", lambda figure, theme: figure)
    axis = loss_curves(RunRecord(run), "light").axes[-1]
    assert axis.get_title() == "mixture and full fine-tune"
    assert [label.get_text() for label in axis.get_legend().texts] == ["full fine-tune", "mixture"]


def test_a_report_has_everything(tmp_path):
    run = write_run(tmp_path / "run")
    found, text, lines = report(run)
    assert lines == [f"report: {run / 'report.html'} (and report.md)"] and not found.open
    results = json.loads((run / "results.json").read_text())
    for model in ("base", "mixture"):
        score = results[f"scores of {model}"]["scores"]["test"]["cpp"]
        assert f"{score['codebleu']:.4f}" in found.text and f"{score['syntax_match_score']:.4f}" in text
    assert "base → dense adapter → mixture" in found.text and "base → dense adapter → mixture" in text
    passed = results["tests of mixture"]["test"]["python"]["passed"]
    assert f"({passed} of 12)" in found.text and f"({passed} of 12)" in text
    for words in ("python train.py --seed 0", "a CPU", "90%", "layer 5", "FLOPs per token", "Adds the values."):
        assert words in found.text, words
    assert "| Python | 90.0% | 10.0% |" in text and "![training loss by step](curves.png)" in text
    for name in ("curves.png", "routing.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    images = [attrs for tag, attrs in found.tags if tag in ("img", "source")]
    assert len(images) == 4 and all(x.get("src", x.get("srcset")).startswith("data:image/png") for x in images)
    links = [attrs for tag, attrs in found.tags if "href" in attrs or (attrs.get("src") or "data:")[:5] != "data:"]
    assert not links, "the page needs no other file"
    table = re.search(r"## Results: test\n\n.*\n\n((?:\|.*\n)+)\n", text)[1].splitlines()
    assert [row.count("|") for row in table] == [5] * 5, "Markdown tables have as many cells in each row"


def test_answers_are_text_and_nothing_else(tmp_path):
    run = write_run(tmp_path / "run", answers={"mixture": EVIL}, text=EVIL)
    path = run / "answers" / "mixture-test.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**row, "id": EVIL, "detail": EVIL}) + "\n" for row in rows))
    found, text, _ = report(run)
    assert not {"script"} & {tag for tag, _ in found.tags}
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert "document.title = 'taken'" in found.text, "it is shown"
    outside = re.sub(r"^(`{3,})diff\n.*?^\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "taken" in outside and "<script" not in outside and "](javascript" not in outside
    assert "\n# Heading" not in outside and "<img" not in outside


def test_fences_and_cells():
    assert fenced("a ```` b", "py") == "`````py\na ```` b\n`````"
    assert cell("a|b\n# *c* <d> [e](f) & `g`") == r"a\|b \# \*c\* &lt;d&gt; \[e\]\(f\) &amp; \`g\`"


def test_examples_are_the_best_the_median_and_the_worst():
    rows = [
        {"language": "python", "id": i, "text": "t", "reference": "a", "answer": "b", "codebleu": i / 10, "verdict": v}
        for i, v in enumerate(["failed", "passed", "failed", "failed", "passed"])
    ]
    found = choose_examples(rows, ["python", "cpp"])
    assert [x["id"] for x in found["python"]] == ["4", "3", "0"] and found["cpp"] == []
    assert len(choose_examples(rows[:1], ["python"])["python"]) == 1
    assert [x["id"] for x in choose_examples(rows[:2], ["python"])["python"]] == ["1", "0"]


def test_differences_hold_both_texts():
    answer = REFERENCE.replace("result = 0", "result = 1") + "\nprint(1)"
    lines = difference(REFERENCE, answer)
    assert "\n".join(line for sign, line in lines if sign != "+") == REFERENCE
    assert "\n".join(line for sign, line in lines if sign != "-") == answer
    assert ("-", "    result = 0") in lines and ("+", "    result = 1") in lines
    long = difference("", "x\n" * 500)
    assert len(long) == 121 and long[-1] == (" ", "... 380 more lines")
    assert difference("", "") == []


def test_layers_that_one_router_decides_for_are_one_map():
    table = [[1.0, 0.0], [0.0, 1.0]]
    other = [[0.5, 0.5], [0.5, 0.5]]
    routing = {"table": table, "layers": [table, table], "layer_numbers": [1, 3]}
    assert routing_layers(routing) == [("all layers", table)]
    assert routing_layers({**routing, "layers": [table, other]}) == [("layer 1", table), ("layer 3", other)]
    assert routing_layers({"table": table}) == [("all layers", table)], "a run of an earlier version"


def test_plots_are_drawn_for_what_there_is(tmp_path):
    for name, settings in {
        "all": {},
        "one layer": {"layers": 1},
        "no adapter": {"models": {"base": 0.2, "mixture": 0.8}},
        "adapter": {"models": {"base": 0.2, "dense adapter": 0.8}},
        "one language": {"languages": ("cpp",)},
    }.items():
        run = write_run(tmp_path / name, **settings)
        found, _, _ = report(run)
        drawn = {attrs.get("src", attrs.get("srcset")) for tag, attrs in found.tags if tag in ("img", "source")}
        assert len(drawn) == (2 if name == "adapter" else 4), "of each plot a light one and a dark one"
        assert all(picture.startswith("data:image/png;base64,iVBOR") for picture in drawn)
        assert len(found.text) > 1000
    assert smooth([1.0, 2.0, 6.0, 4.0]) == [1.0, 3.0, 4.0, 4.0] and smooth([]) == []


def test_without_matplotlib_there_are_tables_and_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "can_plot", lambda: False)
    run = write_run(tmp_path / "run")
    found, text, lines = report(run)
    assert "pip install matplotlib" in lines[1] and "pip install matplotlib" in found.text
    assert not [tag for tag, _ in found.tags if tag == "img"] and "![" not in text
    assert not list(run.glob("*.png")) and "90%" in found.text and "layer 5" in found.text


def test_runs_of_earlier_versions_and_without_tests_have_reports(tmp_path):
    run = write_run(tmp_path / "run")
    results = json.loads((run / "results.json").read_text())
    del results["scores of mixture"]["cost"], results["tests of mixture"], results["hardware"]
    for name in ("layers", "layer_numbers"):
        del results["scores of mixture"]["specialization"][name]
    (run / "results.json").write_text(json.dumps(results))
    shutil.rmtree(run / "answers")
    (run / "metrics.csv").unlink()
    found, text, _ = report(run)
    assert "all layers" in found.text and "| mixture | - | - | - | - | - | - | - |" in text


def test_several_runs_are_compared_in_a_folder_of_their_own(tmp_path, capsys):
    runs = [str(write_run(tmp_path / f"seed{seed}", seed)) for seed in (0, 1)]
    with pytest.raises(SystemExit):
        main(["report", *runs])
    assert "a report of 2 runs needs a folder; add --output DIR" in capsys.readouterr().err
    assert main(["report", *runs, "--output", str(tmp_path / "new" / "both")]) == 0
    folder = tmp_path / "new" / "both"
    assert f"report: {folder}/report.html" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == [
        "report.html", "report.md", "seed0-curves.png", "seed0-routing.png", "seed1-curves.png", "seed1-routing.png",
    ]  # fmt: skip
    for text in ((folder / "report.md").read_text(), Page((folder / "report.html").read_text()).text):
        assert "mixture − dense adapter" in text and "drawing 2 seeds, then pairs" in text
    assert main(["report", runs[0]]) == 0 and (tmp_path / "seed0" / "report.html").is_file()
    other = str(write_run(tmp_path / "elsewhere" / "seed1", 2))
    assert main(["report", runs[1], other, "--output", str(tmp_path / "alike")]) == 0
    assert len(list((tmp_path / "alike").glob("*-seed1-*.png"))) == 4, "runs of one name keep their plots apart"
    (tmp_path / "file").write_text("")
    for wrong in ([runs[0], "--output", str(tmp_path / "file")], [str(tmp_path)]):
        with pytest.raises(SystemExit) as stopped:
            main(["report", *wrong])
        assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_run_that_is_not_finished_has_no_report(tmp_path):
    with pytest.raises(UserError, match="is not finished"):
        RunRecord(write_run(tmp_path / "run", models={"base": 0.1}))


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<!doctype html><iframe id="f" src="report.html" style="width:WIDTHpx;height:800px;border:0"></iframe>
<script>document.getElementById("f").onload = () => {
  const page = document.getElementById("f").contentDocument, root = page.documentElement;
  const style = page.defaultView.getComputedStyle(page.body);
  const numbers = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const images = [...page.images].map(x => x.complete && x.naturalWidth > 0 && x.getBoundingClientRect().width);
  const result = {title: page.title, scroll: root.scrollWidth, width: root.clientWidth, images,
    background: numbers(style.backgroundColor), color: numbers(style.color)};
  document.body.textContent = "";
  document.body.dataset.found = JSON.stringify(result);
}</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_browser_draws_it_readably(tmp_path, width, dark):
    """No sideways scrolling of the page, images in their place, and text that stands out, by day and by night."""
    run = write_run(tmp_path / "run", answers={"mixture": EVIL + " long" * 80})
    report(run)
    (run / "probe.html").write_text(PROBE.replace("WIDTH", str(width)))
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--allow-file-access-from-files"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--window-size=1400,1000"]
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", "--dump-dom", f"file://{run}/probe.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = json.loads(dict(Page(done.stdout).tags)["body"]["data-found"])
    assert found["title"] == "run", "a script in an answer ran"
    assert found["width"] == width >= found["scroll"]
    assert len(found["images"]) == 2 and all(0 < size <= width for size in found["images"])
    light, text = sum(found["background"]) / 3, sum(found["color"]) / 3
    assert (light < 60 and text > 180) if dark else (light > 200 and text < 70)
