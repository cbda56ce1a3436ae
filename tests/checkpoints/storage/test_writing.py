"""Directories are written atomically, whatever happens on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import zlib

import pytest
import torch
from safetensors.torch import load_file

from checkpoints.model_io import load_model, save_model
from checkpoints.storage import files, writer
from checkpoints.storage.files import new_directory, publish_directory, read_json, sha256_file
from checkpoints.storage.safetensors_file import (
    SafetensorsFile,
    StoredTensor,
    load_tensors,
    memory_tensor,
    save_tensors,
)
from checkpoints.storage.writer import Output, in_dtype, plan_shards, write_model_directory
from moe.errors import UserError


def tensors(count=6, size=1000):
    generator = torch.Generator().manual_seed(0)
    return [memory_tensor(f"t{i}", torch.randn(size, generator=generator)) for i in range(count)]


def snapshot(directory) -> dict[str, str]:
    return {p.relative_to(directory).as_posix(): sha256_file(p) for p in directory.rglob("*") if p.is_file()}


def test_shards_index_and_manifest(tmp_path):
    output = Output(tensors(), {"config.json": {"a": 1}}, {"x.txt": b"hi"}, max_shard_bytes=8000)
    manifest = write_model_directory(tmp_path / "out", output)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names == sorted(["config.json", "manifest.json", "model.safetensors.index.json", "x.txt", *shards])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 24000
    for tensor in tensors():
        assert torch.equal(load_file(tmp_path / "out" / index["weight_map"][tensor.name])[tensor.name], tensor.read())
    assert set(manifest["files"]) == set(names) - {"manifest.json"}
    for name, entry in manifest["files"].items():
        content = (tmp_path / "out" / name).read_bytes()
        assert entry["bytes"] == len(content) and entry["sha256"] == hashlib.sha256(content).hexdigest()
        for tensor, checksum in entry.get("crc32", {}).items():
            value = load_file(tmp_path / "out" / name)[tensor]
            assert checksum == f"{zlib.crc32(value.numpy().tobytes()):08x}"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_copying_bytes_equals_decoding_them(tmp_path):
    big = {"a": torch.randn(3_000_000), "b": torch.randn(7).bfloat16(), "c": torch.randn(2_100_000).half()}
    save_tensors(tmp_path / "in.safetensors", big)
    stored = list(SafetensorsFile(tmp_path / "in.safetensors").tensors.values())
    assert all(tensor.where is not None for tensor in stored)
    write_model_directory(tmp_path / "copied", Output(stored, {}))
    write_model_directory(tmp_path / "wide", Output([in_dtype(t, torch.float64) for t in stored], {}))
    copied, wide = (load_file(tmp_path / name / "model.safetensors") for name in ("copied", "wide"))
    for name, value in big.items():
        assert torch.equal(copied[name], value) and copied[name].dtype == value.dtype
        assert torch.equal(wide[name], value.double())


def test_a_tensor_larger_than_a_shard_gets_a_file_of_its_own():
    sizes = [len(group) for _, group in plan_shards(Output(tensors(3, 5000), {}, max_shard_bytes=10_000))]
    assert sizes == [1, 1, 1]


def test_an_existing_target_is_kept_without_force_and_replaced_with_it(tmp_path):
    out = tmp_path / "out"
    write_model_directory(out, Output(tensors(), {}))
    before = snapshot(out)
    with pytest.raises(UserError, match=r"exists already.*--force"):
        write_model_directory(out, Output(tensors(2), {}))
    assert snapshot(out) == before
    write_model_directory(out, Output(tensors(2), {}), force=True)
    assert set(load_file(out / "model.safetensors")) == {"t0", "t1"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not a directory"):
        write_model_directory(tmp_path / "file", Output(tensors(), {}), force=True)


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_directories_are_swapped(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    publish_directory(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["new"]


def test_a_failure_in_the_middle_leaves_the_old_state(tmp_path):
    out = tmp_path / "out"
    write_model_directory(out, Output(tensors(), {}))
    before = snapshot(out)

    def explode():
        raise RuntimeError("no such luck")

    broken = [*tensors(3), memory_tensor("late", torch.ones(3))]
    broken[-1] = StoredTensor("late", torch.float32, (3,), explode)
    with pytest.raises(RuntimeError):
        write_model_directory(out, Output(broken, {}), force=True)
    with pytest.raises(RuntimeError), new_directory(out, force=True) as temporary:
        (temporary / "x").write_text("x")
        explode()
    assert snapshot(out) == before and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_disk_too_small_is_known_before_writing(tmp_path, tiny_config, make_model):
    asked = []

    def disk(path):
        asked.append(path)
        return 1000

    with pytest.raises(UserError, match=r"not enough disk for .*out: .* needed, 1000 B free"):
        save_model(make_model(tiny_config), None, tmp_path / "out", disk_free=disk)
    assert asked and not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_while_writing(tmp_path, monkeypatch, code):
    def full(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match=r"disk of .* is full"):
        write_model_directory(tmp_path / "out", Output(tensors(), {}))
    with pytest.raises(UserError, match=r"disk of .* is full"), new_directory(tmp_path / "out"):
        full()
    assert not list(tmp_path.iterdir())


def test_a_job_goes_on_after_a_kill(tmp_path, run_child):
    """The process dies at its third shard; the rerun keeps the first two and gives what an undisturbed run does."""

    def job(target: str, log: str, die_at: int | None = None):
        def tensor(i):
            def read():
                if i == die_at:
                    os._exit(9)
                with open(tmp_path / log, "a") as file:
                    file.write(f"{i} ")
                return torch.full((1000,), float(i))

            return StoredTensor(f"t{i}", torch.float32, (1000,), read)

        output = Output([tensor(i) for i in range(5)], {"config.json": {}}, max_shard_bytes=4000)
        return lambda: write_model_directory(tmp_path / target, output, identity="job")

    out = tmp_path / "out"
    assert run_child(job("out", "log", die_at=2)) == 9
    assert not out.exists() and (tmp_path / ".out.partial").is_dir()
    assert run_child(job("out", "log")) == 0
    assert (tmp_path / "log").read_text().split() == ["0", "1", "2", "3", "4"]
    assert run_child(job("undisturbed", "log2")) == 0
    assert snapshot(out) == snapshot(tmp_path / "undisturbed")
    assert not (tmp_path / ".out.partial").exists()
    assert run_child(job("out", "log")) == 0, "a finished job is recognized"
    assert len((tmp_path / "log").read_text().split()) == 5


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, run_child):
    def die():
        with new_directory(tmp_path / "out") as temporary:
            (temporary / "x").write_text("x")
            os._exit(9)

    assert run_child(die) == 9
    assert [p.name for p in tmp_path.iterdir()] != []
    with new_directory(tmp_path / "out") as temporary:
        (temporary / "y").write_text("y")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_damaged_finished_shard_is_written_again(tmp_path):
    partial = tmp_path / ".out.partial"
    output = Output(tensors(), {}, max_shard_bytes=8000)
    write_model_directory(tmp_path / "good", output, identity="job")
    partial.mkdir()
    digests = {}
    for name, _ in plan_shards(output)[:2]:
        content = bytearray((tmp_path / "good" / name).read_bytes())
        digests[name] = {"sha256": hashlib.sha256(content).hexdigest(), "crc32": {}}
        content[-1] ^= 1 if name.startswith("model-00002") else 0
        (partial / name).write_bytes(content)
    (partial / "job.json").write_text(json.dumps({"job": "job", "files": digests}))
    write_model_directory(tmp_path / "out", output, identity="job")
    weights = {name: digest for name, digest in snapshot(tmp_path / "out").items() if name != "manifest.json"}
    assert weights == {name: digest for name, digest in snapshot(tmp_path / "good").items() if name in weights}


def test_two_processes_do_not_write_the_same_directory(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    with (
        writer._locked(tmp_path / ".out.partial"),
        pytest.raises(UserError, match="another process"),
    ):
        write_model_directory(tmp_path / "out", Output(tensors(), {}))
    assert (tmp_path / ".out.partial").is_dir()


def test_small_files_go_along(tmp_path, tiny_config, make_model):
    class Words:
        vocab_size, bos_id, eos_id, pad_id, add_bos, adds_prefix_space = 97, 1, 2, 0, True, True
        end_ids = frozenset()

        def special_id(self, token):
            return 5 if token == "<|im_end|>" else None

        def files(self, chat_template):
            config = json.dumps({"kind": "fast", "chat_template": chat_template})
            return {"tokenizer.json": b"{}", "tokenizer_config.json": config.encode()}

    save_model(make_model(tiny_config), Words(), tmp_path / "out", template="chatml", files={"README.md": b"# card"})
    out = tmp_path / "out"
    assert json.loads((out / "prompt_template.json").read_text()) == {"template": "chatml"}
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [2, 5]
    chat = json.loads((out / "tokenizer_config.json").read_text())
    assert chat["kind"] == "fast" and "<|im_start|>" in chat["chat_template"]
    assert json.loads((out / "config.json").read_text())["bos_token_id"] == 1
    assert (out / "README.md").read_text() == "# card" and (out / "tokenizer.json").exists()
    (out / "tokenizer.json").unlink()
    assert load_model(out).template == "chatml"


def test_json_is_read_with_a_limit(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["x" * 100]))
    with pytest.raises(UserError, match="at most 50 B"):
        read_json(tmp_path / "a.json", limit=50)
    with pytest.raises(UserError, match="is missing"):
        read_json(tmp_path / "b.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_json(tmp_path)


def test_force_replaces_models_and_nothing_else(tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine"
    mine.mkdir()
    write_model_directory(mine, Output(tensors(1), {}), force=True)  # an empty directory costs nobody anything
    (mine / "manifest.json").unlink()
    write_model_directory(mine, Output(tensors(1), {}), force=True)
    write_model_directory(out, Output(tensors(1), {}))
    stored = [tensor for tensor in SafetensorsFile(out / "model.safetensors").tensors.values()]
    for target in (out, tmp_path):
        with pytest.raises(UserError, match=r"is where .*model\.safetensors is read from"):
            write_model_directory(target, Output(stored, {}), force=True, reads=[out / "model.safetensors"])
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "a.txt").write_text("dear")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=r"files of something else, such as a\.txt"):
        write_model_directory(letters, Output(tensors(1), {}), force=True)
    with pytest.raises(UserError, match="is a file"):
        write_model_directory(letters / "a.txt" / "below", Output(tensors(1), {}))
    assert snapshot(tmp_path) == before


def test_a_file_on_a_bad_disk_is_named(tmp_path, monkeypatch):
    save_tensors(tmp_path / "a.safetensors", {"a": torch.ones(100)})
    tensor = SafetensorsFile(tmp_path / "a.safetensors").tensors["a"]

    class Broken:
        def __init__(self, *arguments, **settings): ...
        def __enter__(self):
            return self

        def __exit__(self, *error): ...
        def seek(self, offset): ...
        def readinto(self, buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("builtins.open", Broken)
    for read in (tensor.read, lambda: sha256_file(tmp_path / "a.safetensors")):
        with pytest.raises(UserError, match=r"a\.safetensors cannot be read: Input/output error"):
            read()


def test_shards_of_another_dtype_are_not_reused(tmp_path, make_model, tiny_config):
    """Norms in float32 beside weights in bf16: --dtype bfloat16 and keep write equal configs, and other files."""
    from checkpoints.__main__ import main

    save_model(make_model(tiny_config, dtype=torch.bfloat16), None, tmp_path / "base")
    weights = load_tensors(tmp_path / "base" / "model.safetensors")
    weights = {name: value.float() if "norm" in name else value for name, value in weights.items()}
    save_tensors(tmp_path / "base" / "model.safetensors", weights)
    convert = ["convert", str(tmp_path / "base"), str(tmp_path / "out")]
    assert main(convert) == 0
    with pytest.raises(SystemExit):  # another job: its result is not taken for this one's
        main([*convert, "--dtype", "bfloat16"])
