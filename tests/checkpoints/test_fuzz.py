"""Damaged JSON beside the weights: every reader answers or tells one line, soon and in little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints.__main__ import main
from checkpoints.commands.inspect import describe
from checkpoints.commands.verify import verify_directory
from checkpoints.formats import open_checkpoint
from checkpoints.model_io import load_model, save_model
from checkpoints.storage.safetensors_file import save_tensors
from checkpoints.transforms.merge import open_any
from moe.config import ModelConfig
from moe.errors import UserError
from moe.model import Transformer

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))  # for each file; more find more
MEMORY_KIB = 300 << 10
SECONDS = 20

# Numbers that sizes, counts and offsets must survive, and words that paths and names must.
numbers = st.sampled_from([0, -1, 1, 2, 3, 7, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 62, 10**400, 0.5, -0.0, 1e308])
words = st.sampled_from(["", ".", "..", "/", "../x", "a\0b", "x" * 5000, "é", "\ud800", "model.safetensors", "~"])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.integers() | st.floats(allow_nan=False) | words | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)


def places(document: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values of a JSON document."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def changed(document: Any, path: tuple, how: str, value: Any) -> Any:
    """The document with the value at ``path`` replaced, removed, or put there once more under another name."""
    if not path:
        return value
    copy = json.loads(json.dumps(document))
    owner = copy
    for key in path[:-1]:
        owner = owner[key]
    if how == "remove":
        del owner[path[-1]]
    elif how == "add" and isinstance(owner, dict):
        owner[str(value)[:50]] = owner[path[-1]]
    else:
        owner[path[-1]] = value
    return copy


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A directory of each format with JSON beside its weights."""
    root = tmp_path_factory.mktemp("models")
    config = ModelConfig(vocab_size=17, dim=8, n_layers=2, n_heads=2, n_kv_heads=1, hidden_dim=12, max_seq_len=64)
    save_model(Transformer(config).reset(0), None, root / "dense")
    for form in ("full", "delta"):
        flags = ["--no-proof", "--rank", "2", "--max-shard", "3kb", "--template", "plain"]
        assert main(["upcycle", str(root / "dense"), str(root / form), "--expert-form", form, *flags]) == 0
    params = {"dim": 8, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 12, "vocab_size": 17}
    (root / "mistral").mkdir()
    (root / "mistral" / "params.json").write_text(json.dumps(params))
    tensors = {name: tensor.read() for name, tensor in open_checkpoint(root / "dense").tensors.items()}
    save_tensors(root / "mistral" / "consolidated.safetensors", tensors)
    assert main(["inspect", str(root / "mistral")]) == 0
    return root


FILES = [
    ("dense", "config.json"),
    ("dense", "manifest.json"),
    ("full", "config.json"),
    ("full", "model.safetensors.index.json"),
    ("full", "manifest.json"),
    ("full", "prompt_template.json"),
    ("delta", "config.json"),
    ("mistral", "params.json"),
]


def read_everything(directory) -> None:
    """What the commands do first with a model; only a :class:`UserError` of one line may come out of each."""
    for read in (open_any, describe, verify_directory, load_model):
        try:
            read(directory)
        except UserError as error:
            assert str(directory) in str(error) and len(str(error)) < 20_000


@pytest.mark.parametrize(("model", "name"), FILES, ids=lambda value: value)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_json_crashes_a_reader(tmp_path, models, model, name, data):
    shutil.rmtree(tmp_path / model, ignore_errors=True)
    shutil.copytree(models / model, tmp_path / model)
    path = tmp_path / model / name
    document = json.loads(path.read_text())
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(document))[:200]))
        document = changed(document, place, data.draw(st.sampled_from(["replace", "remove", "add"])), data.draw(values))
    raw = json.dumps(document)
    if data.draw(st.booleans()):  # and a damaged byte
        position = data.draw(st.integers(0, len(raw)))
        raw = (
            raw[:position]
            + data.draw(st.sampled_from(["", "[", "}", '"', "\\", "9", "NaN", "\x00"]))
            + raw[position + 1 :]
        )
    path.write_text(raw)
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    read_everything(tmp_path / model)
    assert time.perf_counter() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEMORY_KIB


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"a":' * 100_000, "9" * 100_000, '"' + "\\u0041" * 100_000])
def test_json_that_is_deep_or_long_is_one_line(tmp_path, models, nested):
    shutil.copytree(models / "dense", tmp_path / "dense")
    for name in ("config.json", "manifest.json"):
        (tmp_path / "dense" / name).write_text(nested)
    read_everything(tmp_path / "dense")
