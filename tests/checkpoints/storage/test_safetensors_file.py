"""The safetensors reader against the safetensors library, and against files that lie."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints.storage.safetensors_file import STORED_DTYPES, SafetensorsFile, load_tensors, save_tensors
from moe.errors import UserError


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    result = {}
    for i, (name, dtype) in enumerate(STORED_DTYPES.items()):
        value = torch.randint(0, 2, (3, i + 1), generator=generator)
        result[name] = value.to(dtype)
    return result | {"empty": torch.zeros(0, 4), "scalar": torch.tensor(3.5)}


def raw_file(header: dict | bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else (header if isinstance(header, str) else json.dumps(header)).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_the_library_writes_and_the_other_way_round(tmp_path):
    tensors = some_tensors()
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"a": "b"})
    save_tensors(tmp_path / "ours.safetensors", tensors, {"c": "d"})
    for name, value in load_tensors(tmp_path / "theirs.safetensors").items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, tensors[name])
    for name, value in load_file(tmp_path / "ours.safetensors").items():
        assert value.dtype == tensors[name].dtype and torch.equal(value, tensors[name])
    assert SafetensorsFile(tmp_path / "ours.safetensors").metadata == {"c": "d"}


BAD_FILES = {
    "empty": b"",
    "no header": b"\x02\0\0\0",
    "absurd length": raw_file({}, length=1 << 60),
    "longer than the file": raw_file({"a": entry(0, 8, [2])}, length=4000),
    "not json": raw_file(b"{]"),
    "not utf-8": raw_file(b'{"\xff": 1}'),
    "a list": raw_file("[1]"),
    "deep": raw_file('{"a":' + "[" * 30000 + "]" * 30000 + "}"),
    "twice": raw_file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                      '"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}', bytes(16)),
    "overlap": raw_file({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "gap": raw_file({"a": entry(0, 8, [2]), "b": entry(12, 20, [2])}, bytes(20)),
    "cut": raw_file({"a": entry(0, 8, [2])}, bytes(7)),
    "longer": raw_file({"a": entry(0, 8, [2])}, bytes(9)),
    "wrong size": raw_file({"a": entry(0, 8, [3])}, bytes(8)),
    "negative": raw_file({"a": entry(0, 8, [-2])}, bytes(8)),
    "negative offset": raw_file({"a": entry(-8, 0, [2])}, bytes(8)),
    "huge shape": raw_file({"a": entry(0, 8, [1 << 61, 1 << 61, 4])}, bytes(8)),
    "same range twice": raw_file('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
                                 '"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "stride overflow": raw_file({"a": entry(0, 0, [0, (1 << 62) - 1, (1 << 62) - 1])}),
    "huge empty": raw_file({"a": entry(0, 0, [0, 1 << 63])}),
    "many dimensions": raw_file({"a": entry(0, 4, [1] * 200)}, bytes(4)),
    "line break": raw_file({"a\nb": entry(4, 12, [2])}, bytes(12)),
    "surrogate": raw_file('{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)),
    "true": raw_file({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, bytes(4)),
    "unknown dtype": raw_file({"a": entry(0, 8, [2], "F12")}, bytes(8)),
    "dtype object": raw_file({"a": {"dtype": {}, "shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "metadata": raw_file({"__metadata__": {"a": 1}}),
    "key": raw_file({"a": {"dtype": "F32"}}),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_FILES)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, what):
    path = tmp_path / "model.safetensors"
    path.write_bytes(BAD_FILES[what])
    with pytest.raises(UserError, match=r"model\.safetensors") as caught:
        SafetensorsFile(path)
    assert "\n" not in str(caught.value)
    if what in ("overlap", "gap"):
        assert "'b'" in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        SafetensorsFile(tmp_path / "nothing.safetensors")


def test_a_file_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(100)})
    opened = SafetensorsFile(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match="was cut"):
        opened.tensors["a"].read()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_change_of_bytes_crashes_the_reader(tmp_path, data):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.int8)}, {"k": "v"})
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path.write_bytes(content)
    try:
        for tensor in SafetensorsFile(path).tensors.values():
            assert tensor.read().shape == tensor.shape
    except UserError as error:
        assert "model.safetensors" in str(error) and "\n" not in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "I8"]) | json_values,
        "shape": st.lists(st.integers(-2, 5), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=5), entries | json_values, max_size=4), data=st.binary(max_size=40))
def test_no_header_crashes_the_reader(tmp_path, header, data):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw_file(header, data))
    try:
        for tensor in SafetensorsFile(path).tensors.values():
            assert tensor.read().shape == tensor.shape
    except UserError as error:
        assert "model.safetensors" in str(error) and "\n" not in str(error)
