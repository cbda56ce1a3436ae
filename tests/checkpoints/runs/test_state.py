"""A run's state comes back bit for bit, and the last good one survives kills and damage."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch

from checkpoints.runs.state import drop_train_states, has_train_state, load_train_state, save_train_state
from moe.errors import Notice, UserError


def state(step: int) -> tuple[dict[str, torch.Tensor], dict]:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model.w": torch.randn(5, 3, generator=generator),
        "model.half": torch.randn(4, generator=generator).bfloat16(),
        "optimizer.step": torch.tensor(float(step)),
        "rng.torch": torch.get_rng_state(),
    }
    return tensors, {"step": step, "config": {"lr": 1e-4}, "name": "ü"}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_round_trip_keeps_the_newest_and_the_one_before_it(tmp_path):
    assert not has_train_state(tmp_path / "state")
    for step in (0, 5, 12):
        tensors, meta = state(step)
        save_train_state(tmp_path / "state", tensors, meta)
        loaded, loaded_meta = load_train_state(tmp_path / "state")
        assert equal(loaded, tensors) and loaded_meta == meta
    assert has_train_state(tmp_path / "state")
    save_train_state(tmp_path / "state", *state(12))
    save_train_state(tmp_path / "state", *state(13))
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-00000012", "step-00000013"]
    save_train_state(tmp_path / "state", *state(14), keep=1)
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-00000014"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no tensors", "another step"])
def test_the_state_before_a_damaged_one_is_used_with_a_warning(tmp_path, damage):
    for step in (5, 10):
        save_train_state(tmp_path, *state(step))
    newest = tmp_path / "step-00000010"
    content = bytearray((newest / "state.safetensors").read_bytes())
    match damage:
        case "cut":
            (newest / "state.safetensors").write_bytes(content[:-20])
        case "flipped":
            content[len(content) // 2] ^= 1
            (newest / "state.safetensors").write_bytes(content)
        case "missing":
            (newest / "state.safetensors").unlink()
        case "no tensors":
            shutil.rmtree(newest)
            newest.mkdir()
        case "another step":
            text = (newest / "state.json").read_text()
            (newest / "state.json").write_text(text.replace('"step": 10', '"step": 11'))
    with pytest.warns(Notice, match="going on from the state before it, step-00000005"):
        tensors, meta = load_train_state(tmp_path)
    assert meta["step"] == 5 and equal(tensors, state(5)[0])
    save_train_state(tmp_path, *state(7))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005", "step-00000007"], "the damaged one is gone"
    drop_train_states(tmp_path, 7)
    assert load_train_state(tmp_path)[1]["step"] == 5


def test_without_an_undamaged_state_it_says_what_to_remove(tmp_path):
    for step in (1, 2):
        save_train_state(tmp_path, *state(step))
        (tmp_path / f"step-0000000{step}" / "state.json").write_text("{")
    with pytest.raises(UserError, match=r"no undamaged training state .*; remove it"):
        load_train_state(tmp_path)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(UserError, match="no training state"):
        load_train_state(tmp_path)
    (tmp_path / ".step-00000003.77.tmp").mkdir()
    assert not has_train_state(tmp_path)


def test_no_disk(tmp_path):
    save_train_state(tmp_path, *state(1))
    with pytest.raises(UserError, match="not enough disk"):
        save_train_state(tmp_path, *state(2), disk_free=lambda path: 10)
    assert load_train_state(tmp_path)[1]["step"] == 1


@pytest.mark.parametrize(
    "function", ["checkpoints.runs.state.write_json", "checkpoints.storage.files.publish_directory"]
)
def test_killed_while_saving(tmp_path, run_child, monkeypatch, function):
    """The process dies before the rename: the state before is still the one that loads."""
    save_train_state(tmp_path, *state(1))
    monkeypatch.setattr(function, lambda *args, **kwargs: os._exit(9))
    assert run_child(lambda: save_train_state(tmp_path, *state(2))) == 9
    monkeypatch.undo()
    tensors, meta = load_train_state(tmp_path)
    assert meta["step"] == 1 and equal(tensors, state(1)[0])
    assert json.loads((tmp_path / "step-00000001" / "state.json").read_text())["meta"]["step"] == 1
    save_train_state(tmp_path, *state(2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]
