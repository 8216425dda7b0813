"""Saved training state: sharded, whole or absent, verified when read; the newest good one wins. Files: `train.parts`."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from upslope.config import UsageError
from upslope.machine.events import Events
from upslope.machine.files import atomic, read_json, write_json
from upslope.train.parts import KEEP, Damaged, Piece, Saved, commit, manifests, pieces, step_of, write_parts
from upslope.train.ranks import Alone, Ranks


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
    with _explained(step):
        return commit(folder, step, write_parts(folder, step, pieces(tensors)), controllers, keep=keep, pinned=pinned)


class Saver:
    """Saves while training goes on: `start` copies the tensors and returns, a thread writes the copy.

    One save is in flight at a time, so memory is bounded by one copy, whose buffers are used again. An error of the thread is raised
    by the next `start` or `wait`. ranks: each writes its own rows; rank 0 waits for those of the others, by files, then writes the
    manifest. seconds: for which a rank is waited for.
    """

    def __init__(self, folder: Path, *, keep: int = KEEP, ranks: Ranks | None = None, seconds: float = 600.0) -> None:
        self.folder, self.keep, self.ranks, self.seconds = folder, keep, ranks or Alone(), seconds
        self._staged: dict[tuple[str, int], Piece] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        for stale in folder.glob(f"rows-*-{self.ranks.rank:05d}.json"):
            stale.unlink(missing_ok=True)

    def start(
        self, step: int, tensors: Mapping[str, Tensor], controllers: Mapping[str, Any] | None = None, *, pinned: Collection[int] = ()
    ) -> None:
        """Begins to save the state after `step` steps; waits first for the save before it."""
        self.wait()
        self._staged = {(p.name, p.start): _copied(p, self._staged.get((p.name, p.start))) for p in self.ranks.pieces(tensors)}
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
            with _explained(step):
                rows = write_parts(self.folder, step, list(self._staged.values()), self.ranks.rank)
                if self.ranks.rank:
                    write_json(self._rows(step, self.ranks.rank), rows)
                else:
                    others = [row for rank in range(1, self.ranks.world) for row in self._arrived(step, rank)]
                    commit(self.folder, step, [*rows, *others], controllers, keep=self.keep, pinned=pinned)
        except BaseException as error:  # raised again by the caller's next call
            self._error = error

    def _rows(self, step: int, rank: int) -> Path:
        return self.folder / f"rows-{step:09d}-{rank:05d}.json"

    def _arrived(self, step: int, rank: int) -> list[Any]:
        """The manifest rows of another rank, once they are there."""
        path, began = self._rows(step, rank), time.monotonic()
        while not path.exists():
            if time.monotonic() - began > self.seconds:
                raise UsageError(
                    f"rank {rank} has not saved its part of step {step} within {self.seconds:g} s; older states are as they were"
                )
            time.sleep(0.01)
        rows: list[Any] = read_json(path)
        path.unlink(missing_ok=True)
        return rows


@contextmanager
def _explained(step: int) -> Iterator[None]:
    """Errors of the file system as what they mean for the run."""
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the state after step {step} could not be saved: {error.strerror or error}\nolder states are as they were\n"
            "way out: free some space, then run the same command again"
        ) from error


def latest(
    folder: Path,
    events: Events | None = None,
    *,
    at_most: int | None = None,
    ranks: Ranks | None = None,
    mine: Mapping[str, Tensor] | None = None,
) -> Saved | None:
    """The newest state that is whole (of at most `at_most` steps), or None; damaged ones are passed over with an alarm.

    ranks, mine: those that read it together, and this rank's tensors, like which it is cut; all take the same state.
    """
    events, ranks = events or Events(), ranks or Alone()
    found, passed = None, set()
    for path in reversed(manifests(folder)):
        if at_most is not None and step_of(path) > at_most:
            continue
        why = ""
        try:
            found = ranks.read(path, mine or {})
        except Damaged as error:
            why = str(error)
        if not any(ranks.together(int(bool(why)))):
            break
        found = None
        passed.add(step_of(path))
        events.alarm("saved state is damaged; an older one is used", file=path.name, why=why or "seen by another rank")
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


def _copied(piece: Piece, before: Piece | None) -> Piece:
    data = piece.data.detach()
    buffer = None if before is None else before.data
    if buffer is None or buffer.shape != data.shape or buffer.dtype != data.dtype:
        buffer = torch.empty(data.shape, dtype=data.dtype, pin_memory=data.is_cuda)
    return piece._replace(data=buffer.copy_(data))
