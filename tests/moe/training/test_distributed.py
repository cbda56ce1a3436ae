"""Training by several processes equals training by one, resumes on another number of them, and survives a lost one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from moe.model import Transformer
from moe.training.memory_plan import plan_memory
from tests.moe.training.ranks import CONFIG, RESUMED, RUNS, SHAPES

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def outcomes(root, tmp_path_factory):
    program = root / "tests" / "moe" / "training" / "ranks.py"
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program, tmp_path_factory.mktemp("ranks")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def numbers(reports) -> torch.Tensor:
    """Everything that training reported, and the final weights."""
    rows = (report for report in reports if isinstance(report, list))
    return torch.tensor([float(x) for row in rows for x in row if x is not None and not isinstance(x, str)])


def samples(reports) -> list[str]:
    return [report[-1] for report in reports[:-2]]


SEVERAL = [f"{form} {ranks}" for form, several in RUNS.items() for ranks in several if ranks > 1]


@pytest.mark.parametrize("which", SEVERAL)
def test_several_ranks_take_the_steps_of_one(outcomes, which):
    (alone,) = outcomes[f"{which.split()[0]} 1"]
    assert [report[:2] for report in alone[:-2]] == [["branch", 1], *(["mix", step] for step in range(1, 5))]
    wanted, several = numbers(alone), outcomes[which]
    assert len(several) == int(which[-1]) and samples(several[0]) == samples(alone)
    for reports in several:
        assert torch.allclose(numbers(reports), wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("form", ["delta", "full"])
def test_each_rank_holds_its_share_and_gathers_the_others(outcomes, form):
    """Of two ranks: the embedding's 97 rows are padded to 98. Blocks are gathered forward and backward."""
    sizes = {name: 4 * parameter.numel() for name, parameter in Transformer(SHAPES[form]).named_parameters()}

    def total(*parts: str) -> int:
        return sum(size for name, size in sizes.items() if any(part in name for part in parts))

    replicated, root = total("_delta", ".gate."), total("tok_embeddings", "output") + 4 * SHAPES[form].dim
    blocks = sum(sizes.values()) - root - replicated
    padded = root + 4 * SHAPES[form].dim * (1 if SHAPES[form].tie_embeddings else 2)
    found = [reports[-1] for reports in outcomes[f"{form} sharded 2"]]
    assert sum(rank["of the model"] for rank in found) == root + blocks + 2 * replicated
    plan = plan_memory(SHAPES[form], 30, torch.float32, activation_checkpointing=False, ranks=2)
    assert plan.weights == found[0]["of the model"]
    for rank in found:
        assert rank["of the model"] <= (padded + blocks) / 2 + replicated
        assert rank["weights to all-gather"] == CONFIG.accumulate * (padded + 2 * blocks)
        assert rank.get("gradients to reduce-scatter", 0) == CONFIG.accumulate * total(".experts.")
        assert rank.get("gradients", 0) == total("_delta")


def test_experts_stay_and_their_tokens_travel(outcomes):
    """Each of two ranks holds one of two experts, which no gather counts; a row travels with its gradient."""
    shape = SHAPES["full"]
    sizes = {name: 4 * parameter.numel() for name, parameter in Transformer(shape).named_parameters()}
    experts, gates = (sum(sizes[name] for name in sizes if part in name) for part in (".experts.", ".gate."))
    found = [reports[-1] for reports in outcomes["full dealt 2"]]
    plan, sharded = (plan_memory(shape, 30, torch.float32, True, ranks=2, expert_parallel=x) for x in (True, False))
    assert plan.weights == found[0]["of the model"] and plan.gathered < sharded.gathered
    assert sum(rank["of the model"] for rank in found) == sum(sizes.values()) + gates
    padding = 4 * shape.dim  # of the embedding's 97 rows
    dense = sum(sizes.values()) - experts - gates
    blocks = dense - sizes["tok_embeddings.weight"] - sizes["norm.weight"]
    tokens = outcomes["full 1"][0][0][6]  # of the branch step
    for rank in found:
        assert "gradients to reduce-scatter" not in rank
        assert rank["weights to all-gather"] == CONFIG.accumulate * (dense + padding + blocks)
    # Forced tokens visit one expert. Of a layer's rows and their gradients, each of two passes (activation
    # checkpointing) sends both there and back; nothing below the first layer's experts learns.
    rows = 4 * shape.dim * tokens
    counts = 2 * CONFIG.accumulate * 2 * shape.n_layers * 4 * shape.num_experts  # int32, of two ranks
    assert sum(rank["tokens to all-to-all"] for rank in found) == rows * (2 * 2 * shape.n_layers + 3) + counts


@pytest.mark.parametrize("form", RESUMED)
def test_a_run_resumes_on_another_number_of_ranks(outcomes, form):
    first, second, (last,) = outcomes[f"{form} resumed"]
    assert first == ["signal 15"] * 2 and second == ["signal 15"] * 4  # sent to one rank, obeyed by all
    (alone,) = outcomes[f"{form} 1"]
    assert last[0][:2] == ["mix", 4]
    assert torch.allclose(numbers(last), numbers(alone[4:]), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_ends_the_job_with_one_message(outcomes, rank):
    during, after = outcomes[f"killed {rank}"]
    assert during.pop(rank) is None
    silent, message = sorted(during, key=len)
    assert silent == "silent" and message.startswith("LostRank: another of the 3 processes ended")
    (resumed,) = after
    assert resumed[0][:2] == ["mix", 1] and resumed[-3][:2] == ["mix", 4]
