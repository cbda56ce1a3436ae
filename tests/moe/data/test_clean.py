"""Cleaning removes what it says and nothing else; previews show what is there."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from moe.data.__main__ import main
from moe.data.pairs import Pair, read_pairs
from moe.data.preview import collect, histogram
from moe.data.secrets import mask
from tests.pair_files import write_pairs

KEY = "ghp_" + "a1B2" * 9


def document(number: int, length: int = 60) -> list[str]:
    draw = random.Random(number)
    return [f"v{draw.randrange(10**9)}" for _ in range(length)]


def pair(number: int, language: str = "python", **other) -> Pair:
    return Pair(language, f"Describes number {number}.", " ".join(document(number)), id=str(number), **other)


def near(number: int) -> str:
    words = document(number)
    return " ".join([*words[:-1], "other"])


def ids(folder: Path, split: str = "train", language: str = "python") -> list[str | None]:
    return [found.id for found in read_pairs(folder / split / f"{language}.jsonl.gz")]


def test_what_is_removed(tmp_path, capsys):
    benchmark = " ".join(f"word{i}" for i in range(20))
    train = [pair(i) for i in range(20)]
    train += [
        Pair("python", "Describes number 3", train[3].code + "\n", id="repeated"),
        Pair("python", "New text.", near(4), id="near"),
        Pair("python", "New text.", " ".join(document(100)), id="held out"),
        Pair("python", "New text.", near(101), id="near held out"),
        Pair("python", f"Do {benchmark}", "y = 2", id="benchmark"),
        Pair("python", "Mail a.b@site.org", f"key = '{KEY}'", id="secret"),
    ]
    write_pairs(train, tmp_path / "in" / "train" / "python.jsonl")
    write_pairs([pair(100), pair(101)], tmp_path / "in" / "test" / "python.jsonl")
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": benchmark}) + "\n")
    command = ["clean", str(tmp_path / "in"), str(tmp_path / "out")]
    assert main([*command, "--benchmarks", str(tmp_path / "b.jsonl")]) == 0
    assert ids(tmp_path / "out") == [*map(str, range(20)), "secret"]
    assert ids(tmp_path / "out", "test") == ["100", "101"]
    secret = read_pairs(tmp_path / "out" / "train" / "python.jsonl.gz")[-1]
    assert (secret.text, secret.code) == ("Mail <EMAIL>", "key = '<KEY>'")
    out = capsys.readouterr().out
    assert "python: wrote 2 test, 21 train; removed 1 " in out and "masked 2 keys" in out
    assert main(["validate", str(tmp_path / "out"), "--benchmarks", str(tmp_path / "b.jsonl")]) == 0
    with pytest.raises(SystemExit):
        main(command)
    assert "out exists; give the name of a new directory" in capsys.readouterr().err
    assert main(["clean", str(tmp_path / "in"), str(tmp_path / "exact"), "--no-near", "--no-mask"]) == 0
    kept = ids(tmp_path / "exact")
    assert set(kept) - set(ids(tmp_path / "out")) == {"near", "near held out", "benchmark"}
    assert KEY in gzip.decompress((tmp_path / "exact" / "train" / "python.jsonl.gz").read_bytes()).decode()


def test_languages_in_balance_and_the_same_again(tmp_path):
    for language, count in (("python", 30), ("java", 10)):
        pairs = [pair(i + 1000 * len(language), language) for i in range(count)]
        write_pairs(pairs, tmp_path / "in" / "train" / f"{language}.jsonl")
    outputs = []
    for name in ("a", "b"):
        assert main(["clean", str(tmp_path / "in"), str(tmp_path / name), "--no-near", "--balance"]) == 0
        outputs.append([(tmp_path / name / "train" / f"{x}.jsonl.gz").read_bytes() for x in ("python", "java")])
    assert len(ids(tmp_path / "a")) == len(ids(tmp_path / "a", language="java")) == 10
    names = [int(name) for name in ids(tmp_path / "a")]
    assert names == sorted(names) and names[-1] >= 6010, "drawn from all, in their order"
    assert outputs[0] == outputs[1]


def test_packages_are_held_out_whole(tmp_path, capsys):
    rows = [{"language": "python", "text": f"T {i}", "code": f"x{i} = {i}", "repo": f"p{i % 10}"} for i in range(100)]
    path = tmp_path / "in" / "train" / "python.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["clean", str(tmp_path / "in"), str(tmp_path / "out"), "--no-near", "--hold-out", "0.2"]
    assert main(command) == 0
    parts = {split: read_pairs(tmp_path / "out" / split / "python.jsonl.gz") for split in ("train", "test")}
    assert {split: len(pairs) for split, pairs in parts.items()} == {"train": 80, "test": 20}
    train, test = ({pair.package for pair in pairs} for pairs in parts.values())
    assert not train & test and train | test == {f"p{i}" for i in range(10)}
    path.write_text(json.dumps({**rows[0], "repo": None}) + "\n" + json.dumps(rows[1]) + "\n")
    command[2] = str(tmp_path / "other")
    with pytest.raises(SystemExit):
        main(command)
    assert "1 of 2 pairs name none" in capsys.readouterr().err
    assert sorted(x.name for x in tmp_path.iterdir()) == ["in", "out"], "nothing half-written"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"token = '{KEY}'", "token = '<KEY>'"),
        ("AKIA" + "ABCD1234" * 2, "<KEY>"),
        ("https://me:hunter22@host.org/x", "https://me:<PASSWORD>@host.org/x"),
        ("Jane <jane.doe+x@mail.site.co.uk>", "Jane <<EMAIL>>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----\nx", "<KEY>\nx"),
    ],
)
def test_secrets_are_masked(text, masked):
    assert mask(text) == (masked, 1)


@pytest.mark.parametrize(
    "code",
    [
        "y = x@self.weight",
        "z = a@b.T + q@w.at[0]",
        "@app.route('/x')",
        "user@example.com",
        "https://{user}:{password}@host",
        "git@localhost",
        "sk-learn",
        "@Override public int io() {}",
        "x@model.co(1)",
    ],
)
def test_code_stays_as_it_is(code):
    assert mask(code) == (code, 0)


def test_previews(tmp_path, capsys):
    pairs = [Pair("python", f"Text {i} <b>", f"code{i} = '\x1b[31m'", id=str(i)) for i in range(50)]
    write_pairs(pairs, tmp_path / "in" / "train" / "python.jsonl")
    assert main(["preview", str(tmp_path / "in"), "--count", "3"]) == 0
    out = capsys.readouterr().out
    assert "python: 50 pairs" in out and out.count("-- ") == 3 and "\x1b" not in out and "\\x1b[31m" in out
    page = tmp_path / "page.html"
    assert main(["preview", str(tmp_path / "in"), "--html", str(page)]) == 0
    text = page.read_text()
    assert text.count("<pre>") == 5 and "&lt;b&gt;" in text and " <b>" not in text
    drawn = {tuple(x.id for x in collect(pairs, 3, seed)["python"].shown) for seed in (0, 0, 1)}
    assert len(drawn) == 2
    assert sum(n for _, n in histogram([*range(100), 10**6])) == 101
    assert sum(n for _, n in histogram([0, 0])) == 2
