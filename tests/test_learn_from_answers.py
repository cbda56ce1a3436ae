"""`python train.py --preferences FILE` or `--learn-from-tests`, `--to RUN`: a finished mixture learns from answers."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints.__main__ import main as checkpoints
from checkpoints.model_io import load_model
from moe.data.synthetic import generate_pairs
from moe.files import write_json_lines
from moe.training.interrupt import Interrupted
from moe.training.trainer import Trainer
from tests.train_command import CONTEXT, train

WORSE = 1  # exit code of a run whose mixture, after five steps, may not be better than its base
LEARN = ("--policy-steps", 3, "--tasks-per-step", 2, "--policy-lr", "1e-2")


def preferences(path, language="python"):
    pairs = generate_pairs(language, 12)
    rows = [
        {"id": x.id, "language": language, "prompt": x.text, "chosen": x.code, "rejected": y.code}
        for x, y in zip(pairs[:6], pairs[6:])
    ]
    write_json_lines(path, rows)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run for two languages and, in the same folder, the one that taught it preferences in one."""
    place = tmp_path_factory.mktemp("runs")
    done = train("--runs", place, "--name", "old", *CONTEXT, "--no-baseline", check=False)
    assert done.returncode in (0, WORSE), done.stderr
    file = preferences(place / "p.jsonl")
    train(
        "--runs", place, "--name", "new", "--preferences", file, "--to", place / "old", *LEARN, "--validation-steps", 1
    )
    return place


def test_only_the_expert_of_the_language_changes(runs):
    old, new = (load_model(runs / name / "model") for name in ("old", "new"))
    assert new.config == old.config and new.template == old.template
    for name, parameter in old.model.named_parameters():
        found = new.model.get_parameter(name)
        if ".expert_deltas." in name:
            assert torch.equal(found[1], parameter[1]) and not torch.equal(found[0], parameter[0]), name
        else:
            assert torch.equal(found, parameter), name


def test_the_run_is_a_run_like_any_other(runs, capsys):
    results = json.loads((runs / "new" / "results.json").read_text())
    before, after = (results[f"scores of {name}"]["scores"]["test"] for name in ("base", "mixture"))
    assert before["python"]["loss"] != after["python"]["loss"]
    rows = [line.split(",") for line in (runs / "new" / "metrics.csv").read_text().splitlines()]
    assert [row[0] for row in rows[1:]] == ["preferences"] * 3 and {"margin", "preferred"} <= set(rows[0])
    card = (runs / "new" / "model" / "README.md").read_text()
    assert "| preferences | p.jsonl |" in card and "| policy lr | 0.01 |" in card
    assert "write code with it" in train("--resume", runs / "new").stdout
    assert json.loads((runs / "new" / "run.json").read_text())["config"]["validation_steps"] == 0
    for command in (
        ["extract", runs / "new", runs / "out" / "dense", "--language", "cpp"],
        ["adapters", runs / "new", runs / "out" / "adapters"],
        ["quantize", runs / "new", runs / "out" / "int4", "--no-perplexity"],
        ["remove-language", runs / "new", runs / "out" / "one", "--language", "cpp"],
    ):
        assert checkpoints([str(x) for x in command]) == 0, command
        card = next((runs / "out").joinpath(command[2].name).rglob("README.md")).read_text()
        assert "pairs in Python, C++; then preferences (DPO)" in card and "answers" not in card, "no scores of another"
    assert checkpoints(["verify", str(runs / "out" / "int4")]) == checkpoints(["inspect", str(runs / "new")]) == 0
    assert "training          pairs in Python, C++; then preferences (DPO)" in capsys.readouterr().out


def test_a_mixture_learns_from_tests_and_resumes(runs, monkeypatch):
    judged, step = [], Trainer.train_step

    def judge(answers):
        judged.append(len(answers))
        return [len(text) % 2 for _, text in answers]

    def interrupted(trainer):
        if trainer.step == 1:
            raise Interrupted(15)
        return step(trainer)

    monkeypatch.setattr("eval.rewards.shares_of_tests", judge)
    monkeypatch.setattr(Trainer, "train_step", interrupted)
    settings = (*LEARN, "--group-size", 2, "--max-new-tokens", 4, "--save-minutes", 0)
    new = ("--runs", runs, "--name", "tested", "--learn-from-tests", "--to", runs / "old", *settings)
    assert train(*new, check=False).returncode == 143
    monkeypatch.setattr(Trainer, "train_step", step)
    train("--resume", runs / "tested")
    assert len(judged) == 2  # answers for steps 1 and 2, and for step 3
    rows = (runs / "tested" / "metrics.csv").read_text().splitlines()
    assert {"reward", "passed_cpp", "seconds_judging"} <= set(rows[0].split(","))
    assert [row.split(",")[:2] for row in rows[1:]] == [["tests", str(n)] for n in (1, 2, 3)]
    card = (runs / "tested" / "model" / "README.md").read_text()
    assert "| training | pairs in Python, C++; then its own answers, judged by tests (GRPO) |" in card
    assert "| learn from tests | True |" in card and "| group size | 2 |" in card


def test_mistakes(runs, tmp_path):
    good, empty, foreign = (tmp_path / name for name in ("good.jsonl", "empty.jsonl", "foreign.jsonl"))
    preferences(good)
    empty.write_text("")
    preferences(foreign, "java")
    data = tmp_path / "data"
    for split, language in ((split, x) for split in ("train", "test") for x in ("python", "cpp")):
        rows = [{"language": language, "text": x.text, "code": x.code} for x in generate_pairs(language, 4, 0, split)]
        write_json_lines(data / split / f"{language}.jsonl", rows)
    full = tmp_path / "full"
    full.mkdir()
    settings = json.loads((runs / "old" / "run.json").read_text())
    settings["config"]["expert_form"] = "full"
    (full / "run.json").write_text(json.dumps(settings))
    (full / "model").mkdir()
    (full / "model" / "config.json").write_text("{}")
    to = ("--to", runs / "old")
    for arguments, message in (
        (("--preferences", good), "--preferences and --to RUN go together"),
        (("--preferences", empty, *to), "holds no preferences"),
        (("--preferences", tmp_path / "none.jsonl", *to), "no such file"),
        (("--preferences", foreign, *to), "line 1: language is 'java', which the mixture has no expert for"),
        (("--preferences", good, "--to", full), "the run has full experts"),
        (("--preferences", good, "--to", tmp_path), "is not a run"),
        (("--preferences", good, "--learn-from-tests", *to), "give one of them"),
        (("--preferences", good, "--add-language", "java", *to), "give one of them"),
        (("--preferences", good, "--epochs", "1", *to), "--policy-steps N"),
        (("--preferences", good, "--languages", "cpp", *to), "languages is the mixture's"),
        (("--preferences", good, "--policy-steps", "0.5", *to), "expected a whole number"),
        (("--preferences", good, *to, "--preset", "tiny"), "leave --config and --preset out"),
        (("--learn-from-tests",), "--learn-from-tests and --to RUN go together"),
        (("--learn-from-tests", "--group-size", "1", *to), "expected at least 2 answers"),
        (("--learn-from-tests", "--data", data, *to), "no training pair of"),
    ):
        done = train("--runs", tmp_path, "--name", "x", *arguments, check=False)
        assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)
        assert len(done.stderr.strip().splitlines()) <= 2 and not (tmp_path / "x").exists()
