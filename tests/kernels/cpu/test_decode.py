"""The product with one row."""

from __future__ import annotations

import pytest
import torch

from kernels.cpu import decode


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [64, 66, 63])
def test_matvec(dtype, columns):
    torch.manual_seed(19)
    x, w = torch.randn(1, 48).to(dtype), torch.randn(columns, 48).to(dtype)
    tight = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {}
    for row in (x, torch.stack((x[0], x[0]), 1).t()[:1]):  # the second with strides of its own
        for weight in (w, w.t().contiguous().t(), torch.cat((w, w), 1)[:, :48]):
            torch.testing.assert_close(decode.matvec(row, weight), torch.nn.functional.linear(x, w), **tight)
