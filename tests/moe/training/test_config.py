"""Settings: presets, types, overrides and what wrong ones get."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from moe.errors import UserError
from moe.training.config import (
    RENAMED,
    RunConfig,
    load_preset,
    load_settings,
    make_config,
    parse_setting,
    preset_names,
    setting_types,
)


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name):
    config = make_config(load_preset(name), {"base": "x", "data": "y"})
    assert config.languages == ("python", "java", "javascript", "cpp")


def test_the_expected_presets_are_there():
    assert {"tiny", "smollm2-135m", "mistral-7b-24gb", "mistral-7b-80gb"} <= set(preset_names())


def test_every_setting_has_a_help_text():
    assert all(len(item.metadata["help"]) > 10 for item in fields(RunConfig))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("branch_steps", "30", 30),
        ("branch_steps", "1e3", 1000),
        ("seed", "9007199254740993", 9007199254740993),  # more than a float can tell
        ("branch_lr", "3e-4", 3e-4),
        ("branch_lr", "1", 1.0),
        ("merge", "true", True),
        ("merge", "no", False),
        ("languages", "python, cpp", ("python", "cpp")),
        ("base", "some/dir", "some/dir"),
    ],
)
def test_parsing(name, text, value):
    parsed = parse_setting(name, text)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("branch_steps", "3.5", "whole number"),
        ("branch_steps", "inf", "whole number"),
        ("branch_lr", "fast", "expected a number"),
        ("merge", "perhaps", "true or false"),
        ("brunch_lr", "1", "did you mean 'branch_lr'"),
    ],
)
def test_settings_that_do_not_parse(name, text, message):
    with pytest.raises(UserError, match=message):
        parse_setting(name, text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("branch_steps = ", "not a TOML file"),
        ("branch_stepz = 3", "did you mean 'branch_steps'"),
        ('branch_steps = "three"', "whole number"),
        ("branch_steps = 2.5", "expected int"),
        ("branch_steps = true", "expected int"),
        ("languages = [1, 2]", "list of names"),
    ],
)
def test_files_of_settings_that_are_wrong(tmp_path, content, message):
    path = tmp_path / "my.toml"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        load_settings(path)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_settings_of_earlier_versions_are_named_as_they_are_now(tmp_path, old, new):
    assert new in setting_types() and old not in setting_types()
    message = f"the setting '{old}' is now called '{new}'"
    with pytest.raises(UserError, match=message):
        parse_setting(old, "1")
    path = tmp_path / "my.toml"
    path.write_text(f"{old} = 1\n")
    with pytest.raises(UserError, match=f"my.toml: {message}"):
        load_settings(path)


def test_a_run_of_an_earlier_version_says_what_to_rename():
    values = RunConfig().to_dict()
    values["recompute"], values["clip"] = values.pop("activation_checkpointing"), values.pop("max_grad_norm")
    with pytest.raises(UserError, match="rename in that file 'recompute' to 'activation_checkpointing', 'clip' to"):
        RunConfig.from_dict(values, "runs/old/run.json")


def test_a_file_of_settings(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('branch_lr = 1\nlanguages = ["python", "cpp"]\n')
    config = make_config(load_preset("tiny"), load_settings(path), {"branch_steps": 7})
    assert config.pretrain_steps == load_preset("tiny")["pretrain_steps"]
    assert (config.branch_lr, config.languages, config.branch_steps) == (1.0, ("python", "cpp"), 7)


def test_paths_become_absolute_and_names_do_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    (tmp_path / "tiny").mkdir()
    config = RunConfig(base="tiny", data="pairs").with_absolute_paths()
    assert config.base == "tiny" and config.data == str(tmp_path / "pairs")


def test_the_baseline_has_as_many_active_parameters():
    assert RunConfig(shared_rank=48, expert_rank=16, num_experts_per_tok=2).adapter_rank == 80


def test_settings_that_are_gone_say_what_to_do(tmp_path):
    (tmp_path / "old.toml").write_text("ridge_batches = 8\n")
    with pytest.raises(UserError, match=r"'ridge_batches' is gone.*set router_documents"):
        load_settings(tmp_path / "old.toml")
    with pytest.raises(UserError, match="'ridge' is gone"):
        parse_setting("ridge", "0.1")
    settings = RunConfig().to_dict()
    with pytest.raises(UserError, match=r"run\.json is of an older version.*\(ridge = 0.0, .*gone\); start a new run"):
        RunConfig.from_dict(settings | {"pretrain_muon_lr": 0.0, "ridge": 0.0}, "run.json")
    assert RunConfig.from_dict(settings | {"pretrain_muon_lr": 0.0}, "run.json") == RunConfig()
    assert RunConfig.from_dict(settings | {"pretrain_muon_lr": 0.02}, "run.json", trained=True) == RunConfig()
    assert "ema and filter forget" in RunConfig().without_effect(["router_half_life"])[0]


def test_what_has_no_effect_on_learning_from_answers_is_said():
    learning = replace(RunConfig(), preferences="p.jsonl")
    assert [line.split()[0] for line in learning.without_effect(["mix_steps", "policy_lr"])] == ["mix_steps"]
    with pytest.raises(UserError, match="kl_weight is 0, expected a positive number"):
        replace(learning, kl_weight=0.0)
