"""Atomic writes and JSON Lines."""

from __future__ import annotations

import errno
import gzip
import os

import pytest

from moe.errors import UserError
from moe.files import Journal, read_json_lines, read_lines, replacing, write_json_lines


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines_come_back_whatever_separators_they_hold(tmp_path, name):
    rows = [{"a": "é\u2028\x85\r"}, {"a": None, "b": [1, 2.5]}]
    write_json_lines(tmp_path / "new folder" / name, rows)
    assert [row for _, row in read_json_lines(tmp_path / "new folder" / name, "'a'")] == rows
    first = (tmp_path / "new folder" / name).read_bytes()
    write_json_lines(tmp_path / "new folder" / name, rows)
    assert (tmp_path / "new folder" / name).read_bytes() == first
    assert os.listdir(tmp_path / "new folder") == [name]


def test_places_count_blank_lines_and_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa\r\n\n  \nb")
    assert list(read_lines(tmp_path / "x.txt")) == [
        (f"{tmp_path}/x.txt, line 1", "a\r\n"),
        (f"{tmp_path}/x.txt, line 4", "b"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n\xff\n', "line 2: not UTF-8"),
        (b'{"a": 1}\n\n{', "line 3: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b"3", "line 1: found a number; expected an object with 'a'"),
        (b"null", "line 1: found null"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    (tmp_path / "x.jsonl").write_bytes(content)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(content))
    for name in ("x.jsonl", "x.jsonl.gz"):
        with pytest.raises(UserError, match=f"{name}, {message}"):
            list(read_json_lines(tmp_path / name, "'a'"))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        list(read_lines(tmp_path / "none"))
    with pytest.raises(UserError, match="is not a file"):
        list(read_lines(tmp_path))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"text\n" * 9000)[:-9])
    with pytest.raises(UserError, match="gzip data are broken"):
        list(read_lines(tmp_path / "cut.gz"))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.jsonl"
    write_json_lines(path, [{"a": 1}])
    with pytest.raises(UserError, match="not valid Unicode"):
        write_json_lines(path, [{"a": 2}, {"a": "\udc00"}])

    def rows():
        yield {"a": 2}
        raise RuntimeError("while rows are made")

    with pytest.raises(RuntimeError):
        write_json_lines(path, rows())
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("while the file is written")
    assert path.read_text() == '{"a": 1}\n'
    assert os.listdir(tmp_path) == ["a.jsonl"]
    with pytest.raises(UserError, match="cannot be written"):
        write_json_lines(path / "below a file.jsonl", [{}])


def test_a_journal_goes_on_behind_what_a_kill_left(tmp_path):
    path, task = tmp_path / "answers" / "x.unfinished", {"prompts": [[1, 2]], "batch": 2}
    journal = Journal(path, task)
    assert journal.rows == []
    for number in range(3):
        journal.add({"place": number, "text": "ü\u2028\n"})
    path.write_bytes(path.read_bytes()[:-7])  # cut short
    again = Journal(path, task)
    assert again.rows == [{"place": number, "text": "ü\u2028\n"} for number in range(2)]
    again.add({"place": 7})
    assert [row["place"] for row in Journal(path, task).rows] == [0, 1, 7]
    assert Journal(path, {**task, "batch": 3}).rows == [], "results of another task"
    assert Journal(path, task).rows == []
    journal.finish()
    assert not path.exists()
    Journal(None, task).add({"place": 1})


def test_errors_of_a_full_disk_name_the_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as raised, replacing(tmp_path / "results.json"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert raised.value.filename == str(tmp_path / "results.json")
    with pytest.raises(OSError) as raised, replacing(tmp_path / "none" / "a") as temporary:
        temporary.write_bytes(b"")
    assert raised.value.filename == str(tmp_path / "none" / "a"), "not its temporary sibling"
