"""``inspect``: describes a model directory."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from pathlib import Path

import torch

from checkpoints.commands.common import find_model
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.quantized import pair_of
from checkpoints.model_card import training_of
from checkpoints.storage.files import format_bytes
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.transforms.merge import open_any
from checkpoints.transforms.quantize import is_quantizable
from checkpoints.transforms.rewrite import dense_part
from checkpoints.transforms.upcycle import parameter_counts
from moe.config import ModelConfig, format_layers
from moe.hardware import dtype_name

CONTEXT = 4096
PROCESS_BYTES = 368 << 20  # of a process that has imported this project's generation: torch 2.13 for CPUs on Linux


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand."""
    parser = subparsers.add_parser("inspect", help="architecture, parameters, experts, dtypes, bytes, memory to run")
    parser.add_argument("path", type=Path, help="a model in any supported format")
    parser.set_defaults(main=main)


def cache_bytes(config: ModelConfig, width: int, context: int = CONTEXT) -> int:
    """Bytes of the keys and values of one sequence, ``width`` bytes a number."""
    lengths = (min(context, config.window(layer) or context) for layer in range(config.n_layers))
    return 2 * config.n_kv_heads * config.head_dim * width * sum(lengths)


def running_bytes(tensor: StoredTensor) -> int:
    """Bytes of a weight in memory when a CPU runs the model in bfloat16: int4 has a scale and a zero for each group."""
    pair = pair_of(tensor)
    if pair is None:
        return 2 * math.prod(tensor.shape)
    levels, scales = pair
    return levels.nbytes + scales.nbytes * (2 if levels.dtype == torch.uint8 else 1)


def memory_to_run(config: ModelConfig, feed_forward: float, rest: float, context: int = CONTEXT) -> float:
    """Bytes of weights and a 16-bit cache of one sequence; ``feed_forward`` and ``rest`` are bytes per weight."""
    cache = cache_bytes(config, 2, context)
    shapes = dict(expected_tensors(config.dense() if config.is_delta else config))
    inner = sum(math.prod(shape) for name, shape in shapes.items() if is_quantizable(name, shape))
    return inner * feed_forward + (parameter_counts(config)[0] - inner) * rest + cache


def describe(path: Path) -> list[tuple[str, str]]:
    """Rows of (what, value) about a model; reads headers only."""
    opened = open_any(path)
    config, dense = opened.config, dense_part(opened)
    total, active = parameter_counts(config)
    tensors = dict(dense.tensors)
    files = list(dense.weight_files)
    if isinstance(opened, DeltaCheckpoint):
        tensors |= opened.tensors
        files.append(opened.path / "experts.safetensors")
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[dtype_name(tensor.dtype)] += tensor.nbytes
    if config.is_delta:
        experts = f"{config.num_experts} by low-rank deltas (rank {config.expert_rank}, shared {config.shared_rank})"
        experts += f", also of attention's {', '.join(config.attention_experts)}" if config.attention_experts else ""
    else:
        experts = f"{config.num_experts} full" if config.num_experts else "none (dense)"
    window = f", window {config.sliding_window}" if config.sliding_window else ""
    if config.sliding_layers is not None:
        window += f" in layers {format_layers(config.sliding_layers)}"
    window += ", with biases" if config.attention_bias else ""
    scaling = "" if config.rope_scaling is None else f", {config.rope_scaling.describe()}"
    tied = ", tied embeddings" if config.tie_embeddings else ""
    rows = [
        ("path", str(opened.path)),
        ("format", "delta directory" if isinstance(opened, DeltaCheckpoint) else dense.format),
        ("sizes", f"{config.n_layers} layers, width {config.dim}, feed-forward {config.hidden_dim}"),
        ("attention", f"{config.n_heads} heads, {config.n_kv_heads} for keys, {config.head_dim} each{window}"),
        ("vocabulary", f"{config.vocab_size}{tied}"),
        ("context", f"{config.max_seq_len} tokens, rope theta {config.rope_theta:g}{scaling}"),
        ("experts", experts),
    ]
    if config.moe_layers is not None:
        stored = "" if config.is_delta else f", each stored as {config.num_experts} equal copies for other readers"
        rows.append(
            ("in layers", f"{format_layers(config.moe_layers)} of {config.n_layers}; the rest is dense{stored}")
        )
    if config.num_experts:
        rows.append(("per token", str(config.num_experts_per_tok)))
        if not config.is_mixtral:
            fades = config.router_context in ("ema", "filter")
            memory = f", fading by half in {config.router_half_life:g} tokens" if fades else ""
            who = "the first sparse layer for all" if config.router_layers == "first" else "each sparse layer"
            rows.append(("routing", f"by {config.router_context} of the document{memory}; decided by {who}"))
        rows.append(("languages", ", ".join(config.expert_languages) or "not named"))
    if isinstance(opened, DeltaCheckpoint):
        rows.append(("base", str(dense.path)))
    if trained := training_of(opened.path):
        rows.append(("training", trained))
    rows += [
        ("parameters", f"{total / 1e6:,.1f} M, {active / 1e6:,.1f} M active per token"),
        ("dtypes", ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.most_common())),
        ("files", f"{len(files)} of tensors, {format_bytes(sum(f.stat().st_size for f in files))}"),
    ]
    tensors_stored = [
        *dense.tensors.values(),
        *(opened.tensors.values() if isinstance(opened, DeltaCheckpoint) else ()),
    ]
    if any(pair_of(tensor) for tensor in tensors_stored):
        running = sum(map(running_bytes, tensors_stored)) + cache_bytes(config, 4)
        process = f"besides {format_bytes(PROCESS_BYTES)} of Python and torch"
        rows.append(
            ("memory, as stored", f"{format_bytes(running)} with {CONTEXT} tokens of context on a CPU, {process}")
        )
        return rows
    for name, feed_forward, rest in (("float32", 4.0, 4.0), ("bfloat16", 2.0, 2.0), ("int4", 0.53125, 2.0)):
        needed = format_bytes(memory_to_run(config, feed_forward, rest))
        rows.append((f"memory, {name}", f"{needed} with {CONTEXT} tokens of context"))
    return rows


def main(arguments: argparse.Namespace) -> int:
    """Runs the subcommand."""
    rows = describe(find_model(arguments.path))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0
