"""The context in which a forward pass computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from upslope.precision.config import Numerics


def autocast(numerics: Numerics, device: str = "cpu") -> AbstractContextManager[object]:
    """bf16: matrix products of float32 tensors in bfloat16; fp32: the dtype of the weights (float64 stays float64)."""
    return torch.autocast(device, dtype=torch.bfloat16) if numerics == "bf16" else nullcontext()
