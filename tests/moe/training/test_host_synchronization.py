"""A micro-batch never makes the host wait for the device; an optimizer step does so once."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moe.data.packing import Example, MixedBatches
from moe.experts import widen_trainable
from moe.model import Transformer
from moe.training.config import RunConfig
from moe.training.stages import make_stage
from moe.training.trainer import Trainer, _Sums

LANGUAGES = ("python", "cpp")
CONFIG = RunConfig(languages=LANGUAGES, tokens_per_batch=96, max_tokens=64)
FORMS = {
    "full": {"num_experts": 2},
    "delta": {"num_experts": 2, "expert_form": "delta", "shared_rank": 4, "expert_rank": 4},
    "context": {
        **{"num_experts": 2, "num_experts_per_tok": 1, "expert_form": "delta", "shared_rank": 4, "expert_rank": 4},
        **{"router_context": "filter", "router_layers": "first"},
    },
    "adapter": {"expert_form": "delta", "shared_rank": 4},
}
STAGES = [
    *(("full", "branch"), ("full", "mix"), ("delta", "branch"), ("delta", "mix")),
    *(("context", "branch"), ("context", "mix"), ("adapter", "adapter")),
]
# What gives the host a value of a tensor, or a result whose size depends on one.
READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")


class OneDevice(TorchDispatchMode):
    """Fails for any operation on, or a result of, a tensor that is not on ``device``."""

    def __init__(self, device: str):
        super().__init__()
        self.device, self.operations = device, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, torch.Tensor):
                assert value.device.type == self.device, f"{operation}: a tensor on {value.device}"
        self.operations += 1
        return result


@pytest.fixture
def batches() -> MixedBatches:
    examples = {x: [Example(tuple(range(n, 20 + 2 * n)), 3, i) for n in range(20)] for i, x in enumerate(LANGUAGES)}
    return MixedBatches(examples, 96, seed=0)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "stage"), STAGES)
def test_a_micro_batch_reads_nothing(tiny_config, batches, monkeypatch, form, stage, dtype, recompute):
    """Run on the meta device: its tensors have no data, so whatever needs a value, or a size made of values, raises."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # torch knows no autocast for meta tensors
    config = replace(CONFIG, activation_checkpointing=recompute)
    with torch.device("meta"):
        model = Transformer(replace(tiny_config, sliding_window=7, **FORMS[form])).to(dtype)
    widen_trainable(model)
    trainer = Trainer(model, make_stage(stage, config), batches, LANGUAGES, config)
    model.train()
    (share,) = trainer._batches_of_step()
    assert len(share.batch.documents) > 1
    sums = _Sums(len(LANGUAGES), len(trainer.chosen), model.config.num_experts, model.device)
    monkeypatch.setattr(torch, "tensor", None)  # copies from the host, which waits for that, too
    with OneDevice("meta") as device:
        trainer._micro_batch(share, 30, sums)
    assert device.operations > 100 and all(p.grad is not None for p in trainer.parameters.values())


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("form", "stage"), STAGES)
def test_an_optimizer_step_reads_once(tiny_config, make_model, batches, monkeypatch, root, form, stage, accumulate):
    config = replace(CONFIG, accumulate=accumulate)
    model = make_model(replace(tiny_config, **FORMS[form]), dtype=torch.float32)
    trainer = Trainer(model, make_stage(stage, config), batches, LANGUAGES, config)
    model.train()
    reads: Counter[str] = Counter()

    def counted(name: str):
        method = getattr(torch.Tensor, name)

        def read(tensor, *args, **kwargs):
            caller = sys._getframe(1).f_code.co_filename
            # The CPU kernels slice segments at offsets that are in the host's memory anyway; Triton's read them itself.
            if caller.startswith(str(root / "moe")):
                reads[name] += 1
            return method(tensor, *args, **kwargs)

        return read

    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    trainer.train_step()
    monkeypatch.undo()
    assert reads == {"tolist": 1}, reads
