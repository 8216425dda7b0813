"""Saved training state: whole or absent, verified when read, the newest good one wins.

A file is `step-<number>-<digest>.safetensors`; its digest is in its name, so a torn or damaged file is known as such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.machine.files import atomic, digest_file

KEEP = 2


def save_step(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> Path:
    """Saves tensors as the state after `step` steps; older files beyond the last two are removed."""
    data = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()})
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    path = folder / f"step-{step:09d}-{digest}.safetensors"
    with atomic(path) as temporary:
        temporary.write_bytes(data)
    for old in _saved(folder)[:-KEEP]:
        old.unlink(missing_ok=True)
    return path


def latest_step(folder: Path, events: Events | None = None) -> tuple[int, dict[str, Tensor]] | None:
    """The newest state that is whole, as (steps done, tensors), or None; damaged files are passed over with an alarm."""
    for path in reversed(_saved(folder)):
        step, digest = path.stem.split("-")[1:]
        if digest_file(path) == digest:
            return int(step), load_file(path)
        (events or Events()).alarm("saved state is damaged; an older one is used", file=path.name)
    return None


def save_optimizer(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Writes an optimizer's state into a checkpoint's `state/` folder; equal states give equal bytes."""
    data = save({n: t.detach().cpu().contiguous() for n, t in state.items()})
    with atomic(folder / "optimizer.safetensors") as temporary:
        temporary.write_bytes(data)


def load_optimizer(folder: Path) -> dict[str, Tensor]:
    """The optimizer state of a checkpoint's `state/` folder; UsageError where there is none."""
    file = folder / "optimizer.safetensors"
    if not file.is_file():
        raise UsageError(
            "this checkpoint holds no optimizer state, so it cannot be continued\nway out: init kind 'load' starts a new optimizer"
        )
    return load_file(file)


def as_tensor(values: list[float]) -> Tensor:
    """A float64 series for saving."""
    return torch.tensor(values, dtype=torch.float64)


def _saved(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*-*.safetensors"))
