"""Losses against their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from moe.losses import balance_loss, expert_counts, token_losses, z_loss
from moe.router import select_top_k


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_chunked_cross_entropy_and_its_gradients(count):
    hidden = torch.randn(count, 6, dtype=torch.float64, generator=generator(), requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, generator=generator(1), requires_grad=True)
    targets = torch.randint(0, 11, (count,), generator=generator(2))
    wanted = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    losses = token_losses(hidden, weight, targets, chunk=7)
    assert losses.shape == (count,)
    if not count:
        return
    assert (losses - wanted).abs().max() < 1e-12
    scale = torch.randn(count, dtype=torch.float64, generator=generator(3))
    gradients = [torch.autograd.grad((x * scale).sum(), (hidden, weight)) for x in (losses, wanted)]
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(*gradients))


@pytest.mark.parametrize("count", [0, 1, 7, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_losses_under_a_frozen_output_projection(count, dtype):
    hidden = torch.randn(count, 6, dtype=dtype, generator=generator(), requires_grad=True)
    weight = torch.randn(11, 6, dtype=dtype, generator=generator(1))
    targets = torch.randint(0, 11, (count,), generator=generator(2))
    losses = token_losses(hidden, weight, targets, chunk=7)
    exact = hidden.detach().double().requires_grad_()
    wanted = F.cross_entropy(exact @ weight.double().T, targets, reduction="none")
    bound = 1e-12 if dtype == torch.float64 else 0.05  # bfloat16 logits up to 8 are rounded to 1/32
    assert losses.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert torch.allclose(losses.double(), wanted, atol=bound, rtol=0)
    scale = torch.randn(count, dtype=torch.float64, generator=generator(3))
    (losses * scale).sum().backward()
    (wanted * scale).sum().backward()
    assert torch.allclose(hidden.grad.double(), exact.grad, atol=bound, rtol=bound)
    with torch.no_grad():
        assert torch.allclose(token_losses(hidden, weight, targets, chunk=7).double(), losses.double(), atol=bound)


def test_balance_loss_is_one_when_balanced_and_e_when_collapsed():
    even = torch.zeros(8, 4)
    assert balance_loss(even, torch.full((4,), 0.25)).item() == pytest.approx(1.0)
    collapsed = torch.zeros(8, 4)
    collapsed[:, 2] = 100.0
    assert balance_loss(collapsed, torch.tensor([0.0, 0.0, 1.0, 0.0])).item() == pytest.approx(4.0)


def test_balance_loss_pushes_towards_the_neglected_expert():
    logits = torch.randn(64, 4, generator=generator())
    logits[:, 0] += 2.0
    logits.requires_grad_()
    _, ids = select_top_k(logits, 1)
    balance_loss(logits, expert_counts(ids, 4) / 64).backward()
    assert logits.grad.sum(0).argmax() == 0  # descending lowers the crowded expert's logits most
    assert logits.grad.sum(0)[0] > 0


def test_balance_follows_the_share_of_the_languages():
    """With targets the loss is 1 at the targets' load, and a batch of one language stays with its expert."""
    targets = torch.tensor([0.7, 0.2, 0.1])
    logits = targets.log().expand(50, 3)
    assert balance_loss(logits, targets, targets).item() == pytest.approx(1.0)
    even = torch.full((4,), 0.25)
    logits, fractions = torch.randn(50, 4, generator=generator()), torch.tensor([0.5, 0.1, 0.2, 0.2])
    assert balance_loss(logits, fractions, even).item() == pytest.approx(balance_loss(logits, fractions).item())
    for targets, rises in ((torch.tensor([1.0, 0, 0, 0]), True), (None, False)):
        logits = torch.zeros(50, 4, requires_grad=True)
        balance_loss(logits, torch.tensor([0.7, 0.1, 0.1, 0.1]), targets).backward()
        assert (logits.grad.sum(0)[0] < 0) == rises  # descending raises the only language's expert


def test_every_slot_is_counted():
    assert expert_counts(torch.tensor([[0, 2], [2, 3], [2, 0]]), 5).tolist() == [2, 0, 3, 1, 0]


def test_z_loss_is_the_mean_square_of_logsumexp():
    logits = torch.randn(5, 3, generator=generator())
    assert z_loss(logits).item() == pytest.approx(logits.exp().sum(-1).log().pow(2).mean().item(), rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_gates_are_a_softmax_over_the_selected_logits(k):
    logits = torch.randn(50, 5, dtype=torch.float64, generator=generator())
    gates, ids = select_top_k(logits, k)
    wanted, wanted_ids = logits.topk(k, dim=-1)
    assert ids.equal(wanted_ids) and torch.allclose(gates, wanted.softmax(-1), atol=1e-14)
    narrow, _ = select_top_k(logits.bfloat16(), k)
    assert narrow.dtype == torch.float32
    assert torch.equal(narrow[:, 0] + narrow[:, 1:].sum(-1), torch.ones(50))  # what copies of one expert need
