"""Deltas on an int4 base, by the command line: rounded at the start, or as a directory has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from checkpoints.formats.parameters import packed_weights
from checkpoints.model_io import load_model, read_config
from checkpoints.storage.files import read_json_object
from tests.checkpoints.command_line import run_main
from tests.train_command import SMALL, train

FLAGS = [*SMALL, "--dtype", "float32", "--no-baseline"]


def test_a_run_rounds_its_base_and_a_rounded_directory_is_taken_as_it_is(tmp_path):
    flags = [*FLAGS, "--no-merge", "--attention-experts", "k,o", "--base-dtype", "int4"]
    done = train("--runs", tmp_path, "--name", "a", *flags)
    assert "feed-forwards of the base in int4" in done.stdout and "max |Δlogit| 0.000e+00" in done.stdout
    run = tmp_path / "a"
    settings = read_json_object(run / "model" / "config.json")
    assert settings["base"]["relative_path"] == "../base-int4"
    model, decoded = load_model(run / "model", packed=True).model, load_model(run / "model").model
    assert len(packed_weights(model)) == 3 * read_config(run / "model").n_layers and not packed_weights(decoded)
    tokens = torch.arange(40)[None]
    difference = (model(tokens).logits - decoded(tokens).logits).abs().max()
    assert difference < 1e-3 * decoded(tokens).logits.abs().max()
    assert run_main("quantize", run / "base", tmp_path / "rounded", "--no-perplexity") == 0
    planned = train("--dry-run", "--runs", tmp_path, *FLAGS, "--base", tmp_path / "rounded")
    assert "feed-forwards of the base in int4" in planned.stdout
    train("--runs", tmp_path, "--name", "b", "--add-language", "java", "--to", run, check=False)  # may be no better
    grown = load_model(tmp_path / "b" / "model", packed=True)
    assert grown.config.expert_languages == ("python", "cpp", "java") and len(packed_weights(grown.model)) == 12
    forced = torch.zeros(40, dtype=torch.int64)
    assert torch.equal(grown.model(tokens, forced_experts=forced).logits, model(tokens, forced_experts=forced).logits)


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--base-dtype", "int4"], ["--expert-parallel", "--expert-form", "full"]])
def test_two_processes_do_what_one_does(root, tmp_path, how):
    """By torchrun, from the tiny base to the report; the first process rounds the base, the second finds it."""
    # Node.js judges answers in a fraction of the time that compilers take.
    flags = ["--runs", tmp_path, *FLAGS, "--languages", "python", "javascript", *how]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", root / "train.py", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [str(word) for word in [*command, "--name", "two"]]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1) and done.stdout.count("write code with it") == 1, done.stderr
    train(*flags, "--name", "one", check=False)
    two, one = (read_json_object(tmp_path / name / "results.json") for name in ("two", "one"))
    assert two.keys() | {"tests of base", "tests of mixture"} == one.keys() | {"tests of base", "tests of mixture"}
    for model in ("base", "mixture"):
        for language in ("python", "javascript"):
            losses = [found[f"scores of {model}"]["scores"]["test"][language]["loss"] for found in (two, one)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_be_int4(tmp_path):
    done = train("--runs", tmp_path, *SMALL, "--base-dtype", "int4", "--expert-form", "full", check=False)
    assert done.returncode == 2 and "base_dtype int4 freezes what full experts train" in done.stderr
    done = train("--runs", tmp_path, *SMALL, "--base-dtype", "int4", "--shard", check=False)
    assert done.returncode == 2 and "leave --shard out" in done.stderr
    done = train("--runs", tmp_path, *SMALL, "--base-dtype", "int8", check=False)
    assert done.returncode == 2 and "expected auto or int4" in done.stderr
