"""Models with random weights for measurements: of a 7B shape, too large to be made in one piece under 22 GiB."""

from __future__ import annotations

import torch

from checkpoints.formats.parameters import set_packed
from kernels import int4
from kernels.bench.shapes import MISTRAL_7B
from kernels.packed import Int4Weights
from moe.config import ModelConfig
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
