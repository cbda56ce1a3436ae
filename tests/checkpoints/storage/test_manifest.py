"""Loading compares tensors with the manifest."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch

from checkpoints.model_io import load_model, save_model
from moe.errors import UserError


@pytest.fixture
def saved(tmp_path, tiny_config, make_model):
    return save_model(make_model(tiny_config, dtype=torch.float32), None, tmp_path / "model", template="plain")


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 8
    path.write_bytes(content)


@pytest.mark.parametrize("place", [-1, -5000, -20000])
def test_flipped_data_are_not_loaded(saved, place):
    weights = saved / "model.safetensors"
    load_model(saved)
    flip(weights, place)
    with pytest.raises(UserError, match=r"tensor '.*' does not have the checksum in manifest.json; .*--no-check"):
        load_model(saved)
    load_model(saved, check=False)
    flip(weights, place)
    load_model(saved)


def test_the_base_and_the_deltas_are_compared(saved, tmp_path, tiny_config, make_model):
    config = replace(tiny_config, num_experts=2, expert_form="delta", shared_rank=2, expert_rank=2)
    model = make_model(config, dtype=torch.float32)
    base = load_model(saved).model
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            ours = re.sub(r"(feed_forward\.)(w\d)", r"\1base.\2", name)
            model.get_parameter(ours).copy_(parameter)
    delta = save_model(model, None, tmp_path / "delta", base=saved, template="plain")
    load_model(delta)
    flip(delta / "experts.safetensors", -3)
    with pytest.raises(UserError, match=r"experts.safetensors: tensor '.*' does not have the checksum"):
        load_model(delta)


def test_files_without_a_checksum_pass(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "bare")
    (tmp_path / "bare" / "manifest.json").unlink()
    flip(tmp_path / "bare" / "model.safetensors", -1)
    load_model(tmp_path / "bare")
    manifest = json.loads((saved / "manifest.json").read_text())
    del manifest["files"]["model.safetensors"]["crc32"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    flip(saved / "model.safetensors", -1)
    load_model(saved)
    (saved / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        load_model(saved)
