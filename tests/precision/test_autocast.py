"""Numerics: what bf16 does to products and leaves alone, and that fp32 keeps wider types."""

from __future__ import annotations

import torch

from upslope.precision.autocast import autocast


def test_bf16_rounds_products_and_keeps_weights() -> None:
    a, b = torch.randn(4, 8), torch.randn(8, 3)
    with autocast("bf16"):
        product = a @ b
        total = torch.logsumexp(a, -1)
    assert product.dtype == torch.bfloat16
    assert total.dtype == a.dtype == torch.float32


def test_fp32_is_the_dtype_of_the_operands() -> None:
    a = torch.randn(2, 2, dtype=torch.float64)
    with autocast("fp32"):
        assert (a @ a).dtype == torch.float64
