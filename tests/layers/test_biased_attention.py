"""Attention with a learnt bias is the softmax attention that torch defines, in every dtype."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vistrain.layers.biased_attention import biased_attention


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_torchs(dtype: torch.dtype, tolerance: float, scale: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 6)
    bias = torch.randn(1, 3, 5, 7, requires_grad=True)
    out = biased_attention(q.to(dtype), k.to(dtype), v.to(dtype), bias, scale)
    assert out.dtype == dtype
    expected = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=tolerance)
    out.float().square().sum().backward()
    assert bias.grad is not None
    assert bias.grad.isfinite().all()
