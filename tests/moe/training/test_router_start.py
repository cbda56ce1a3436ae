"""The router's start: logistic regression on what the router sees."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe.data.packing import Example, MixedBatches
from moe.training import router_start
from moe.training.config import RunConfig
from moe.training.router_start import _logistic, fit_routers

SIZES = {"num_experts": 2, "num_experts_per_tok": 1, "expert_form": "delta", "expert_rank": 2}


@pytest.fixture
def batches():
    """Two languages with the same tokens but for one in each document, which comes first."""
    generator = torch.Generator().manual_seed(0)
    examples = {}
    for index, language in enumerate(("python", "cpp")):
        rows = torch.randint(5, 90, (200, 11), generator=generator).tolist()
        examples[language] = [Example((90 + index, *row), 2, index) for row in rows]
    return MixedBatches(examples, 96, 0)


@pytest.mark.parametrize(
    ("context", "layers", "least"),
    [("none", "each", 0.5), ("mean", "each", 0.95), ("mean", "first", 0.95), ("filter", "each", 0.9)],
)
def test_context_tells_languages_apart_that_tokens_do_not(tiny_config, make_model, batches, context, layers, least):
    config = replace(tiny_config, router_context=context, router_layers=layers, **SIZES)
    model = make_model(config, dtype=torch.float32)
    accuracy = fit_routers(model, [batches[i] for i in range(40)], held_out=8)
    assert len(accuracy) == len(config.router_places)
    assert accuracy[0] > least and (context != "none" or accuracy[0] < 0.9)
    batch = batches[60]  # the accuracy is that of the model's own routing
    routing = model(batch.tokens, documents=batch.documents).routing[0]
    right = (routing.expert_ids[:, 0] == batch.languages)[batch.positions].float().mean().item()
    assert right == pytest.approx(accuracy[0], abs=0.2)


def test_documents_of_two_languages_teach_a_filter_to_follow_a_change(tiny_config, make_model, batches, monkeypatch):
    """The first token of each example alone tells its language; single documents teach that it never changes."""
    batch = router_start._join(batches[61])
    assert batch.documents[0] == 24 and sum(batch.documents) == sum(batches[61].documents)
    shares = []
    for joined in (1000, 3):
        monkeypatch.setattr(router_start, "JOINED", joined)
        config = replace(tiny_config, router_context="filter", router_layers="first", router_half_life=64, **SIZES)
        model = make_model(config, dtype=torch.float32)
        fit_routers(model, [batches[i] for i in range(40)], held_out=8)
        ids = model(batch.tokens, documents=batch.documents).routing[0].expert_ids[:, 0]
        shares.append((ids == batch.languages).float().mean().item())
    assert shares[1] > shares[0] + 0.1


@pytest.mark.parametrize(("layers", "new", "least"), [("first", "cpp", 400), ("first", "", 35), ("each", "cpp", 35)])
def test_an_added_row_is_fitted_on_all_documents(tiny_config, make_model, batches, monkeypatch, layers, new, least):
    model = make_model(replace(tiny_config, router_context="mean", router_layers=layers, **SIZES), dtype=torch.float32)
    read = []
    monkeypatch.setattr(
        router_start, "fit_routers", lambda model, chosen, held_out, *rest: read.extend(chosen) or [1.0]
    )
    config = RunConfig(languages=("python", "cpp"), router_documents=35, new_language=new)
    router_start.fit_router(model, batches, 0, config)
    documents = sum(len(batch.documents) for batch in read[: -router_start.HELD_OUT_BATCHES])
    assert least <= documents < least + 20


@pytest.mark.parametrize("kept", [None, torch.eye(6)[:2]], ids=["all rows", "the last row"])
def test_the_fit_is_the_optimum(kept):
    """The gradient of cross-entropy and penalty is zero, in the whitened space in which the penalty is taken."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(300, 6, generator=generator), torch.randint(0, 3, (300,), generator=generator)
    found = _logistic(x, y, 3, lambda logits: logits, kept=kept)
    old = 0 if kept is None else len(kept)
    assert torch.equal(found[:old], torch.eye(6)[:old])
    weight = found[old:].double().requires_grad_()
    counts = torch.tensor([router_start.OLD_WEIGHT] * old + [1.0] * (3 - old)).double()
    logits = torch.cat((x.double() @ found[:old].double().T, x.double() @ weight.T), 1)
    loss = torch.nn.functional.cross_entropy(logits, y, counts)
    moment = x.double().T @ x.double() / len(x)
    moment += 1e-4 * moment.diagonal().mean() * torch.eye(6)
    loss = loss + 1e-4 * (weight @ moment * weight).sum()
    assert torch.autograd.grad(loss, weight)[0].abs().max() < 1e-5


def test_batches_are_needed_on_both_sides(tiny_config, make_model, batches):
    model = make_model(replace(tiny_config, **SIZES), dtype=torch.float32)
    for held_out in (0, 2):
        with pytest.raises(ValueError, match="at least one of each kind"):
            fit_routers(model, [batches[0], batches[1]], held_out)
