"""Devices and precisions, on machines that are made up."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from moe import hardware
from moe.errors import UserError
from moe.hardware import choose_device, choose_dtype, decoding_dtype, describe_hardware, has_native_bfloat16

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that there are some GPUs of a compute capability."""

    def pretend(count: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    return pretend


def test_auto_prefers_a_gpu(gpus):
    gpus(0)
    assert choose_device() == CPU == choose_device("cpu")
    gpus(2)
    assert choose_device("auto") == GPU == choose_device("cuda")
    assert choose_device("cuda:1") == torch.device("cuda", 1) and choose_device("cpu") == CPU


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, "no CUDA GPU was found; choose cpu or auto"),
        ("cuda:2", 2, "this machine has 2 CUDA GPUs"),
        ("cdua", 2, "did you mean 'cuda'"),
        ("gpu0", 2, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_devices_that_are_not_there(gpus, name, count, message):
    gpus(count)
    with pytest.raises(UserError, match=message):
        choose_device(name)


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_precision_of_a_gpu(gpus, capability, native):
    gpus(1, capability)
    assert has_native_bfloat16(GPU) == native
    assert choose_dtype(GPU) == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(("avx", "amx"), [(False, False), (True, False), (False, True)])
def test_precision_of_a_cpu(monkeypatch, avx, amx):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert choose_dtype(CPU) == (torch.bfloat16 if avx or amx else torch.float32)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert choose_dtype(CPU) == torch.float32


def test_named_precisions():
    assert choose_dtype(CPU, "float32") == choose_dtype(CPU, "fp32") == torch.float32
    assert choose_dtype(CPU, "bf16") == torch.bfloat16
    with pytest.raises(UserError, match=r"unknown dtype 'flot32' \(did you mean 'float32'\?\)"):
        choose_dtype(CPU, "flot32")


def test_hardware_in_words(monkeypatch):
    monkeypatch.setattr(hardware, "_cpu_name", lambda: " Some   CPU\n")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert describe_hardware(CPU) == "CPU Some CPU, 1 thread"
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(hardware, "_cpu_name", lambda: "")
    assert describe_hardware(CPU).startswith("CPU, ")


def test_freed_memory_is_kept_on_cpus_alone():
    """Large tensors come out of the heap, which the process keeps, and not out of mappings, which it gives back."""
    code = (
        "import torch\n"
        "from moe.hardware import keep_freed_memory\n"
        "assert not keep_freed_memory(torch.device('cuda', 0))\n"
        "kept = keep_freed_memory(torch.device('cpu'))\n"
        "address = torch.ones(20_000_000).data_ptr()\n"
        "heap = next(line.split()[0] for line in open('/proc/self/maps') if line.endswith('[heap]\\n'))\n"
        "start, end = (int(bound, 16) for bound in heap.split('-'))\n"
        "print(kept, start <= address < end)\n"
    )
    if not sys.platform.startswith("linux"):
        pytest.skip("only glibc has this setting")
    kept, in_heap = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert kept == in_heap


def test_small_models_generate_in_float32_on_a_cpu(monkeypatch, gpus, tiny_config):
    gpus(1)
    monkeypatch.setattr(hardware, "has_native_bfloat16", lambda device: True)
    small = replace(tiny_config, dim=512, head_dim=0, hidden_dim=768, num_experts=4)  # q and o 512 wide, k and v 256
    assert small.weights_per_token == 2 * (512 * 2 * (512 + 256) + 2 * 3 * 512 * 768) + 97 * 512
    delta = replace(small, expert_form="delta", expert_rank=2, moe_layers=(1,))
    assert delta.weights_per_token == replace(small, num_experts=0).weights_per_token < small.weights_per_token
    large = replace(small, vocab_size=20_000)
    assert [decoding_dtype(CPU)(c) for c in (small, large)] == [torch.float32, torch.bfloat16]
    assert decoding_dtype(GPU)(small) == decoding_dtype(CPU, "bf16")(small) == torch.bfloat16
    with pytest.raises(UserError, match="unknown dtype"):
        decoding_dtype(CPU, "flot32")
