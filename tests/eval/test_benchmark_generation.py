"""The benchmark of generation: its arithmetic, and its work on a small model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from eval import benchmark_generation as benchmark


def test_the_ratio_is_that_of_the_fastest_other_in_the_same_rounds():
    rounds = {"ours": [1.0, 2.0, 4.0], "slow": [9.0, 9.0, 9.0], "fast": [3.0, 5.0, 8.0]}
    assert benchmark.ratio_of(rounds) == ("fast", 2.5)


def test_far_slower_others_leave_after_the_first_round(monkeypatch):
    seconds, seen = {"ours": 9.0, "fast": 1.0, "close": 1.4, "slow": 2.0}, []

    def timed(write, task):
        seen.append(write)
        return seconds[write]

    monkeypatch.setattr(benchmark, "seconds_per_task", timed)
    found = benchmark.alternate({name: name for name in seconds}, ["decode 1"], 2)
    assert found == {"decode 1": {"ours": [9.0, 9.0], "fast": [1.0, 1.0], "close": [1.4, 1.4]}}
    assert seen == ["ours", "fast", "close", "slow", *["ours", "fast", "close"] * 2]


def test_what_copies_experts_reads_single_prompts_only(monkeypatch):
    monkeypatch.setattr(benchmark, "seconds_per_task", lambda write, task: 1.0)
    runners = {"ours": None, "grouped_mm": None, "batched_mm": None}
    found = benchmark.alternate(runners, ["decode 1", "decode 16"], 1)
    assert list(found["decode 1"]) == list(runners) and list(found["decode 16"]) == ["ours", "grouped_mm"]


def test_bytes_of_a_step_count_visited_experts(tiny_config, make_model):
    config = replace(tiny_config, num_experts=4, num_experts_per_tok=1)
    model = make_model(config, dtype=torch.float32)
    experts = 3 * config.dim * config.hidden_dim * config.n_layers
    everything = sum(p.numel() for p in model.parameters())
    read = everything - 3 * experts - config.vocab_size * config.dim
    assert benchmark.bytes_per_token(model) == pytest.approx(4 * read)
    answers = benchmark.ours(model)([[1, 2], [3, 4]], 3)
    assert [len(answer.tokens) for answer in answers] == [3, 3]
