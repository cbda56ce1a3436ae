"""A request gets the same logits, bit by bit, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kernels.cpu.decode import HAS_AMX
from moe import decoder
from moe.cache import KVCache
from moe.errors import UserError
from moe.inference.engine import Engine, Request
from moe.inference.sampling import GREEDY, Sampling


@pytest.mark.skipif(not HAS_AMX, reason="needs a CPU with AMX")
@pytest.mark.parametrize(
    ("form", "dtype"), [("full", torch.bfloat16), ("delta", torch.bfloat16), ("full", torch.float32)]
)
def test_logits_are_the_same_alone_and_in_a_batch(form, dtype, tiny_config, make_model):
    """Bit by bit, for prompts on both sides of what products split at."""
    sizes = {"dim": 576, "hidden_dim": 640, "n_layers": 1, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64}
    sizes |= {"expert_form": form, "delta_scale": 1.7, "max_seq_len": 512}
    sizes |= {"shared_rank": 16, "expert_rank": 16} if form == "delta" else {}
    model = make_model(replace(tiny_config, num_experts=4, **sizes), dtype=torch.float32, std=0.06).to(dtype)
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(1, 97, (count,), generator=generator).tolist() for count in (3, 140, 20, 33)]
    requests = [
        Request(prompt, 3, Sampling(0.9, seed=3) if place % 2 else GREEDY, (), place, key=place)
        for place, prompt in enumerate(prompts)
    ]

    def logits(requests: list[Request]) -> dict[int, torch.Tensor]:
        found: dict[int, list[torch.Tensor]] = {}

        def keep(chosen, output) -> None:
            for request, row in zip(chosen, output.logits[:, 0]):
                found.setdefault(request.key, []).append(row.clone())

        running = Engine(model, 16, on_output=keep, batch_invariant=True)
        running.submit(*requests)
        running.run()
        return {key: torch.stack(rows) for key, rows in found.items()}

    together = logits(requests)
    for request in requests:
        assert torch.equal(logits([request])[request.key], together[request.key]), len(request.prompt)


@pytest.mark.skipif(not HAS_AMX, reason="measured on CPUs with AMX alone")
@pytest.mark.parametrize("window", [None, 40, 400])
def test_attention_gives_a_row_the_same_bits_whatever_the_longest_row_is(window, tiny_config):
    config = replace(tiny_config, head_dim=64, n_layers=1, sliding_window=window)
    for length in (3, 17, 30, 61, 63, 100, 230, 280, 550, 840):
        generator = torch.Generator().manual_seed(length)
        filled = torch.randn(3, 2 * config.n_kv_heads, 1024, 64, generator=generator)
        found = []
        for lengths in ([length], [length, 149, length], [length, 1000, length]):
            room = 256 if max(lengths) < 256 else 1024
            cache = KVCache(config, len(lengths), room, invariant=True)
            cache.lengths = lengths
            track = cache.tracks[window]
            track.buffer[0] = filled[: len(lengths), :, : track.capacity]
            step = cache.step(len(lengths), 1)
            keys, values = step.store_both(0, filled[: len(lengths), :, :1])
            queries = filled[: len(lengths), : config.n_kv_heads, 7:9]  # [B, G, H / G, C]
            found.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=step.masks[window])[0])
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]), length


def test_where_batches_change_bits_invariance_is_refused(tiny_config, make_model, monkeypatch):
    model = make_model(replace(tiny_config, num_experts=2), dtype=torch.float32)
    assert Engine(model, 64, batch_invariant=True).max_rows == 32 and Engine(model, 64).max_rows == 64
    with pytest.raises(UserError, match="draft is 2, expected 0"):
        Engine(model, 4, draft=2, batch_invariant=True)
    with pytest.raises(UserError, match="found float64"):
        Engine(model.double(), 4, batch_invariant=True)
    monkeypatch.setattr(decoder, "HAS_AMX", False)
    with pytest.raises(UserError, match="found bfloat16 on this cpu; expected device cpu and dtype float32"):
        Engine(model.bfloat16(), 4, batch_invariant=True)
