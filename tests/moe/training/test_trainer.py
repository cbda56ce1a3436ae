"""The training loop: what learns in which stage, resuming, and that learning works."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import moe.training.trainer as trainer_module
from checkpoints.runs.models import make_adapter
from moe.data.packing import Example, MixedBatches, make_batch
from moe.errors import UserError
from moe.experts import widen_trainable
from moe.losses import token_losses
from moe.training.config import RunConfig
from moe.training.optimizer import make_optimizer, schedule, set_learning_rates
from moe.training.stages import choose_trainable, is_router, make_stage
from moe.training.trainer import Diverged, Trainer, batch_losses, forward_batch

LANGUAGES = ("python", "cpp")
CONFIG = RunConfig(
    languages=LANGUAGES,
    tokens_per_batch=96,
    max_tokens=64,
    branch_steps=30,
    mix_steps=10,
    branch_lr=1e-2,
    mix_lr=2e-2,
    mix_trains_experts=False,
)


def language_examples(language: int, count: int = 24) -> list[Example]:
    """Two "languages" that continue the same prompt differently: counting up and counting down."""
    step = 1 if language == 0 else -1
    prompt = (90 + language, 5)
    return [
        Example((*prompt, *[(40 + i + step * j) % 80 for j in range(10)]), len(prompt), language) for i in range(count)
    ]


@pytest.fixture
def batches() -> MixedBatches:
    return MixedBatches({x: language_examples(i) for i, x in enumerate(LANGUAGES)}, 96, seed=0)


@pytest.fixture
def delta(tiny_config, make_model):
    """An untouched delta mixture of two experts on a random base."""
    config = replace(tiny_config, num_experts=2, expert_form="delta", shared_rank=4, expert_rank=4)
    model = make_model(config, dtype=torch.float32)
    for block in model.layers:
        block.feed_forward.shared_delta.reset()
        block.feed_forward.expert_deltas.reset()
    return model


@pytest.mark.parametrize(
    ("stage", "parts"),
    [("branch", ("_delta",)), ("mix", ("feed_forward.gate",)), ("pretrain", ("",))],
)
def test_each_stage_trains_its_part(delta, stage, parts):
    chosen = choose_trainable(delta, stage)
    assert chosen and all(any(part in name for part in parts) for name in chosen)
    for name, parameter in delta.named_parameters():
        assert parameter.requires_grad == (name in chosen)
        assert (name in chosen) == any(part in name for part in parts)


def test_mix_can_train_experts_too(delta):
    assert any(is_router(n) for n in choose_trainable(delta, "mix", True))
    assert any("expert_deltas" in n for n in choose_trainable(delta, "mix", True))


def test_a_dense_model_has_no_branch_stage(tiny_config, make_model):
    with pytest.raises(ValueError, match="nothing to train"):
        choose_trainable(make_model(tiny_config), "branch")


def test_branch_learns_what_each_language_alone_can(delta, batches):
    frozen = {n: p.clone() for n, p in delta.named_parameters() if "_delta" not in n}
    reports = list(Trainer(delta, make_stage("branch", CONFIG), batches, LANGUAGES, CONFIG).run())
    assert len(reports) == 30 and reports[-1].step == 30
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert all(loss is not None for loss in reports[-1].language_losses)
    assert reports[-1].routing is None and reports[-1].balance == 0
    assert all(torch.equal(p, frozen[n]) for n, p in delta.named_parameters() if n in frozen)
    first, second = delta.layers[0].feed_forward.expert_deltas.b1
    assert first.abs().max() > 0 and not torch.equal(first, second)


def test_mix_moves_routers_alone_and_reports_routing(delta, batches):
    before = {n: p.clone() for n, p in delta.named_parameters()}
    reports = list(Trainer(delta, make_stage("mix", CONFIG), batches, LANGUAGES, CONFIG).run())
    for name, parameter in delta.named_parameters():
        assert torch.equal(parameter, before[name]) != is_router(name), name
    assert reports[0].routing.shape == (2, 2)
    assert torch.allclose(reports[0].routing.sum(-1), torch.ones(2))
    assert reports[0].balance >= 0.99 and reports[0].z > 0


def test_the_next_token_loss_teaches_the_router(delta, batches):
    """Without balance and z-loss the routers still get a gradient, through the gates."""
    config = replace(CONFIG, balance_loss_weight=0.0, z_loss_weight=0.0, weight_decay=0.0)
    with torch.no_grad():  # experts that differ
        for block in delta.layers:
            block.feed_forward.expert_deltas.b2.normal_(std=0.5)
    trainer = Trainer(delta, replace(make_stage("mix", config), steps=1), batches, LANGUAGES, config)
    before = {n: p.detach().clone() for n, p in trainer.parameters.items()}
    assert trainer.train_step().gradient_norm > 1e-6
    assert all(is_router(n) and not torch.equal(p, before[n]) for n, p in trainer.parameters.items())


def test_balance_is_measured_over_the_last_steps(delta, batches, monkeypatch):
    """A step's expert fractions hold what earlier steps chose, and a restored trainer remembers them."""
    seen = []
    balance = trainer_module.balance_loss
    monkeypatch.setattr(trainer_module, "balance_loss", lambda x, f, t: (seen.append(f.clone()), balance(x, f, t))[1])
    trainer = Trainer(delta, make_stage("mix", CONFIG), batches, LANGUAGES, CONFIG)
    trainer.train_step()
    first = trainer.chosen.clone()
    trainer.train_step()
    assert torch.allclose(seen[-1], trainer.chosen[-1] / trainer.chosen[-1].sum())
    of_the_step = trainer.chosen - trainer_module.CHOSEN_MEMORY * first  # [L, E]
    assert torch.allclose(of_the_step.sum(-1), of_the_step.sum(-1).round(), atol=1e-3) and (of_the_step > -1e-3).all()
    restored = Trainer(delta, make_stage("mix", CONFIG), batches, LANGUAGES, CONFIG)
    restored.restore(trainer.state())
    assert torch.equal(restored.chosen, trainer.chosen)


def test_resumed_training_equals_uninterrupted_training(delta, batches):
    config = replace(CONFIG, branch_steps=8, accumulate=2)
    stage = make_stage("branch", config)
    start = {n: p.detach().clone() for n, p in delta.named_parameters()}
    list(Trainer(delta, stage, batches, LANGUAGES, config).run())
    wanted = {n: p.detach().clone() for n, p in delta.named_parameters()}

    delta.load_state_dict(start)
    trainer = Trainer(delta, stage, batches, LANGUAGES, config)
    for _ in range(3):
        trainer.train_step()
    state = trainer.state()
    state.tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    delta.load_state_dict(start)
    resumed = Trainer(delta, stage, batches, LANGUAGES, config)
    resumed.restore(state)
    assert resumed.step == 3
    list(resumed.run())
    for name, parameter in delta.named_parameters():
        assert torch.equal(parameter, wanted[name]), name


def test_the_baseline_of_full_experts_trains_the_same_feed_forwards(tiny_config, make_model, batches):
    config = replace(CONFIG, branch_steps=2, mix_steps=0, expert_form="full", moe_layers="1")
    model = make_model(tiny_config, dtype=torch.float32)
    baseline = make_adapter(model, config)
    before = {n: p.clone() for n, p in model.named_parameters()}
    list(Trainer(baseline, make_stage("adapter", config), batches, LANGUAGES, config).run())
    for name, parameter in baseline.named_parameters():
        assert torch.equal(parameter, before[name]) != name.startswith("layers.1.feed_forward."), name
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "the base must stay as it was"


def test_branch_and_mix_together_use_the_batches_of_the_baseline(delta, batches, monkeypatch):
    config = replace(CONFIG, branch_steps=3, mix_steps=2, accumulate=2)
    used = {}
    for name in ("branch", "mix", "adapter"):
        trainer = Trainer(delta, make_stage(name, config), batches, LANGUAGES, config)
        seen = used.setdefault(name, [])
        monkeypatch.setattr(MixedBatches, "__getitem__", lambda self, i, seen=seen: seen.append(i) or _batch(self, i))
        list(trainer.run())
    assert used["branch"] + used["mix"] == used["adapter"] == list(range(10))


def _batch(batches: MixedBatches, index: int):
    return make_batch(batches.group(index))


def test_a_state_of_another_stage_is_refused(delta, batches):
    branch = Trainer(delta, make_stage("branch", CONFIG), batches, LANGUAGES, CONFIG).state()
    with pytest.raises(ValueError, match="of stage 'branch'"):
        Trainer(delta, make_stage("mix", CONFIG), batches, LANGUAGES, CONFIG).restore(branch)


def test_accumulated_batches_give_the_gradient_of_their_tokens_together(delta, batches):
    """Batches with different numbers of response tokens: every token weighs the same."""
    config = replace(CONFIG, accumulate=3, max_grad_norm=0.0)
    trainer = Trainer(delta, make_stage("branch", config), batches, LANGUAGES, config)
    losses = torch.cat([batch_losses(delta, forward_batch(delta, batches[i], True), batches[i]) for i in range(3)])
    wanted = torch.autograd.grad(losses.mean(), list(trainer.parameters.values()))
    norm = torch.stack([g.norm() for g in wanted]).norm()
    report = trainer.train_step()
    assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
    assert report.loss == pytest.approx(losses.mean().item(), rel=1e-5)


def test_responses_alone_are_learned(delta, batches):
    batch = batches[0]
    output = delta(batch.tokens, documents=batch.documents, forced_experts=batch.languages)
    wanted = []
    for start, example in zip(torch.tensor((0, *batch.documents)).cumsum(0).tolist(), batches.group(0), strict=False):
        for position in range(example.response_start, len(example.tokens)):
            log_probabilities = output.logits[0, start + position - 1].log_softmax(-1)
            wanted.append(-log_probabilities[example.tokens[position]])
    assert torch.allclose(batch_losses(delta, output, batch), torch.stack(wanted), atol=1e-5)


def poison(monkeypatch, *steps: int, factor: float = float("nan")):
    """Multiplies the losses of some steps (from 0); without a finite loss there is no finite gradient."""
    losses, count = trainer_module.batch_losses, iter(range(1000))
    monkeypatch.setattr(
        trainer_module, "batch_losses", lambda *a: losses(*a) * (factor if next(count) in steps else 1.0)
    )


@pytest.mark.parametrize(
    ("factor", "reason"), [(float("nan"), "not finite"), (float("inf"), "not finite"), (10.0, "after a mean of")]
)
def test_a_bad_step_changes_nothing_and_is_counted(delta, batches, monkeypatch, factor, reason):
    poison(monkeypatch, 3, factor=factor)
    trainer = Trainer(delta, make_stage("mix", CONFIG), batches, LANGUAGES, CONFIG)
    seen = []
    for report in trainer.run():
        tensors = trainer.state().tensors
        seen.append((report, {n: t.clone() for n, t in tensors.items()}, trainer.state().step))
    assert [report.step for report, _, _ in seen if report.skipped] == [4] and reason in seen[3][0].skipped
    assert [step for _, _, step in seen] == [1, 2, 3, 3, 5, 6, 7, 8, 9, 10], "a state is of a good step"
    assert all(torch.equal(seen[2][1][name], tensor) for name, tensor in seen[3][1].items())
    assert [report.all_skipped for report, _, _ in seen][-1] == 1
    assert not any(torch.equal(seen[3][1][n], seen[4][1][n]) for n in seen[4][1] if is_router(n))


def test_a_run_resumed_among_bad_steps_ends_the_same(delta, batches, monkeypatch):
    poison(monkeypatch, 4, 5, 6, 9, 10, 13, 14)
    start = {n: p.detach().clone() for n, p in delta.named_parameters()}
    config = replace(CONFIG, mix_steps=10)
    stage = make_stage("mix", config)
    wanted = [(r.step, r.loss, r.all_skipped) for r in Trainer(delta, stage, batches, LANGUAGES, config).run()]
    weights = {n: p.detach().clone() for n, p in delta.named_parameters()}
    delta.load_state_dict(start)
    trainer = Trainer(delta, stage, batches, LANGUAGES, config)
    monkeypatch.undo()
    poison(monkeypatch, 4, 5, 8, 9, 10, 13)
    first = [trainer.train_step() for _ in range(6)]
    state = trainer.state()
    assert state.step == 4
    again = Trainer(delta, stage, batches, LANGUAGES, config)
    again.restore(state)
    monkeypatch.undo()
    poison(monkeypatch, 0, 1, 2, 5)
    rest = list(again.run())
    assert [(r.step, r.loss) for r in (*first[:4], *rest)][3] == wanted[3][:2]
    assert [r.step for r in rest] == [5, 6, 7, 8, 9, 10] and rest[-1].all_skipped == wanted[-1][2]
    assert all(torch.equal(p, weights[n]) for n, p in delta.named_parameters())


def test_too_many_bad_steps_in_a_row_stop_the_run(delta, batches, monkeypatch):
    poison(monkeypatch, *range(2, 99))
    config = replace(CONFIG, max_skipped_steps=3)
    trainer = Trainer(delta, make_stage("mix", config), batches, LANGUAGES, config)
    with pytest.raises(Diverged, match=r"4 steps in a row .* up to step 6 .*lower mix_lr ") as caught:
        list(trainer.run())
    assert caught.value.rates == ("mix_lr",) and caught.value.step == 2
    learns = Trainer(delta, make_stage("branch", config), batches, LANGUAGES, config)
    with pytest.raises(UserError, match="lower branch_lr"):
        list(learns.run())


def test_spikes_are_measured_by_the_mean_before_them(delta, batches, monkeypatch):
    """A loss near zero may double, and with spike_factor 0 every finite loss is taken."""
    poison(monkeypatch, 3, factor=10.0)
    config = replace(CONFIG, spike_factor=0.0)
    trainer = Trainer(delta, make_stage("mix", config), batches, LANGUAGES, config)
    assert not any(report.skipped for report in trainer.run())
    trainer.mean_loss, trainer.config = 0.01, CONFIG
    assert not trainer._reason_to_skip(0.9, 1.0) and trainer._reason_to_skip(1.1, 1.0)


def test_learning_rate_rises_and_falls():
    rates = [schedule(i, 100, 0.1, 0.1) for i in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert schedule(0, 1, 0.03, 0.1) == 1.0


def test_experts_follow_one_cosine_over_branch_and_mix(delta):
    config = replace(
        CONFIG, branch_steps=60, mix_steps=40, warmup_ratio=0.1, branch_lr=1.0, mix_lr=2.0, mix_trains_experts=True
    )

    def rates(name):
        stage, result = make_stage(name, config), []
        optimizer = make_optimizer(choose_trainable(delta, name, True), 0.1, stage)
        for step in range(stage.steps):
            set_learning_rates(optimizer, stage, step, config.warmup_ratio, config.min_lr_ratio)
            result.append([group["lr"] for group in optimizer.param_groups])
        return torch.tensor(result)

    whole, branch, mix = (rates(name) for name in ("adapter", "branch", "mix"))
    torch.testing.assert_close(branch[:, 0], whole[:60, 0])
    torch.testing.assert_close(mix[:, 0], whole[60:, 0])
    assert mix[:, -1].max() == 2.0 and mix[-1, -1] == pytest.approx(0.2)
    alone = replace(config, mix_trains_experts=False)
    assert make_stage("branch", alone).after == 0


def test_routers_have_their_own_group_without_decay(delta):
    stage = make_stage("mix", CONFIG)
    optimizer = make_optimizer(choose_trainable(delta, "mix", True), 0.1, stage)
    routers = {id(p) for n, p in delta.named_parameters() if is_router(n)}
    for group in optimizer.param_groups:
        inside = {id(p) in routers for p in group["params"]}
        assert len(inside) == 1 and group["weight_decay"] == (0.0 if inside == {True} else 0.1)
        assert group["peak"] == (CONFIG.mix_lr if inside == {True} else CONFIG.branch_lr)


def test_bf16_models_train_float32_deltas(delta, batches):
    delta.bfloat16()
    widen_trainable(delta)
    trainer = Trainer(delta, make_stage("branch", CONFIG), batches, LANGUAGES, CONFIG)
    assert {p.dtype for p in trainer.parameters.values()} == {torch.float32}
    assert delta.layers[0].feed_forward.base.w1.weight.dtype == torch.bfloat16
    first = trainer.train_step().loss
    for _ in range(9):
        last = trainer.train_step().loss
    assert last < first


def test_token_losses_are_used_with_tied_embeddings(tiny_config, make_model, batches):
    model = make_model(replace(tiny_config, tie_embeddings=True), dtype=torch.float32)
    batch = batches[0]
    out = model(batch.tokens, documents=batch.documents, logits=False)
    wanted = token_losses(out.hidden[0, batch.positions], model.tok_embeddings.weight, batch.targets)
    assert torch.equal(batch_losses(model, out, batch), wanted)
