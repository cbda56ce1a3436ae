"""GRPO: sampled answers, what a judge says of them, and what is learned from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe.data.pairs import Pair
from moe.errors import UserError
from moe.training.config import RunConfig
from moe.training.learning_from_tests import LearningFromTests
from moe.training.stages import make_stage
from moe.training.trainer import Trainer

LANGUAGES = ("python", "cpp")
CONFIG = RunConfig(
    languages=LANGUAGES, learn_from_tests=True, policy_steps=8, policy_lr=1e-2, tasks_per_step=2, group_size=6,
    updates_per_group=2, kl_weight=0.0, max_tokens=40, max_new_tokens=6, tokens_per_batch=96,
)  # fmt: skip


@pytest.fixture
def mixture(tiny_config, make_model):
    config = replace(tiny_config, vocab_size=259, num_experts=2, expert_form="delta", shared_rank=4, expert_rank=4)
    return make_model(config, dtype=torch.float32)


def tasks(language: str, count: int = 3) -> list[Pair]:
    return [Pair(language, f"Add {n}.", "", f"{language}-{n}", "{}") for n in range(count)]


class Judge:
    """Passes answers whose first character has an odd number; keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, answers):
        self.asked += answers
        return [1.0 if text[:1] and ord(text[0]) % 2 else 0.0 for _, text in answers]


def trainer_of(mixture, chatml, judge, config=CONFIG, languages=LANGUAGES):
    found = {language: tasks(language) for language in languages}
    policy = LearningFromTests(config, found, chatml, "plain", judge, mixture.config.max_seq_len)
    # A random model rarely writes the end token: any byte below 128 of these ends an answer, too.
    policy.stop_ids = frozenset({*policy.stop_ids, *range(150, 259)})
    return Trainer(mixture, make_stage("tests", config), policy, LANGUAGES, config)


def test_rewarded_answers_become_more_likely(mixture, chatml):
    trainer = trainer_of(mixture, chatml, Judge(), replace(CONFIG, policy_lr=1e-3))
    losses = [trainer.train_step().loss for _ in range(2)]
    gains = {language: 0.0 for language in range(len(LANGUAGES))}
    for batch in trainer.batches.batches(1):
        with torch.no_grad():
            gained = trainer.batches.log_probabilities(batch) - batch.sampled
        gains[batch.language] += (gained * batch.advantages).sum().item()
    assert losses[1] < losses[0] and min(gains.values()) > 0


def test_only_the_expert_of_the_language_learns(mixture, chatml):
    before = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    trainer = trainer_of(mixture, chatml, Judge(), languages=("cpp",))
    assert trainer.train_step().measured["kl"] == pytest.approx(0, abs=1e-6)
    for name, parameter in mixture.named_parameters():
        if ".expert_deltas." in name:
            assert torch.equal(parameter[0], before[name][0]) and not torch.equal(parameter[1], before[name][1]), name
        else:
            assert torch.equal(parameter, before[name]), name


def test_answers_are_judged_once_and_unfinished_ones_fail(mixture, chatml):
    judge = Judge()
    trainer = trainer_of(mixture, chatml, judge)
    trainer.train_step()
    asked = len(judge.asked)
    assert 0 < asked == len(set(judge.asked))
    trainer.train_step()  # learns from the same answers
    assert len(judge.asked) == asked
    trainer.batches.stop_ids = frozenset()
    report = trainer.train_step()
    assert len(judge.asked) == asked and report.measured["reward"] == report.measured["telling"] == 0


def test_a_share_of_the_tests_is_a_share_of_the_reward(mixture, chatml):
    config = replace(CONFIG, test_share_weight=0.25)
    trainer = trainer_of(mixture, chatml, lambda answers: [0.5] * len(answers), config)
    trainer.batches.stop_ids = frozenset(range(259))  # all answers end at once
    report = trainer.train_step()
    assert report.measured["reward"] == pytest.approx(0.125) and report.measured["passed"] == 0


def test_an_interrupted_stage_learns_from_the_same_answers(mixture, chatml):
    first = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    config = replace(CONFIG, policy_steps=4, kl_weight=0.1)
    whole = list(trainer_of(mixture, chatml, Judge(), config).run())
    mixture.load_state_dict(first)
    trainer, judge = trainer_of(mixture, chatml, Judge(), config), Judge()
    trainer.train_step()
    state = trainer.state()
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    mixture.load_state_dict(first)
    again = trainer_of(mixture, chatml, judge, config)
    again.restore(replace(state, tensors=kept))
    assert again.train_step().loss == whole[1].loss and not judge.asked
    assert [report.loss for report in again.run()] == [report.loss for report in whole[2:]]


def test_tasks_without_room_for_an_answer_are_left_out(mixture, chatml):
    found = {"cpp": [*tasks("cpp"), Pair("cpp", "x" * 90, "", "long", "{}")]}
    policy = LearningFromTests(CONFIG, found, chatml, "plain", Judge(), 1000)
    assert policy.too_long == {"cpp": 1} and len(policy.tasks["cpp"]) == 3
    with pytest.raises(UserError, match="none of the 4 cpp tasks leaves room"):
        LearningFromTests(replace(CONFIG, max_new_tokens=90), found, chatml, "plain", Judge(), 1000)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "expected at least 2 answers"),
        ({"temperature": 0.0}, "equal answers teach nothing"),
        ({"preferences": "x"}, "learn from one after the other"),
        ({"expert_form": "full"}, "the run has full experts"),
        ({"test_share_weight": 1.5}, "a share between 0 and 1"),
        ({"updates_per_group": 0}, "expected at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **changes)
