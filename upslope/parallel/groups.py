"""The process groups of a mesh: for each axis the ranks that differ in it alone, and the unions that gradients are summed over.

Rank numbers count tp fastest, then cp, fsdp, dp, pp: rank = tp + TP · (cp + CP · (fsdp + FSDP · (dp + DP · pp))).
Experts divide the shards: shard = cp + CP · fsdp = ep + EP · edp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist

from upslope.config import UsageError
from upslope.parallel.config import Mesh

Name = Literal["dp", "fsdp", "cp", "tp", "pp", "ep", "edp", "shards", "data", "tokens", "replicas", "world"]
UNIONS: dict[str, tuple[str, ...]] = {
    "dp": ("dp",),
    "fsdp": ("fsdp",),
    "cp": ("cp",),
    "tp": ("tp",),
    "pp": ("pp",),
    "shards": ("fsdp", "cp"),
    "data": ("dp", "fsdp"),
    "tokens": ("dp", "fsdp", "cp"),
    "world": ("pp", "dp", "fsdp", "cp", "tp"),
}
"""Groups that are products of axes, the slowest first.

shards: weights are cut over it. data: ranks with batches of their own. tokens: ranks whose gradients of an ordinary parameter add up.
ep, edp: experts are cut over ep, and their gradients add up over replicas = dp x edp.
"""


@dataclass(frozen=True)
class Axis:
    """A group of ranks that this rank is in.

    size: their number. index: of this rank among them. ranks: their global numbers, by index. group: None where the size is one.
    """

    name: str
    size: int
    index: int
    ranks: tuple[int, ...]
    group: Any

    def span(self, total: int) -> tuple[int, int]:
        """(start, stop) of this rank's part of `total` things, the first parts larger by one where they do not divide."""
        return spans(total, self.size)[self.index]


def spans(total: int, parts: int) -> list[tuple[int, int]]:
    """Contiguous (start, stop) of `parts` parts of `total` things, the first ones larger by one where they do not divide."""
    share, more = divmod(total, parts)
    starts = [i * share + min(i, more) for i in range(parts + 1)]
    return list(zip(starts, starts[1:]))


@dataclass(frozen=True)
class Groups:
    """A mesh seen from one rank. Every rank must make it, at the same point of the program. `groups["tp"]`: the axis of a name."""

    mesh: Mesh
    rank: int
    device: Literal["cpu", "cuda"]
    axes: dict[str, Axis]

    @classmethod
    def of(cls, mesh: Mesh, device: Literal["cpu", "cuda"] = "cpu") -> Groups:
        """Groups by gloo on "cpu", nccl on "cuda". A mesh of one rank needs no torch.distributed.

        UsageError where torch.distributed has another number of ranks, or ep does not divide fsdp x cp.
        """
        ranks, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
        if mesh.ranks != ranks:
            raise UsageError(f"mesh {mesh}: dp x fsdp x tp x cp x pp = {mesh.ranks}, and there are {ranks} ranks\nway out: another mesh")
        if mesh.shards % mesh.ep:
            raise UsageError(f"mesh: ep = {mesh.ep} does not divide fsdp x cp = {mesh.shards}\nway out: an ep that does")
        grid = torch.arange(ranks).view(mesh.pp, mesh.dp, mesh.fsdp, mesh.cp, mesh.tp)
        lines = {name: _lines(grid, UNIONS["world"], over) for name, over in UNIONS.items()}
        by_expert = grid.view(mesh.pp, mesh.dp, mesh.shards // mesh.ep, mesh.ep, mesh.tp)
        names = ("pp", "dp", "edp", "ep", "tp")
        lines |= {name: _lines(by_expert, names, over) for name, over in (("ep", ("ep",)), ("edp", ("edp",)), ("replicas", ("dp", "edp")))}
        made: dict[tuple[tuple[int, ...], ...], Any] = {}
        axes = {}
        for name, rows in lines.items():
            if rows not in made:
                made[rows] = _group(rows, rank, device)
            mine = next(row for row in rows if rank in row)
            axes[name] = Axis(name, len(mine), mine.index(rank), mine, made[rows])
        return cls(mesh, rank, device, axes)

    def __getitem__(self, name: Name) -> Axis:
        return self.axes[name]

    def device_mesh(self, *names: Name) -> Any:
        """torch's DeviceMesh over these groups, the slowest first (HSDP: "dp", "shards"); it needs torch.distributed, also for one rank."""
        from torch.distributed.device_mesh import DeviceMesh

        axes = [self[name] for name in names]
        groups = [a.group if a.group is not None else dist.new_group([self.rank], use_local_synchronization=True) for a in axes]
        if len(axes) == 1:
            return DeviceMesh.from_group(groups[0], self.device, mesh_dim_names=names)
        ranks = torch.tensor(0)
        for a in axes:  # the distance of two ranks is the sum of their distances along the axes
            ranks = ranks[..., None] + (torch.tensor(a.ranks) - self.rank)
        return DeviceMesh.from_group(groups, self.device, mesh=ranks + self.rank, mesh_dim_names=names)


def _lines(grid: torch.Tensor, names: tuple[str, ...], over: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """The grid's ranks, one row per combination of the axes that are not in `over`."""
    rest = [i for i, name in enumerate(names) if name not in over]
    moved = grid.permute(*rest, *(names.index(name) for name in over))
    return tuple(tuple(row) for row in moved.reshape(-1, moved[(0,) * len(rest)].numel()).tolist())


def _group(rows: tuple[tuple[int, ...], ...], rank: int, device: str) -> Any:
    """This rank's group of those in rows; all ranks make all of them, in order."""
    if len(rows[0]) == 1:
        return None
    mine = None
    for row in rows:
        group = dist.new_group(list(row), backend="nccl" if device == "cuda" else "gloo")
        if rank in row:
            mine = group
    return mine
