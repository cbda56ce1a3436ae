"""``python -m eval codebleu`` and the drop-in function."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.codebleu import codebleu
from eval.codebleu.compat import calc_codebleu

GOOD = [
    {"id": "p", "lang": "python", "hypothesis": "x = a + 1", "references": ["x = a + 2", "y = a"]},
    {"id": "j", "lang": "java", "hypothesis": "int x = 1;", "references": ["int y = 1;"]},
    {"id": "q", "lang": "python", "hypothesis": "y = b", "references": ["y = c"], "weights": [0, 0, 1, 0]},
]
BAD = {
    "nope": "not JSON",
    "[1]": "found a list; expected an object with language, answer, reference",
    '{"id": "n", "lang": "python", "hypothesis": "x"}': "lacks the key 'reference'; found 'id', 'lang', 'hypothesis'",
    '{"id": "r", "lang": "python", "hypothesis": "x", "references": []}': "'references' is an empty list",
    '{"id": "l", "lang": "pyton", "hypothesis": "x", "references": ["x"]}': "did you mean 'python'?",
    '{"id": "s", "lang": "python", "hypothesis": "\\ud800", "references": ["x"]}': "'hypothesis' holds a lone",
    '{"id": "w", "lang": "python", "hypothesis": "x", "references": ["x"], "weights": [1, 1, 1, 1]}': "sum to 4",
    '{"id": "h", "lang": "c", "hypothesis": "x", "references": ["x"], "weights": [%s, 0, 0, 0]}'
    % ("9" * 500): "four numbers",
    '{"id": %s}' % ("9" * 5000): "not JSON (Exceeds the limit",
    '{"id": "d", "hypothesis": ' + "[" * 100_000: "not JSON (maximum recursion depth",
    '{"id": "t", "lang": "typescript", "hypothesis": "x", "references": ["x"]}': "use mode 'corrected'",
}


def score(row, weights=(0.25,) * 4):
    return codebleu([row["references"]], [row["hypothesis"]], row["lang"], row.get("weights", weights)).as_dict()


@pytest.fixture
def pairs(tmp_path):
    def write(lines):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


def test_scores_every_pair(pairs, capsys):
    assert main(["codebleu", "--pairs", pairs(map(json.dumps, GOOD))]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"id": row["id"], **score(row)} for row in GOOD]


def test_bad_lines_are_errors_and_the_others_are_scored(pairs, capsys):
    assert main(["codebleu", "--pairs", pairs([*BAD, json.dumps(GOOD[0])])]) == 1
    out, err = capsys.readouterr()
    *bad, good = [json.loads(line) for line in out.splitlines()]
    assert good == {"id": "p", **score(GOOD[0])}
    for number, (line, reason) in enumerate(zip(bad, BAD.values(), strict=True), start=1):
        assert line["error"].startswith(f"line {number} (id {line['id']}): ") and reason in line["error"]
    *means, error = err.splitlines()
    assert error.startswith(f"error: {len(BAD)} of {len(BAD) + 1} pairs were not scored; first: line 1 ")
    assert [line.split()[:2] for line in means[1:]] == [["python", "1"], ["all", "1"]]


def test_pool_gives_what_one_process_gives(pairs, tmp_path):
    path = pairs([*map(json.dumps, GOOD), *BAD] * 8)
    texts = []
    for jobs in "12":
        output = tmp_path / f"out{jobs}.jsonl"
        assert main(["codebleu", "--pairs", path, "--jobs", jobs, "--output", str(output)]) == 1
        texts.append(output.read_text())
    assert texts[0] == texts[1] and texts[0].count("\n") == 8 * (len(GOOD) + len(BAD))
    assert not list(tmp_path.glob("*.partial")) and not list(tmp_path.glob(".*"))


def test_ends_with_means_by_language(pairs, tmp_path, capsys):
    path, output = pairs(map(json.dumps, GOOD)), tmp_path / "scores.jsonl"
    assert main(["codebleu", "--pairs", path]) == 0
    shown = capsys.readouterr()
    assert main(["codebleu", "--pairs", path, "--output", str(output)]) == 0
    out, err = capsys.readouterr()
    assert out == shown.err and not err and output.read_text() == shown.out  # standard output has scores or means
    rows = [json.loads(line) for line in shown.out.splitlines()]
    header, *means = [line.split() for line in out.splitlines()]
    assert header == ["mean", "of", "pairs", "CodeBLEU", "n-gram", "weighted", "syntax", "dataflow"]
    for line, name, ids in zip(means, ("python", "java", "all"), ("pq", "j", "pqj"), strict=True):
        scores = [list(row.values())[1:] for row in rows if row["id"] in ids]
        assert line == [name, str(len(ids)), *[f"{sum(column) / len(ids):.4f}" for column in zip(*scores)]]
    assert main(["codebleu", "--pairs", path, "--corpus"]) == 0
    assert "mean of" not in "".join(capsys.readouterr())


def test_no_means_where_nothing_was_scored(pairs, capsys):
    assert main(["codebleu", "--pairs", pairs(["nope"])]) == 1
    assert capsys.readouterr().err.startswith("error: 1 of 1 pairs were not scored")


def test_corpus_has_one_score_for_each_language(pairs, capsys):
    assert main(["codebleu", "--pairs", pairs(map(json.dumps, GOOD)), "--corpus"]) == 0
    python, java = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    both = codebleu([GOOD[0]["references"], GOOD[2]["references"]], ["x = a + 1", "y = b"], "python")
    assert python == {"lang": "python", "pairs": 2, **both.as_dict()}
    assert java == {"lang": "java", "pairs": 1, **score(GOOD[1])}


def test_files_with_one_example_a_line(tmp_path, capsys):
    for name, text in {"hyp": "x = 1\ny = 2\n", "a": "x = 1\ny = 3\n", "b": "z = 1\ny = 2\n"}.items():
        (tmp_path / name).write_text(text)
    flags = ["--hyp", str(tmp_path / "hyp"), "--refs", str(tmp_path / "a"), str(tmp_path / "b"), "--lang", "python"]
    assert main(["codebleu", *flags]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == {"id": 2, **codebleu([["y = 3", "y = 2"]], ["y = 2"], "python").as_dict()}


def test_nul_characters_are_scored_as_published(pairs, capsys):
    row = {"id": "n", "lang": "python", "hypothesis": "x = 1\0\n\0y", "references": ["x = 1\0\n\0y"]}
    assert main(["codebleu", "--pairs", pairs([json.dumps(row)])]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": "n", **score(row)}


BROKEN = {"text": b"no gzip", "short": gzip.compress(b"{}\n" * 99)[:-9], "damaged": gzip.compress(b"x")[:12] + b"~~~"}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_broken_archive_is_one_error(tmp_path, capsys, content):
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(content)
    for flags in (["--pairs", str(path)], ["--hyp", str(path), "--refs", str(path), "--lang", "c"]):
        with pytest.raises(SystemExit) as stop:
            main(["codebleu", *flags])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and not out and "pairs.jsonl.gz cannot be read: " in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "flags",
    [[], ["--pairs", "missing.jsonl"], ["--weights", "1,1,1,1"], ["--jobs", "0"], ["--mode", "other"]],
)
def test_unusable_arguments_exit_with_2(pairs, capsys, flags):
    path = [] if not flags or "--pairs" in flags else ["--pairs", pairs([json.dumps(GOOD[0])])]
    with pytest.raises(SystemExit) as stop:
        main(["codebleu", *path, *flags])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1


def test_an_output_that_cannot_be_written_is_refused_before_scoring(pairs, tmp_path, capsys):
    source = pairs([json.dumps(GOOD[0])])
    for flags in (["--output"], ["--explain", "--html"]):
        for output, problem in ((str(tmp_path), "is a directory"), ("", "is a directory"), (source, "are read from")):
            with pytest.raises(SystemExit) as stop:
                main(["codebleu", "--pairs", source, *flags, output])
            out, err = capsys.readouterr()
            assert stop.value.code == 2 and not out and problem in err and err.count("\n") == 1
    assert json.loads(Path(source).read_text()) == GOOD[0]


def test_drop_in():
    expected = codebleu([["x = 1"]], ["x = 2"], "python").as_dict()
    assert calc_codebleu(["x = 1"], ["x = 2"], "python") == expected
    assert calc_codebleu([["x = 1"]], ["x = 2"], lang="python", weights=(0.25,) * 4) == expected
