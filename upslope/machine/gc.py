"""Freeing space: only what no run, no running job and no kept artifact needs; dry unless told otherwise."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from upslope.config import UsageError
from upslope.machine.lease import holder
from upslope.machine.store import Store


@dataclass(frozen=True)
class Garbage:
    """A folder that could go, why, and how many bytes it holds."""

    path: Path
    why: str
    bytes: int


def garbage(store: Store, *, forget: tuple[str, ...] = (), young: float = 3600.0) -> list[Garbage]:
    """What could go.

    Kept: every artifact of every run that is not in `forget`, everything a kept artifact points at or was made from,
    everything leased, everything unclaimed that was touched in the last `young` seconds (another process may be about
    to claim it). Memoised map work can always go: it only saves time.
    """
    for name in forget:
        store.run_json(name)
    keep = {s["fp"] for run in store.runs() if run not in forget for s in store.run_json(run)["stages"]}
    manifests = {m.fp: m for _, m in store.artifacts() if m is not None}
    todo = list(keep)
    while todo:
        manifest = manifests.get(todo.pop())
        for needed in [*manifest.refs, *(fp for fps in manifest.inputs.values() for fp in fps)] if manifest else ():
            if needed not in keep:
                keep.add(needed)
                todo.append(needed)
    short = {fp[:12] for fp in keep}
    found = []
    for folder, manifest in store.artifacts():
        if folder.name in short or holder(folder / "lease"):
            continue
        if time.time() - _touched(folder) < young:
            continue
        found.append(Garbage(folder, "no run needs it" if manifest else "unfinished, and no run needs it", _size(folder)))
    for name, why in (("memo", "memoised map work; rebuilt when needed"), ("damaged", "set aside as damaged")):
        folder = store.root / name
        if folder.is_dir() and any(folder.iterdir()):
            found.append(Garbage(folder, why, _size(folder)))
    found += [Garbage(store.root / "runs" / name, "forgotten run", _size(store.root / "runs" / name)) for name in forget]
    return found


def collect(items: list[Garbage]) -> int:
    """Removes them; returns the bytes freed."""
    for item in items:
        shutil.rmtree(item.path)
    return sum(i.bytes for i in items)


def set_damaged_aside(store: Store) -> list[str]:
    """Verifies every artifact and moves the damaged ones out of the way; returns their names."""
    moved = []
    for folder in sorted(p for p in store.root.glob("*/*") if p.is_dir() and p.parent.name not in ("runs", "memo", "jobs", "damaged")):
        try:
            manifest = store.manifest(folder)
            if manifest is not None:
                store.verify(folder, manifest)
        except UsageError:
            store.set_aside(folder)
            moved.append(f"{folder.parent.name}/{folder.name}")
    return moved


def _touched(folder: Path) -> float:
    return max((p.stat().st_mtime for p in [folder, *folder.rglob("*")]), default=0.0)


def _size(folder: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file() and p.stat().st_nlink == 1)
