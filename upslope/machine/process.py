"""Processes that do not outlive what they work for."""

from __future__ import annotations

import ctypes
import signal
import sys


def die_with_parent(signum: int = signal.SIGTERM) -> None:
    """Linux: the kernel sends `signum` to this process when its parent dies; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signum, 0, 0, 0)


def pool_worker() -> None:
    """Initialiser of map workers: they end with the stage, and leave its stop signals to it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent(signal.SIGKILL)
