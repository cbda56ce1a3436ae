"""``python -m eval.training_step OUT.json``: training steps of Mistral-7B's shape, random weights, under 22 GiB.

An A10G shows 22.2 GiB. The preset ``mistral-7b-24gb`` says what is trained and how; torch may allocate no more than the
limit, so a step that needs more fails. Writes times, tokens per second and memory. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import ArgumentParser, run
from kernels.bench.shapes import MISTRAL_7B
from moe.config import ModelConfig
from moe.data.packing import Example, MixedBatches
from moe.errors import UserError
from moe.experts import LowRankDelta, widen_trainable
from moe.files import json_bytes, replace_file
from moe.model import Transformer, count_parameters
from moe.training.config import RunConfig, load_preset, make_config
from moe.training.memory_plan import GIB, plan_memory
from moe.training.stages import make_stage
from moe.training.trainer import Trainer

LIMIT = 22 * GIB
QUICK = 200e6  # parameters of a model that a CPU trains a step of in seconds


def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Transformer:
    """A model with weights drawn on ``device``, made there in ``dtype`` at once; trained parts in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Transformer(config)
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if name.endswith("norm.weight") else parameter.normal_(0.0, 0.02)
    for module in model.modules():
        if isinstance(module, LowRankDelta):
            module.reset()
    widen_trainable(model)
    return model.requires_grad_(False)


def random_batches(config: RunConfig, vocabulary: int, examples: int = 64) -> MixedBatches:
    """Examples of every length up to the longest, in all languages."""
    draw = random.Random(0)

    def example(language: int) -> Example:
        length = draw.randint(config.max_tokens // 8, config.max_tokens)
        return Example(tuple(draw.randrange(vocabulary) for _ in range(length)), length // 3, language)

    made = {name: [example(i) for _ in range(examples)] for i, name in enumerate(config.languages)}
    return MixedBatches(made, config.tokens_per_batch, config.seed)


def measure(
    shape: ModelConfig, config: RunConfig, device: torch.device, dtype: torch.dtype, steps: int = 3
) -> dict[str, Any]:
    """Steps of the branch and of the mix stage; the first of each, which compiles kernels, is not counted in times."""
    sizes = {**shape.to_dict(), "num_experts": len(config.languages), "expert_form": "delta"}
    sizes |= {"shared_rank": config.shared_rank, "expert_rank": config.expert_rank}
    sizes |= {"num_experts_per_tok": config.num_experts_per_tok, "expert_languages": config.languages}
    model_config = ModelConfig.from_dict(sizes)
    planned = plan_memory(model_config, config.tokens_per_batch, dtype, config.activation_checkpointing).total
    result: dict[str, Any] = {"limit_gib": LIMIT / GIB, "planned_gib": planned / GIB}
    model = random_model(model_config, device, dtype)
    batches = random_batches(config, model_config.vocab_size)
    for name in ("branch", "mix"):
        trainer = Trainer(model, make_stage(name, config), batches, config.languages, config)
        model.train()
        reports = [trainer.train_step() for _ in range(steps)]
        seconds = sum(report.seconds for report in reports[1:])
        result[name] = {
            "losses": [report.loss for report in reports],
            "seconds": [report.seconds for report in reports],
            "tokens_per_second": sum(report.tokens for report in reports[1:]) / seconds,
        }
        del trainer
    if device.type == "cuda":
        result["peak_allocated_gib"] = torch.cuda.max_memory_allocated() / GIB
        result["peak_reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    return result


def measured_speed(config: RunConfig, shape: ModelConfig, device: torch.device, dtype: torch.dtype) -> float:
    """Tokens per second of the second of two mix steps of a model of this shape with random weights.

    On a CPU the batches are short, which changes its speed little, and a model of more than :data:`QUICK` parameters is
    not tried: 0.
    """
    with torch.device("meta"):
        size = count_parameters(Transformer(shape))
    if device.type != "cuda" and size > QUICK:
        return 0.0
    if device.type != "cuda":
        config = replace(config, max_tokens=min(config.max_tokens, 128), tokens_per_batch=256)
    model = random_model(shape, device, dtype)
    batches = random_batches(config, shape.vocab_size, 2 + 16 * config.tokens_per_batch // config.max_tokens)
    trainer = Trainer(model, make_stage("mix", replace(config, accumulate=1)), batches, config.languages, config)
    model.train()
    return [report.tokens / report.seconds for report in (trainer.train_step(), trainer.train_step())][1]


def step(arguments: argparse.Namespace) -> None:
    """Measures on the first GPU and writes the result."""
    if not torch.cuda.is_available():
        raise UserError("no GPU that torch can use was found")
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total), device)
    torch.manual_seed(0)
    config = make_config(load_preset("mistral-7b-24gb"), {}, {"base": "random", "data": "random", "accumulate": 1})
    result = measure(ModelConfig(**MISTRAL_7B._asdict()), config, device, torch.bfloat16)
    result["device"] = torch.cuda.get_device_name()
    replace_file(arguments.output, json_bytes(result))
    print(json.dumps(result))


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and measures; the exit code."""
    parser = ArgumentParser(prog="python -m eval.training_step", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT.json", help="the file to write")
    return run(parser, step, argv)


if __name__ == "__main__":
    raise SystemExit(main())
