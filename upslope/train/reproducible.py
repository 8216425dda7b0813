"""The determinism switch: within it, torch uses no kernel whose result depends on timing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def only_deterministic(on: bool = True) -> Iterator[None]:
    """Deterministic kernels inside; as it was outside. An operation that has none raises RuntimeError and names itself.

    New memory is not filled, which torch would do besides and which costs a pass over it.
    """
    if not on:
        yield
        return
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled, benchmarked = memory.fill_uninitialized_memory, torch.backends.cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
        memory.fill_uninitialized_memory = filled
        torch.backends.cudnn.benchmark = benchmarked
