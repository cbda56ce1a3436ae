"""Learning from answers: the losses agree with another library's, and each language's expert learns alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moe.data.preferences import Preference, read_preferences
from moe.errors import UserError
from moe.files import write_json_lines
from moe.training.config import RunConfig
from moe.training.policy import LearningFromPreferences, drawn, fill
from moe.training.policy_losses import clipped_losses, divergence, group_advantages, preference_losses
from moe.training.stages import make_stage
from moe.training.trainer import Trainer

LANGUAGES = ("python", "cpp")
CONFIG = RunConfig(
    languages=LANGUAGES, preferences="x", policy_steps=6, policy_lr=3e-2, tasks_per_step=2, max_tokens=40,
    tokens_per_batch=80,
)  # fmt: skip
# What trl 1.16.0 (torch 2.13.0) computes from log-probabilities in float64: DPOTrainer's loss of type "sigmoid", as
# beta, those of chosen and rejected answers, the same at the start, and the loss.
DPO = [
    (0.1, [-20.8808], [-15.2832], [-14.3191], [-26.6861], 1.9499405266724215),
    (
        0.1,
        [-9.8553, -25.369, -22.1338],
        [-12.6057, -19.171, -30.0932],
        [-18.0939, -19.2032, -19.1761],
        [-18.5567, -11.6273, -11.9179],
        0.46979892378299165,
    ),
    (0.5, [-5.3708], [-18.7835], [-5.2968], [-7.8464], 0.004366759081063425),
    (
        0.5,
        [-9.3251, -25.5076, -22.7469],
        [-24.3468, -12.3207, -25.9644],
        [-9.1102, -23.6171, -10.3111],
        [-8.4188, -22.535, -20.4991],
        3.1901908211671888,
    ),
]
# GRPOTrainer's loss of type "dapo" with epsilon 0.2: beta; policy, sampled and reference by answer and token, of which
# the last one is padding; the loss. The answers' advantages are 0.7071 and -0.7071.
GRPO = [
    (
        0.0,
        [[-1.3935, -1.4997, -1.0753], [-0.8869, -0.9478, -0.8679]],
        [[-1.4167, -1.7764, -1.6435], [-0.5852, -1.1563, -0.596]],
        [[-1.3613, -1.3159, -0.9764], [-1.1498, -1.4508, -1.0853]],
        -0.19680605169875368,
    ),
    (
        0.04,
        [[-0.6146, -0.9463, -0.7806], [-0.1461, -1.3513, -1.833]],
        [[-0.0651, -1.1124, -0.4688], [-0.5241, -1.2266, -2.2239]],
        [[-0.4841, -1.2912, -1.0251], [-0.4196, -1.3735, -1.5013]],
        -0.01992752403212279,
    ),
]


@pytest.mark.parametrize(("beta", "chosen", "rejected", "first_chosen", "first_rejected", "loss"), DPO)
def test_preference_loss_is_that_of_trl(beta, chosen, rejected, first_chosen, first_rejected, loss):
    policy, reference = (
        torch.tensor(columns, dtype=torch.float64).T for columns in ((chosen, rejected), (first_chosen, first_rejected))
    )
    assert preference_losses(policy, reference, beta).mean().item() == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(("beta", "policy", "sampled", "reference", "loss"), GRPO)
def test_clipped_loss_is_that_of_trl(beta, policy, sampled, reference, loss):
    now, then, first = (torch.tensor(x, dtype=torch.float64).flatten()[:5] for x in (policy, sampled, reference))
    advantages = torch.tensor([0.7071, -0.7071], dtype=torch.float64).repeat_interleave(3)[:5]
    found = clipped_losses(now, then, advantages, 0.2) + beta * divergence(now, first)
    assert found.mean().item() == pytest.approx(loss, abs=1e-6)


def test_advantages_compare_the_answers_of_a_group():
    found = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]]))
    assert found[0].tolist() == pytest.approx([0.866, -0.866, -0.866, 0.866], abs=1e-3)
    assert found[1].tolist() == [0, 0, 0, 0]


def preferences(language: str, count: int = 3) -> list[Preference]:
    return [Preference(language, f"Add {n}.", f"x + {n}", f"x - {n}") for n in range(count)]


@pytest.fixture
def mixture(tiny_config, make_model):
    config = replace(tiny_config, vocab_size=259, num_experts=2, expert_form="delta", shared_rank=4, expert_rank=4)
    return make_model(config, dtype=torch.float32)


def steps(mixture, chatml, config, found):
    trainer = Trainer(
        mixture,
        make_stage("preferences", config),
        LearningFromPreferences(config, found, chatml, "plain"),
        LANGUAGES,
        config,
    )
    return trainer, list(trainer.run())


def test_answers_move_the_expert_of_their_language_alone(mixture, chatml):
    before = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    trainer, reports = steps(mixture, chatml, CONFIG, {"cpp": preferences("cpp")})
    assert reports[0].loss == pytest.approx(0.693147, abs=1e-4)
    assert reports[-1].loss < reports[0].loss and reports[-1].measured["margin"] > 0.1
    assert reports[-1].language_losses[0] is None
    for name, parameter in mixture.named_parameters():
        if ".expert_deltas." in name:
            assert torch.equal(parameter[0], before[name][0]) and not torch.equal(parameter[1], before[name][1]), name
        else:
            assert torch.equal(parameter, before[name]), name
    trained = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    with trainer.batches.at_start():
        assert all(torch.equal(p, before[name]) for name, p in mixture.named_parameters())
    assert all(torch.equal(p, trained[name]) for name, p in mixture.named_parameters())


def test_an_interrupted_stage_goes_on_where_it_stopped(mixture, chatml):
    first = {name: p.detach().clone() for name, p in mixture.named_parameters()}
    found = {language: preferences(language) for language in LANGUAGES}
    _, whole = steps(mixture, chatml, CONFIG, found)
    mixture.load_state_dict(first)
    stage, policy = make_stage("preferences", CONFIG), LearningFromPreferences(CONFIG, found, chatml, "plain")
    trainer = Trainer(mixture, stage, policy, LANGUAGES, CONFIG)
    for _ in range(3):
        trainer.train_step()
    state = trainer.state()
    kept = {name: tensor.clone() for name, tensor in state.tensors.items()}
    mixture.load_state_dict(first)
    again = Trainer(mixture, stage, LearningFromPreferences(CONFIG, found, chatml, "plain"), LANGUAGES, CONFIG)
    again.restore(replace(state, tensors=kept))
    assert [report.loss for report in again.run()] == [report.loss for report in whole[3:]]


def test_preferences_that_do_not_fit_are_left_out(chatml):
    long = Preference("cpp", "Add.", "x" * 60, "y")
    policy = LearningFromPreferences(CONFIG, {"cpp": [long, *preferences("cpp")]}, chatml, "plain")
    assert policy.too_long == {"cpp": 1} and len(policy.pairs["cpp"]) == 3
    with pytest.raises(UserError, match="none of the 1 cpp preferences fits"):
        LearningFromPreferences(CONFIG, {"cpp": [long]}, chatml, "plain")


def test_each_pass_takes_every_item_once():
    passes = [drawn(range(5), step, 5, "seed") for step in range(3)]
    assert all(sorted(found) == list(range(5)) for found in passes) and passes[0] != passes[1]
    assert [x for step in range(5) for x in drawn(range(5), step, 3, "seed")] == [x for found in passes for x in found]


def test_a_group_is_never_torn(chatml):
    policy = LearningFromPreferences(CONFIG, {x: preferences(x, 5) for x in LANGUAGES}, chatml, "plain")
    groups = [pair for pairs in policy.pairs.values() for pair in pairs]
    rows = list(fill(groups, 80))
    assert [x for row in rows for x in row] == [x for group in groups for x in group]
    assert all(len({x.language for x in row}) == 1 and len(row) % 2 == 0 for row in rows)
    assert all(sum(len(x.tokens) for x in row) <= 80 for row in rows)


ROW = {"prompt": "Add.", "chosen": "a", "rejected": "b", "language": "python"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "rejected": " a\n"}, "line 1: 'chosen' and 'rejected' are the same"),
        ({**ROW, "chosen": "Add."}, "line 1: 'chosen' repeats the prompt"),
        ({**ROW, "language": "go"}, "line 1: language is 'go', which the mixture has no expert for"),
        ({**ROW, "rejected": "  "}, "line 1: 'rejected' is empty"),
        ({**ROW, "prompt": ["Add."]}, "line 1: 'prompt' is a list; expected a string"),
        ({"prompt": "Add.", "chosen": "a"}, "line 1: lacks the key 'rejected'"),
        (None, "holds no preferences"),
    ],
)
def test_bad_preferences_are_named(tmp_path, row, message):
    path = tmp_path / "p.jsonl"
    write_json_lines(path, [] if row is None else [row])
    with pytest.raises(UserError, match=message):
        read_preferences(path, LANGUAGES)


def test_other_names_of_languages_are_known(tmp_path):
    write_json_lines(tmp_path / "p.jsonl", [{**ROW, "language": "C++"}, {**ROW, "language": "Python"}])
    assert list(read_preferences(tmp_path / "p.jsonl", LANGUAGES)) == ["python", "cpp"]
