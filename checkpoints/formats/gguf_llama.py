"""GGUF files of the ``llama`` architecture (Llama, Mistral, SmolLM2, and Mixtral).

llama.cpp's converter interleaves the rows of q and k, head by head, because its rotary embedding rotates pairs of
adjacent elements; the Hugging Face layout pairs the two halves of a head. Reading undoes this.
"""

# H heads, G key/value heads, C head dim, D model dim

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from checkpoints.formats.checkpoint import Checkpoint
from checkpoints.formats.gguf_config import gguf_config
from checkpoints.formats.gguf_file import GGUFFile, GGUFTensor
from checkpoints.formats.names import check_tensors, flat_name
from checkpoints.formats.reader import naming
from checkpoints.formats.rotary import from_interleaved_rotary
from checkpoints.storage.safetensors_file import ByteRange, StoredTensor, computed, read_range, row_ranges
from moe.errors import UserError

_TOP = {
    "token_embd.weight": "tok_embeddings.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "output.weight",
}
_LAYER = {
    "attn_norm": "attention_norm",
    "ffn_norm": "ffn_norm",
    "attn_q": "attention.wq",
    "attn_k": "attention.wk",
    "attn_v": "attention.wv",
    "attn_output": "attention.wo",
    "ffn_gate": "feed_forward.w1",
    "ffn_down": "feed_forward.w2",
    "ffn_up": "feed_forward.w3",
    "ffn_gate_inp": "feed_forward.gate",
}
_WITH_BIAS = ("attn_q", "attn_k", "attn_v", "attn_output")
_STACKED = {"ffn_gate_exps": "w1", "ffn_down_exps": "w2", "ffn_up_exps": "w3"}
_ONE_EXPERT = {"ffn_gate": "w1", "ffn_down": "w2", "ffn_up": "w3"}
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,4})\.(\w+)(?:\.(0|[1-9]\d{0,4}))?\.(weight|bias)", re.ASCII)
_FREQUENCY_FACTORS = "rope_freqs.weight"
# read without decoding; all other types are decoded to float32
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class _Decoder:
    """Makes a :class:`StoredTensor` that decodes a GGUF tensor when read."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def stored(self, tensor: GGUFTensor, name: str, heads: int = 0) -> StoredTensor:
        """One whole tensor; ``heads`` > 0 undoes the interleaving of q and k."""
        # llama.cpp writes norms as [1, D] in some old files
        shape = tensor.shape[-1:] if name.endswith("norm.weight") else tensor.shape
        return self._make(tensor, name, tensor.offset, tensor.nbytes, shape, heads)

    def expert(self, tensor: GGUFTensor, name: str, index: int) -> StoredTensor:
        """One expert of a stacked tensor [E, ...]."""
        size = tensor.nbytes // tensor.shape[0]
        return self._make(tensor, name, tensor.offset + index * size, size, tensor.shape[1:], 0)

    def _make(
        self, tensor: GGUFTensor, name: str, offset: int, nbytes: int, shape: tuple[int, ...], heads: int
    ) -> StoredTensor:
        kind = self.file.kind_name(tensor)
        where = ByteRange(self.file.path, offset, nbytes)
        dtype = _PLAIN.get(kind, torch.float32)

        def read() -> Tensor:
            if kind in _PLAIN:
                decoded = read_range(where, dtype, shape)
            else:
                decoded = _dequantize(where, tensor, shape, self.file)
            return from_interleaved_rotary(decoded, heads) if heads else decoded

        def parts() -> Iterator[Tensor]:
            row = nbytes // shape[0]
            for start, stop in row_ranges(shape):
                place = ByteRange(where.path, offset + start * row, (stop - start) * row)
                yield _dequantize(place, tensor, (stop - start, *shape[1:]), self.file)

        stored = StoredTensor(name, dtype, shape, read, where if kind in _PLAIN and not heads else None)
        return stored if kind in _PLAIN or heads or len(shape) < 2 else computed(stored, dtype, parts)


def _dequantize(where: ByteRange, tensor: GGUFTensor, shape: tuple[int, ...], file: GGUFFile) -> Tensor:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = math.prod(shape[:-1])
    raw = read_range(where, torch.uint8, (rows, where.nbytes // rows)).numpy()
    try:
        decoded = dequantize(raw, GGMLQuantizationType(tensor.kind))
    except NotImplementedError:
        raise UserError(
            f"{file.path}: tensor {tensor.name!r} is {file.kind_name(tensor)}, which the gguf library cannot decode; "
            "give a file in F16, Q8_0, Q4_0, Q4_1 or K-quants"
        ) from None
    return torch.from_numpy(np.ascontiguousarray(decoded, dtype=np.float32)).view(shape)


def open_gguf(path: Path) -> Checkpoint:
    """Opens a GGUF file of the ``llama`` architecture and checks every tensor against its metadata.

    Raises:
        UserError: a damaged file, another architecture, metadata of a model that is not supported, or tensors that do
            not fit.
    """
    file = GGUFFile(path)
    decoder = _Decoder(file)
    factors = None
    if (stored := file.tensors.get(_FREQUENCY_FACTORS)) is not None:
        factors = decoder.stored(stored, _FREQUENCY_FACTORS).read().flatten().tolist()
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise UserError(f"{path}: tensor 'token_embd.weight' is missing or no matrix; download the file again")
    with naming(path):
        config = gguf_config(
            file.fields,
            path,
            vocab_size=embedding.shape[0],
            tied="output.weight" not in file.tensors,
            biases=any(name.endswith(".attn_q.bias") for name in file.tensors),
            factors=factors,
        )
    tensors: dict[str, StoredTensor] = {}
    theirs: dict[str, str] = {}
    for name, tensor in file.tensors.items():
        if name == _FREQUENCY_FACTORS:
            continue
        match = _BLOCK.fullmatch(name)
        layer, kind, expert, leaf = match.groups() if match else ("", "", None, "")
        if name in _TOP:
            ours = _TOP[name]
            tensors[ours], theirs[ours] = decoder.stored(tensor, ours), name
        elif expert is not None and kind in _ONE_EXPERT and leaf == "weight":  # Mixtral files of the first months
            ours = flat_name(int(layer), _ONE_EXPERT[kind], int(expert))
            tensors[ours], theirs[ours] = decoder.stored(tensor, ours), name
        elif kind in _LAYER and expert is None and (leaf == "weight" or kind in _WITH_BIAS):
            ours = f"layers.{layer}.{_LAYER[kind]}.{leaf}"
            heads = {"attn_q": config.n_heads, "attn_k": config.n_kv_heads}.get(kind, 0)
            dimensions = 2 if leaf == "weight" else 1
            if heads and (len(tensor.shape) != dimensions or tensor.shape[0] != heads * config.head_dim):
                raise UserError(
                    f"{path}: tensor {name!r} has shape {list(tensor.shape)}, which does not fit {heads} heads"
                )
            tensors[ours], theirs[ours] = decoder.stored(tensor, ours, heads), name
        elif kind in _STACKED and expert is None and leaf == "weight":
            if len(tensor.shape) != 3 or tensor.shape[0] != config.num_experts:
                raise UserError(
                    f"{path}: tensor {name!r} has shape {list(tensor.shape)}; expected {config.num_experts} experts"
                )
            for index in range(config.num_experts):
                ours = flat_name(int(layer), _STACKED[kind], index)
                tensors[ours], theirs[ours] = decoder.expert(tensor, ours, index), name
        else:
            raise UserError(f"{path}: tensor {name[:80]!r} belongs to no supported architecture")
    check_tensors(tensors, config, path, lambda name: theirs.get(name, name))
    return Checkpoint(path, "gguf", config, tensors, (path,), file.fields)
