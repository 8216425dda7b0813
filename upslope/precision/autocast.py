"""The context in which a forward pass computes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from upslope.precision.config import Numerics

NARROW: dict[Numerics, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(numerics: Numerics, device: str = "cpu") -> AbstractContextManager[object]:
    """bf16, fp16: matrix products of float32 tensors in that type; fp32: the dtype of the weights (float64 stays float64).

    Of fp16, magnitudes above 65504 become infinite and those below 6e-8 zero: gradients need a scaled loss, see `precision.scaling`.
    """
    return torch.autocast(device, dtype=NARROW[numerics]) if numerics in NARROW else nullcontext()
