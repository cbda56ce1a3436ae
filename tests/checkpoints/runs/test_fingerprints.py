"""What changes a run's fingerprints, and what does not."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from checkpoints.model_io import load_model, save_model
from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.fingerprints import check_inputs, comparable, run_fingerprints
from moe.data.sources import load_data
from moe.errors import UserError
from moe.model import Transformer
from moe.training.config import RunConfig
from moe.training.tiny_base import tiny_config, train_tiny_tokenizer
from tests.pair_files import write_pairs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A small base and a folder of data."""
    folder = tmp_path_factory.mktemp("fingerprints")
    data = load_data("synthetic", ["python", "cpp"], train_pairs=30)
    tokenizer = train_tiny_tokenizer(data.train, folder / "tokenizer", 0)
    save_model(Transformer(tiny_config(tokenizer.vocab_size)).reset(0), tokenizer, folder / "base", template="plain")
    for split in ("train", "test"):
        for language, items in data.train.items():
            write_pairs(items[:10], folder / "data" / split / f"{language}.jsonl")
    return folder


def fingerprints(place, base="base", data="data", **settings):
    values = {"base": str(place / base), "data": str(place / data), "languages": ("python", "cpp")}
    config = RunConfig(**{**values, "test_sets": ("test",), **settings})
    return run_fingerprints(config, load_model(place / base, check=False))


def test_files_are_known_by_their_content(place, tmp_path):
    before = fingerprints(place)
    assert before == fingerprints(place, seed=5, eval_pairs=3, mix_steps=7, device="cpu")
    shutil.copytree(place, tmp_path / "moved")
    moved = tmp_path / "moved"
    plain = moved / "data" / "test" / "cpp.jsonl"
    (plain.parent / "cpp.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    assert fingerprints(moved) == before, "elsewhere, and packed"

    def changed(new):
        return {name for name in before if new[name] != before[name]}

    assert changed(fingerprints(place, train_pairs=5)) == {"training data"}
    assert changed(fingerprints(place, languages=("cpp", "python"))) == {"training data", "test sets"}
    train = moved / "data" / "train" / "python.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    train.write_text("".join(json.dumps({**row, "code": row["code"] + " "}) + "\n" for row in rows))
    assert changed(fingerprints(moved)) == {"training data"}
    weights = next((moved / "base").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert changed(fingerprints(moved, data="../moved/data")) == {"training data", "base"}


def test_what_a_run_makes_itself_is_known_by_its_recipe(place):
    """Runs of the embedded default with other seeds are comparable; those of other recipes are not."""
    tiny = {"base": "base", "data": "data"}

    def made(**settings):
        config = RunConfig(base="tiny", data="synthetic", languages=("python", "cpp"), test_sets=("test",), **settings)
        return run_fingerprints(config, load_model(place / tiny["base"]))

    before = made(pretrain_steps=10)
    assert before == made(pretrain_steps=10, seed=9, mix_steps=3)
    other = made(pretrain_steps=20)
    assert other["base"] != before["base"] and other["tokenizer"] == before["tokenizer"]
    assert made(pretrain_steps=10, train_pairs=50)["training data"] != before["training data"]
    assert before["test sets"]["test"] != before["training data"]


def test_a_resumed_run_starts_from_the_same(place, tmp_path):
    config = RunConfig(base=str(place / "base"), data=str(place / "data"), languages=("python", "cpp"))
    directory = RunDirectory.create(tmp_path / "run", config, [])
    start = {"training data": "a", "test sets": {"test": "b", "test-b": "c"}, "base": "d", "tokenizer": "e"}
    assert check_inputs(directory, start, accept=False) == []
    for name in ("proof", "scores of base", "tests of base"):
        directory.note(name, {"python": 1})
    assert check_inputs(RunDirectory.resume(directory.path), start, accept=False) == []
    other = {**start, "base": "x", "test sets": {"test": "y"}}
    with pytest.raises(UserError, match=r"another base, test set 'test', test set 'test-b'; .*--accept-new-data"):
        check_inputs(RunDirectory.resume(directory.path), other, accept=False)
    assert "scores of base" in RunDirectory.resume(directory.path).results, "nothing is lost"
    assert len(check_inputs(RunDirectory.resume(directory.path), other, accept=True)) == 3
    results = RunDirectory.resume(directory.path).results
    assert results.keys() == {"fingerprints", "proof"} and results["fingerprints"] == other
    with pytest.raises(UserError, match="another training data;"):
        check_inputs(RunDirectory.resume(directory.path), {**other, "training data": "z"}, accept=False)


def test_what_another_run_made_is_known_by_that_runs_recipe(place, tmp_path):
    """Seeds that were trained further are comparable, though their bases differ; runs on another recipe are not."""
    found = {}
    for name, seed, rank in (("one", 0, 4), ("two", 1, 4), ("other", 0, 8)):
        shutil.copytree(place, tmp_path / name)
        (tmp_path / name / "base").rename(tmp_path / name / "model")
        config = {"seed": seed, "base": name, "expert_rank": rank, "preferences": ""}
        (tmp_path / name / "run.json").write_text(json.dumps({"config": config}))
        (tmp_path / name / "results.json").write_text(json.dumps({"fingerprints": {"base": "b"}}))
        if name == "two":
            weights = next((tmp_path / name / "model").glob("*.safetensors"))
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(content)
        found[name] = fingerprints(tmp_path / name, base="model")
    assert found["one"]["base"] != found["two"]["base"]
    assert comparable(found["one"]) == comparable(found["two"]) != comparable(found["other"])
