"""Training by several processes equals training by one, resumes on another number of them, and survives a lost one."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

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
    return torch.tensor([float(x) for report in reports for x in report if x is not None and not isinstance(x, str)])


@pytest.mark.parametrize("form", ["delta", "full"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_take_the_steps_of_one(outcomes, form, ranks):
    (alone,) = outcomes[f"{form} 1"]
    assert [report[:2] for report in alone[:-1]] == [["branch", 1], *(["mix", step] for step in range(1, 5))]
    wanted = numbers(alone)
    for reports in outcomes[f"{form} {ranks}"]:
        assert torch.allclose(numbers(reports), wanted, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("form", ["delta", "full"])
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
    assert resumed[0][:2] == ["mix", 1] and resumed[-2][:2] == ["mix", 4]
