"""``python -m eval.training_step OUT.json``: training steps of Mistral-7B's shape, random weights, under 22 GiB.

A bf16 base with the ranks of the preset ``mistral-7b-24gb`` and an int4 base with rank 64; beside each transformers
with peft's LoRA of the same active rank on the same batches, with recomputation on both sides. Torch may allocate no
more than an A10G offers, so a step that needs more fails. Writes times, memory and the planner's error after each.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import ArgumentParser, run
from eval.random_models import LIMIT, SHAPE, TOY, limit_memory, peak_memory, random_model
from kernels.bench.timing import describe, peaks, synchronize
from moe.config import ModelConfig
from moe.data.packing import Batch, Example, MixedBatches
from moe.errors import UserError
from moe.files import json_bytes, replace_file
from moe.model import Transformer, count_parameters
from moe.training.config import RunConfig, load_preset, make_config
from moe.training.memory_plan import GIB, plan_memory
from moe.training.stages import make_stage
from moe.training.trainer import Trainer

QUICK = 200e6  # parameters of a model that a CPU trains a step of in seconds


def random_batches(config: RunConfig, vocabulary: int, examples: int = 64) -> MixedBatches:
    """Examples of every length up to the longest, in all languages."""
    draw = random.Random(0)

    def example(language: int) -> Example:
        length = draw.randint(config.max_tokens // 8, config.max_tokens)
        return Example(tuple(draw.randrange(vocabulary) for _ in range(length)), length // 3, language)

    made = {name: [example(i) for _ in range(examples)] for i, name in enumerate(config.languages)}
    return MixedBatches(made, config.tokens_per_batch, config.seed)


def delta_config(shape: ModelConfig, config: RunConfig) -> ModelConfig:
    """The shape's mixture of deltas on one base."""
    return replace(
        shape, num_experts=len(config.languages), expert_form="delta", shared_rank=config.shared_rank,
        expert_rank=config.expert_rank, num_experts_per_tok=config.num_experts_per_tok,
        expert_languages=config.languages,
    )  # fmt: skip


def planned_bytes(config: ModelConfig, run: RunConfig, dtype: torch.dtype, packed: bool, gpu: bool) -> float:
    """What the planner says."""
    return plan_memory(config, run.tokens_per_batch, dtype, run.activation_checkpointing, packed, gpu).total


def steps_of(step: Callable[[int], int], steps: int, device: torch.device, flop_per_token: float) -> dict[str, Any]:
    """Times of ``steps`` steps, each of which says its tokens; the first, which compiles kernels, is left out."""
    seconds, tokens = [], []
    for index in range(steps):
        synchronize(device)
        begin = time.perf_counter()
        tokens.append(step(index))
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    speed = sum(tokens[1:]) / sum(seconds[1:])
    return {"seconds": seconds, "tokens_per_second": speed, "tflops": flop_per_token * speed / 1e12}


def measure_ours(
    shape: ModelConfig, run: RunConfig, device: torch.device, dtype: torch.dtype, steps: int, packed: bool,
    stages: Sequence[str] = ("branch", "mix"),
) -> dict[str, Any]:  # fmt: skip
    """Steps of the branch and of the mix stage."""
    config = delta_config(shape, run)
    planned = planned_bytes(config, run, dtype, packed, device.type == "cuda") / GIB
    result: dict[str, Any] = {"planned_gib": planned, "ranks": [run.shared_rank, run.expert_rank]}
    model = random_model(config, device, dtype, packed)
    batches = random_batches(run, config.vocab_size)
    for name in stages:
        trainer = Trainer(model, make_stage(name, run), batches, run.languages, run)
        model.train()
        losses: list[float] = []

        def step(index: int, trainer: Trainer = trainer, losses: list[float] = losses) -> int:
            report = trainer.train_step()
            losses.append(report.loss)
            return report.tokens

        result[name] = {**steps_of(step, steps, device, flop_per_token(shape)), "losses": losses}
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


def flop_per_token(shape: ModelConfig) -> float:
    """Products of a dense model's forward and of the gradient of its inputs: what a frozen base needs, once each."""
    attention = 2 * shape.dim * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
    layer = attention + 3 * shape.dim * shape.hidden_dim
    return 4.0 * (shape.n_layers * layer + shape.vocab_size * shape.dim)


def measure_peft(
    shape: ModelConfig, run: RunConfig, device: torch.device, dtype: torch.dtype, steps: int
) -> dict[str, Any]:
    """transformers' Mistral with peft's LoRA on the feed-forward, of as many ranks as a token of ours has active."""
    from peft import LoraConfig, get_peft_model
    from transformers import MistralConfig, MistralForCausalLM

    rank = run.shared_rank + run.expert_rank * run.num_experts_per_tok
    config = MistralConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.dim, intermediate_size=shape.hidden_dim,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=shape.max_seq_len, sliding_window=None, use_cache=False,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            base = MistralForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    base.gradient_checkpointing_enable({"use_reentrant": False})
    base.enable_input_require_grads()
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=["gate_proj", "up_proj", "down_proj"])
    model = get_peft_model(base, lora).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batches = random_batches(run, shape.vocab_size)

    def step(index: int) -> int:
        batch = batches[index].to(device)
        loss = model(batch.tokens, labels=_labels(batch)).loss  # as one document, its fastest attention
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert loss.isfinite()
        return batch.tokens.shape[1]

    return {"rank": rank, "mix": steps_of(step, steps, device, flop_per_token(shape))}


def _labels(batch: Batch) -> torch.Tensor:
    """[1, S] the learned tokens, -100 elsewhere."""
    labels = torch.full_like(batch.tokens, -100)
    labels[0, batch.positions + 1] = batch.targets
    return labels


def step(arguments: argparse.Namespace) -> None:
    """Measures on the first GPU and writes the result."""
    smoke, quick = arguments.smoke, arguments.quick
    if not smoke and not torch.cuda.is_available():
        raise UserError("no GPU that torch can use was found")
    device = torch.device("cpu") if smoke else torch.device("cuda", 0)
    shape, dtype, steps = (TOY, torch.float32, 2) if smoke else (SHAPE, torch.bfloat16, 3)
    given: dict[str, Any] = {"base": "random", "data": "random", "accumulate": 1}
    if smoke:
        given |= {"max_tokens": 24, "tokens_per_batch": 64, "shared_rank": 2, "expert_rank": 2}
    config = make_config(load_preset("mistral-7b-24gb"), {}, given)
    large = replace(config, shared_rank=3 * config.shared_rank // 2, expert_rank=2 * config.expert_rank)  # 48 + 16 = 64
    result: dict[str, Any] = {**describe(device), "peaks": peaks(device), "limit_gib": LIMIT / GIB}
    limit_memory(device)
    peak_memory(device)  # forgets what the peaks took
    torch.manual_seed(0)
    stages = ("mix",) if quick else ("branch", "mix")
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "bf16": lambda: measure_ours(shape, config, device, dtype, steps, False, stages),
        "peft": lambda: measure_peft(shape, config, device, dtype, steps),
        "int4": lambda: measure_ours(shape, large, device, dtype, steps, True, stages),
        "peft of the larger rank": lambda: measure_peft(shape, large, device, dtype, steps),
    }
    failed = False
    for name, part in parts.items():
        if quick and name != "bf16":
            continue
        try:
            result[name] = part()
            result[name] |= peak_memory(device)  # here its model is gone
            if "peak_allocated_gib" in result[name] and "planned_gib" in result[name]:
                result[name]["planner_error"] = result[name]["planned_gib"] / result[name]["peak_allocated_gib"] - 1
        except (RuntimeError, ImportError) as error:  # a side that needs more memory or a library is a result, too
            failed |= not name.startswith("peft")
            result[name] = {"error": f"{type(error).__name__}: {str(error)[:300]}", **peak_memory(device)}
        print(f"{name}: {result[name]}", flush=True)
        replace_file(arguments.output, json_bytes(result))
    if failed:
        raise UserError(f"a step failed; {arguments.output} says how")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and measures; the exit code."""
    parser = ArgumentParser(prog="python -m eval.training_step", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT.json", help="the file to write")
    parser.add_argument("--quick", action="store_true", help="one stage on the bf16 base alone")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU: whether it runs at all")
    return run(parser, step, argv)


if __name__ == "__main__":
    raise SystemExit(main())
