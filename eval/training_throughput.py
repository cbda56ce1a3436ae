"""``python -m eval.training_throughput OUT.json``: a training step on a CPU beside transformers' and peft's.

Models of SmolLM2-135M's shape with random weights, float32, 4 rows of 256 tokens, all learned. One step is a forward
and a backward pass; attention, embeddings and norms are frozen everywhere.

- ours: a mixture of 4 experts as deltas (shared rank 48, language rank 16), experts and routers trained
- Mixtral: transformers' MixtralForCausalLM with 4 full experts, ``grouped_mm``, experts and routers trained
- LoRA: peft on the dense model's feed-forwards with the active rank of ours, 48 + 16 per expert of a token

Needs transformers and peft.
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from checkpoints.cli import ArgumentParser, check_output_file, run
from eval.training_step import random_model
from kernels.bench.roofline import interleaved_medians
from kernels.bench.shapes import EXPERTS, SMOLLM2_135M, TOP_K
from moe.config import ModelConfig
from moe.data.packing import Example, make_batch
from moe.files import json_bytes, optional_library, replace_file
from moe.hardware import describe_hardware, keep_freed_memory
from moe.training.stages import choose_trainable
from moe.training.trainer import batch_losses, forward_batch

ROWS, LENGTH = 4, 256
SHARED, OWN = 48, 16
TARGETS = {"Mixtral": 1.6, "LoRA": 1.0}  # times as fast as

Step = Callable[[], Any]


def our_step(layers: int, top_k: int) -> Step:
    """A step of the mixture of deltas, with the batches and the losses of train.py."""
    shape = ModelConfig(**{**SMOLLM2_135M._asdict(), "n_layers": layers}, tie_embeddings=True, max_seq_len=2048)
    sizes = {**shape.to_dict(), "num_experts": EXPERTS, "num_experts_per_tok": top_k, "expert_form": "delta"}
    config = ModelConfig.from_dict({**sizes, "shared_rank": SHARED, "expert_rank": OWN})
    model = random_model(config, torch.device("cpu"), torch.float32)
    parameters = choose_trainable(model, "mix", mix_trains_experts=True)
    ids = torch.randint(0, config.vocab_size, (ROWS, LENGTH)).tolist()
    batch = make_batch([Example(tuple(row), 1, place % EXPERTS) for place, row in enumerate(ids)])

    def step() -> None:
        for parameter in parameters.values():
            parameter.grad = None
        batch_losses(model, forward_batch(model, batch, forced=False), batch).mean().backward()

    return step


def _their_config(layers: int) -> dict[str, Any]:
    shape = SMOLLM2_135M
    return {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.hidden_dim,
        "num_hidden_layers": layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
    }


def _their_step(model: nn.Module) -> Step:
    ids = torch.randint(0, SMOLLM2_135M.vocab_size, (ROWS, LENGTH))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()

    return step


def mixtral_step(layers: int, top_k: int) -> Step:
    """A step of transformers' Mixtral with its fastest implementation of experts."""
    transformers = optional_library("transformers", "the comparison is with MixtralForCausalLM")
    config = transformers.MixtralConfig(
        **_their_config(layers), num_local_experts=EXPERTS, num_experts_per_tok=top_k, sliding_window=None
    )
    config._experts_implementation = "grouped_mm"
    model = transformers.MixtralForCausalLM(config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".experts." in name or ".gate." in name)
    return _their_step(model.train())


def lora_step(layers: int, top_k: int) -> Step:
    """A step of peft's LoRA on the dense model."""
    transformers = optional_library("transformers", "the comparison is with LlamaForCausalLM")
    peft = optional_library("peft", "the comparison is with LoRA")
    dense = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_their_config(layers)))
    settings = peft.LoraConfig(r=SHARED + top_k * OWN, target_modules=["gate_proj", "up_proj", "down_proj"])
    return _their_step(peft.get_peft_model(dense, settings).train())


def measure(layers: int, repeats: int, top_k: int = TOP_K) -> dict[str, Any]:
    """Median seconds of a step of each, in turns (CPU time with one thread), and how many times as fast ours is."""
    torch.manual_seed(0)
    sides = {"ours": our_step, "Mixtral": mixtral_step, "LoRA": lora_step}
    steps = {name: make(layers, top_k) for name, make in sides.items()}
    seconds = interleaved_medians(steps, repeats)
    return {
        "layers": layers,
        "experts per token": top_k,
        "tokens": ROWS * LENGTH,
        "threads": torch.get_num_threads(),
        "hardware": describe_hardware(torch.device("cpu")),
        "date": datetime.date.today().isoformat(),
        "seconds": seconds,
        "times as fast": {name: seconds[name] / seconds["ours"] for name in TARGETS},
        "targets": TARGETS,
    }


def report(arguments: argparse.Namespace) -> int:
    """Measures, prints and writes the result."""
    check_output_file(arguments.output, arguments.force)
    keep_freed_memory(torch.device("cpu"))
    result = measure(arguments.layers, arguments.repeats, arguments.top_k)
    replace_file(arguments.output, json_bytes(result))
    print(json.dumps(result))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and measures; the exit code."""
    parser = ArgumentParser(prog="python -m eval.training_throughput", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("output", type=Path, metavar="OUT.json", help="the file to write")
    parser.add_argument("--layers", type=int, default=30, help="layers of every model")
    parser.add_argument("--top-k", type=int, choices=(1, 2), default=TOP_K, help="experts of a token")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each measurement")
    parser.add_argument("--force", action="store_true", help="replace OUT.json if it exists")
    return run(parser, report, argv)


if __name__ == "__main__":
    raise SystemExit(main())
