"""Decode speed of the 7B shape, here of a toy: what is measured, and the bytes that a step must read."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from checkpoints.model_io import load_model
from eval import generation_speed, random_models
from eval.random_models import SHAPE, TOY
from kernels.packed import PackedWeights


def test_both_sides_are_measured(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed")
    path = tmp_path / "out.json"
    assert generation_speed.main([str(path), "--smoke"]) == 0
    result = json.loads(path.read_text())
    for side in ("int4 experts", "int4 experts without CUDA graphs", "transformers, dense bf16"):
        for count in ("1 sequences", "8 sequences"):
            assert result[side][count]["gbytes"] > 0 and result[side][count]["bandwidth_share"] != 0


def test_bytes_of_a_step():
    """Mistral-7B in bf16 is 14.5 GB, of which the embeddings are not read; int4 experts, two of four, read less."""
    dense = generation_speed.decode_bytes(SHAPE, 1, 0, 2.0)
    assert dense == pytest.approx(2 * (7.2417e9 - 32000 * 4096), rel=1e-3)
    moe = replace(SHAPE, num_experts=4)
    one, eight = (generation_speed.decode_bytes(moe, n, 0, generation_speed.INT4) for n in (1, 8))
    experts = 32 * 3 * 4096 * 14336 * 66 / 128
    assert eight - one == pytest.approx(experts * (4 * (1 - 2**-8) - 2))
    cache = generation_speed.decode_bytes(moe, 1, 100, 0.5) - generation_speed.decode_bytes(moe, 1, 0, 0.5)
    assert cache == 32 * 100 * 2 * 2 * 1024


def test_a_step_takes_the_difference_of_a_long_and_a_short_answer(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 16.0])
    monkeypatch.setattr(generation_speed.time, "perf_counter", lambda: next(clock))
    written = []
    ms = generation_speed.decode_milliseconds(lambda *given: written.append(given), 3, 8, 72, torch.device("cpu"))
    assert ms == 1e3 * (6.0 - 5.0) / 64 and written == [(3, 8), (3, 8), (3, 72)]


def test_a_step_of_ours_is_between_tokens_of_one_answer(monkeypatch):
    """Not from the start of it, when graphs are recorded."""
    given = []

    def generate(model, prompts, max_new_tokens, cuda_graphs, on_token=None):
        given.append((len(prompts), max_new_tokens, cuda_graphs))
        for number in range(max_new_tokens * len(prompts) if on_token else 0):
            now[0] = 100.0 if number < 6 else 100.0 + number
            on_token(number % len(prompts), 1)
        return [SimpleNamespace(tokens=[1] * max_new_tokens) for _ in prompts]

    now = [0.0]
    monkeypatch.setattr(generation_speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(generation_speed, "generate_many", generate)
    steps = generation_speed.ours(TOY, 4, torch.device("cpu"), torch.float32)
    assert steps(3, 2, 5) == 1e3 * 14 / 3 and steps(1, 3, 7, cuda_graphs=False) == 1e3 * 6 / 4
    assert given == [(3, 2, True), (3, 5, True), (1, 3, False), (1, 7, False)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        generation_speed.main([str(tmp_path / "out.json")])
    assert capsys.readouterr().err == "error: no GPU that torch can use was found\n"


def test_a_random_model_is_written_quantized(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(random_models, "SHAPE", TOY)
    monkeypatch.setattr("sys.argv", ["random_models", str(tmp_path / "none"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="2"):
        random_models.main()
    assert "found no directory" in capsys.readouterr().err and not (tmp_path / "out").exists()
    monkeypatch.setattr("sys.argv", ["random_models", str(tmp_path), str(tmp_path / "out")])
    assert random_models.main() == 0
    model = load_model(tmp_path / "out", packed=True).model
    assert isinstance(model.layers[0].feed_forward.experts.w1, PackedWeights) and model.config.num_experts == 4
    assert torch.isfinite(model(torch.arange(8)[None]).logits).all()
