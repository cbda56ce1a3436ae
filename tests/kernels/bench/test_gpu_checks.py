"""The checks of the layers: all of them on a GPU, correctness on a CPU too."""

from __future__ import annotations

import pytest
import torch

from kernels.bench import gpu_checks


def test_correctness_on_a_cpu():
    torch.manual_seed(0)
    results = gpu_checks.correctness((1, 6), device="cpu")
    assert len(results) == 8 and not gpu_checks.failed(results), results


@pytest.mark.gpu
@pytest.mark.parametrize("step", ["correctness", "no_host_synchronization", "cuda_graph"])
def test_layers_on_the_gpu(step):
    assert not gpu_checks.failed(getattr(gpu_checks, step)())
