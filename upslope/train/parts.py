"""The files of a saved state: parts written by each rank, a manifest over them, and reading by any number of ranks.

A state is `part-<step>-<rank>-<number>-<digest>.safetensors` files and then, last, one manifest `step-<step>-<digest>.json`:
the digest in a name is that of the file's bytes, and the manifest lists every part and every tensor with its own digest,
taken in memory before it was written. So a torn, damaged, missing or exchanged file is known as such.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from upslope.machine.files import CHUNK, atomic
from upslope.train.integrity import digest

KEEP = 2
PART_BYTES = 1 << 28
FORMAT = 1


class Damaged(Exception):
    """A saved state that is not what was written; the text says which file and how."""


class Piece(NamedTuple):
    """Rows `start` … `stop` - 1 of a tensor of shape `shape`; a tensor without rows (0-d) is one piece 0 … 1."""

    name: str
    start: int
    stop: int
    shape: tuple[int, ...]
    data: Tensor


class Saved(NamedTuple):
    """What a save holds: steps done, tensors by name, controllers' states as JSON values by name."""

    step: int
    tensors: dict[str, Tensor]
    controllers: dict[str, Any]


def bounds(rows: int, rank: int, world: int) -> tuple[int, int]:
    """The rows [start, stop) that a rank of `world` holds: sizes differ by at most one."""
    return rows * rank // world, rows * (rank + 1) // world


def pieces(state: Mapping[str, Tensor], rank: int = 0, world: int = 1) -> list[Piece]:
    """A rank's share of whole tensors, split along dimension 0; 0-d tensors belong to rank 0. Views, no copies."""
    found = []
    for name, tensor in state.items():
        start, stop = bounds(_rows(tensor.shape), rank, world)
        if start < stop or (rank == 0 and tensor.numel() == 0):
            found.append(Piece(name, start, stop, tuple(tensor.shape), tensor[start:stop] if tensor.ndim else tensor))
    return found


def write_parts(folder: Path, step: int, share: Sequence[Piece], rank: int = 0, limit: int = PART_BYTES) -> list[dict[str, Any]]:
    """Writes one rank's pieces as part files of about `limit` bytes; the rows for the manifest. On error nothing is left behind."""
    written: list[Path] = []
    rows: list[dict[str, Any]] = []
    try:
        for number, group in enumerate(_grouped(share, limit)):
            tensors = {f"{p.start}:{p.stop}:{p.name}": p.data.detach().cpu().contiguous() for p in group}
            digests = {k: f"{digest(t):016x}" for k, t in tensors.items()}
            data = save(tensors)
            whole = xxhash.xxh3_128_hexdigest(data)
            path = folder / f"part-{step:09d}-{rank:05d}-{number:05d}-{whole}.safetensors"
            fresh = not path.exists()
            with atomic(path) as temporary:
                temporary.write_bytes(data)
            written += [path] if fresh else []
            rows += [
                {"name": p.name, "start": p.start, "stop": p.stop, "shape": list(p.shape), "dtype": str(p.data.dtype), "file": path.name}
                | {"digest": digests[f"{p.start}:{p.stop}:{p.name}"]}
                for p in group
            ]
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
    return rows


def commit(
    folder: Path,
    step: int,
    rows: Iterable[Mapping[str, Any]],
    controllers: Mapping[str, Any] | None = None,
    *,
    keep: int = KEEP,
    pinned: Collection[int] = (),
) -> Path:
    """Writes the manifest over the parts of all ranks, which makes the state real; then removes what is no longer wanted.

    Where writing fails, the parts are removed. Kept are the last `keep` states and those of `pinned` steps. States of later steps
    go: the run was taken back behind them.
    controllers: JSON values without nan (floats come back to the bit).
    """
    value: dict[str, Any] = {"format": FORMAT, "step": step, "tensors": list(rows), "controllers": dict(controllers or {})}
    data = json.dumps(value, sort_keys=True, allow_nan=False).encode()
    path = folder / f"step-{step:09d}-{xxhash.xxh3_128_hexdigest(data)}.json"
    try:
        with atomic(path) as temporary:
            temporary.write_bytes(data)
    except BaseException:
        named = {file for m in manifests(folder) for file in _files(m)}
        for file in {row["file"] for row in value["tensors"]} - named:
            (folder / file).unlink(missing_ok=True)
        raise
    _sweep(folder, path, keep, pinned)
    return path


def read(manifest: Path, names: Collection[str] | None = None, rank: int = 0, world: int = 1) -> Saved:
    """A saved state, or some of its tensors, or a rank's rows of them, whatever number of ranks wrote it; raises Damaged.

    Only the parts that hold wanted rows are read; each is verified whole, and each tensor again.
    """
    value = _manifest(manifest)
    wanted: dict[str, list[dict[str, Any]]] = {}
    for row in value["tensors"]:
        if names is None or row["name"] in names:
            wanted.setdefault(row["name"], []).append(row)
    if lost := sorted(set(names or ()) - set(wanted)):
        raise Damaged(f"{manifest.name} does not hold {lost[0]!r}")
    tensors: dict[str, list[Tensor]] = {}
    verified: set[str] = set()
    for name, rows in wanted.items():
        start, stop = bounds(_rows(rows[0]["shape"]), rank, world)
        at = 0
        for row in sorted(rows, key=lambda r: r["start"]):
            if row["start"] != at:
                raise Damaged(f"{manifest.name}: rows {at}:{row['start']} of {name!r} are missing (a rank that did not save?)")
            at = row["stop"]
            low, high = max(start, row["start"]), min(stop, row["stop"])
            if low < high or (rank == 0 and row["start"] == row["stop"]):
                if row["file"] not in verified:
                    _verify(manifest.parent / row["file"])
                    verified.add(row["file"])
                data = _piece(manifest.parent / row["file"], row)
                tensors.setdefault(name, []).append(data[low - row["start"] : high - row["start"]] if data.ndim else data)
        if at != _rows(rows[0]["shape"]):
            raise Damaged(f"{manifest.name}: rows {at}: of {name!r} are missing (a rank that did not save?)")
    return Saved(value["step"], {n: t[0] if len(t) == 1 else torch.cat(t) for n, t in tensors.items()}, value["controllers"])


def _rows(shape: Sequence[int]) -> int:
    return int(shape[0]) if len(shape) else 1


def step_of(path: Path) -> int:
    """The step in the name of a part or manifest."""
    found = re.search(r"(?:step|part)-(\d+)-", path.name)
    return int(found[1]) if found else -1


def manifests(folder: Path) -> list[Path]:
    """Manifests in a folder, by step."""
    return sorted(folder.glob("step-*-*.json"))


def _grouped(share: Sequence[Piece], limit: int) -> list[list[Piece]]:
    groups: list[list[Piece]] = [[]]
    size = 0
    for piece in share:
        weight = piece.data.numel() * piece.data.element_size()
        if groups[-1] and size + weight > limit:
            groups.append([])
            size = 0
        groups[-1].append(piece)
        size += weight
    return [g for g in groups if g]


def _manifest(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from error
    if path.stem.rsplit("-", 1)[-1] != xxhash.xxh3_128_hexdigest(data):
        raise Damaged(f"{path.name}: its bytes are not those that were written")
    value: dict[str, Any] = json.loads(data)
    if value["format"] != FORMAT or value["step"] != step_of(path):
        raise Damaged(f"{path.name}: format {value['format']}, step {value['step']}")
    return value


def _verify(path: Path) -> None:
    """Damaged unless the bytes of a part are those that its name promises."""
    known = xxhash.xxh3_128()
    try:
        with open(path, "rb") as f:
            while block := f.read(CHUNK):
                known.update(block)
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from error
    if path.stem.rsplit("-", 1)[-1] != known.hexdigest():
        raise Damaged(f"{path.name}: its bytes are not those that were written")


def _piece(path: Path, row: Mapping[str, Any]) -> Tensor:
    """One piece of a part, compared with the digest taken before it was written."""
    try:
        with safe_open(path, "pt") as f:
            data: Tensor = f.get_tensor(f"{row['start']}:{row['stop']}:{row['name']}")
    except (OSError, SafetensorError) as error:
        raise Damaged(f"{path.name}: {error}") from error
    if str(data.dtype) != row["dtype"] or f"{digest(data):016x}" != row["digest"]:
        raise Damaged(f"{path.name}: {row['name']!r} is not the tensor that was saved")
    return data


def _sweep(folder: Path, newest: Path, keep: int, pinned: Collection[int]) -> None:
    """Removes states beyond those to keep, and files up to the newest state's step that no manifest names."""
    step = step_of(newest)
    older = sorted({step_of(p) for p in manifests(folder) if step_of(p) < step and _complete(p)})
    kept = {*older[max(0, len(older) - (keep - 1)) :], *(k for k in pinned if k < step)}
    named: set[str] = set()
    gone: set[str] = set()
    for path in manifests(folder):
        files = _files(path)
        if path == newest or step_of(path) in kept:
            named |= files
        else:
            gone |= files
            path.unlink(missing_ok=True)
    for path in [*folder.glob("part-*.safetensors"), *folder.glob(".tmp-*-part-*"), *folder.glob(".tmp-*-step-*")]:
        if path.name not in named and (path.name in gone or step_of(path) <= step):
            path.unlink(missing_ok=True)


def _complete(manifest: Path) -> bool:
    """Whether a state's manifest is whole and its parts are there: a state that is known to be lost takes no other's place."""
    files = _files(manifest)
    return bool(files) and all((manifest.parent / f).exists() for f in files)


def _files(manifest: Path) -> set[str]:
    """Names of the parts of a state; none where its manifest is damaged."""
    try:
        return {row["file"] for row in _manifest(manifest)["tensors"]}
    except Damaged:
        return set()
