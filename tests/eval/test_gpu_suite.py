"""The GPU suite as far as a machine without a GPU shows it: parts are kept apart, targets and estimate are computed."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from eval import gpu_suite
from eval.gpu_suite import Part
from kernels.bench import gpu_checks


def python(name: str, code: str, seconds: float = 60) -> Part:
    return Part(name, seconds, [sys.executable, "-c", code])


def test_a_part_that_hangs_or_dies_costs_no_other(tmp_path, capsys):
    parts = [
        python(
            "hangs", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])", 2
        ),
        python("dies", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
        python("fails", "raise SystemExit(3)"),
        python("works", "print('fine')"),
    ]
    begin = time.monotonic()
    summary = {"parts": {}}
    background = python("beside", "print('beside')")
    assert not gpu_suite.run_parts(parts, background, tmp_path, begin + 120, summary)
    assert time.monotonic() - begin < 60
    found = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert found["hangs"]["status"] == "stopped at its limit of 2 s"
    assert found["dies"]["status"] == "failed (exit code -11)" and found["dies"]["last_lines"] == ["so far"]
    assert found["fails"]["status"] == "failed (exit code 3)"
    assert found["works"]["status"] == found["beside"]["status"] == "ok"
    assert (tmp_path / "works.log").read_text() == "fine\n" and "hangs: stopped" in capsys.readouterr().out


def test_parts_without_time_are_left_out_and_named(tmp_path):
    summary = {"parts": {}}
    assert gpu_suite.run_parts([python("late", "1")], python("beside", "1"), tmp_path, time.monotonic() + 10, summary)
    assert summary["parts"]["late"]["status"] == "left out: no time"


def test_the_plan_holds_everything_and_its_commands_exist(tmp_path):
    names = [part.name for part in gpu_suite.plan(tmp_path, None, None)]
    assert set(gpu_suite.OWN) < set(names) and {"training_step_7b", "gpu_tests"} < set(names)
    parts = gpu_suite.plan(tmp_path, "base.whl", "pairs")
    train = next(part for part in parts if part.name == "smollm2_training").command
    from train import given_settings, make_parser

    parsed = make_parser().parse_args(train[2:])
    settings = given_settings(parsed)
    assert settings["base"] == "base.whl" and settings["data"] == "pairs" and parsed.name == "smollm2"


def test_what_a_gpu_machine_runs_needs_torch_and_triton_alone():
    """Such a machine may have nothing else, and no way to get it."""
    code = (
        "import sys\n"
        "for name in 'sentencepiece tokenizers transformers matplotlib rich safetensors tree_sitter'.split():\n"
        "    sys.modules[name] = None\n"
        "import eval.training_step, eval.gpu_suite, kernels.bench.gpu_checks, kernels.bench.gpu, kernels.bench.tune\n"
        "import kernels.compile_check, kernels.benchmark\n"
        "assert not kernels.benchmark.plot({'rows': []}, None)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=gpu_suite.ROOT, check=True)


def test_a_failing_check_is_written_and_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu_suite.OWN, "correctness", lambda output, deadline: {"a": {"ok": False}})
    assert gpu_suite.run_own("correctness", tmp_path, 5) == 1
    assert json.loads((tmp_path / "correctness.json").read_text()) == {"a": {"ok": False}}
    monkeypatch.setitem(gpu_suite.OWN, "cuda_graph", lambda output, deadline: 1 / 0)
    assert gpu_suite.run_own("cuda_graph", tmp_path, 5) == 1
    assert "ZeroDivisionError" in (tmp_path / "cuda_graph.error.json").read_text()
    assert not gpu_checks.failed({"x": [{"ok": True}, 1]}) and gpu_checks.failed({"x": [{"correct": False}]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_make_gpu_without_a_gpu_says_one_line():
    result = subprocess.run(
        ["make", "gpu", f"PYTHON={sys.executable}"], cwd=gpu_suite.ROOT, capture_output=True, text=True
    )
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2 and lines[0] == "error: no GPU that torch can use was found"
    assert all(line.startswith("make") for line in lines[1:])


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main([])
    assert capsys.readouterr().err == "error: no GPU that torch can use was found\n"


def test_where_nothing_can_be_written_is_said_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    file = tmp_path / "results"
    file.write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(["--output", str(file)])
    assert f"{file}: expected a folder, found a file" in capsys.readouterr().err
