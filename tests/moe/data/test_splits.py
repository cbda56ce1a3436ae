"""Splits are found in folders, in files of their name, in hub directories and in saved datasets."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.data.pairs import load_split, read_split
from moe.data.sources import load_data
from moe.data.splits import data_language, list_splits
from moe.errors import UserError

STARTS = [
    b"PAR1",
    b"ARROW1\0\0",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"[",
    b'{"text": ',
    b"\xef\xbb\xbf{}",
    b"\xff\xff\xff\xff",
]
FIELDS = "text code reference language lang messages role content prompt completion instruction input output task_id"
names = st.sampled_from([*FIELDS.split(), "canonical_solution", "docstring", "test_list", "id", "history"])


def put(path: Path, language="python", key="text", count=2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"language": language, key: f"{path.name} {i}", "code": f"x = {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("python.jsonl", "python"),
        ("JS.json.gz", "javascript"),
        ("c++.parquet", "cpp"),
        ("c_sharp.jsonl.zst", "c_sharp"),
        ("python_train_0.jsonl.gz", "python"),
        ("train-00000-of-00002.parquet", None),
        ("go-to-rust.jsonl", None),
        ("cobol.jsonl", None),
    ],
)
def test_names_say_languages(name, language):
    assert data_language(name) == language


@pytest.mark.parametrize(
    "names",
    [
        ("train/python.jsonl", "test/python.jsonl"),
        ("train/a.jsonl", "test/pairs.json"),
        ("train.jsonl", "test.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("python/train.jsonl", "python/test.jsonl"),
        ("alpaca-train.jsonl", "alpaca-test.jsonl"),
        ("python_train_0.jsonl", "python_test_0.jsonl"),
        ("train/python-0.jsonl", "test/python-0.jsonl"),
    ],
)
def test_places_of_a_split(tmp_path, names):
    for name in names:
        put(tmp_path / name)
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "README.md").write_text("about")
    data = load_data(str(tmp_path), ["python"])
    assert [pair.text for pair in data.train["python"]] == [f"{Path(names[0]).name} {i}" for i in range(2)]
    assert list(data.held_out) == ["test"] and data.held_out["test"]["python"][0].text.startswith(Path(names[1]).name)
    assert data.readings[0] == "train: read as text/code, 2 pairs, language from field language"


def test_other_json_beside_a_test_split_is_no_test_set(tmp_path):
    for split in ("train", "test", "test-b"):
        put(tmp_path / split / "python.jsonl")
    (tmp_path / "test-results").mkdir()
    (tmp_path / "test-results" / "times.json").write_text('{"seconds": 3}')
    assert list(load_data(str(tmp_path), ["python"]).held_out) == ["test", "test-b"]


def test_shards_and_files_of_several_languages(tmp_path):
    put(tmp_path / "train" / "python-00000-of-00002.jsonl")
    put(tmp_path / "train" / "python-00001-of-00002.jsonl")
    rows = [*(["java"] * 3), "python", "cobol", "rust"]
    lines = [json.dumps({"lang": x, "text": f"mixed {i}", "code": "y"}) for i, x in enumerate(rows)]
    (tmp_path / "train" / "more.jsonl").write_text("\n".join(lines))
    split = read_split(tmp_path, "train", ["java", "python"])
    assert {x: len(pairs) for x, pairs in split.pairs.items()} == {"java": 3, "python": 5}
    assert split.reading.describe().endswith("left out 1 in the unknown language 'cobol', 1 in Rust")
    with pytest.raises(UserError, match="no pairs in 'go'; read as text/code"):
        load_split(tmp_path, "train", ["go"])
    assert len(load_split(tmp_path, "train", ["java"], limit=2)["java"]) == 2


def test_a_dataset_that_datasets_saved(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.Table.from_pylist([{"language": "python", "prompt": f"T {i}", "completion": "x"} for i in range(3)])
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        with arrow.ipc.new_stream(tmp_path / split / "data-00000-of-00001.arrow", table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = load_data(str(tmp_path), ["python"])
    assert [pair.text for pair in data.train["python"]] == ["T 0", "T 1", "T 2"]
    with pytest.raises(UserError, match="it is one dataset without splits: save a DatasetDict"):
        load_data(str(tmp_path / "train"), ["python"])


def test_what_is_missing_or_twice_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is not a directory; .*put it into DIR/train/pairs.jsonl"):
        list_splits(put(tmp_path / "pairs.jsonl"))
    with pytest.raises(UserError, match=r"no split 'train'.*pairs.jsonl lies beside them: put it into train/"):
        load_split(tmp_path, "train", ["python"])
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="train: is empty; expected files of pairs"):
        load_split(tmp_path, "train", ["python"])
    (tmp_path / "train" / "python.csv").write_text("text,code\n")
    with pytest.raises(UserError, match=r"train: has python.csv; expected files of pairs"):
        load_split(tmp_path, "train", ["python"])
    put(tmp_path / "train" / "python.jsonl")
    put(tmp_path / "train" / "python.json")
    with pytest.raises(UserError, match=r"both python.json and python.jsonl are there; remove one"):
        load_split(tmp_path, "train", ["python"])
    (tmp_path / "train" / "python.json").unlink()
    put(tmp_path / "train.jsonl")
    with pytest.raises(UserError, match="hold train; remove one of them"):
        load_split(tmp_path, "train", ["python"])


def test_files_that_are_nearly_right(shared_data):
    folder = next((shared_data / "cases").glob("23-*"))
    for name in ("array", "json-ending", "number-id"):
        pairs = load_split(folder / name, "train", ["python"])["python"]
        assert [(pair.id, pair.text) for pair in pairs[:2]] == [
            ("0", "Add 0 to a number."),
            ("1", "Add 1 to a number."),
        ]


json_like = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda start, rest: start + rest, st.sampled_from(STARTS), st.binary(max_size=100)),
        st.builds(lambda rows: "\n".join(map(json.dumps, rows)).encode(), st.lists(json_like, max_size=4)),
        st.builds(lambda rows: json.dumps(rows).encode(), st.lists(json_like, max_size=4)),
    ),
    suffix=st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".jsonl.zst", ".parquet", ".arrow"]),
    stem=st.sampled_from(["python", "a"]),
)
def test_whatever_a_file_holds_gives_pairs_or_one_line(tmp_path, content, suffix, stem):
    folder = tmp_path / "train"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / f"{stem}{suffix}").write_bytes(content)
    try:
        assert load_split(tmp_path, "train", ["python"])["python"]
    except UserError as error:
        assert "\n" not in str(error)
        assert str(folder) in str(error)


@pytest.mark.parametrize("place", ["train/python-2.jsonl", "train-00001-of-00002.jsonl"])
@pytest.mark.parametrize("kind", ["a link to nothing", "a folder", "no regular file"])
def test_what_only_has_the_name_of_a_data_file_is_never_left_out(tmp_path, place, kind):
    """Its pairs would be missing without a word, as with a shard that a cache has lost."""
    path = tmp_path / place
    put(path.with_name(path.name.replace("2.", "1.").replace("00001", "00000", 1)))
    makers = {"a link to nothing": lambda: path.symlink_to("lost"), "a folder": path.mkdir}
    makers.get(kind, lambda: os.mkfifo(path))()
    with pytest.raises(UserError, match=f"{path.name}: is {kind}; expected a data file"):
        load_split(tmp_path, "train", ["python"])


def test_endings_in_capitals_are_endings(tmp_path):
    put(tmp_path / "train" / "Python-1.jsonl")
    put(tmp_path / "train" / "Python-2.JSONL")
    assert len(load_split(tmp_path, "train", ["python"])["python"]) == 4
