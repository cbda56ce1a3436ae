"""Folders of a hub's cache and hub ids, without a network."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from checkpoints.formats import hub
from checkpoints.formats.hub import from_hub, wanted_files
from checkpoints.formats.smollm2 import resolve_model_path
from checkpoints.model_card import base_name
from checkpoints.model_io import load_model, read_config
from moe.errors import UserError
from tests.checkpoints.command_line import run_main

HASH = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, mistral_directory):
    """A hub's cache as huggingface_hub lays it out: files are links to blobs."""
    folder = tmp_path / "hub" / "models--someone--A-Model"
    place = folder / "snapshots" / HASH
    (folder / "blobs").mkdir(parents=True)
    (folder / "refs").mkdir()
    place.mkdir(parents=True)
    for number, file in enumerate(sorted(mistral_directory.iterdir())):
        blob = folder / "blobs" / f"{number:040x}"
        shutil.copyfile(file, blob)
        (place / file.name).symlink_to(f"../../blobs/{blob.name}")
    (folder / "refs" / "main").write_text(HASH)
    return folder


def test_a_cache_folder_and_its_snapshot_are_models(cache, mistral_directory, tmp_path):
    expected = read_config(mistral_directory)
    for path in (cache, cache / "snapshots" / HASH):
        loaded = load_model(path)
        assert loaded.config == expected and loaded.path == cache / "snapshots" / HASH
    from checkpoints.formats import open_checkpoint

    assert base_name(open_checkpoint(resolve_model_path(cache))) == "someone/A-Model"
    assert run_main("convert", cache, tmp_path / "out") == 0
    assert run_main("inspect", cache) == 0


def test_of_several_snapshots_main_decides(cache):
    (cache / "snapshots" / "other").mkdir()
    assert resolve_model_path(cache).name == HASH
    (cache / "refs" / "main").write_text("gone")
    with pytest.raises(UserError, match="has 2 snapshots and none is named by refs/main"):
        resolve_model_path(cache)
    (cache / "refs" / "main").unlink()
    (cache / "snapshots" / "other").rmdir()
    assert resolve_model_path(cache).name == HASH


def test_a_hub_id_is_found_in_the_cache(cache, monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **options: original(name, cache_dir=cache.parent, **options)
    )
    assert resolve_model_path("someone/A-Model") == cache / "snapshots" / HASH


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "there is no such model, or it is private"),
        ("GatedRepoError", "accept on its page, then: hf auth login"),
        ("ConnectError", r"the hub cannot be reached \(ConnectError\): .*hf download someone/else --local-dir DIR"),
    ],
)
def test_without_a_network_one_line_says_what_to_download(monkeypatch, tmp_path, error, message):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)

    def absent(*_, **__):
        raise FileNotFoundError("not in the cache")

    def fails(*_, **__):
        raise type(error, (Exception,), {})("long\ntext")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=fails))
    with pytest.raises(
        UserError, match=f"someone/else is neither a file here nor in the hub's cache; .*{message}"
    ) as e:
        resolve_model_path("someone/else")
    assert "\n" not in str(e.value)


def test_only_what_is_read_is_downloaded(monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "consolidated.safetensors", "x/y.json", "a.onnx"]
    asked = {}

    def download(name, local_files_only=False, allow_patterns=None):
        if local_files_only:
            raise FileNotFoundError
        asked[name] = allow_patterns
        return str(tmp_path)

    listed = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: SimpleNamespace(model_info=lambda name: listed))
    assert from_hub("a/b") == tmp_path and asked == {"a/b": ["config.json", "model.safetensors"]}
    listed.siblings = [SimpleNamespace(rfilename=file) for file in ("m-Q4.gguf", "README.md")]
    assert from_hub("a/b") == tmp_path / "m-Q4.gguf"
    for names, message in (
        (["m-Q4.gguf", "m-Q8.gguf"], r"2 GGUF files; .*hf download a/b m-Q4\.gguf"),
        (["w.bin"], "bin"),
    ):
        listed.siblings = [SimpleNamespace(rfilename=file) for file in names]
        with pytest.raises(UserError, match=message):
            from_hub("a/b")


def test_files_that_are_wanted():
    tokenizer = {
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer.model.v3",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
    }
    shards = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    other = {
        "consolidated-00001-of-00001.safetensors",
        "optimizer.pt",
        "runs/a.json",
        "model.safetensors.index.json.bak",
    }
    assert wanted_files(tokenizer | shards | other) == tokenizer | shards
    assert wanted_files({"params.json", "consolidated.00.safetensors"}) == {
        "params.json",
        "consolidated.00.safetensors",
    }
    assert wanted_files({"config.json"}) == set()


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        resolve_model_path("someone/else")
    assert not hub.is_hub_id("models/a/b") and hub.is_hub_id("a/b")
