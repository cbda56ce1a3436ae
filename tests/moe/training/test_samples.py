"""Sample answers during training: they change nothing, and say what the model would answer."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from checkpoints.runs.directory import RunDirectory
from checkpoints.runs.staged_run import StagedRun
from moe.data.packing import MixedBatches, encode_pairs
from moe.data.prompt import encode_prompt, stop_ids
from moe.data.synthetic import generate_pairs
from moe.inference.generation import generate_many
from moe.training.config import RunConfig
from moe.training.samples import Samples

LANGUAGES = ("python", "cpp")


@pytest.fixture
def setting(tiny_config, make_model, instruct):
    """A mixture, its batches and what writes its samples; everything anew at each call."""
    pairs = {x: generate_pairs(x, 6, 0) for x in LANGUAGES}
    examples = encode_pairs(pairs, instruct, "plain", 2000).examples
    experts = {"num_experts": 2, "expert_form": "delta", "shared_rank": 2, "expert_rank": 2}
    config = replace(tiny_config, vocab_size=instruct.vocab_size, max_seq_len=2000, **experts)

    def make():
        model = make_model(config, dtype=torch.float32)
        return model, MixedBatches(examples, 2000, seed=0), Samples(pairs, instruct, "plain", 5, 2000)

    return make


def test_training_is_the_same_to_the_bit_with_and_without(tmp_path, setting):
    found = {}
    for every in (0, 2):
        config = RunConfig(languages=LANGUAGES, branch_steps=2, mix_steps=3, sample_steps=every, branch_lr=1e-2)
        reports = []

        @contextmanager
        def monitor(stage, done, reports=reports):
            yield reports.append

        torch.manual_seed(7)
        random.seed(7)
        model, batches, samples = setting()
        run = StagedRun(RunDirectory.create(tmp_path / str(every), config, []), config, monitor, pytest.fail)
        run.samples = samples if every else None
        for stage in ("branch", "mix"):
            run.train(model, stage, batches)
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        found[every] = weights, [r.loss for r in reports], [torch.get_rng_state(), random.getstate()]
        written = [(r.stage, r.step) for r in reports if r.samples]
        assert written == ([("branch", 2), ("mix", 2)] if every else [])
    (weights, losses, (torch_state, state)), (others, other_losses, (other_torch, other)) = found.values()
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True)) and losses == other_losses
    assert torch.equal(torch_state, other_torch) and state == other


def test_a_sample_is_the_greedy_answer_and_training_goes_on(setting, instruct):
    model, _, samples = setting()
    model.train()
    written = samples.write(model)
    assert model.training and [sample.language for sample in written] == list(LANGUAGES)
    model.eval()
    for sample in written:
        prompt = encode_prompt(instruct, "plain", sample.prompt)
        (answer,) = generate_many(model, [prompt], max_new_tokens=5, stop_ids=stop_ids(instruct, "plain"))
        assert sample.text == instruct.decode(answer.tokens)
    assert samples.write(model) == written and not model.training
    assert Samples({"python": generate_pairs("python", 1, 0)}, instruct, "plain", 5, context=2).write(model) == ()
