"""The GPU suite as far as a machine without a GPU shows it: all parts run in toy sizes, are kept apart and resume."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import pytest
import torch

from eval import gpu_parts, gpu_results, gpu_suite
from eval.processes import Part
from kernels.bench import gpu, gpu_checks


def python(name: str, code: str, seconds: float = 60) -> Part:
    return Part(name, seconds, [sys.executable, "-c", code])


def arguments(*given: str):
    return gpu_suite.make_parser().parse_args(given)


@pytest.mark.parametrize("name", sorted(set(gpu_parts.OWN) - {"smollm2"}))
def test_every_part_runs_in_smoke_mode(name, tmp_path):
    given = arguments("--smoke", "--part", name, "--output", str(tmp_path))
    assert gpu_suite.suite(given) == 0
    result = json.loads((tmp_path / f"{name}.json").read_text())
    assert result and not gpu_checks.failed(result) and not (tmp_path / f"{name}.error.json").exists()
    if name == "benchmark":
        assert "| target | measured |" in (tmp_path / "targets.md").read_text()
        assert (tmp_path / "benchmark.png").stat().st_size > 1000
        assert [row["phase"] for row in result["rows"]] == list(gpu.PHASES) and not result["left_out"]
        for row in result["rows"]:
            assert row["correct"] and ("dense" in row["ms"]) == ("delta" in row["phase"])
            assert ("transformers grouped_mm" in row["ms"]) == row["phase"].startswith("bf16")
        json.dumps(result, allow_nan=False)
    if name == "tiles":
        assert json.loads((tmp_path / "sm_90.table.json").read_text())["table"]


def test_correctness_takes_a_process_for_small_cases_and_none_for_large_ones(tmp_path, monkeypatch):
    cases = [gpu_checks.Case("experts", 3, 16, 24), gpu_checks.Case("int4 experts", 2, 4096, 128)]
    monkeypatch.setattr(gpu_checks, "cases", lambda quick: cases)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    given = arguments("--part", "correctness", "--output", str(tmp_path))
    assert gpu_parts.run_own("correctness", given, torch.device("cpu")) == 0
    found = json.loads((tmp_path / "correctness.json").read_text())
    assert list(found) == [str(case) for case in cases] and all(entry["ok"] for entry in found.values())


def test_checks_stop_in_time_and_say_what_is_missing(tmp_path):
    def check():
        yield "a", {"ok": True}
        raise AssertionError("went on")

    setting = gpu_parts.Setting(tmp_path, 0.0, torch.device("cpu"), False, False, None, None)
    found = gpu_parts._collect(setting, "graphs", [check()])
    assert found == {"a": {"ok": True}, "left_out": "what follows a: no time"}

    def breaks():
        yield "b", {"ok": True}
        raise RuntimeError("no graph")

    found = gpu_parts._collect(
        setting._replace(deadline=float("inf")), "graphs", [breaks(), iter([("c", {"ok": True})])]
    )
    assert found["b"]["ok"] and found["c"]["ok"] and "no graph" in found["error 1"]["error"]
    assert gpu_checks.failed(found)


def test_every_part_is_planned_and_its_command_exists(tmp_path):
    pairs = ["--base", __file__, "--data", str(tmp_path)]
    full = gpu_suite.chosen(arguments(*pairs), set())
    assert [name for name, _ in full] == list(gpu_suite.LIMITS) and set(gpu_parts.OWN) < set(gpu_suite.LIMITS)
    assert sum(seconds for _, seconds in full) < 8 * 60
    quick = gpu_suite.chosen(arguments("--quick", *pairs), set())
    assert [name for name, _ in quick] == ["correctness", "benchmark", "training_step", "generation"]
    assert "smollm2" not in dict(gpu_suite.chosen(arguments(), set()))
    assert gpu_suite.chosen(arguments("--only", "smollm2"), set()) == [("smollm2", 480.0)]
    for name, seconds in full:
        for mode in ([], ["--quick"], ["--smoke"]):
            command = gpu_suite.part_of(name, arguments(*pairs, *mode), tmp_path, seconds).command
            module = command[2]
            if module == "eval.gpu_suite":
                parsed = arguments(*command[3:])
                assert parsed.part == name and parsed.seconds == seconds - 8 and parsed.base == __file__
            elif module != "pytest":
                assert module in ("eval.training_step", "eval.generation_speed") and command[4:] == mode


def test_training_takes_its_flags_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    from train import given_settings, make_parser

    commands, codes = [], iter([0, 130])

    def train(command, cwd):
        commands.append(command)
        (tmp_path / command[command.index("--name") + 1]).mkdir()
        (tmp_path / command[command.index("--name") + 1] / "run.json").write_text("{}")
        return subprocess.CompletedProcess(command, next(codes))

    monkeypatch.setattr(subprocess, "run", train)
    given = arguments("--part", "smollm2", "--output", str(tmp_path), "--base", "base.whl", "--data", "pairs")
    assert gpu_parts.run_own("smollm2", given, torch.device("cpu")) == 0
    found = json.loads((tmp_path / "smollm2.json").read_text())
    first, second = (command[command.index("--name") + 1] for command in commands)
    assert found[first] == "finished" and found[second].startswith("stopped")
    parsed = make_parser().parse_args(commands[1][2:])
    settings = given_settings(parsed)
    assert settings["base"] == "base.whl" and settings["data"] == "pairs" and settings["branch_lr"] == 2e-3
    tiny = make_parser().parse_args([*gpu_parts.TINY])
    assert given_settings(tiny)["mix_steps"] == 1

    resumed = []
    monkeypatch.setattr(subprocess, "run", lambda command, cwd: resumed.append(command) or train_stops(command))
    gpu_parts.run_own("smollm2", given, torch.device("cpu"))
    assert resumed[0][2:] == ["--resume", str(tmp_path / second)]  # the first is finished


def test_a_run_at_its_limit_is_noted_and_one_that_fails_costs_no_other(tmp_path, monkeypatch):
    """Ctrl-C reaches the part and train.py; a part that left at once would kill it before it has saved."""
    given = arguments("--part", "smollm2", "--output", str(tmp_path), "--base", "base.whl", "--data", "pairs")
    codes = iter([2, 0, 130])

    def train(command, cwd):
        code = next(codes)
        if code == 130:
            os.kill(os.getpid(), signal.SIGINT)
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr(subprocess, "run", train)
    with pytest.raises(KeyboardInterrupt):
        gpu_parts.run_own("smollm2", given, torch.device("cpu"))
    found = json.loads((tmp_path / "smollm2.json").read_text())
    names = [f"smollm2-lr{rate:g}-seed{seed}" for seed, rate in gpu_parts.SMOLLM2_RUNS[:3]]
    states = [found[name].split(";")[0] for name in names]
    assert states == ["stopped (exit code 2)", "finished", "stopped (exit code 130)"] and len(found) == 3
    codes = iter([2, *[0] * 9])
    assert gpu_parts.run_own("smollm2", given, torch.device("cpu")) == 1
    assert json.loads((tmp_path / "smollm2.json").read_text())["ok"] is False


def train_stops(command):
    return subprocess.CompletedProcess(command, 130)


def test_a_part_that_hangs_or_dies_costs_no_other(tmp_path, capsys):
    nested = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)'])"
    saves = "import time\ntry:\n    time.sleep(99)\nexcept KeyboardInterrupt:\n    print('saved')"
    parts = [
        python("hangs", nested, 2),
        python("saves", saves, 4),
        python("dies", "import os, signal; print('so far', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"),
        python("fails", "raise SystemExit(3)"),
        python("works", "print('fine')"),
    ]
    begin = time.monotonic()
    summary = {"parts": {}}
    archive = tmp_path / "results.tar.gz"
    assert not gpu_suite.run_parts(parts, tmp_path, begin + 120, summary, archive)
    assert time.monotonic() - begin < 60
    found = json.loads((tmp_path / "summary.json").read_text())["parts"]
    assert found["hangs"]["status"] == "stopped at its limit of 2 s"
    assert found["saves"]["status"].startswith("stopped") and "saved" in (tmp_path / "saves.log").read_text()
    assert found["dies"]["status"] == "failed (exit code -11)" and found["dies"]["last_lines"] == ["so far"]
    assert found["fails"]["status"] == "failed (exit code 3)" and found["works"]["status"] == "ok"
    assert (tmp_path / "works.log").read_text() == "fine\n" and "hangs: stopped" in capsys.readouterr().out
    with tarfile.open(archive) as packed:
        assert {"summary.json", "works.log", "hangs.log"} < set(packed.getnames())


def test_parts_without_time_are_left_out_and_a_second_call_skips_what_passed(tmp_path):
    summary = {"parts": {}}
    archive = tmp_path / "results.tar.gz"
    assert gpu_suite.run_parts([python("late", "1")], tmp_path, time.monotonic() + 10, summary, archive)
    assert summary["parts"]["late"]["status"] == "left out: no time"
    rest = [name for name, _ in gpu_suite.chosen(arguments(), {"correctness", "benchmark"})]
    assert "benchmark" not in rest and rest[0] == "graphs"


def test_the_command_runs_a_part_notes_it_and_resumes(tmp_path, capsys):
    given = ["--smoke", "--output", str(tmp_path), "--archive", str(tmp_path / "all.tar.gz")]
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "summary.json").write_text('{"parts": {"graphs": {"status": "ok"}}}')
    assert gpu_suite.main([*given, "--only", "sm86_through_the_driver"]) == 0
    out = tmp_path / "smoke"
    assert json.loads((out / "summary.json").read_text())["parts"]["sm86_through_the_driver"]["status"] == "ok"
    assert "| graphs | ok |" in (out / "gpu.md").read_text()  # of an earlier call
    assert "| sm86_through_the_driver | ok |" in (out / "gpu.md").read_text() and (tmp_path / "all.tar.gz").is_file()
    assert str(tmp_path / "all.tar.gz") in capsys.readouterr().out


def split(tmp_path, content: bytes):
    whole = tmp_path / "base.whl"
    pieces = [tmp_path / f"base.whl.a{letter}" for letter in "ab"]
    for piece, half in zip(pieces, (content[:5], content[5:]), strict=True):
        piece.write_bytes(half)
    (tmp_path / "base.whl.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  base.whl\n")
    return whole, pieces


def test_pieces_are_joined_and_verified(tmp_path):
    _, pieces = split(tmp_path, b"0123456789")
    output = tmp_path / "out"
    output.mkdir()
    joined = gpu_suite.join_parts(pieces, output)
    assert joined.name == "base.whl" and joined.read_bytes() == b"0123456789"
    assert gpu_suite.join_parts(pieces, output) == joined  # a later call has the whole
    joined.write_bytes(b"other")
    with pytest.raises(gpu_suite.UserError, match="sha256"):
        gpu_suite.join_parts(pieces, output)
    with pytest.raises(gpu_suite.UserError, match=r"base\.whl: the 2 pieces have sha256"):
        gpu_suite.join_parts(pieces[::-1], output)
    assert not joined.exists()
    with pytest.raises(gpu_suite.UserError, match="no such file; --base-parts takes"):
        gpu_suite.join_parts([pieces[0], tmp_path / "base.whl.az"], output)
    (tmp_path / "base.whl.sha256").unlink()
    with pytest.raises(gpu_suite.UserError, match=r"base\.whl\.sha256 is missing: write it with `sha256sum base\.whl"):
        gpu_suite.join_parts(pieces, output)


def test_the_summary_projects_an_a10g_from_shares(tmp_path):
    side = {"tokens_per_second": 5000.0, "tflops": 250.0}
    training = {"peaks": {"bf16": 500e12}, "limit_gib": 21.5, "bf16": {"mix": side}, "peft": {"error": "no memory"}}
    step = {"tokens_per_second": 100.0, "ms": 10.0, "gbytes": 6.0, "bandwidth_share": 0.5}
    for name, value in {"training_step": training, "generation": {"int4 experts": {"1 sequences": step}}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    text = gpu_results.write_summary(tmp_path)
    numbers = gpu_results.projection({"training_step": training, "generation": {"int4 experts": {"1 sequences": step}}})
    assert numbers["decode_tokens_per_second"] == pytest.approx(600e9 * 0.5 / 6e9)
    assert numbers["training_tokens_per_second"] == pytest.approx(5000 * 35 / 250)
    assert numbers["training_hours"] == pytest.approx(40_000 * 600 / 700 / 3600)
    assert "PROJECTED" in text and "| bf16 | 5000 | 50% | - | - |" in text and "no memory" in text


def test_what_a_gpu_machine_runs_needs_no_optional_package(root):
    code = (
        "import sys\n"
        "for name in 'sentencepiece tokenizers transformers matplotlib tree_sitter gguf peft pytest'.split():\n"
        "    sys.modules[name] = None\n"
        "import eval.training_step, eval.generation_speed, eval.gpu_suite, kernels.bench.ptx_jit\n"
        "import kernels.compile_check, kernels.benchmark, train, generate\n"
        "assert not kernels.benchmark.plot({'rows': []}, None)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_a_failing_check_is_written_and_reported(tmp_path, monkeypatch):
    given = arguments("--output", str(tmp_path), "--smoke")
    monkeypatch.setitem(gpu_parts.OWN, "correctness", lambda setting: {"a": {"ok": False}})
    assert gpu_parts.run_own("correctness", given, torch.device("cpu")) == 1
    assert json.loads((tmp_path / "correctness.json").read_text()) == {"a": {"ok": False}}
    monkeypatch.setitem(gpu_parts.OWN, "graphs", lambda setting: 1 / 0)
    assert gpu_parts.run_own("graphs", given, torch.device("cpu")) == 1
    assert "ZeroDivisionError" in (tmp_path / "graphs.error.json").read_text()
    assert not gpu_checks.failed({"x": [{"ok": True}, 1]}) and gpu_checks.failed({"x": [{"correct": False}]})


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_make_gpu_without_a_gpu_says_one_line(root):
    command = ["make", "gpu", f"PYTHON={sys.executable}", "ARGS=--quick"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2
    assert lines[0] == "error: no GPU that torch can use was found; --smoke tries everything on the CPU"
    assert all(line.startswith("make") for line in lines[1:])


def test_where_nothing_can_be_written_is_said_first(tmp_path, monkeypatch, capsys):
    file = tmp_path / "results"
    file.write_text("mine")
    for flags in (["--output", str(file)], ["--output", str(tmp_path), "--archive", str(file / "a.tar.gz")]):
        with pytest.raises(SystemExit, match="2"):
            gpu_suite.main(["--smoke", *flags])
        assert "name another one with" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(["--smoke", "--output", str(tmp_path), "--data", str(tmp_path / "none")])
    assert "--data: " in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_suite, "describe", lambda device: {})
    with pytest.raises(SystemExit, match="2"):
        gpu_suite.main(["--output", str(tmp_path), "--only", "smollm2"])
    assert "smollm2 trains on pairs: add --base" in capsys.readouterr().err and file.read_text() == "mine"
