"""Finished runs are found by their models, the newest first."""

from __future__ import annotations

import os

import pytest

from checkpoints.runs.finished import finished_models, newest_model
from moe.errors import UserError


def test_finding_runs(tmp_path):
    with pytest.raises(UserError, match=r"found no run in .*; type: python train.py"):
        newest_model(tmp_path)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="found 1 unfinished run and no finished one"):
        newest_model(tmp_path)
    models = [tmp_path / name / "model" for name in ("newer", "older")]
    for age, model in enumerate(models):
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        os.utime(model / "config.json", (1_700_000_000 - age,) * 2)
    assert finished_models(tmp_path) == models and newest_model(tmp_path) == models[0]
