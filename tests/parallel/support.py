"""Ranks as processes on one machine (gloo), and how close two tensors are."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

R = TypeVar("R")
PRELOAD = [
    "torch",
    "torch.fx.experimental.symbolic_shapes",  # `torch.autograd.grad` imports it when it is first called
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "upslope.train.trainer",
    "tests.model.support",
]


def on_ranks(count: int, check: Callable[..., R], folder: Path, *args: Any, seconds: float = 120.0) -> list[R]:
    """check(*args) on `count` ranks with torch.distributed set up, one thread each → what each returned, by rank.

    check: a module-level function; arguments and results are pickled. folder: empty or new; ranks meet by a file in it. AssertionError with
    the traceback of the first rank that failed, or of which ranks were still running at the deadline; no process outlives the call.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")  # importing torch costs seconds, and is done once
    context.set_forkserver_preload(PRELOAD)
    workers = [context.Process(target=_rank, args=(r, count, check, str(folder), args), daemon=True) for r in range(count)]
    end = time.monotonic() + seconds
    try:
        for w in workers:
            w.start()
        while any(w.exitcode is None for w in workers) and not any(w.exitcode for w in workers) and time.monotonic() < end:
            time.sleep(0.02)
        failed = [r for r, w in enumerate(workers) if w.exitcode]
        late = [r for r, w in enumerate(workers) if w.exitcode is None]
    finally:
        for w in workers:
            if w.pid is not None:
                w.kill()
                w.join()
    told = [(folder / f"{r}.error").read_text() for r in range(count) if (folder / f"{r}.error").exists()]
    assert not failed, f"rank {failed[0]} failed:\n" + (told[0] if told else f"exit code {workers[failed[0]].exitcode}")
    assert not late, f"ranks {late} still ran after {seconds:g} s"
    return [pickle.loads((folder / f"{r}.result").read_bytes()) for r in range(count)]


def _rank(rank: int, count: int, check: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    try:
        store = dist.FileStore(f"{folder}/store", count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=60))
        result = check(*args)
        Path(f"{folder}/{rank}.result").write_bytes(pickle.dumps(result))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(f"{folder}/{rank}.error").write_text(traceback.format_exc())
        os._exit(1)


def distance(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖, or ‖a‖ where b is zero; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    a, b = a.detach(), b.detach()
    scale = float(b.double().norm())
    return float((a.double() - b.double()).norm()) / (scale or 1.0)
