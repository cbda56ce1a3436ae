"""Medians of functions in turns, with CUDA's events on a GPU, and what the card at hand can do at most.

On a CPU, where the suite's smoke mode runs, the clock is the host's and nothing is captured; no result is of use.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

Run = Callable[[], Any]


class _Stopwatch:
    """Milliseconds between `start` and `stop`; read after `torch.cuda.synchronize`."""

    def __init__(self, cuda: bool):
        self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []
        self.times: list[float] = []

    def note(self, which: int) -> None:
        if self.events:
            self.events[which].record()
        else:
            self.times.append(time.perf_counter())

    def read(self) -> float:
        return self.events[0].elapsed_time(self.events[1]) if self.events else 1e3 * (self.times[1] - self.times[0])


def synchronize(device: torch.device) -> None:
    """Waits for a GPU; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(runs: Mapping[str, Run], repeats: int, seconds: float, device: torch.device) -> dict[str, float]:
    """Median milliseconds of each function, taken in turns, each with a cold L2; at most ``seconds`` in all."""
    cuda = device.type == "cuda"
    flush = torch.zeros(64 << 20 if cuda else 1, device=device)
    taken: dict[str, list[_Stopwatch]] = {name: [] for name in runs}
    deadline = time.monotonic() + seconds
    for round_index in range(repeats + 2):
        for name, function in runs.items():
            flush.sum()  # read, not written: dirty lines would be written back inside the timed region
            watch = _Stopwatch(cuda)
            watch.note(0)
            function()
            watch.note(1)
            if round_index >= 2:
                taken[name].append(watch)
        if round_index >= 4 and time.monotonic() > deadline:
            break
        synchronize(device)
    synchronize(device)
    return {name: statistics.median(watch.read() for watch in watches) for name, watches in taken.items()}


def captured(function: Run, device: torch.device) -> Run | None:
    """A replay of ``function`` as a CUDA graph, which costs the host nothing; None where it cannot be captured."""
    if device.type != "cuda":
        return function
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
    except Exception:
        torch.cuda.synchronize()
        return None
    return graph.replay


def peaks(device: torch.device) -> dict[str, float]:
    """This card's measured peaks: bytes per second of a read or a copy of 1 GiB, and of a large bf16 product FLOP/s."""
    cuda = device.type == "cuda"
    size, width = (1 << 28, 8192) if cuda else (1 << 16, 64)
    buffer, target = torch.ones(2, size, device=device)
    a, b = (torch.randn(width, width, device=device).bfloat16() for _ in range(2))
    runs: dict[str, Run] = {"read": buffer.sum, "copy": lambda: target.copy_(buffer), "product": lambda: a @ b}
    ms = measure(runs, 10, 10, device)
    read, copy = size * 4 / ms["read"] * 1e3, 2 * size * 4 / ms["copy"] * 1e3
    return {"read": read, "copy": copy, "bandwidth": max(read, copy), "bf16": 2 * width**3 / ms["product"] * 1e3}


def describe(device: torch.device) -> dict[str, Any]:
    """The card, its driver and the versions in use: what every result is labeled with."""
    try:
        from triton import __version__ as triton
    except ImportError:
        triton = "none"
    card: dict[str, Any] = {"device": "cpu", "arch": "none", "driver": "none"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = {
            "device": properties.name,
            "arch": f"sm_{properties.major}{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": driver(),
        }
    return {**card, "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton}


def driver() -> str:
    """The version that ``nvidia-smi`` tells."""
    import subprocess

    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
