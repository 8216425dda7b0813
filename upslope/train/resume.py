"""Saved training state: sharded, whole or absent, verified when read; the newest good one wins. Files: `train.parts`."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.machine.files import atomic
from upslope.train.parts import KEEP, Damaged, Saved, commit, manifests, pieces, read, step_of, write_parts


def save_step(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    controllers: Mapping[str, Any] | None = None,
    *,
    keep: int = KEEP,
    pinned: Collection[int] = (),
) -> Path:
    """Saves tensors as the state after `step` steps; UsageError where that fails, with the older states as they were."""
    try:
        return commit(folder, step, write_parts(folder, step, pieces(tensors)), controllers, keep=keep, pinned=pinned)
    except OSError as error:
        raise UsageError(
            f"the state after step {step} could not be saved: {error.strerror or error}\nolder states are as they were\n"
            "way out: free some space, then run the same command again"
        ) from error


class Saver:
    """Saves while training goes on: `start` copies the tensors and returns, a thread writes the copy.

    One save is in flight at a time, so memory is bounded by one copy, whose buffers are used again. An error of the thread is raised
    by the next `start` or `wait`.
    """

    def __init__(self, folder: Path, *, keep: int = KEEP) -> None:
        self.folder, self.keep = folder, keep
        self._staged: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(
        self, step: int, tensors: Mapping[str, Tensor], controllers: Mapping[str, Any] | None = None, *, pinned: Collection[int] = ()
    ) -> None:
        """Begins to save the state after `step` steps; waits first for the save before it."""
        self.wait()
        self._staged = {n: _copied(t, self._staged.get(n)) for n, t in tensors.items()}
        said = json.loads(json.dumps(dict(controllers or {}), allow_nan=False))
        self._thread = threading.Thread(target=self._run, args=(step, said, tuple(pinned)), name="saver")
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is in flight; raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, step: int, controllers: Mapping[str, Any], pinned: Collection[int]) -> None:
        try:
            save_step(self.folder, step, self._staged, controllers, keep=self.keep, pinned=pinned)
        except BaseException as error:  # raised again by the caller's next call
            self._error = error


def latest(folder: Path, events: Events | None = None, *, at_most: int | None = None) -> Saved | None:
    """The newest state that is whole (of at most `at_most` steps), or None; damaged ones are passed over with an alarm."""
    events = events or Events()
    found, passed = None, set()
    for path in reversed(manifests(folder)):
        if at_most is not None and step_of(path) > at_most:
            continue
        try:
            found = read(path)
            break
        except Damaged as error:
            passed.add(step_of(path))
            events.alarm("saved state is damaged; an older one is used", file=path.name, why=str(error))
    newest = -1 if found is None else found.step
    for step in sorted({step_of(p) for p in folder.glob("part-*.safetensors")} - passed):
        if newest < step and not any(step_of(p) == step for p in manifests(folder)):
            events.alarm("saved state has no manifest: killed while saving, or lost; an older one is used", step=step)
    return found


def latest_step(folder: Path, events: Events | None = None) -> tuple[int, dict[str, Tensor]] | None:
    """`latest` as (steps done, tensors)."""
    found = latest(folder, events)
    return None if found is None else (found.step, found.tensors)


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


def _copied(tensor: Tensor, buffer: Tensor | None) -> Tensor:
    if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
        buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return buffer.copy_(tensor.detach())
