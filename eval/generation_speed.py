"""``python -m eval.generation_speed OUT.json``: decode speed of Mistral-7B's shape with four int4 experts.

Random weights, no more memory than an A10G offers, 1 and 8 sequences, with and without CUDA graphs; beside it
transformers' dense Mistral in bf16. Writes tokens per second and the share of the measured bandwidth at which the bytes
that a step must read are read.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from checkpoints.cli import ArgumentParser, run
from eval.random_models import LIMIT, SHAPE, TOY, limit_memory, peak_memory, random_model
from kernels.bench.shapes import EXPERTS
from kernels.bench.timing import describe, peaks, synchronize
from moe.config import ModelConfig
from moe.errors import UserError
from moe.files import json_bytes, replace_file
from moe.inference.generation import generate_many
from moe.training.memory_plan import GIB

INT4 = 66 / 128  # bytes of a weight
Write = Callable[[int, int], Any]  # (sequences, new tokens) -> writes them
Steps = Callable[[int, int, int], float]  # (sequences, few, many) -> milliseconds of a step after few to many tokens


def decode_bytes(config: ModelConfig, sequences: int, length: int, bytes_per_weight: float) -> float:
    """Bytes that a decode step must read: attention, output, cache and the expected number of experts hit, in bf16 but
    for the feed-forwards."""
    attention = 2 * 2 * config.dim * (config.n_heads + config.n_kv_heads) * config.head_dim
    hit = 1.0
    if config.is_moe:
        hit = config.num_experts * (1 - (1 - config.num_experts_per_tok / config.num_experts) ** sequences)
    weights = 3 * config.dim * config.hidden_dim * hit * bytes_per_weight
    cache = sequences * length * 2 * 2 * config.n_kv_heads * config.head_dim
    return config.n_layers * (attention + weights + cache) + 2 * config.vocab_size * config.dim


def decode_milliseconds(write: Write, sequences: int, few: int, many: int, device: torch.device) -> float:
    """Milliseconds of a step: the time of many new tokens less that of few, which both read the prompts."""
    write(sequences, few)  # compiles kernels
    seconds = []
    for count in (few, many):
        synchronize(device)
        begin = time.perf_counter()
        write(sequences, count)
        synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return 1e3 * (seconds[1] - seconds[0]) / (many - few)


def measure(
    steps: Steps, config: ModelConfig, bytes_per_weight: float, bandwidth: float, lengths: tuple[int, int, int],
    counts: Sequence[int],
) -> dict[str, Any]:  # fmt: skip
    """Speeds for each number of sequences; ``lengths``: of the prompt, and the few and many tokens that follow."""
    result: dict[str, Any] = {}
    prompt, few, many = lengths
    for sequences in counts:
        ms = steps(sequences, few, many)
        moved = decode_bytes(config, sequences, prompt + (few + many) // 2, bytes_per_weight)
        result[f"{sequences} sequences"] = {
            "ms": ms,
            "tokens_per_second": 1e3 * sequences / ms,
            "gbytes": moved / 1e9,
            "bandwidth_share": moved / bandwidth * 1e3 / ms,
        }
    return result


def ours(config: ModelConfig, prompt: int, device: torch.device, dtype: torch.dtype) -> Callable[..., float]:
    """This project's generation on a random model with int4 experts: `Steps`, with ``cuda_graphs`` or without."""
    model = random_model(config, device, dtype, packed=True).eval()

    def steps(sequences: int, few: int, many: int, cuda_graphs: bool = True) -> float:
        prompts = [[1 + (7 * i + j) % 50 for j in range(prompt)] for i in range(sequences)]
        settings: dict[str, Any] = {"cuda_graphs": cuda_graphs}
        generate_many(model, prompts, max_new_tokens=few, **settings)  # compiles kernels
        times: list[float] = []  # of each token of each sequence, which the host waits for
        settings["on_token"] = lambda place, token: times.append(time.perf_counter())
        answers = generate_many(model, prompts, max_new_tokens=many, **settings)
        assert all(len(answer.tokens) == many for answer in answers)
        return 1e3 * (times[-1] - times[few * sequences - 1]) / (many - few)

    return steps


def theirs(config: ModelConfig, prompt: int, device: torch.device, dtype: torch.dtype) -> Callable[..., float]:
    """transformers' generation on a random dense Mistral."""
    from transformers import GenerationConfig, MistralConfig, MistralForCausalLM

    sizes = MistralConfig(
        vocab_size=config.vocab_size, hidden_size=config.dim, intermediate_size=config.hidden_dim,
        num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.max_seq_len, sliding_window=None,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MistralForCausalLM(sizes).eval()
    finally:
        torch.set_default_dtype(before)

    def write(sequences: int, count: int) -> None:
        tokens = torch.arange(prompt, device=device).remainder(50).add(1).expand(sequences, -1).contiguous()
        settings = GenerationConfig(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        with torch.inference_mode():
            out = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=settings)
        assert out.shape[1] == prompt + count

    return lambda sequences, few, many: decode_milliseconds(write, sequences, few, many, device)


def speed(arguments: argparse.Namespace) -> None:
    """Measures on the first GPU and writes the result."""
    smoke, quick = arguments.smoke, arguments.quick
    if not smoke and not torch.cuda.is_available():
        raise UserError("no GPU that torch can use was found")
    device = torch.device("cpu") if smoke else torch.device("cuda", 0)
    dense, dtype, lengths = (TOY, torch.float32, (4, 1, 3)) if smoke else (SHAPE, torch.bfloat16, (128, 8, 72))
    config = replace(dense, num_experts=EXPERTS)
    result: dict[str, Any] = {**describe(device), "peaks": peaks(device), "limit_gib": LIMIT / GIB}
    bandwidth = result["peaks"]["bandwidth"]
    limit_memory(device)
    peak_memory(device)  # forgets what the peaks took
    torch.manual_seed(0)
    sides = {"int4 experts": (ours, config, INT4), "transformers, dense bf16": (theirs, dense, 2.0)}
    failed = False
    for name, (make, own, width) in sides.items():
        if quick and make is theirs:
            continue
        try:
            steps = make(own, lengths[0], device, dtype)
            given = (own, width, bandwidth, lengths, (1,) if quick else (1, 8))
            result[name] = measure(steps, *given)
            if make is ours:
                result[f"{name} without CUDA graphs"] = measure(partial(steps, cuda_graphs=False), *given)
            del steps  # and with it its model
            result[name] |= peak_memory(device)
        except (RuntimeError, ImportError) as error:
            failed |= make is ours
            result[name] = result.get(name, {}) | {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(f"{name}: {result[name]}", flush=True)
        replace_file(arguments.output, json_bytes(result))
    if failed:
        raise UserError(f"generation failed; {arguments.output} says how")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and measures; the exit code."""
    parser = ArgumentParser(prog="python -m eval.generation_speed", description=__doc__)
    parser.add_argument("output", type=Path, metavar="OUT.json", help="the file to write")
    parser.add_argument("--quick", action="store_true", help="one sequence alone")
    parser.add_argument("--smoke", action="store_true", help="toy sizes on the CPU: whether it runs at all")
    return run(parser, speed, argv)


if __name__ == "__main__":
    raise SystemExit(main())
