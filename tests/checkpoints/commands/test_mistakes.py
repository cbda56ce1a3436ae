"""What a user may type by mistake: one line with what was found and what to do, exit code 2, nothing left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from checkpoints.__main__ import main
from checkpoints.storage.files import sha256_file

WRITERS = {
    "upcycle": ("base", ["--no-proof", "--rank", "4"]),
    "merge": ("delta", ["--no-proof"]),
    "collapse": ("full", []),
    "convert": ("base", []),
    "quantize": ("base", ["--no-perplexity"]),
    "extract": ("delta", ["--language", "python"]),
    "adapters": ("delta", []),
}


@pytest.fixture
def place(tmp_path, mistral_directory, monkeypatch):
    """A folder with a dense model, a delta and a full mixture of it, and things that are not models."""
    monkeypatch.chdir(tmp_path)
    mistral_directory.rename("base")
    assert main(["upcycle", "base", "delta", "--rank", "4", "--no-proof"]) == 0
    assert main(["upcycle", "base", "full", "--expert-form", "full", "--no-proof"]) == 0
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    (tmp_path / "bert").mkdir()
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    shutil.copy("base/model.safetensors", "bert")
    return tmp_path


def snapshot(directory) -> dict[str, str]:
    return {p.relative_to(directory).as_posix(): sha256_file(p) if p.is_file() else "" for p in directory.rglob("*")}


@pytest.fixture
def refused(place, capsys):
    """Runs a command that has to fail cleanly; returns its one line."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        before = snapshot(place)
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
        assert snapshot(place) == before, "something was left behind or lost"
        return error

    return run


@pytest.mark.parametrize("command", WRITERS)
def test_sources_and_outputs_that_cannot_be(refused, command):
    source, extra = WRITERS[command]
    unknown = "not in a known format"
    for wrong, words in {"file": unknown, "empty": unknown, "gone": "does not exist"}.items():
        assert words in refused(command, wrong, "out", *extra)
    assert "model_type is 'bert'" in refused(command, "bert", "out", *extra)
    for flags in ([], ["--dry-run"]):
        assert "exists already" in refused(command, source, "empty", *extra, *flags)
        assert "exists and is not a directory" in refused(command, source, "file", *extra, *flags)
        assert "is a file" in refused(command, source, "file/out", *extra, *flags)
        assert "is read from" in refused(command, source, source, "--force", *extra, *flags)
        assert "is read from" in refused(command, source, ".", "--force", *extra, *flags)
        assert "replaces models only" in refused(command, source, "letters", "--force", *extra, *flags)
    if command != "adapters":  # each is one small file
        assert "is not a size" in refused(command, source, "out", "--max-shard", "0")
    assert "did you mean '--force'" in refused(command, source, "out", *extra, "--forse")


def test_what_the_system_refuses(refused):
    assert "File name too long" in refused("upcycle", "base", "n" * 300)
    os.symlink("loop", "loop")
    for place in ("loop", "loop/out"):
        message = refused("upcycle", "base", place)
        assert place in message and "; give another" in message


def test_a_base_is_not_replaced_by_what_refers_to_it(refused):
    assert "base/model.safetensors is read from" in refused("merge", "delta", "base", "--force", "--no-proof")
    assert "base/model.safetensors is read from" in refused("collapse", "delta", "base", "--force")


def test_commands_on_models_of_another_kind(refused):
    assert "give its base" in refused("upcycle", "delta", "out")
    assert "mixture already" in refused("upcycle", "full", "out")
    for source in ("full", "base"):
        assert "no delta experts" in refused("merge", source, "out")
    assert "dense already" in refused("collapse", "base", "out")
    assert "python -m checkpoints merge delta out" in refused("convert", "delta", "out")
    for wrong in ("base", "file", "empty", "gone"):
        assert "not a delta directory" in refused("relink", wrong, "base")
    assert "does not exist" in refused("relink", "delta", "gone")
    assert "is not the base" in refused("relink", "delta", "full")
    assert "is a file" in refused("verify", "file")
    assert "is not a model;" in refused("verify", "empty")
    assert "does not exist" in refused("verify", "gone")
    assert "no manifest.json" in refused("verify", "bert")
    for wrong in ("file", "empty", "gone", "bert"):
        refused("inspect", wrong)
        refused("diff", "base", wrong)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--languages", "python", "python"], "twice"),
        (["--languages", "Python"], "did you mean 'python'"),
        (["--languages", "python"], "add --num-experts-per-tok 1"),
        (["--num-experts-per-tok", "5"], "5 experts per token, of 4"),
        (["--rank", "0"], "--rank: '0', expected an integer of at least 1"),
        (["--rank", "64"], "the model's width of 32"),
        (["--shared-rank", "-1"], "at least 0"),
        (["--router-std", "nan"], "not a standard deviation"),
        (["--router", "fitted"], "no tokenizer"),
        (["--router-prompts", "0"], "at least 1"),
        (["--template", "foo"], "templates: "),
        (["--expert-form", "dense"], "invalid choice"),
        (["--form", "full"], "it is now called --expert-form"),
        (["--layers", "1-3"], "it is now called --moe-layers"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_settings_of_upcycle_that_cannot_be(refused, flags, words):
    assert words in refused("upcycle", "base", "out", *flags)


def test_weights_of_collapse_that_cannot_be(refused):
    assert "names python twice" in refused("collapse", "full", "out", "--weights", "python=1", "python=2")
    assert "experts here: python" in refused("collapse", "full", "out", "--weights", "rust=1")
    assert "write for example python=2" in refused("collapse", "full", "out", "--weights", "python=x")


def test_settings_that_change_nothing_are_told(place, capsys):
    flags = ["--expert-form", "full", "--rank", "4", "--router-prompts", "5", "--dry-run"]
    assert main(["upcycle", "base", "out", *flags]) == 0
    warnings = capsys.readouterr().err
    assert "--rank is ignored" in warnings and "--router-prompts is ignored" in warnings


@pytest.mark.parametrize("command", WRITERS)
def test_a_place_that_cannot_be_written_is_told(refused, monkeypatch, command):
    source, flags = WRITERS[command]
    monkeypatch.setattr(
        "checkpoints.transforms.quantize.is_quantizable", lambda name, shape: name.endswith("w1.weight")
    )

    def read_only(path, *rest, **settings):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(os, "mkdir", read_only)
    assert "Read-only file system; check" in refused(command, source, "out", *flags)


def test_after_a_disk_that_fails_the_job_goes_on(refused, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(AssertionError, match="left behind"):  # finished shards stay for the next run
            refused("convert", "base", "out")
    assert main(["convert", "base", "out"]) == 0


def test_links_into_another_directory_are_sources_too(refused, place):
    """As in the cache of a model hub: a directory of links to files that lie elsewhere."""
    (place / "snapshot").mkdir()
    for path in (place / "base").iterdir():
        (place / "snapshot" / path.name).symlink_to(path)
    assert "is where" in refused("convert", "snapshot", "snapshot", "--force")


def test_a_finished_job_is_not_trusted_blindly(refused, place):
    line = ["upcycle", "base", "again", "--expert-form", "full", "--no-proof"]
    assert main(line) == 0 and main(line) == 0, "the same job again"
    assert "exists already" in refused(*line, "--template", "chatml")
    path = place / "again" / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "is not as it was written" in refused(*line)
    path.unlink()
    assert "model.safetensors is missing" in refused(*line)
    assert main([*line, "--force"]) == 0 and path.read_bytes() == content
