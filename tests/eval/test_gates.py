"""Gates that are measured and not in the product, by their definitions (a run with one: tests/test_train_cli.py)."""

from __future__ import annotations

import json

import pytest
import torch

from eval import gates
from moe.errors import UserError
from moe.router import select_top_k

LOGITS = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", gates.GATES)
def test_what_every_gate_promises(name):
    """Gates of a token sum to 1, its experts differ; in use they do not depend on other tokens."""
    choose = gates.GATES[name].make()
    for training in (True, False):
        with torch.set_grad_enabled(training):
            weights, ids = choose(LOGITS, 2)
        assert weights.shape == ids.shape and torch.allclose(weights.sum(-1), torch.ones(40))
        assert all(len(set(row)) == len(row) for row in ids.tolist())
    with torch.no_grad():
        alone = [torch.cat(parts) for parts in zip(*(choose(row[None], 2) for row in LOGITS))]
    torch.testing.assert_close(alone[0], weights)
    assert torch.equal(alone[1], ids)


def test_in_use_training_gates_are_plain_top_k():
    with torch.no_grad():
        wanted = select_top_k(LOGITS, 2)
        for name in ("noisy", "expert-choice"):
            assert all(map(torch.equal, gates.GATES[name].make()(LOGITS, 2), wanted))
    assert not torch.equal(gates.noisy(LOGITS, 2)[0], wanted[0])


def test_experts_choose_equally_many_tokens():
    weights, ids = gates.expert_choice(LOGITS, 1)
    first = LOGITS.softmax(-1).topk(10, 0).indices
    for expert in range(4):
        found = (weights * (ids == expert)).sum(-1) > 0
        lonely = torch.bincount(first.flatten(), minlength=40) == 0
        assert set(torch.nonzero(found & ~lonely).flatten().tolist()) == set(first[:, expert].tolist())
    assert (weights > 0).sum(-1).max() > 1


def test_a_bias_balances_and_does_not_weigh():
    choose = gates.Biased()
    skewed = LOGITS + torch.tensor([1.0, 0.0, 0.0, 0.0])
    counts = []
    for _ in range(600):
        weights, ids = choose(skewed, 2)
        counts.append(torch.bincount(ids.flatten(), minlength=4))
    assert counts[0].max() - counts[0].min() > 12 and counts[-1].max() - counts[-1].min() <= 6
    chosen = skewed.softmax(-1).gather(1, ids)
    torch.testing.assert_close(weights, chosen / chosen.sum(-1, keepdim=True))


def test_unsure_tokens_visit_one_more():
    weights, ids = gates.entropy(torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 1.0, 0.0]]), 1)
    assert weights.tolist() == [[0.5, 0.5], [1.0, 0.0]] and ids[1, 0] == 0


def test_a_run_on_another_runs_mixture_is_refused(tmp_path):
    config = {"languages": ["python"], "seed": 0, "preferences": "p.jsonl"}
    (tmp_path / "run.json").write_text(json.dumps({"config": config}))
    (tmp_path / "results.json").write_text(json.dumps({"scores of mixture": {"scores": {"test": {}}}}))
    with pytest.raises(UserError, match="give a run that made its own"):
        gates.main(gates.build_parser().parse_args([str(tmp_path)]))
