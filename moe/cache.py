"""A static key/value cache: one buffer, a length of its own for each row, rolling where layers have a sliding window.

Nothing is padded: a row's token at time ``t`` lies in slot ``t % C`` of a buffer of capacity ``C``. With a window of 4
and 6 tokens fed one by one, the buffer holds

    time      0  1  2  3          4  1  2  3          4  5  2  3
    slot      0  1  2  3    ->    0  1  2  3    ->    0  1  2  3

exactly what the last query may see; the order does not matter, as rotary embeddings are already in the keys. ``slack``
more slots let a row take back its last tokens (:meth:`KVCache.advance`), as speculative decoding does. Where only some
layers have a window, those with it and those without share a track each.

A forward pass works on a :class:`Step`, the next tokens of every row, or on :class:`Prompts`, which are read packed one
after another and become new rows. Both know positions, masks and places before the first layer runs, from numbers that
the host has: no layer computes them again, and no step waits for the device.
"""

# B rows, S tokens of each, G key/value heads, C head dim (and capacity), L keys, E experts

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moe.config import ModelConfig

KEYS_AT_ONCE = 64
# Attention takes this many keys at a time, and MKL sums the last more than half of them in two parts of equal length.
BLOCK = 512


def keys_seen(tokens: int, invariant: bool) -> int:
    """How many keys rows of up to this many tokens see on a CPU.

    Multiples of 64; those that are ``invariant`` give a row the same bits from attention whatever the longest row is.
    """
    keys = -(-tokens // KEYS_AT_ONCE) * KEYS_AT_ONCE
    return -(-keys // BLOCK) * BLOCK if invariant and keys % BLOCK > BLOCK // 2 else keys


class Track:
    """Keys and values of the layers that have the same sliding window: [layers, B, 2 G, capacity, C]."""

    def __init__(self, window: int | None, max_len: int, slack: int, shape: tuple[int, int, int, int], **options: Any):
        self.window, self.slack = window, slack
        self.capacity = min(max_len, window + slack) if window else max_len
        layers, rows, heads, size = shape
        # Zeros, as what a mask hides still enters products: uninitialized memory may hold NaN.
        self.buffer = torch.zeros((layers, rows, 2 * heads, self.capacity, size), **options)

    def grow(self, rows: int, max_len: int, lengths: Sequence[int]) -> None:
        """Makes room for this many rows of ``max_len`` tokens."""
        capacity = min(max_len, self.window + self.slack) if self.window else max_len
        old, (layers, _, heads, _, size) = self.buffer, self.buffer.shape
        if capacity > self.capacity or rows > old.shape[1]:
            # Where the capacity grows, no row was longer than it until now, so none has wrapped around.
            self.buffer = old.new_zeros(layers, rows, heads, capacity, size)
            for row, length in enumerate(lengths):
                filled = min(length, self.capacity)
                self.buffer[:, row, :, :filled] = old[:, row, :, :filled]
            self.capacity = capacity


class Row(NamedTuple):
    """One row of a cache: the filled keys and values of each track, the routers' states, the tokens so far."""

    parts: list[Tensor]
    router_states: Tensor
    length: int


class KVCache:
    """Keys and values of all layers for a batch of rows, and what the routers remember of each.

    Args:
        config: the model's sizes; ``sliding_window`` bounds the capacity of the layers that have it.
        batch: the most rows B.
        max_len: longest sequence, prompt and answer together, in tokens; :meth:`grow` raises both.
        slack: the most tokens that a row takes back at a time.
        invariant: whether attention gives a row the same bits whatever the others are, on a CPU and with ``max_len`` of
            256 times a power of two (:func:`keys_seen`).

    Attributes:
        lengths: tokens of each row so far; the rows in use are the first ones.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        max_len: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        slack: int = 0,
        invariant: bool = False,
    ):
        self.max_len, self.batch, self.invariant = max_len, batch, invariant
        self.device, self.dtype = torch.device(device), dtype
        layers = {
            window: [i for i in range(config.n_layers) if config.window(i) == window] for window in config.windows
        }
        shape = (batch, config.n_kv_heads, config.head_dim)
        self.tracks = {}
        for window, own in layers.items():
            more = keys_seen(window + slack, True) - window if invariant and window else slack
            self.tracks[window] = Track(window, max_len, more, (len(own), *shape), dtype=dtype, device=device)
        self.places = {layer: (window, i) for window, own in layers.items() for i, layer in enumerate(own)}
        # What routers remember of the tokens so far: sums of logits, or log beliefs up to a constant, [routers, B, E].
        routers = len(config.router_places) if config.router_context != "none" else 0
        self.router_states = torch.zeros(routers, batch, config.num_experts, dtype=torch.float64, device=device)
        self.lengths: list[int] = []

    @property
    def nbytes(self) -> int:
        return sum(track.buffer.nbytes for track in self.tracks.values())

    def step(self, rows: int, count: int) -> Step:
        """The next ``count`` tokens of every row; the first step of an empty cache makes ``rows`` rows."""
        if not self.lengths:
            self.lengths = [0] * rows
        if rows != len(self.lengths):
            raise ValueError(f"the cache holds {len(self.lengths)} rows and is asked to continue {rows}")
        if (end := max(self.lengths) + count) > self.max_len:
            raise ValueError(f"the cache was made for {self.max_len} tokens and is asked to hold {end}")
        return Step(self, count)

    def prompts(self, lengths: Sequence[int]) -> Prompts:
        """New rows of these lengths, which one packed pass fills."""
        if len(self.lengths) + len(lengths) > self.batch:
            raise ValueError(f"the cache was made for {self.batch} rows, holds {len(self.lengths)}, and gets more")
        if max(lengths) > self.max_len:
            raise ValueError(f"the cache was made for {self.max_len} tokens and is asked to hold {max(lengths)}")
        return Prompts(self, tuple(lengths))

    def grow(self, batch: int, max_len: int) -> None:
        """Makes room for ``batch`` rows of ``max_len`` tokens; rows that are there stay."""
        if batch <= self.batch and max_len <= self.max_len:
            return
        states, self.max_len, self.batch = self.router_states, max(max_len, self.max_len), max(batch, self.batch)
        for track in self.tracks.values():
            track.grow(self.batch, self.max_len, self.lengths)
        self.router_states = states.new_zeros(len(states), self.batch, states.shape[2])
        self.router_states[:, : states.shape[1]] = states

    def row(self, place: int) -> Row:
        """A row, as views."""
        length = self.lengths[place]
        parts = [track.buffer[:, place, :, : min(length, track.capacity)] for track in self.tracks.values()]
        return Row(parts, self.router_states[:, place], length)

    def set_row(self, place: int, row: Row) -> None:
        """Writes a row of this cache, or a copy of one, to another place; the place after the last row adds it."""
        for track, part in zip(self.tracks.values(), row.parts):
            track.buffer[:, place, :, : part.shape[2]] = part
        self.router_states[:, place] = row.router_states
        self.lengths[place : place + 1] = [row.length]

    def drop_rows(self, places: Sequence[int]) -> list[int]:
        """Drops finished rows: rows from the end move into the holes. Returns the old place of each row that stays."""
        keep = fill_holes(len(self.lengths), places)
        for place in places:
            self._clean(place)
        for target, source in enumerate(keep):
            if source != target:
                self.set_row(target, self.row(source))
                self._clean(source)
        del self.lengths[len(keep) :]
        return keep

    def _clean(self, place: int) -> None:
        """Leaves no NaN of an ended row behind, which would enter the products of the next one from behind its mask."""
        for part in self.row(place).parts:
            if self.device.type != "cpu" or not part.sum().isfinite():  # a look at a GPU's values would wait for it
                part.zero_()


def fill_holes(count: int, ended: Sequence[int]) -> list[int]:
    """Places to keep of ``count`` without ``ended``: rows from the end move into the holes, the others stay put."""
    tail = [place for place in range(count - len(ended), count) if place not in ended]
    return [tail.pop() if place in ended else place for place in range(count - len(ended))]


class Step:
    """The next S tokens of every row of a cache, for one forward pass."""

    def __init__(self, cache: KVCache, count: int):
        self.cache, self.count = cache, count
        self.rows, self.end = len(cache.lengths), max(cache.lengths) + count
        self.longest = self.end if cache.device.type == "cuda" else keys_seen(self.end, cache.invariant)
        self._states: dict[int, Tensor] = {}

    # Made when they are first asked for: a step that runs as a CUDA graph needs none of them.

    @cached_property
    def positions(self) -> Tensor:
        """[B, S]."""
        starts = torch.tensor(self.cache.lengths).to(self.cache.device, non_blocking=True)  # [B]
        return starts[:, None] + torch.arange(self.count, device=self.cache.device)

    @cached_property
    def masks(self) -> dict[int | None, Tensor | None]:
        """By window: [B, 1, S, L] of what the tokens may see; None when that is everything they are given."""
        return {window: self._mask(track) for window, track in self.cache.tracks.items()}

    @cached_property
    def _slots(self) -> dict[int | None, Tensor]:
        """By window: [B 2G S] places in a layer's buffer as [B 2G capacity, C]."""
        found = {}
        for window, track in self.cache.tracks.items():
            capacity = track.capacity
            row = torch.arange(self.rows * track.buffer.shape[2], device=self.cache.device)
            slots = self.positions if self.end <= capacity else self.positions % capacity
            found[window] = (row.view(self.rows, -1, 1) * capacity + slots[:, None]).view(-1)
        return found

    def _joins(self, track: Track) -> bool:
        """Whether the new tokens overwrite keys that the first of them still need."""
        return track.window is not None and self.end > track.capacity and self.count > track.slack + 1

    def _mask(self, track: Track) -> Tensor | None:
        window, capacity, device = track.window, track.capacity, self.cache.device
        even = min(self.cache.lengths) == max(self.cache.lengths)
        queries = self.positions[:, None, :, None]  # [B, 1, S, 1]
        if self._joins(track):
            times = self._old_times(track)
            times = torch.cat((times, self.positions), 1)[:, None, None]  # [B, 1, 1, L]
        elif self.end <= capacity:
            seen = min(self.longest, capacity)
            if even and self.count == 1 and self.end == seen and (window is None or self.end <= window):
                return None
            times = torch.arange(seen, device=device)
        else:
            if even and self.count == 1 and capacity == window:
                return None  # one token a step: the buffer holds exactly its window
            last = self.positions[:, -1:]  # [B, 1]
            slots = torch.arange(capacity, device=device)
            times = (last - (last - slots) % capacity)[:, None, None]  # [B, 1, 1, capacity]
        allowed = (times <= queries) & (times >= 0)
        if window is not None:
            allowed &= queries - times < window
        return allowed

    def _old_times(self, track: Track) -> Tensor:
        """[B, capacity] times of the keys in the buffer, oldest first; negative where a row has none."""
        return self.positions[:, :1] - torch.arange(track.capacity, 0, -1, device=self.cache.device)

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values [B, G, S, C] of the tokens and returns those to attend to, [B, G, L, C]."""
        return self.store_both(layer, torch.cat((keys, values), 1))

    def store_both(self, layer: int, new: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`store` of keys followed by values, [B, 2G, S, C]."""
        window, place = self.cache.places[layer]
        track = self.cache.tracks[window]
        buffer, groups = track.buffer[place], new.shape[1] // 2  # [B', 2G, capacity, C]
        new = new.to(buffer.dtype)
        joined = None
        if self._joins(track):
            slots = (self._old_times(track) % track.capacity)[:, None, :, None]  # [B, 1, capacity, 1]
            old = buffer[: self.rows].gather(2, slots.expand(-1, 2 * groups, -1, buffer.shape[3]))
            joined = torch.cat((old, new), 2)
        index = self._slots[window]
        if self.count > track.capacity:  # of tokens that share a slot the last one stays
            new = new[:, :, -track.capacity :]
            index = index.view(self.rows, -1, self.count)[:, :, -track.capacity :].reshape(-1)
        buffer.view(-1, buffer.shape[3]).index_copy_(0, index, new.reshape(-1, new.shape[3]))
        found = buffer[: self.rows, :, : min(self.longest, track.capacity)] if joined is None else joined
        return found[:, :groups], found[:, groups:]

    def recall(self, router: int) -> Tensor:
        """[B, E] what a router remembers of the tokens before."""
        return self.cache.router_states[router, : self.rows]

    def remember(self, router: int, states: Tensor) -> None:
        """What the router knows after each of the tokens, [B, S, E]."""
        self._states[router] = states

    def advance(self, counts: Sequence[int] | None = None) -> None:
        """Ends the pass: of each row's tokens the first ``counts`` stay (None: all), the others never were."""
        lengths = self.cache.lengths
        for row in range(self.rows):
            lengths[row] += self.count if counts is None else counts[row]
        for router, states in self._states.items():
            if counts is None or self.count == 1:
                last = states[:, -1]
            else:
                places = torch.tensor(counts, device=states.device) - 1
                last = states[torch.arange(self.rows, device=states.device), places]
            self.cache.router_states[router, : self.rows] = last


class Prompts:
    """Documents packed one after another in a batch of one row; each becomes a row of a cache."""

    def __init__(self, cache: KVCache, lengths: tuple[int, ...]):
        self.cache, self.lengths = cache, lengths
        self.first = len(cache.lengths)

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores keys and values [1, G, S, C] of all documents and returns them: each attends to itself."""
        window, place = self.cache.places[layer]
        track = self.cache.tracks[window]
        buffer, capacity = track.buffer[place], track.capacity
        new = torch.cat((keys, values), 1)[0].to(buffer.dtype)  # [2G, S, C]
        for row, part in enumerate(new.split(self.lengths, dim=1), self.first):
            length = part.shape[1]
            if length <= capacity:
                buffer[row, :, :length] = part
            else:
                slots = torch.arange(length - capacity, length, device=new.device) % capacity
                buffer[row, :, slots] = part[:, -capacity:]
        return keys, values

    def remember(self, router: int, states: Tensor) -> None:
        """What the router knows at the end of each document, [B, E]."""
        self.cache.router_states[router, self.first : self.first + len(self.lengths)] = states

    def advance(self) -> None:
        """Ends the pass: the documents are rows now."""
        self.cache.lengths += self.lengths
