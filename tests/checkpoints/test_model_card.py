"""Model cards: languages, base, recipe, scores and licence where they are known, and plain words where they are not."""

from __future__ import annotations

import json

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.card_facts import base_license, run_facts
from checkpoints.formats import open_checkpoint
from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.model_card import model_card
from checkpoints.model_io import save_model
from checkpoints.transforms.upcycle import upcycle_model

LANGUAGES = ("python", "cpp")


def scores(python: float, cpp: float) -> dict:
    found = {"python": {"codebleu": python, "answers": 10}, "cpp": {"codebleu": cpp, "answers": 12}}
    return {"scores": {"test": found}, "specialization": {}}


@pytest.fixture
def run(tmp_path, mistral_directory, make_model, tiny_config):
    """A training run's directory as train.py leaves it, with its model."""
    (mistral_directory / "README.md").write_text("---\nlicense: apache-2.0\ntags:\n- x\n---\n# base\n")
    directory = tmp_path / "run"
    directory.mkdir()
    config = {"form": "delta", "expert_rank": 4, "branch_steps": 300, "seed": 7, "data": "/somewhere/private/pairs"}
    (directory / "run.json").write_text(json.dumps({"config": config, "date": "2026-11-24", "command": "secret"}))
    results = {"scores of base": scores(0.1, 0.2), "scores of mixture": scores(0.3, 0.4)}
    (directory / "results.json").write_text(json.dumps(results))
    mixture = upcycle_model(make_model(tiny_config, dtype=torch.float32), LANGUAGES, expert_rank=4)
    save_model(mixture, None, directory / "model", base=mistral_directory)
    return directory


def test_a_trained_model_tells_recipe_scores_and_licence(tmp_path, run, capsys):
    assert main(["merge", str(run / "model"), str(tmp_path / "merged"), "--no-proof"]) == 0
    assert main(["merge", str(run / "model"), str(run / "mixtral"), "--no-proof"]) == 0
    assert main(["convert", str(run / "mixtral"), str(tmp_path / "copy")]) == 0
    for directory in (run / "model", tmp_path / "merged", tmp_path / "copy"):
        card = (directory / "README.md").read_text()
        assert "\nlicense: apache-2.0\n" in card and "licence of the base: apache-2.0" in card
        assert "| expert 0 | Python |" in card and "| expert 1 | C++ |" in card
        assert "| branch steps | 300 |" in card and "| seed | 7 |" in card and "| date | 2026-11-24 |" in card
        assert "| test | Python | 0.100 | 0.300 | 10 |" in card and "| test | C++ | 0.200 | 0.400 | 12 |" in card
        assert "| data | pairs |" in card and "private" not in card and "secret" not in card
    assert 'base_model: "mistral"' in (run / "model" / "README.md").read_text()
    assert main(["verify", str(run / "model")]) == 0


def test_what_computes_something_else_has_no_scores(tmp_path, run):
    assert main(["collapse", str(run / "model"), str(tmp_path / "one"), "--weights", "cpp=1"]) == 0
    card = (tmp_path / "one" / "README.md").read_text()
    assert "have not been scored" in card and "| weight of cpp | 1.000 |" in card and "0.300" not in card


@pytest.mark.parametrize("form", ["full", "delta"])
def test_what_is_unknown_is_said(tmp_path, mistral_directory, form):
    out = tmp_path / "out"
    assert main(["upcycle", str(mistral_directory), str(out), "--form", form, "--rank", "2", "--no-proof"]) == 0
    card = (out / "README.md").read_text()
    assert "license: other\nlicense_name: unknown" in card and "`mistral` state no licence" in card
    assert "have not been scored" in card and "| training | none yet |" in card and "| seed | 0 |" in card
    assert "| expert 2 | JavaScript |" in card and 'base_model: "mistral"' in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ('---\ntags: x\nlicense: "cc-by-4.0"\n---\n', "cc-by-4.0"),
        ("---\nlicense: other\n---\n", None),
        ("---\nlicense: a b\n---\n", None),
        ("# no front matter\nlicense: mit\n", None),
        ("---\nnever: ends\nlicense: mit\n", None),
    ],
)
def test_licence_of_a_directory(mistral_directory, text, expected):
    (mistral_directory / "README.md").write_text(text)
    assert base_license(open_checkpoint(mistral_directory)) == expected


def test_licence_of_a_gguf_file(tmp_path, tiny_config):
    for stated, expected in (("apache-2.0", "apache-2.0"), ("two\nlines", None), (7, None)):
        opened = Checkpoint(tmp_path / "a.gguf", "gguf", tiny_config, {}, (), {"general.license": stated})
        assert base_license(opened) == expected


@pytest.mark.parametrize("damaged", ["{", "[]", '{"config": 3}', '{"config": {"data": 1}, "date": []}'])
def test_damaged_run_files_do_not_stop_a_card(run, tiny_config, damaged):
    (run / "results.json").write_text(
        '{"scores of mixture": {"scores": {"test": {"python": {"codebleu": "x"}, "c": 3}}}}'
    )
    facts = run_facts(run / "model")
    assert facts is not None and facts.scores == ()
    (run / "run.json").write_text(damaged)
    facts = run_facts(run / "model")
    assert facts is None or facts.recipe == {}
    assert "have not been scored" in model_card(tiny_config, "x", "Made", facts and facts.recipe)
