"""The benchmark command says what is missing before it measures."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from kernels import benchmark, compile_check
from kernels.bench import cpu as benchmark_cpu
from kernels.version import __version__


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize("arguments", [["--device", "cuda"], ["--tune", "table.json"]])
def test_without_a_gpu_the_commands_say_so(arguments, capsys):
    assert benchmark.main(arguments) == 2
    assert capsys.readouterr().err.count("error: no GPU that torch can use was found") == 1


def test_both_commands_tell_their_version(capsys):
    for command in (benchmark, compile_check):
        with pytest.raises(SystemExit, match="0"):
            command.main(["--version"])
        assert capsys.readouterr().out == f"language-experts {__version__}\n"


@pytest.mark.parametrize("output", ["", "."])
def test_results_never_go_to_the_current_folder_by_accident(output, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_cpu, "run", lambda repeats: pytest.fail("measured"))
    assert benchmark.main(["--device", "cpu", "--output", output]) == 2
    assert "no place for results; name another one with --output" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--repeats", "--threads"])
def test_a_wrong_number(flag, capsys):
    assert benchmark.main([flag, "0"]) == 2
    assert f"{flag}: expected at least 1, got 0" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_said_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    file = tmp_path / "results"
    file.write_text("mine")
    monkeypatch.setattr(benchmark_cpu, "run", lambda repeats: pytest.fail("measured"))
    for path, problem in ((file, "expected a folder, found a file"), (file / "deeper", "Not a directory")):
        assert benchmark.main(["--device", "cpu", "--output", str(path)]) == 2
        assert capsys.readouterr().err == f"error: {path}: {problem}; name another one with --output\n"
    assert file.read_text() == "mine"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert benchmark.main(["--tune", str(tmp_path)]) == 2
    assert f"{tmp_path}: expected a file's name, found a folder" in capsys.readouterr().err


def test_without_transformers_the_cpu_benchmark_says_so_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmark.main(["--device", "cpu", "--output", str(tmp_path / "new")]) == 2
    assert "pip install transformers" in capsys.readouterr().err and not (tmp_path / "new").exists()
