"""Model cards state languages, base, recipe, scores and license if they are known, and say so if they are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from checkpoints.__main__ import main
from checkpoints.formats import open_checkpoint
from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.model_card import base_license, base_name, model_card, run_facts, training_of, training_of_parts
from checkpoints.model_io import save_model
from checkpoints.transforms.upcycle import upcycle_model
from moe.errors import UserError
from tests.checkpoints.command_line import run_main

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


def test_the_card_of_a_trained_model_states_recipe_scores_and_license(tmp_path, run, capsys):
    assert main(["merge", str(run / "model"), str(tmp_path / "merged"), "--no-proof"]) == 0
    assert main(["merge", str(run / "model"), str(run / "mixtral"), "--no-proof"]) == 0
    assert main(["convert", str(run / "mixtral"), str(tmp_path / "copy")]) == 0
    for directory in (run / "model", tmp_path / "merged", tmp_path / "copy"):
        card = (directory / "README.md").read_text()
        assert "\nlicense: apache-2.0\n" in card and "license of the base applies to these weights: apache-2.0" in card
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
    assert main(["upcycle", str(mistral_directory), str(out), "--expert-form", form, "--rank", "2", "--no-proof"]) == 0
    card = (out / "README.md").read_text()
    assert "license: other\nlicense_name: unknown" in card and "`mistral` state no license" in card
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
def test_license_of_a_directory(mistral_directory, text, expected):
    (mistral_directory / "README.md").write_text(text)
    assert base_license(open_checkpoint(mistral_directory)) == expected


def test_license_of_a_gguf_file(tmp_path, tiny_config):
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


def test_training_is_known_by_runs_one_on_another_and_by_cards_of_copies(tmp_path, run, mistral_directory):
    def trained(name: str, base, **config) -> Path:
        (tmp_path / name / "model").mkdir(parents=True)
        config = {"languages": ["python", "cpp"], "base": str(base) if isinstance(base, Path) else base, **config}
        (tmp_path / name / "run.json").write_text(json.dumps({"config": config}))
        return tmp_path / name / "model"

    grown = trained("grown", trained("first", mistral_directory), new_language="java")
    last = trained("last", grown, preferences="p.jsonl")
    assert training_of(last) == "pairs in Python, C++; then pairs in Java, for a new expert; then preferences (DPO)"
    assert len(training_of(trained("own", tmp_path / "own" / "model"))) < 1000, "a run on itself ends"
    assert training_of(mistral_directory) == "" and training_of(tmp_path / "none.gguf") == ""
    rows = "| setting | value |\n| --- | --- |\n| seed | 1 |\n| training | {} |\n"
    for heading, value, found in (("Recipe", "x", "x"), ("Data", "x", ""), ("Recipe", "\x1b[31m", "")):
        (mistral_directory / "README.md").write_text(f"---\na: b\n---\n## {heading}\n\n{rows.format(value)}")
        assert training_of(mistral_directory) == found
    tested = trained("on", mistral_directory, learn_from_tests=True)
    assert training_of(tested).endswith("judged by tests (GRPO)")
    assert training_of_parts({"python": last, "cpp": last}) == training_of(last)
    assert training_of_parts({"python": tmp_path, "cpp": tmp_path / ("n" * 300)}) == ""
    joined = f"for Python, Java: {training_of(last)}; for C++: unknown"
    assert training_of_parts({"python": last, "cpp": tmp_path, "java": last}) == joined
    (mistral_directory / "README.md").unlink()
    for base in ("n" * 300, "", 7, "a\0b", str(mistral_directory / "config.json")):
        assert training_of(trained(f"damaged {str(base)[:3]!r}", base)) == "pairs in Python, C++"


def stated_in(directory) -> str:
    """The base that a card names, in its front matter and in its text."""
    card = (directory / "README.md").read_text()
    named = next(line for line in card.splitlines() if line.startswith("base_model: "))
    base = json.loads(named.removeprefix("base_model: "))
    assert f"from the base `{base}`" in card and f"\n# {base}" in card
    return base


@pytest.mark.parametrize("form", ["full", "delta"])
def test_the_base_is_named_by_its_hub_id_if_the_user_gives_one(tmp_path, mistral_directory, form):
    out, flags = tmp_path / form, ["--rank", "2", "--no-proof", "--base-id", "some-org/Base_7B-v0.1"]
    assert run_main("upcycle", mistral_directory, out, "--expert-form", form, *flags) == 0
    assert stated_in(out) == "some-org/Base_7B-v0.1"
    if form == "delta":
        assert run_main("merge", out, tmp_path / "merged", "--no-proof") == 0
        assert stated_in(tmp_path / "merged") == "some-org/Base_7B-v0.1", "a delta's card knows its base"
        assert run_main("merge", out, tmp_path / "other", "--no-proof", "--base-id", "o/n") == 0
        assert stated_in(tmp_path / "other") == "o/n"
    else:
        for command, extra in {"convert": [], "collapse": [], "quantize": ["--no-perplexity"]}.items():
            assert run_main(command, out, tmp_path / command, "--base-id", "o/n", *extra) == 0
            assert stated_in(tmp_path / command) == "o/n"


@pytest.mark.parametrize("wrong", ["base", "a/b/c", "/a/b", "../b", "a--b/c", "a/", "a/b\n", "o/n: x"])
def test_other_names_are_not_hub_ids(tmp_path, mistral_directory, capsys, make_model, tiny_config, wrong):
    for command in ("upcycle", "convert", "merge"):
        assert run_main(command, mistral_directory, tmp_path / "out", "--base-id", wrong) == 2
        assert "expected ORG/NAME" in capsys.readouterr().err
    mixture = upcycle_model(make_model(tiny_config, dtype=torch.float32), LANGUAGES, expert_rank=2)
    for base in (mistral_directory, None):
        with pytest.raises(UserError, match="expected ORG/NAME"):
            save_model(mixture, None, tmp_path / "out", base=base, base_id=wrong)
    assert not (tmp_path / "out").exists()


def test_a_model_in_memory_names_its_base_by_hub_id(tmp_path, mistral_directory, make_model, tiny_config):
    mixture = upcycle_model(make_model(tiny_config, dtype=torch.float32), LANGUAGES, expert_rank=2)
    save_model(mixture, None, tmp_path / "delta", base=mistral_directory, base_id="o/n")
    save_model(mixture, None, tmp_path / "alone", base_id="o/n")
    assert stated_in(tmp_path / "delta") == stated_in(tmp_path / "alone") == "o/n"


def test_config_and_hub_cache_name_the_base(tmp_path, mistral_directory):
    cached = tmp_path / "hub" / "models--org-1--Some.Model-7B" / "snapshots" / "0123abcd"
    cached.parent.mkdir(parents=True)
    mistral_directory.rename(cached)
    assert base_name(open_checkpoint(cached)) == "org-1/Some.Model-7B"
    settings = json.loads((cached / "config.json").read_text())
    for stated, expected in (("org/name", "org/name"), ("/home/me/org/name", "org-1/Some.Model-7B"), (7, None)):
        (cached / "config.json").write_text(json.dumps(settings | {"_name_or_path": stated}))
        assert base_name(open_checkpoint(cached)) == (expected or "org-1/Some.Model-7B")
        assert base_name(open_checkpoint(cached), "given/first") == "given/first"
    cached.rename(tmp_path / "moved")
    assert base_name(open_checkpoint(tmp_path / "moved")) == "moved"
