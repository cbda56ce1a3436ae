"""GPTQ (Frantar et al., 2022): rounding to int4 with calibration, and the perplexity before and after.

GPTQ rounds one input column after another and adjusts the remaining columns to compensate for each error, given the
inputs of real prompts. Unlike the other transforms this needs the whole model in memory, and prompts to run it on.
"""

# N outputs, K inputs, G = K / 128 groups, T tokens, D model dim, F hidden dim, S sequence, V vocabulary

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from checkpoints.formats.names import stacked_name
from checkpoints.model_io import LoadedModel
from checkpoints.storage.safetensors_file import StoredTensor
from checkpoints.transforms.quantize import Rounder, round_to_nearest
from kernels.int4 import GROUP, Int4Weight
from moe.data.packing import encode_pairs
from moe.data.pairs import Pair
from moe.errors import UserError
from moe.experts import MoEFeedForward
from moe.layers import FeedForward
from moe.model import Transformer

DAMPING = 0.01  # of the mean diagonal, added to it, as in GPTQ
MAX_TOKENS = 1024  # of one prompt with its solution
BLOCK = GROUP  # columns rounded before the rest is updated


def gptq(weight: Tensor, second_moment: Tensor) -> Int4Weight:
    """Rounds weight [N, K] given the second moments of its inputs [K, K] (Frantar et al., 2022, algorithm 1).

    The scale of a group is set when its first column is reached, from the weights as adjusted by then.
    """
    w = weight.detach().to(torch.float32).clone()  # [N, K]
    hessian = second_moment.to(torch.float32).clone()
    rows, columns = w.shape
    unused = hessian.diagonal() == 0
    hessian.diagonal()[unused] = 1.0  # an input that is always 0: its weights do not matter
    w[:, unused] = 0.0
    hessian.diagonal().add_(DAMPING * hessian.diagonal().mean())
    # Row i of the inverse's upper Cholesky factor says how the columns after i compensate for the error of column i.
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True)  # [K, K]
    levels = torch.empty(rows, columns)
    scales = torch.empty(rows, columns // GROUP)
    for start in range(0, columns, BLOCK):
        stop = start + BLOCK
        block, errors = w[:, start:stop], torch.empty(rows, BLOCK)
        scale = (block.abs().amax(1) / 7).clamp_min(torch.finfo(torch.bfloat16).tiny)
        scale = scale.to(torch.bfloat16).float()  # [N], as it will be stored
        scales[:, start // GROUP] = scale
        for column in range(BLOCK):
            index = start + column
            value = block[:, column]
            level = (value / scale).round().clamp(-8, 7)
            levels[:, index] = level
            error = (value - level * scale) / upper[index, index]  # [N]
            block[:, column:] -= error[:, None] * upper[index, index:stop][None]
            errors[:, column] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    return _pack_levels(levels, scales)


def _pack_levels(levels: Tensor, scales: Tensor) -> Int4Weight:
    """Levels -8..7 [N, K] and scales [N, G] in the packing of :mod:`kernels.int4`, for one expert."""
    q = (levels + 8).to(torch.uint8).view(levels.shape[0], -1, GROUP)  # [N, G, 128]
    packed = q[..., : GROUP // 2] | (q[..., GROUP // 2 :] << 4)  # [N, G, 64]
    return Int4Weight(
        packed.transpose(0, 1).contiguous()[None], scales.t().contiguous().to(torch.bfloat16)[None]
    )  # [1, G, N, 64], [1, G, N]


class InputMoments:
    """Second moments of the inputs of a model's feed-forward matrices, over real sequences.

    The model runs once over the sequences; memory is the inputs of all layers and one layer's moments.
    """

    def __init__(self, model: Transformer, sequences: Sequence[Sequence[int]]) -> None:
        self.model, self.sequences = model, sequences
        self._inputs: list[list[Tensor]] = [[] for _ in range(model.config.n_layers)]
        self._cache: tuple[tuple[int, int | None], dict[str, Tensor]] | None = None
        self._collect()

    @torch.no_grad()
    def _collect(self) -> None:
        def observe(layer: int, hidden: Tensor) -> None:
            self._inputs[layer].append(hidden.reshape(-1, hidden.shape[-1]).float())  # [T, D]

        for sequence in self.sequences:
            self.model(torch.tensor([sequence], device=self.model.device), observer=observe, logits=False)

    @torch.no_grad()
    def of(self, name: str) -> Tensor:
        """[K, K] of the matrix with this flat name, from the tokens that visit its expert."""
        expert = stacked_name(name)[1]
        layer, weight = int(name.split(".")[1]), name.split(".")[-2]
        key = (layer, expert)
        if self._cache is None or self._cache[0] != key:
            self._cache = (key, self._layer(layer, expert))
        return self._cache[1]["w2" if weight == "w2" else "w1"]

    def _layer(self, layer: int, expert: int | None) -> dict[str, Tensor]:
        ffn = self.model.layers[layer].feed_forward
        x = torch.cat(self._inputs[layer])  # [T, D]
        if expert is None:
            assert isinstance(ffn, FeedForward)
            w1, w3 = ffn.w1.weight, ffn.w3.weight
        else:
            assert isinstance(ffn, MoEFeedForward) and ffn.gate is not None and ffn.experts is not None
            routing = ffn.route(x.to(ffn.gate.weight.dtype))
            assert routing is not None
            visits = (routing.expert_ids == expert).any(-1)
            if visits.sum() >= GROUP:  # experts that these prompts hardly visit are calibrated on all tokens
                x = x[visits]
            w1, w3 = ffn.experts.w1[expert], ffn.experts.w3[expert]
        inner = F.silu(x @ w1.float().t()) * (x @ w3.float().t())  # [T, F]
        return {"w1": x.t() @ x / len(x), "w2": inner.t() @ inner / len(inner)}


def gptq_rounder(moments: InputMoments) -> Rounder:
    """A rounder for :func:`quantized_tensors` that calibrates each matrix on the collected inputs."""

    def rounded(name: str, weight: StoredTensor) -> Int4Weight:
        if weight.shape[1] % GROUP:  # groups that gptq does not know
            return round_to_nearest(name, weight)
        return gptq(weight.read(), moments.of(name))

    return rounded


def sample_sequences(
    pairs: Mapping[str, Sequence[Pair]], loaded: LoadedModel, per_language: int, seed: int = 0
) -> list[list[int]]:
    """Prompts with their solutions in the model's own template, as token ids of at most 1,024 tokens each.

    Args:
        pairs: by language; ``per_language`` of each are drawn, those that are too long left out.

    Raises:
        UserError: no pair of a language fits, or the model has no tokenizer.
    """
    if loaded.tokenizer is None:
        raise UserError(
            f"{loaded.path} has no tokenizer, so no prompt can be read; give --method nearest --no-perplexity"
        )
    limit = min(loaded.config.max_seq_len, MAX_TOKENS)
    found = encode_pairs(pairs, loaded.tokenizer, loaded.template, limit).examples
    generator = random.Random(seed)
    return [
        list(example.tokens)
        for examples in found.values()
        for example in generator.sample(examples, min(per_language, len(examples)))
    ]


@torch.no_grad()
def perplexity(model: Transformer, sequences: Sequence[Sequence[int]]) -> float:
    """exp of the mean cross-entropy, in nats, over all next tokens of the sequences."""
    total, count = 0.0, 0
    for sequence in sequences:
        tokens = torch.tensor([sequence], device=model.device)
        logits = model(tokens).logits[0, :-1].float()  # [S - 1, V]
        total += F.cross_entropy(logits, tokens[0, 1:], reduction="sum").item()
        count += len(sequence) - 1
    return math.exp(total / max(1, count))
