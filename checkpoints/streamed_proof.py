"""The proof for models that do not fit in memory: both models run over the prompts layer by layer, read from disk.

Memory is one layer of each model and the prompts' hidden states. Generating text this way would read the whole model
for each token, so the best next token is compared at every position of the prompts instead.
"""

# S sequence, D model dim, V vocabulary

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from checkpoints.formats import Checkpoint
from checkpoints.formats.delta import DeltaCheckpoint
from checkpoints.formats.parameters import base_rename, fill_model, meta_model
from checkpoints.model_io import load_model
from checkpoints.proof import PROMPTS, Proof, logit_bound, prompt_ids, prove
from checkpoints.storage.files import format_bytes
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.storage.writer import in_dtype
from checkpoints.transforms.rewrite import Source, dense_part
from checkpoints.transforms.upcycle import parameter_counts
from moe.hardware import available_memory, dtype_name
from moe.layers import RMSNorm, make_pattern
from moe.model import rotary
from moe.router import RouterContext, Routing
from moe.tokenizer import Tokenizer


def _own_tensors(source: Source, prefix: str) -> dict[str, StoredTensor]:
    """Tensors of a delta directory under a prefix; none for other models."""
    if not isinstance(source, DeltaCheckpoint):
        return {}
    return {name: tensor for name, tensor in source.tensors.items() if name.startswith(prefix)}


def _find(source: Source, name: str) -> Tensor:
    """One tensor outside of the layers."""
    return ({**dense_part(source).tensors, **_own_tensors(source, name)})[name].read()


def layer_block(source: Source, layer: int, dtype: torch.dtype) -> nn.Module:
    """One layer of a model on disk, in memory."""
    sparse = layer in source.config.sparse_layers
    config = source.config if sparse else source.config.dense()
    config = replace(config, n_layers=1, moe_layers=None, sliding_layers=None, router_layers="each")
    model = meta_model(config)
    prefix = f"layers.{layer}."

    def moved(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
        return {f"layers.0.{n.removeprefix(prefix)}": t for n, t in tensors.items() if n.startswith(prefix)}

    rename = base_rename(config) if config.is_delta else None
    fill_model(model, moved(dict(dense_part(source).tensors)), dtype, "cpu", rename)
    fill_model(model, moved(_own_tensors(source, prefix)), dtype, "cpu")
    return model.layers[0]


@torch.no_grad()
def streamed_hidden(source: Source, prompts: list[list[int]], dtype: torch.dtype) -> list[Tensor]:
    """Final hidden states [S, D] of each prompt, after the last norm."""
    config = source.config
    embedding = _find(source, "tok_embeddings.weight")
    states = [embedding[ids].to(dtype)[None] for ids in prompts]  # [1, S, D]
    del embedding
    contexts = [
        None if config.router_context == "none" else RouterContext(config, (1, x.shape[1]), x.device) for x in states
    ]
    first: list[Routing | None] = [None] * len(states)  # the decision that the layers after it take, too
    for layer in range(config.n_layers):
        block = layer_block(source, layer, dtype)
        for index, x in enumerate(states):
            length = x.shape[1]
            cos, sin = rotary(config, torch.arange(length)[None], dtype)
            pattern = make_pattern(length, config.window(layer), None, x.device)
            states[index], routing = block(
                x, cos, sin, pattern, None, layer, first[index], contexts[index], 0, None, None
            )
            if config.router_layers == "first":
                first[index] = first[index] or routing
    norm = RMSNorm(config.dim, config.norm_eps)
    norm.weight = nn.Parameter(_find(source, "norm.weight").to(dtype))
    return [norm(x)[0] for x in states]


def streamed_logits(source: Source, prompts: list[list[int]], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yields the logits [S, V] of each prompt."""
    hidden = streamed_hidden(source, prompts, dtype)
    output = _find(source, "tok_embeddings.weight" if source.config.tie_embeddings else "output.weight").to(dtype)
    for x in hidden:
        yield F.linear(x, output)


@torch.no_grad()
def prove_streamed(dense: Source, mixture: Source, tokenizer: Tokenizer | None, dtype: torch.dtype) -> Proof:
    """Compares two models on disk; the module's docstring says what replaces greedy text."""
    prompts = prompt_ids(tokenizer, dense.config.vocab_size)
    difference = size = 0.0
    greedy = []
    theirs = list(streamed_logits(dense, prompts, dtype))
    for (language, _), expected, found in zip(PROMPTS, theirs, streamed_logits(mixture, prompts, dtype)):
        difference = max(difference, (found - expected).abs().max().item())
        size = max(size, expected.abs().max().item())
        best = expected.argmax(-1)
        same = bool((found.argmax(-1) == best).all())
        text = tokenizer.decode([int(best[-1])]) if tokenizer is not None else [int(best[-1])]
        greedy.append({"language": language, "dense": text, "same": same})
    positions = sum(map(len, prompts))
    same = all(entry["same"] for entry in greedy)
    return Proof(dtype_name(dtype), positions, difference, size, same, tuple(greedy), logit_bound(dtype, size))


def prove_directories(
    dense: Source,
    mixture: Source,
    tokenizer: Tokenizer | None,
    dtype: torch.dtype,
    stored: torch.dtype | None = None,
    memory: int | None = None,
) -> tuple[Proof, str]:
    """Compares two models on disk, in memory if both fit, else layer by layer; also returns which.

    Args:
        stored: the dtype to which the mixture's weights were converted, so that the dense model is rounded alike.
        memory: bytes that may be used; None takes what is free.
    """
    needed = sum(parameter_counts(source.config)[0] for source in (dense, mixture)) * dtype.itemsize * 5 // 4
    memory = available_memory(torch.device("cpu")) if memory is None else memory
    if needed <= memory:
        first = load_model(dense.path, stored or dtype).model.to(dtype)
        return prove(first, load_model(mixture.path, dtype).model, tokenizer), "in memory"
    if stored is not None and isinstance(dense, Checkpoint):
        dense = replace(dense, tensors={name: in_dtype(tensor, stored) for name, tensor in dense.tensors.items()})
    proof = prove_streamed(dense, mixture, tokenizer, dtype)
    return proof, f"layer by layer: both models need {format_bytes(needed)}, {format_bytes(memory)} are free"
