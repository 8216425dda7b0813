"""Which number formats a step computes in. Weights, gradients and optimizer state are float32 in both."""

from __future__ import annotations

from typing import Literal

Numerics = Literal["fp32", "bf16"]
"""fp32: everything in the dtype of the weights. bf16: matrix products in bfloat16 under autocast, the rest in float32."""
