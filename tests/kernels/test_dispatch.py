"""The sort of routed rows."""

from __future__ import annotations

import pytest
import torch

from kernels.dispatch import sort_by_expert
from tests.kernels.random_layers import routing


@pytest.mark.parametrize("num_experts", [1, 4, 8])
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_sort_by_expert_is_a_stable_sort(num_experts, tokens):
    torch.manual_seed(0)
    ids = routing(tokens, min(2, num_experts), num_experts)
    flat = ids.reshape(-1)
    order, inverse, offsets = sort_by_expert(ids, num_experts)
    assert order.dtype == inverse.dtype == torch.int64 and offsets.dtype == torch.int32
    assert order.tolist() == sorted(range(flat.numel()), key=lambda i: flat[i].item())
    assert order[inverse].tolist() == list(range(flat.numel()))
    counts = [(flat == e).sum().item() for e in range(num_experts)]
    assert (offsets[1:] - offsets[:-1]).tolist() == counts and offsets[0] == 0
