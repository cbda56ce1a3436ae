"""`python train.py --add-language`: a finished mixture gains an expert, and nothing else of it changes."""

from __future__ import annotations

import json
import re

import pytest
import torch

from checkpoints.model_io import load_model
from moe.training.trainer import Trainer
from tests.train_command import CONTEXT, SMALL, train

WORSE = 1  # exit code of a run whose mixture, after five steps, may not be better than its base
FULL = [*SMALL, "--expert-form", "full", "--no-merge"]


@pytest.fixture(scope="module", params=["delta", "full"])
def runs(request, tmp_path_factory):
    """A run for two languages and, in the same folder, the one that gave it a third."""
    place = tmp_path_factory.mktemp("runs")
    settings = [*CONTEXT, "--attention-experts", "q,v"] if request.param == "delta" else FULL
    done = [train("--runs", place, "--name", "old", *settings, "--no-baseline", check=False)]
    done += [train("--runs", place, "--name", "new", "--add-language", "java", "--to", place / "old", check=False)]
    assert all(one.returncode in (0, WORSE) for one in done), done[-1].stderr
    return place


def test_old_experts_do_not_change(runs):
    old, new = (load_model(runs / name / "model") for name in ("old", "new"))
    assert new.config.expert_languages == ("python", "cpp", "java") and new.template == old.template
    for name, parameter in old.model.named_parameters():
        found = new.model.get_parameter(name)
        assert torch.equal(found[: len(parameter)] if found.shape != parameter.shape else found, parameter), name
    tokens = torch.randint(0, old.config.vocab_size, (2, 30), generator=torch.Generator().manual_seed(1))
    for expert in range(2):
        forced = torch.full((tokens.numel(),), expert)
        with torch.no_grad():
            logits = [loaded.model(tokens, forced_experts=forced).logits for loaded in (old, new)]
        assert torch.equal(*logits)
    learned = [p for name, p in new.model.named_parameters() if name.endswith(("deltas.b2", "deltas.bv", "experts.w2"))]
    assert learned and all((p[-1] != 0).any() and not torch.equal(p[-1], p[0]) for p in learned)


@pytest.mark.parametrize("runs", ["delta"], indirect=True)
def test_the_run_is_a_run_like_any_other(runs):
    results = json.loads((runs / "new" / "results.json").read_text())
    before, after = (results[f"scores of {name}"]["scores"]["test"] for name in ("base", "mixture"))
    assert list(before) == list(after) == ["python", "cpp", "java"]
    assert len(results["router_accuracy"]) == len(load_model(runs / "new" / "model").config.router_places)
    output = train("--resume", runs / "new", check=False).stdout
    assert "write code with it" in output
    card = (runs / "new" / "model" / "README.md").read_text()
    assert "| training | pairs in Python, C++; then pairs in Java, for a new expert |" in card
    plan = ("--epochs", 2, "--dry-run", "--tokens-per-second", 1000)
    planned = train("--runs", runs, "--name", "plan", "--add-language", "java", "--to", runs / "old", *plan).stdout
    batches = int(re.search(r"one pass over the data is (\d+) batches", output)[1])
    steps = int(re.search(r"steps: 3 branch, (\d+) mix", planned)[1])
    assert batches < 10 and abs(2 * batches - 3 - steps) <= 1, "a pass over the new language's pairs"


@pytest.mark.parametrize("runs", ["delta"], indirect=True)
def test_an_interrupted_one_ends_as_an_undisturbed_one(runs, monkeypatch):
    step = Trainer.train_step

    def interrupted(trainer):
        if trainer.stage.name == "mix" and trainer.step == 1:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    again = ("--runs", runs, "--name", "again", "--add-language", "java", "--to", runs / "old")
    assert train(*again, check=False).returncode == 130
    monkeypatch.undo()
    assert train("--resume", runs / "again", check=False).returncode in (0, WORSE)
    one, other = (load_model(runs / name / "model").model for name in ("new", "again"))
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


@pytest.mark.parametrize("runs", ["delta"], indirect=True)
def test_mistakes(runs, tmp_path):
    for arguments, message in (
        (("--add-language", "java"), "--add-language LANGUAGE and --to RUN go together"),
        (("--to", runs / "old"), "--add-language LANGUAGE and --to RUN go together"),
        (("--add-language", "cpp", "--to", runs / "old"), "has an expert for cpp already"),
        (("--add-language", "jawa", "--to", runs / "old"), "did you mean 'java'?"),
        (("--add-language", "java", "--to", tmp_path), "is not a run"),
        (("--add-language", "java", "--to", runs / "old", "--preset", "tiny"), "leave --config and --preset out"),
        (("--add-language", "java", "--to", runs / "old", "--expert-rank", "3"), "expert_rank is the mixture's"),
        (("--add-language", "go", "--to", runs / "old"), "go"),
    ):
        done = train("--runs", tmp_path, "--name", "x", *arguments, check=False)
        assert done.returncode == 2 and message in done.stderr, (arguments, done.stderr)
        assert not (tmp_path / "x").exists()
