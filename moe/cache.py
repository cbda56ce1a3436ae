"""A key/value cache that rolls when the model has a sliding window.

All rows share one time axis: shorter prompts are padded on the left, by ``padding`` tokens. Slot ``t % C`` of a buffer
of capacity ``C`` holds time ``t``. With a window of 4 and 6 tokens fed one by one, the buffer holds

    time      0  1  2  3          4  1  2  3          4  5  2  3
    slot      0  1  2  3    ->    0  1  2  3    ->    0  1  2  3

exactly what the last query may see; the order does not matter, as rotary embeddings are already in the keys. A chunk
that would overwrite keys that its own earlier queries still need attends to [old keys, new keys] and is stored
afterwards. Where only some layers have a window, those with it and those without share a track each.
"""

# B batch, G key/value heads, C head dim, L keys

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from moe.config import ModelConfig


class Track:
    """Keys and values of the layers that have the same sliding window: [layers, B, G, capacity, C] each."""

    def __init__(self, window: int | None, max_len: int, layers: int, shape: tuple[int, int, int], **options: Any):
        self.window = window
        self.capacity = min(max_len, window) if window else max_len
        rows, heads, size = shape
        self.keys = torch.empty((layers, rows, heads, self.capacity, size), **options)
        self.values = torch.empty_like(self.keys)

    def wraps(self, length: int, count: int) -> bool:
        """Whether ``count`` tokens after ``length`` others overwrite keys that they may still need."""
        return count > 1 and length + count > self.capacity

    def key_times(self, length: int, count: int) -> Tensor:
        """[L] times of the keys that :meth:`update` returns for the next ``count`` tokens, in their order."""
        device, end = self.keys.device, length + count
        if end <= self.capacity:
            return torch.arange(end, device=device)
        if self.wraps(length, count):
            return torch.arange(max(0, length - self.capacity), end, device=device)
        slots = torch.arange(self.capacity, device=device)
        return end - 1 - (end - 1 - slots) % self.capacity

    def update(self, layer: int, length: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values [B, G, S, C] after ``length`` tokens; returns those to attend to, [B, G, L, C]."""
        count, end = keys.shape[2], length + keys.shape[2]
        keys, values = keys.to(self.keys.dtype), values.to(self.values.dtype)
        buffers = (self.keys[layer], self.values[layer])
        if not self.wraps(length, count):
            slot = length % self.capacity
            for buffer, new in zip(buffers, (keys, values)):
                buffer[:, :, slot : slot + count] = new
            filled = min(end, self.capacity)
            return buffers[0][:, :, :filled], buffers[1][:, :, :filled]
        old_times = torch.arange(max(0, length - self.capacity), length, device=keys.device)
        new_slots = torch.arange(end - min(count, self.capacity), end, device=keys.device) % self.capacity
        joined = []
        for buffer, new in zip(buffers, (keys, values)):
            joined.append(torch.cat((buffer[:, :, old_times % self.capacity], new), dim=2))
            buffer[:, :, new_slots] = new[:, :, -self.capacity :]
        return joined[0], joined[1]

    def rows(self, start: int, stop: int) -> Track:
        """Some of the rows, in the same memory."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, start:stop], self.values[:, start:stop]
        return part

    def keep_rows(self, places: list[int], length: int) -> None:
        """Keeps the rows at ``places``; copies only rows that move, and of these the filled part, where it can."""
        if all(source >= target for target, source in enumerate(places)):
            filled = min(length, self.capacity)
            for target, source in enumerate(places):
                if source != target:
                    for buffer in (self.keys, self.values):
                        buffer[:, target, :, :filled] = buffer[:, source, :, :filled]
            self.keys, self.values = self.keys[:, : len(places)], self.values[:, : len(places)]
        else:
            self.keys, self.values = self.keys[:, places], self.values[:, places]


class KVCache:
    """Keys and values of all layers for a batch of rows.

    Args:
        config: the model's sizes; ``sliding_window`` bounds the capacity of the layers that have it.
        batch: number of rows B.
        max_len: longest sequence, prompt and answer together, in tokens (padding included).
        padding: [B] int64, tokens of left padding per row; None when there is none.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        padding: Tensor | None = None,
    ):
        self.max_len = max_len
        self.device = torch.device(device)
        layers = {
            window: [i for i in range(config.n_layers) if config.window(i) == window] for window in config.windows
        }
        shape = (batch, config.n_kv_heads, config.head_dim)
        self.tracks = {
            window: Track(window, max_len, len(own), shape, dtype=dtype, device=device)
            for window, own in layers.items()
        }
        self._places = {layer: (window, i) for window, own in layers.items() for i, layer in enumerate(own)}
        # What routers remember of the tokens so far: sums of logits, or log beliefs up to a constant, [routers, B, E].
        routers = len(config.router_places) if config.router_context != "none" else 0
        self.router_states = torch.zeros(routers, batch, config.num_experts, dtype=torch.float64, device=device)
        self.length = 0  # tokens seen, the same for all rows
        self.padding = padding.to(device) if padding is not None and bool((padding > 0).any()) else None

    def positions(self, count: int) -> Tensor:
        """Rotary positions of the next ``count`` tokens: [B or 1, count] int64, 0 within the padding."""
        times = torch.arange(self.length, self.length + count, device=self.device)[None]
        return times if self.padding is None else (times - self.padding[:, None]).clamp_min(0)

    def is_real(self, count: int) -> Tensor:
        """[B, count] bool: which of the next ``count`` tokens are no padding."""
        times = torch.arange(self.length, self.length + count, device=self.device)[None]
        assert self.padding is not None
        return times >= self.padding[:, None]

    def mask(self, count: int, window: int | None) -> Tensor | None:
        """[B or 1, 1, count, L] bool of what the next tokens may see in layers with this window; None when that is
        everything they are given, or everything before them."""
        if self.padding is None and (count == 1 or (window is None and self.length == 0)):
            return None  # one token a step: the buffer holds exactly its window
        key_times = self.tracks[window].key_times(self.length, count)  # [L]
        times = torch.arange(self.length, self.length + count, device=key_times.device)[:, None]  # [count, 1]
        allowed = key_times <= times  # [count, L]
        if window is not None:
            allowed &= times - key_times < window
        allowed = allowed[None, None]  # [1, 1, count, L]
        if self.padding is not None:
            real = key_times[None] >= self.padding[:, None]  # [B, L]
            # A query inside the padding sees itself, so that its softmax stays finite; its result is unused.
            allowed = (allowed & real[:, None, None]) | (key_times == times)[None, None]
        return allowed

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values [B, G, S, C] of the next S tokens and returns those to attend to, [B, G, L, C]."""
        if (end := self.length + keys.shape[2]) > self.max_len:
            raise ValueError(f"the cache was made for {self.max_len} tokens and is asked to hold {end}")
        window, place = self._places[layer]
        return self.tracks[window].update(place, self.length, keys, values)

    def advance(self, count: int) -> None:
        """Moves time on after all layers have stored ``count`` tokens."""
        self.length += count

    def rows(self, start: int, stop: int) -> KVCache:
        """A cache of some of the rows that shares this one's memory but advances on its own."""
        part = copy.copy(self)
        part.tracks = {window: track.rows(start, stop) for window, track in self.tracks.items()}
        part.router_states = self.router_states[:, start:stop]
        if self.padding is not None:
            padding = self.padding[start:stop]
            part.padding = padding if bool((padding > 0).any()) else None
        return part

    def keep_rows(self, rows: Tensor) -> None:
        """Drops all rows but ``rows`` [B'] int64, once the other answers are finished."""
        places = rows.tolist()
        for track in self.tracks.values():
            track.keep_rows(places, self.length)
        self.router_states = self.router_states[:, rows]
        if self.padding is not None:
            self.padding = self.padding[rows]
