"""Chooses the device, and the precision: bfloat16 where it is native, else float32; measures free memory."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable

import torch

from kernels.cpu.malloc import keep_freed_memory as keep_freed_memory
from kernels.cpu.malloc import return_freed_memory as return_freed_memory
from moe.config import ModelConfig
from moe.errors import UserError, did_you_mean

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPES_AS_TYPED = DTYPES | {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# A step of a model that multiplies a token by fewer numbers than this is mostly calls, and oneDNN's in bfloat16 take
# longer than those in float32 (docs/results/generation.md, Precision).
FASTER_IN_FLOAT32 = 10_000_000
NATIVE_CUDA = (8, 0)  # the first compute capability that multiplies bfloat16 matrices in hardware


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``auto`` (a CUDA GPU if there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises :class:`UserError` for a GPU that does not exist.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if found else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        hint = did_you_mean(name, ("auto", "cpu", "cuda"))
        raise UserError(f"unknown device {name!r}{hint}; expected auto, cpu, cuda or cuda:N")
    index = int(match[1] or 0)
    if index >= found:
        gpus = f"this machine has {found} CUDA GPUs" if found else "no CUDA GPU was found"
        raise UserError(f"device {name!r}: {gpus}; choose cpu or auto")
    return torch.device("cuda", index)


def choose_dtype(device: torch.device, name: str = "auto") -> torch.dtype:
    """The dtype of that name; ``auto`` is bfloat16 where the device supports it natively, else float32.

    On CPUs that emulate bfloat16 its matrix products are up to 75 times slower than float32's.
    """
    if name == "auto":
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float32
    if name not in _DTYPES_AS_TYPED:
        hint = did_you_mean(name, _DTYPES_AS_TYPED)
        raise UserError(f"unknown dtype {name!r}{hint}; expected auto, {', '.join(_DTYPES_AS_TYPED)}")
    return _DTYPES_AS_TYPED[name]


def decoding_dtype(device: torch.device, name: str = "auto") -> Callable[[ModelConfig], torch.dtype]:
    """What chooses the dtype to generate in, by a model's sizes: as `choose_dtype`, which checks the name at once, but
    ``auto`` is float32 on a CPU for models of up to :data:`FASTER_IN_FLOAT32` weights a token."""
    dtype = choose_dtype(device, name)
    may_widen = name == "auto" and device.type == "cpu"
    return lambda c: torch.float32 if may_widen and c.weights_per_token <= FASTER_IN_FLOAT32 else dtype


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16`` for ``torch.bfloat16``."""
    return str(dtype).removeprefix("torch.")


def available_memory(device: torch.device) -> int:
    """Bytes that are free on ``device``: on the card, or in the machine; ``1 << 62`` if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def used_memory(device: torch.device) -> int:
    """Bytes in use: on a GPU the most that torch had allocated at once, else what is resident; 0 if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return 0


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product on ``device``: the best of three, which take a moment."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = math.inf
    for _ in range(4):  # the first one sets libraries up
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware: CUDA 8.0 and later, CPUs with AMX or AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= NATIVE_CUDA
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    # Private probes, the same in torch 2.11 to 2.13; without them float32 is always right.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(bool(probe()) for probe in probes if probe is not None)


def describe_hardware(device: torch.device) -> str:
    """The device in words, such as ``NVIDIA H100 80GB HBM3, 79 GiB`` or ``CPU AMD EPYC, 2 threads``."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    name = " ".join(str(_cpu_name()).split())
    threads = torch.get_num_threads()
    return f"CPU{' ' + name if name else ''}, {threads} thread{'s' if threads != 1 else ''}"


def _cpu_name() -> str:
    """The CPU's model name; empty where the system does not say."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = (line.partition(":") for line in file)
            return next((value for key, _, value in lines if key.strip() == "model name"), "")
    except OSError:
        return ""
