"""`python train.py` as a user runs it: a whole run, going on after a kill, and what bad input gets."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from unittest import mock

import pytest
import torch

from checkpoints.model_io import load_model
from checkpoints.runs import preflight
from checkpoints.storage import files, writer
from checkpoints.storage.files import directory_bytes
from eval import gates
from eval.__main__ import main as evaluate
from eval.execution import toolchains
from eval.reporting.record import RunRecord
from moe.data.pairs import read_pairs
from moe.inference.questions import read_questions
from moe.training.trainer import Trainer
from tests.random_kills import random_kills
from tests.train_command import CONTEXT, SMALL, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of the embedded default with everything made small."""
    runs = tmp_path_factory.mktemp("runs")
    done = train("--runs", runs, "--name", "small", *SMALL, judge=True)
    return runs / "small", done.stdout


def test_a_run_prints_its_tables_and_writes_everything(finished):
    directory, output = finished
    assert "CodeBLEU and pass@1 on held-out pairs (test)" in output and "base → dense adapter → mixture" in output
    assert "Routing of held-out response tokens" in output and "generate.py" in output
    assert f"report: {directory / 'report.html'} (and report.md)" in output
    for name in (
        "run.json",
        "results.json",
        "report.md",
        "report.html",
        "metrics.csv",
        "model",
        "mixtral",
        "adapter",
        "base",
    ):
        assert (directory / name).exists(), name
    results = json.loads((directory / "results.json").read_text())
    assert results["proof"]["holds"]
    for model in ("base", "mixture", "dense adapter"):
        for language in ("python", "cpp"):
            score = results[f"scores of {model}"]["scores"]["test"][language]
            assert 0 <= score["codebleu"] <= 1 and score["loss"] > 0 and score["answers"] == 2
    rows = (directory / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["pretrain"] * 3 + ["branch"] * 3 + ["mix"] * 2 + ["adapter"] * 5
    events = {path.parent.name for path in (directory / "tensorboard").glob("*/events*")}
    assert events == {"pretrain", "branch", "mix", "adapter"}
    lines = (directory / "answers" / "mixture-test.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 4
    for row in rows:
        assert {"id", "language", "text", "reference", "tests", "answer", "codebleu"} <= set(row)
    assert [sum("verdict" in row for row in rows if row["language"] == x) for x in ("python", "cpp")] == [1, 1]
    counts = results["tests of mixture"]["test"]["python"]
    assert counts["tested"] == 1 and counts["passed"] == 0 and sum(counts["verdicts"].values()) == 1
    losses = [json.loads(line) for line in (directory / "losses" / "mixture-test.jsonl").read_text().splitlines()]
    score = results["scores of mixture"]["scores"]["test"]["cpp"]
    own = [row for row in losses if row["language"] == "cpp"]
    assert sum(row["tokens"] for row in own) == score["tokens"] and len(own) == score["examples"] == 4
    assert sum(row["nats"] for row in own) / score["tokens"] == pytest.approx(score["loss"])
    assert set(results["fingerprints"]) == {"training data", "test sets", "base", "tokenizer"}


def test_answers_go_into_the_commands_that_score_them(finished, capsys, tmp_path):
    """No conversion: CodeBLEU gives the run's numbers again, the judge its verdicts, and generate.py takes the rows."""
    directory, _ = finished
    path = directory / "answers" / "dense-adapter-test.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    assert evaluate(["codebleu", "--pairs", str(path)]) == 0
    again = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["codebleu"] for row in again] == [row["codebleu"] for row in written]
    assert evaluate(["execution", "--pairs", str(path), "--output", str(tmp_path / "verdicts.jsonl")]) == 0
    assert "judged: 4 answers" in capsys.readouterr().err
    verdicts = [json.loads(line)["status"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert all(row.get("verdict", verdict) == verdict for row, verdict in zip(written, verdicts, strict=True))
    questions = read_questions(path)
    assert [q.references for q in questions] == [(row["reference"],) for row in written]
    assert [pair.code for pair in read_pairs(path)] == [row["reference"] for row in written], "never the answers"


def test_other_gates_are_measured_on_a_run(finished, capsys):
    """What the run's settings are already gives its losses, bit by bit; losses that are there are read again."""
    directory, _ = finished
    arguments = gates.build_parser().parse_args([str(directory), "--gates", "each-layer", "entropy"])
    for _ in range(2):
        assert gates.main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.count("each-layer: loss +0.0000 [+0.0000, +0.0000]\n") == 2 and printed.count("entropy: loss") == 2
    assert printed.count("MFLOP per token") == 2
    mixture, again = (RunRecord(directory).losses(name, "test") for name in ("mixture", "gate-each-layer"))
    assert mixture and mixture == again


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory):
    """The folder and the output of a run with the preset's routers, on a machine without g++."""
    runs, which = tmp_path_factory.mktemp("runs"), shutil.which

    def found(tool, *more):
        return None if tool == "g++" else which(tool, *more)

    with mock.patch.object(toolchains.shutil, "which", found):
        done = train("--runs", runs, "--name", "context", *CONTEXT, "--no-baseline", judge=True)
    return runs / "context", done


def test_missing_toolchains_fail_nothing(without_compiler):
    directory, done = without_compiler
    assert "test: no cpp tests were run: g++ not found on the path" in done.stdout
    rows = json.loads((directory / "results.json").read_text())["tests of mixture"]["test"]
    assert rows["cpp"]["tested"] == 0 and rows["python"]["tested"] == 1
    assert re.search(r"C\+\+ .* - → - ", done.stdout)


def test_the_preset_routes_by_context(without_compiler, tmp_path):
    """The router is fitted before training, decides once for all layers, and the model written routes the same way."""
    directory, done = without_compiler
    assert "router fitted: held-out tokens sent to their language" in done.stdout
    assert done.stdout.index("router fitted") < done.stdout.index("branch 1/3")
    loaded = load_model(directory / "model")
    assert (loaded.config.router_context, loaded.config.router_layers) == ("ema", "first")
    assert len([name for name, _ in loaded.model.named_parameters() if name.endswith("gate.weight")]) == 1
    assert not (directory / "mixtral").exists()
    refused = train(*CONTEXT, "--runs", tmp_path, "--name", "merged", "--merge", check=False)
    assert refused.returncode == 2 and "set router_context to none" in refused.stderr
    assert not (tmp_path / "merged").exists()


def test_transformers_reads_what_training_wrote(finished):
    transformers = pytest.importorskip("transformers")

    directory, _ = finished
    ours = load_model(directory / "model")
    theirs = transformers.MixtralForCausalLM.from_pretrained(directory / "mixtral", dtype=torch.float32)
    tokens = torch.tensor([ours.tokenizer.encode("Write a Python function. Return the sum of a list.")])
    with torch.no_grad():
        difference = (ours.model(tokens).logits - theirs(tokens).logits).abs().max()
    assert difference <= 1e-5 * max(1.0, theirs(tokens).logits.abs().max().item())


@pytest.mark.slow
def test_runs_that_are_killed_end_as_an_undisturbed_one(tmp_path):
    """More kills: python -m tests.random_kills."""
    outcome = random_kills(2, tmp_path, seed=3)
    assert outcome.kills.total() == 2 and outcome.runs and not outcome.differences


def test_a_run_goes_on_in_the_middle_of_a_stage(finished, tmp_path, monkeypatch):
    """Killed before its first saved state, then stopped by Ctrl-C: the same results, no step twice in the metrics."""
    directory, _ = finished
    train_step = Trainer.train_step

    def interrupt_at(stage: str, step: int, how) -> None:
        def interrupted(trainer):
            if trainer.stage.name == stage and trainer.step == step:
                how()
            return train_step(trainer)

        monkeypatch.setattr(Trainer, "train_step", interrupted)

    def killed():
        raise KeyboardInterrupt

    interrupt_at("pretrain", 2, killed)
    stopped = train("--runs", tmp_path, "--name", "the run", *SMALL, "--no-baseline", check=False)
    assert stopped.returncode == 130 and f"--resume '{tmp_path / 'the run'}'" in stopped.stdout
    with (tmp_path / "the run" / "metrics.csv").open("a") as file:
        file.write("pretr")  # a row cut short
    interrupt_at("branch", 1, lambda: signal.raise_signal(signal.SIGINT))
    stopped = train("--resume", tmp_path / "the run", check=False)
    assert stopped.returncode == 130 and "saving this step" in stopped.stderr
    assert [path.name for path in (tmp_path / "the run" / "state" / "branch").iterdir()] == ["step-00000002"]
    (tmp_path / "the run" / ".results.json.99999999.tmp").write_text("{")  # left by a kill
    interrupt_at("mix", 0, lambda: signal.raise_signal(signal.SIGTERM))
    stopped = train("--resume", tmp_path / "the run", "--save-minutes", "1", check=False)
    assert stopped.returncode == 143 and "continue with: " in stopped.stdout
    assert json.loads((tmp_path / "the run" / "run.json").read_text())["config"]["save_minutes"] == 1
    interrupt_at("mix", 1, lambda: signal.raise_signal(signal.SIGHUP))
    train("--resume", tmp_path / "the run", "--exit-zero-on-signal")
    assert not list((tmp_path / "the run").glob(".*.tmp"))
    monkeypatch.undo()
    train("--resume", tmp_path / "the run")
    results = [json.loads((place / "results.json").read_text()) for place in (directory, tmp_path / "the run")]
    assert results[0]["scores of mixture"] == results[1]["scores of mixture"]
    rows = [row.split(",")[:2] for row in (tmp_path / "the run" / "metrics.csv").read_text().splitlines()]
    assert rows[0] == ["stage", "step"] and len(rows) == 9 and len({tuple(row) for row in rows}) == 9


_HOLD = (
    "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); input()"
)


def test_one_process_trains_a_run(finished):
    directory, _ = finished
    held = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(directory / "run.json")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert held.stdout.readline() == b"held\n"
        done = train("--resume", directory, check=False)
    finally:
        held.communicate()
    assert done.returncode == 2 and "being trained by another process" in done.stderr
    assert "write code with it" in train("--resume", directory).stdout


def test_a_run_that_diverges_says_what_to_lower_and_goes_on_with_it(tmp_path):
    """A learning rate of 1e6 makes the loss useless after one step; the run goes on from before it."""
    stopped = train(
        "--runs", tmp_path, "--name", "d", *SMALL, "--pretrain-lr", "1e6", "--pretrain-steps", "30", check=False
    )
    assert stopped.returncode == 2 and re.search(
        r"warning: pretrain, step 2 skipped, the (loss|gradient) is (not finite|[\d.]+ after a mean of)",
        stopped.stdout,
    )
    assert "set a lower pretrain_lr" in stopped.stderr and stopped.stderr.count("\n") == 1
    (command,) = re.findall(r"continue with: python .*--resume (.*)\n", stopped.stdout)
    assert command == f"{tmp_path / 'd'} --pretrain-lr 3.3e+05"
    stopped = train("--resume", tmp_path / "d", "--pretrain-lr", "1e-3", "--mix-lr", "nan", check=False)
    assert stopped.returncode == 2 and "finite" in stopped.stderr
    stopped = train("--resume", tmp_path / "d", "--mix-steps", "3", check=False)
    assert stopped.returncode == 2 and "leave the others out (but --pretrain-lr --branch-lr --mix-lr" in stopped.stderr


def test_the_disk_that_is_asked_for_at_the_start_is_enough(tmp_path, monkeypatch):
    """On a disk with exactly that much room a run gets through; with less it does not start."""
    room: list[int] = []

    def need(path, needed, *_):
        used = directory_bytes(tmp_path)
        room.append(needed) if not room else None
        assert needed <= room[0] - used, f"{path} needs {needed} bytes, {room[0] - used} are left"

    for module in (preflight, files, writer):
        monkeypatch.setattr(module, "require_free_space", need)
    train("--runs", tmp_path, "--name", "full", *SMALL, "--validation-steps", "1", "--validation-pairs", "2")
    assert room[0] > 3 << 26


def test_full_experts_and_settings_without_effect(tmp_path):
    """Full experts, two batches a step, activations computed again; what does nothing in such a run is said."""
    flags = "--expert-form full --accumulate 2 --activation-checkpointing --merge --no-baseline".split(" ")
    done = train("--runs", tmp_path, "--name", "full", *SMALL, *flags)
    assert "merge has no effect: full experts are written" in done.stderr
    assert "expert_rank has no effect" in done.stderr and "pretrain_steps" not in done.stderr
    results = json.loads((tmp_path / "full" / "results.json").read_text())
    assert results["proof"]["holds"]
    assert results["scores of mixture"]["scores"]["test"]["cpp"]["left_out"] == 0
    config = json.loads((tmp_path / "full" / "model" / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert not (tmp_path / "full" / "adapter").exists()


@pytest.mark.parametrize("form", ["delta", "full"])
def test_experts_in_some_layers(tmp_path, form):
    flags = ["--moe-layers", "1,3", "--expert-form", form, "--base-id", "org/small-base"]
    done = train("--runs", tmp_path, "--name", "some", *SMALL, *flags)
    results = json.loads((tmp_path / "some" / "results.json").read_text())
    assert results["proof"]["holds"]
    config = json.loads((tmp_path / "some" / ("model" if form == "full" else "mixtral") / "config.json").read_text())
    assert config["moe_layers"] == [1, 3]
    information = results["scores of mixture"]["specialization"]["information"]
    assert len(information) == 2, "one value for each layer with a router"
    assert "parameters in layers 1, 3 of 4: max" in done.stdout
    for model in ("model", "adapter") if form == "full" else ("model", "adapter", "mixtral"):
        assert 'base_model: "org/small-base"' in (tmp_path / "some" / model / "README.md").read_text()


def test_a_router_that_cannot_learn_is_told(tmp_path):
    done = train("--dry-run", "--runs", tmp_path, *SMALL, "--num-experts-per-tok", "1", "--no-mix-trains-experts")
    assert "router learns to balance alone" in done.stderr


def test_runs_that_cannot_be_resumed(tmp_path):
    for settings, message in (({}, "no settings"), ({"config": {"branch_stepz": 1}}, "did you mean 'branch_steps'")):
        (tmp_path / "run.json").write_text(json.dumps(settings))
        done = train("--resume", tmp_path, check=False)
        assert done.returncode == 2 and message in done.stderr, done.stderr
    (tmp_path / "file").write_text("")
    done = train("--runs", tmp_path / "file" / "deeper", *SMALL, check=False)
    assert done.returncode == 2 and "--runs" in done.stderr


def test_a_run_of_an_earlier_version_says_what_to_rename(finished, tmp_path):
    settings = json.loads((finished[0] / "run.json").read_text())
    settings["config"]["warmup"] = settings["config"].pop("warmup_ratio")
    (tmp_path / "run.json").write_text(json.dumps(settings))
    done = train("--resume", tmp_path, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"{tmp_path}/run.json is of an older version" in done.stderr
    assert "rename in that file 'warmup' to 'warmup_ratio'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "1e-4"], "--lr: each part has its own learning rate: --branch-lr (experts) and --mix-lr (router)"),
        (["--learning-rate=1e-4"], "--branch-lr (experts) and --mix-lr"),
        (["--batch-size", "8"], "--tokens-per-batch N"),
        (["--output", "somewhere"], "--runs DIR and --name TEXT"),
        (["--output-dir", "somewhere"], "--runs DIR and --name TEXT"),
        (["--epochs", "0"], "expected a number above 0"),
        (["--epochs", "many"], "expected a number above 0"),
        (["--warmup", "0.1"], "--warmup: it is now called --warmup-ratio"),
        (["--experts-per-token", "2"], "--num-experts-per-tok"),
        (["--layers", "1-3"], "--moe-layers"),
        (["--form", "full"], "--expert-form"),
        (["--eval-batch", "8"], "--eval-batch-size"),
        (["--recompute"], "--recompute: it is now called --activation-checkpointing"),
        (["--no-recompute"], "--no-activation-checkpointing"),
        (["--set", "clip=1"], "the setting 'clip' is now called 'max_grad_norm'"),
        (["--set", "epochs=3"], "unknown setting 'epochs'"),
        (["--test-sets", "auto", "test"], "expected auto alone"),
        (["--branch-stepz", "3"], "did you mean '--branch-steps'"),
        (["--preset", "tinny"], "invalid choice: 'tinny'"),
        (["--config", "missing.toml"], "no such file"),
        (["--set", "branch_stepz=3"], "did you mean 'branch_steps'"),
        (["--set", "branch_steps"], "expected NAME=VALUE"),
        (["--branch-steps", "many"], "expected a whole number"),
        (["--branch-steps", "-4"], "no negative number"),
        (["--languages", "python", "cobol"], "unknown language 'cobol'"),
        (["--languages", "python", "C++"], "did you mean 'cpp'"),
        (["--languages", "python", "python"], "twice"),
        (["--num-experts-per-tok", "9"], "expected 1 to the number of languages"),
        (["--data", "missing"], "missing"),
        (["--preset", "mistral-7b-24gb"], "--data DIR"),
        (["--resume", "missing"], "is not a run"),
        (["--resume", ""], "--resume is empty"),
        (["--config", ""], "--config is empty"),
        (["--device", "cuda:99"], "choose cpu or auto"),
        (["--max-tokens", "8"], "fits into 8 tokens"),
        (["--max-tokens", "9999"], "more than tokens_per_batch"),
        (["--test-sets", "nowhere"], "no split 'nowhere'"),
        (["--set", "test_sets="], "at least one split"),
        (["--seed", "99999999999999999999999"], "below 2**63"),
        (["--warmup-ratio", "nan"], "finite number"),
        (["--warmup-ratio", "1.5"], "between 0 and 1"),
        (["--template", "alpaca"], "alpaca"),
        (["--max-tokens", "1"], "token"),
        (["--expert-form", "full", "--dtype", "bfloat16"], "add --dtype float32"),
        (["--moe-layers", "3-9"], "this model has the layers 0 to 3"),
        (["--moe-layers", "upper"], "'upper' is not a layer"),
        (["--dtype", "float16"], "expected bfloat16 or float32"),
        (["--base-id", "mistral"], "expected ORG/NAME"),
        (["--attention-experts", "q,x"], "attention_experts names 'x', expected some of q, k, v, o"),
        (["--attention-experts", "q"], "attention_experts are low-rank deltas, and merge makes full experts"),
        (
            ["--no-merge", "--expert-form", "full", "--attention-experts", "q"],
            "and expert_form full makes full experts",
        ),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    given = [] if "--resume" in arguments else ["--runs", tmp_path / "runs", "--name", "x", *SMALL]
    done = train(*given, *arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs" / "x").exists()


def test_a_run_that_exists_is_not_overwritten(finished):
    directory, _ = finished
    before = (directory / "results.json").read_bytes()
    done = train("--runs", directory.parent, "--name", "small", *SMALL, check=False)
    assert done.returncode == 2 and "exists" in done.stderr and "--resume" in done.stderr
    assert (directory / "results.json").read_bytes() == before


def test_help_names_every_setting_with_its_default():
    done = train("--help")
    for flag in ("--branch-steps", "--no-baseline", "--expert-rank", "--dry-run", "--set", "--resume", "--preset"):
        assert flag in done.stdout
    assert "(default: 16" in done.stdout
