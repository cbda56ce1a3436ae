"""What train.py decides before it trains: presets, splits, steps, dry runs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

import train as train_script
from checkpoints.model_io import save_model
from checkpoints.runs.preflight import base_config, change_to_fit, plan_run
from moe.config import ModelConfig
from moe.data.sources import load_data
from moe.errors import UserError
from moe.languages import DEFAULT_LANGUAGES
from moe.model import Transformer
from moe.training import distributed
from moe.training.config import RunConfig
from moe.training.tiny_base import train_tiny_tokenizer
from tests.pair_files import write_pairs
from tests.train_command import SMALL, train


def test_dry_run_writes_nothing(tmp_path):
    done = train("--dry-run", "--runs", tmp_path / "runs", *SMALL)
    assert "parameters" in done.stdout and "60 training pairs" in done.stdout
    assert not (tmp_path / "runs").exists()
    (tmp_path / "file").write_text("")
    done = train("--dry-run", "--runs", tmp_path / "file", *SMALL, check=False)
    assert done.returncode == 2 and "is not a directory" in done.stderr
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    done = train("--dry-run", "--runs", tmp_path / "runs", "--name", "taken", *SMALL, check=False)
    assert done.returncode == 2 and "taken exists" in done.stderr and "--resume" in done.stderr


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """A small model of Mistral's kind with random weights, and a folder of pairs as README describes it."""
    place = tmp_path_factory.mktemp("mistral")
    config = ModelConfig(vocab_size=600, dim=96, n_layers=4, n_heads=4, n_kv_heads=2, hidden_dim=128)
    data = load_data("synthetic", DEFAULT_LANGUAGES, train_pairs=20)
    tokenizer = train_tiny_tokenizer(data.train, place / "tokenizer", 0)
    model = Transformer(replace(config, vocab_size=tokenizer.vocab_size)).reset(0)
    save_model(model, tokenizer, place / "Mistral-7B-v0.1", template="plain")
    for split, pairs in (("train", data.train), ("validation", data.held_out["test"]), ("test", data.held_out["test"])):
        for language, items in pairs.items():
            write_pairs(items[:20], place / "DIR" / split / f"{language}.jsonl")
    return place


def test_a_plan_says_what_fits_and_how_long_it_takes(mistral, tmp_path, monkeypatch):
    own = ["--base", mistral / "Mistral-7B-v0.1", "--data", mistral / "DIR", "--dry-run", "--runs", tmp_path]
    own += ["--max-tokens", "512", "--branch-steps", "10", "--mix-steps", "90", "--accumulate", "2"]
    done = train(*own, "--tokens-per-second", "1000", "--tokens-per-batch", "2048")
    assert "fits into the" in done.stdout and "the largest --tokens-per-batch is about" in done.stdout
    assert "100 steps of branch and mix are at most 409,600 tokens: 0.11 hours at 1,000 tokens/s" in done.stdout
    assert "operations per token of a training step: mixture" in done.stdout
    free = int(float(re.search(r"; ([\d.]+) GiB: weights", done.stdout)[1]) * 2**30 * 1.1)
    monkeypatch.setattr(train_script, "available_memory", lambda device: free)
    done = train(*own, "--tokens-per-second", "1", "--tokens-per-batch", "16384")
    (flags,) = re.findall(r"so it may not fit; it does with: (.*)\n", done.stdout)
    assert "fits into the" in train(*own, "--tokens-per-second", "1", *flags.split()).stdout
    monkeypatch.setattr(train_script, "available_memory", lambda device: 1 << 20)
    assert "no batch is small enough" in train(*own, "--tokens-per-second", "1").stdout


def test_a_plan_names_the_way_to_share_full_experts_and_to_shrink_their_averages(mistral, monkeypatch):
    config = RunConfig(
        base=str(mistral / "Mistral-7B-v0.1"), expert_form="full", max_tokens=512, tokens_per_batch=1024,
        activation_checkpointing=True,
    )  # fmt: skip
    ways = {"--shard": replace(config, shard=True), "--expert-parallel": replace(config, expert_parallel=True)}
    monkeypatch.setattr(distributed, "world", lambda: 4)
    sizes = base_config(config)
    for flag, way in ways.items():
        needed = plan_run(way, sizes, torch.float32, False).total
        assert change_to_fit(config, sizes, torch.float32, needed, False) == flag
    monkeypatch.setattr(distributed, "world", lambda: 3)
    with pytest.raises(UserError, match="4 experts cannot be dealt out to 3 processes; start 4 of them"):
        base_config(way)
    monkeypatch.setattr(distributed, "world", lambda: 1)
    config = replace(config, tokens_per_batch=512)
    available = plan_run(replace(config, optimizer_bits=8), sizes, torch.float32, False).total
    assert change_to_fit(config, sizes, torch.float32, available, False) == "--optimizer-bits 8"


@pytest.mark.parametrize("preset", ["smollm2-135m", "mistral-7b-24gb", "mistral-7b-80gb"])
def test_presets_score_the_test_splits_that_are_there(mistral, tmp_path, preset):
    command = ["--preset", preset, "--base", mistral / "Mistral-7B-v0.1", "--dry-run", "--runs", tmp_path]
    if preset != "smollm2-135m":  # whose speed is measured
        command += ["--tokens-per-second", "100"]
    done = train(*command, "--data", mistral / "DIR")
    assert re.search(r"hours at [\d,]+ tokens/s", done.stdout)
    assert "scored on test\n" in done.stdout and "python: 20 training pairs, 20 test\n" in done.stdout
    shutil.copytree(mistral / "DIR", tmp_path / "DIR")
    shutil.copytree(mistral / "DIR" / "test", tmp_path / "DIR" / "test-standalone")
    done = train(*command, "--data", tmp_path / "DIR")
    assert "cpp: 20 training pairs, 20 test, 20 test-standalone\n" in done.stdout
    done = train(*command, "--data", mistral / "DIR", "--test-sets", "test", "test-standalone", check=False)
    assert done.returncode == 2 and "no split 'test-standalone'" in done.stderr


def test_epochs_become_steps_of_the_mix_stage(mistral, tmp_path):
    more = ["--branch-steps", "3", "--tokens-per-batch", "512", "--max-tokens", "512", "--accumulate", "2"]
    own = ["--base", mistral / "Mistral-7B-v0.1", "--data", mistral / "DIR", *more, "--dry-run", "--runs", tmp_path]
    steps = {}
    for epochs in ("2", "10"):
        (line,) = re.findall(r"steps: 3 branch, (\d+) mix", train(*own, "--epochs", epochs).stdout)
        steps[epochs] = 3 + int(line)
    assert abs(steps["10"] - 5 * steps["2"]) <= 3 and steps["2"] > 4
    done = train(*own, "--epochs", "0.01", check=False)
    assert done.returncode == 2 and "the branch stage takes 3" in done.stderr and done.stderr.count("\n") == 1
    for twice in (["--mix-steps", "5"], ["--set", "mix_steps=5"]):
        done = train(*own, "--epochs", "2", *twice, check=False)
        assert done.returncode == 2 and "give one of them" in done.stderr


def test_a_run_keeps_the_steps_of_its_epochs(tmp_path):
    flags = SMALL[: SMALL.index("--mix-steps")] + SMALL[SMALL.index("--mix-steps") + 2 :]
    done = train("--runs", tmp_path, "--name", "e", *flags, "--epochs", "2", "--no-baseline", "--no-merge")
    (passes,) = re.findall(r"this run makes ([\d.]+) passes", done.stdout)
    assert float(passes) == pytest.approx(2.0, abs=0.2)
    steps = json.loads((tmp_path / "e" / "run.json").read_text())["config"]["mix_steps"]
    assert len((tmp_path / "e" / "metrics.csv").read_text().splitlines()) == 1 + 3 + 3 + steps
    assert "write code with it" in train("--resume", tmp_path / "e").stdout
    done = train("--resume", tmp_path / "e", "--epochs", "3", check=False)
    assert done.returncode == 2 and "leave the others out" in done.stderr
