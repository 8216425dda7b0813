"""Collectives that autograd knows: what each does forward, and the adjoint that it does backward.

    copy      x → x                       backward: Σ over ranks          enters a region where every rank does a part of the work
    reduce    x → Σ over ranks            backward: identity              leaves it
    gather    parts → whole, along a dim  backward: own part              of a gradient that is whole and equal on every rank
    collect   parts → whole, along a dim  backward: Σ over ranks, own part   of gradients that every rank has its own of
    split     whole → own part            backward: parts → whole         of a whole that is equal on every rank
    scatter   x → own part of Σ over ranks   backward: parts → whole      leaves a region into parts
    once      x → x                       backward: the first rank's      of a use that all ranks repeat: summed over ranks it counts once
    first     x → x on the first, else 0  backward: identity              a summand that a `reduce` must hold once
    exchange  rows by destination → rows by source; backward: the way back

All are the identity on an axis of one rank. Sources: Megatron-LM, arXiv 1909.08053 (f and g); Ulysses, arXiv 2309.14509.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from upslope.parallel.groups import Axis, spans

_ALL_GATHER: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # renamed in torch 2.13
_REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return summed(grads[0], ctx.axis), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return summed(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, total: int, add: bool) -> Tensor:
        ctx.axis, ctx.dim, ctx.total, ctx.add = axis, dim, total, add
        return joined(x, axis, dim, total)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        own = scattered(grads[0], ctx.axis, ctx.dim) if ctx.add else part(grads[0], ctx.axis, ctx.dim)
        return own, None, None, None, None


class _Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, add: bool) -> Tensor:
        ctx.axis, ctx.dim, ctx.total = axis, dim, x.shape[dim]
        return scattered(x, axis, dim) if add else part(x, axis, dim).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return joined(grads[0], ctx.axis, ctx.dim, ctx.total), None, None, None


class _Weighted(torch.autograd.Function):
    """x · forward, with a gradient g · backward; factors of 0 and 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ahead: bool, back: bool) -> Tensor:
        ctx.back = back
        return x.view_as(x) if ahead else torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] if ctx.back else torch.zeros_like(grads[0]), None, None


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, sent: Sequence[int], taken: Sequence[int]) -> Tensor:
        ctx.axis, ctx.sent, ctx.taken = axis, sent, taken
        return _swap(x, axis, sent, taken)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _swap(grads[0], ctx.axis, ctx.taken, ctx.sent), None, None, None


def copy(x: Tensor, axis: Axis) -> Tensor:
    """x, whose gradient is summed over the axis."""
    if axis.size == 1:
        return x
    out: Tensor = _Copy.apply(x, axis)
    return out


def reduce(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the axis, whose gradient goes to every rank as it is."""
    if axis.size == 1:
        return x
    out: Tensor = _Reduce.apply(x, axis)
    return out


def gather(x: Tensor, axis: Axis, dim: int, total: int) -> Tensor:
    """The whole, `total` long, of parts as `Axis.span` cuts them; the own part of the gradient, which must be equal on every rank."""
    if axis.size == 1:
        return x
    out: Tensor = _Gather.apply(x, axis, dim, total, False)
    return out


def gather_rows(x: Tensor, axis: Axis) -> Tensor:
    """`gather` along dimension 0 where a rank knows the length of its own part alone."""
    return gather(x, axis, 0, int(summed(torch.tensor(len(x), device=x.device), axis)))


def collect(x: Tensor, axis: Axis, dim: int, total: int) -> Tensor:
    """The same, for a whole that every rank uses in a way of its own: gradients are summed over ranks, then cut."""
    if axis.size == 1:
        return x
    out: Tensor = _Gather.apply(x, axis, dim, total, True)
    return out


def split(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The own part of a whole that all ranks have computed alike, so that its gradient is the whole one on each."""
    if axis.size == 1:
        return x
    out: Tensor = _Cut.apply(x, axis, dim, False)
    return out


def scatter(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """The own part of the sum over the axis; every rank's summand has the whole gradient."""
    if axis.size == 1:
        return x
    out: Tensor = _Cut.apply(x, axis, dim, True)
    return out


def once(x: Tensor, axis: Axis) -> Tensor:
    """x, whose gradient is kept on the axis's first rank and zero on the others."""
    if axis.size == 1:
        return x
    out: Tensor = _Weighted.apply(x, True, axis.index == 0)
    return out


def first(x: Tensor, axis: Axis) -> Tensor:
    """x on the axis's first rank, zero on the others; the gradient of a sum over ranks is already whole on each."""
    if axis.size == 1:
        return x
    out: Tensor = _Weighted.apply(x, axis.index == 0, True)
    return out


def exchange(x: Tensor, axis: Axis, sent: Sequence[int], taken: Sequence[int]) -> Tensor:
    """x (Σ sent, ...): sent[i] rows go to rank i, in order → (Σ taken, ...): taken[i] rows come from rank i. Counts may be zero."""
    if axis.size == 1:
        return x
    out: Tensor = _Exchange.apply(x, axis, tuple(sent), tuple(taken))
    return out


def part(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part of a whole along a dim, as a view; its gradient is zero elsewhere."""
    start, stop = axis.span(x.shape[dim])
    return x.narrow(dim, start, stop - start)


def summed(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the axis, as a new tensor; no gradient."""
    out = x.detach().clone(memory_format=torch.contiguous_format)
    if axis.size > 1:
        dist.all_reduce(out, group=axis.group)
    return out


def joined(x: Tensor, axis: Axis, dim: int, total: int) -> Tensor:
    """The whole of parts as `Axis.span` cuts them; no gradient. Parts travel padded to one length."""
    if axis.size == 1:
        return x.detach()
    sizes = [stop - start for start, stop in spans(total, axis.size)]
    moved = x.detach().movedim(dim, 0)
    room = sizes[0]
    moved = F.pad(moved, (*(0, 0) * (moved.ndim - 1), 0, room - len(moved))).contiguous()
    out = moved.new_empty(axis.size * room, *moved.shape[1:])
    _ALL_GATHER(out, moved, group=axis.group)
    if sizes[-1] != room:
        out = torch.cat([rows[:size] for rows, size in zip(out.split(room), sizes)])
    return out.movedim(0, dim)


def scattered(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """This rank's part of the sum over the axis; no gradient."""
    total = x.shape[dim]
    sizes = [stop - start for start, stop in spans(total, axis.size)]
    moved = x.detach().movedim(dim, 0)
    if axis.size == 1:
        return x.detach()
    room = sizes[0]
    rows = [F.pad(p, (*(0, 0) * (p.ndim - 1), 0, room - len(p))) for p in moved.split(sizes)]
    out = moved.new_empty(room, *moved.shape[1:])
    _REDUCE_SCATTER(out, torch.cat(rows), group=axis.group)
    return out[: sizes[axis.index]].movedim(0, dim)


def _swap(x: Tensor, axis: Axis, sent: Sequence[int], taken: Sequence[int]) -> Tensor:
    x = x.detach().contiguous()
    out = x.new_empty(sum(taken), *x.shape[1:])
    dist.all_to_all_single(out, x, list(taken), list(sent), group=axis.group)
    return out
