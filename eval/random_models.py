"""Models with random weights for measurements: of a 7B shape, too large to be made in one piece under 22 GiB.

``python -m eval.random_models TOKENIZER OUT`` writes one as a directory: Mistral-7B's shape with four experts, 24.2
billion weights, quantized (int4 feed-forwards, int8 attention and output), in 13 GB.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.cli import ArgumentParser, run
from checkpoints.formats import Checkpoint
from checkpoints.formats.names import expected_tensors
from checkpoints.formats.parameters import set_packed
from checkpoints.progress import byte_progress
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.transforms.quantize import quantized_rewrite
from checkpoints.transforms.rewrite import OutputOptions, write_rewritten
from kernels import int4
from kernels.bench.shapes import EXPERTS, MISTRAL_7B, TOP_K
from kernels.packed import Int4Weights
from moe.config import ModelConfig
from moe.errors import UserError
from moe.experts import LowRankDelta, MoEFeedForward, widen_trainable
from moe.model import Transformer
from moe.training.memory_plan import GIB

LIMIT = 21.5 * GIB  # an A10G shows 22.2 GiB, of which a context takes about 0.5
SHAPE = ModelConfig(**MISTRAL_7B._asdict(), max_seq_len=4096)
TOY = ModelConfig(vocab_size=64, dim=128, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=128, max_seq_len=256)


def limit_memory(device: torch.device) -> None:
    """From now on torch may allocate no more of the GPU than `LIMIT`, so what needs more fails."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total), device)


def peak_memory(device: torch.device) -> dict[str, float]:
    """GiB that torch allocated and reserved at most since the last call."""
    if device.type != "cuda":
        return {}
    found = {
        "peak_allocated_gib": torch.cuda.max_memory_allocated(device) / GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB,
    }
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return found


@torch.no_grad()
def random_model(config: ModelConfig, device: torch.device, dtype: torch.dtype, packed: bool = False) -> Transformer:
    """A model with random weights, filled block by block on ``device``; what is trained is in float32.

    ``packed``: the feed-forwards' full weights are int4. Only one block's are ever whole.
    """
    with torch.device("meta"):
        model = Transformer(config).to(dtype).requires_grad_(False)
    for part in (*model.layers, *(child for name, child in model.named_children() if name != "layers")):
        part.to_empty(device=device)
        for name, parameter in part.named_parameters():
            norm = name.endswith("norm.weight") or part is model.norm
            parameter.fill_(1.0) if norm else parameter.normal_(0.0, 0.02)
        for module in part.modules():
            if isinstance(module, LowRankDelta):
                module.reset()
            elif packed and isinstance(module, MoEFeedForward):
                pack(module)
    widen_trainable(model)
    return model


def pack(feed_forward: MoEFeedForward) -> None:
    """Puts int4 weights in the place of a feed-forward's full ones, where they are read."""
    paths = [f"experts.{name}" for name in ("w1", "w2", "w3")]
    if feed_forward.experts is None:
        paths = [f"base.{name}.weight" for name in ("w1", "w2", "w3")]
    for path in paths:
        set_packed(feed_forward, path, Int4Weights(int4.pack(feed_forward.get_parameter(path))))


def random_tensor(name: str, shape: Sequence[int]) -> Tensor:
    """A bfloat16 tensor that its name decides: ones for norms, a normal distribution of 0.02 for the rest."""
    if len(shape) == 1:
        return torch.ones(*shape, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(sum(name.encode()))
    count = math.prod(shape)
    some = torch.empty(min(count, 1 << 20), dtype=torch.bfloat16).normal_(0.0, 0.02, generator=draw)
    return some.repeat(-(-count // len(some)))[:count].view(*shape)  # repeated: drawing 24 billion takes minutes


def random_checkpoint(config: ModelConfig, directory: Path) -> Checkpoint:
    """A checkpoint whose tensors are computed when they are read; its tokenizer is that of ``directory``."""
    tensors = {
        name: StoredTensor(name, torch.bfloat16, tuple(shape), partial(random_tensor, name, shape))
        for name, shape in expected_tensors(config)
    }
    return Checkpoint(directory, "random", config, tensors, ())


def write(arguments: argparse.Namespace) -> None:
    """Writes the quantized model."""
    if not arguments.tokenizer.is_dir():
        raise UserError(f"found no directory {arguments.tokenizer}; expected one with a tokenizer")
    config = replace(SHAPE, num_experts=EXPERTS, num_experts_per_tok=TOP_K)
    rewrite = quantized_rewrite(random_checkpoint(config, arguments.tokenizer), "Random weights", rest="int8")
    with byte_progress(rewrite.nbytes, "write") as progress:
        write_rewritten(rewrite, arguments.out, OutputOptions(arguments.force, progress=progress))


def main() -> int:
    """The command line."""
    parser = ArgumentParser(prog="python -m eval.random_models", description=__doc__)
    parser.add_argument("tokenizer", type=Path, help="a directory with the tokenizer to put beside the weights")
    parser.add_argument("out", type=Path, help="the directory to write")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return run(parser, write)


if __name__ == "__main__":
    sys.exit(main())
