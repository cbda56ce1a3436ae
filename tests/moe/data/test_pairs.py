"""Reading and writing pairs: what is written comes back, and every broken line is named."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.data.pairs import Pair, load_split, read_pairs
from moe.errors import UserError
from tests.pair_files import write_pairs

GOOD = {"language": "python", "text": "Adds two numbers.", "code": "def add(a, b):\n    return a + b"}

any_text = st.text(min_size=1).filter(str.strip)
any_pair = st.builds(
    Pair,
    language=st.sampled_from(["python", "java", "cpp"]),
    text=any_text,
    code=any_text,
    id=st.none() | st.text(),
    tests=st.none() | st.text(),
    license=st.none() | st.just("MIT"),
)


def write_lines(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(any_pair, min_size=1, max_size=4))
def test_written_pairs_come_back(tmp_path: Path, suffix: str, pairs: list[Pair]) -> None:
    path = tmp_path / f"pairs{suffix}"
    write_pairs(pairs, path)
    first = path.read_bytes()
    assert read_pairs(path) == pairs
    write_pairs(pairs, path)
    assert path.read_bytes() == first
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_extra_keys_blank_lines_crlf_and_a_byte_order_mark_are_allowed(tmp_path: Path) -> None:
    row = {**GOOD, "package": "x", "standalone": True, "id": None}
    path = tmp_path / "python.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row).encode() + b"\r\n\n  \n" + json.dumps(GOOD).encode())
    assert read_pairs(path) == [Pair(**GOOD), Pair(**GOOD)]


def test_unicode_line_separators_stay_inside_their_line(tmp_path: Path) -> None:
    pair = Pair("python", "a\u2028b\x85c", "x = 1\r\ny = 2\x0b")
    write_pairs([pair], tmp_path / "x.jsonl")
    assert read_pairs(tmp_path / "x.jsonl") == [pair]


def test_limit_reads_only_the_first_pairs(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD, {**GOOD, "text": "Second."}, b"not json")
    assert [pair.text for pair in read_pairs(path, limit=2)] == ["Adds two numbers.", "Second."]
    with pytest.raises(UserError, match="line 3"):
        read_pairs(path, limit=3)
    with pytest.raises(UserError, match="at least 1"):
        read_pairs(path, limit=0)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"[1, 2]", "found a list; expected an object"),
        (b'"text"', "found a string; expected an object"),
        (b"null", "found null; expected an object"),
        (b"true", "found a boolean; expected an object"),
        (b'{"language": "python"', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"n": ' + b"9" * 10_000 + b"}", "not JSON"),
        (b'{"language": "python", "text": "\xff"}', "not UTF-8 .byte 33"),
        (
            {"language": "python", "text": "x"},
            "lacks the key 'reference'; found 'language', 'text'; expected language, text, reference",
        ),
        ({}, "lacks the key 'language'; found no keys"),
        ({**GOOD, "code": 3}, "'code' is a number; expected a string"),
        ({**GOOD, "code": None}, "'code' is null; expected a string"),
        ({**GOOD, "code": "  \n"}, "'reference' is empty"),
        ({**GOOD, "code": []}, "'code' is an empty list"),
        ({**GOOD, "code": ["def f():", "    return 1"]}, "'code' is a list; expected a string"),
        ({**GOOD, "reference": "x = 2"}, "'reference' and 'code' are two names of the same thing and differ"),
        ({**GOOD, "id": 1.5}, "'id' is a number; expected a string or a whole number"),
        ({**GOOD, "tests": ["assert 1"]}, "'tests' is a list; expected a string"),
        ({**GOOD, "text": "a\ud800"}, "'text' holds a lone surrogate at character 2"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: object, complaint: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", GOOD, b"", line)
    with pytest.raises(UserError, match=rf"a\.jsonl, line 3: {complaint}"):
        read_pairs(path)


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("a.jsonl", "b.jsonl.gz"):
        with pytest.raises(UserError, match="holds no pairs"):
            read_pairs(tmp_path / name)


def test_broken_gzip_is_an_error(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(json.dumps({**GOOD, "id": str(i)}).encode() + b"\n" for i in range(2000)))
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    for name, content in {"cut": whole[:-20], "damaged": bytes(damaged), "plain": b"{}\n"}.items():
        (tmp_path / f"{name}.jsonl.gz").write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.jsonl.gz"):
            read_pairs(tmp_path / f"{name}.jsonl.gz")


def test_missing_files_directories_and_other_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_pairs(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="not a file"):
        read_pairs(tmp_path / "folder.jsonl")
    with pytest.raises(UserError, match=r"\*\.jsonl or \*\.jsonl\.gz"):
        read_pairs(tmp_path / "pairs.csv")


def test_load_split_reads_plain_and_gzipped_files_in_the_order_asked_for(tmp_path: Path) -> None:
    for language, suffix in (("python", ".jsonl"), ("java", ".jsonl.gz")):
        pairs = [Pair(language, f"text {i}", "code") for i in range(5)]
        write_pairs(pairs, tmp_path / "train" / f"{language}{suffix}")
    split = load_split(tmp_path, "train", ["java", "python"], limit=2)
    assert list(split) == ["java", "python"]
    assert [pair.text for pair in split["python"]] == ["text 0", "text 1"]
    assert len(load_split(tmp_path, "train", ["java"])["java"]) == 5


def test_load_split_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        load_split(tmp_path / "none", "train", ["python"])
    with pytest.raises(UserError, match="no split 'train'; splits there: none"):
        load_split(tmp_path, "train", ["python"])
    write_lines(tmp_path / "train" / "python.jsonl", GOOD)
    write_lines(tmp_path / "validation" / "python.jsonl", GOOD)
    with pytest.raises(
        UserError, match=r"no split 'trian' \(did you mean 'train'\?\); splits there: train, validation"
    ):
        load_split(tmp_path, "trian", ["python"])
    with pytest.raises(UserError, match=r"no data for language 'java'.*java\.jsonl\.gz; languages there: python"):
        load_split(tmp_path, "train", ["python", "java"])
    write_lines(tmp_path / "train" / "java.jsonl", GOOD)
    with pytest.raises(UserError, match=r"java\.jsonl, line 1: language is 'python'; expected 'java'"):
        load_split(tmp_path, "train", ["java"])
    write_pairs([Pair(**GOOD)], tmp_path / "train" / "python.jsonl.gz")
    with pytest.raises(UserError, match=r"both python\.jsonl and python\.jsonl\.gz are there"):
        load_split(tmp_path, "train", ["python"])


def test_the_mined_pairs_load() -> None:
    shared = Path(os.environ.get("SHARED_DIR", Path(__file__).resolve().parents[4] / "shared"))
    directory = shared / "data" / "pairs"
    if not directory.is_dir():
        pytest.skip(f"the mined pairs are not at {directory} (set SHARED_DIR)")
    split = load_split(directory, "test-standalone", ["python", "java", "javascript", "cpp"])
    assert {language: len(pairs) for language, pairs in split.items()} == {
        "python": 202,
        "java": 190,
        "javascript": 156,
        "cpp": 160,
    }
