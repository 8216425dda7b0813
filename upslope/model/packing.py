"""From a flat row of segments to right-padded rectangles and back, so that attention never crosses a segment and needs no mask.

A batch is flat, (T,) tokens, with seg (T,) = 0..S-1 non-decreasing. Segments of like length share a bucket (S_b, L_b); padding
stands on the right, where a causal query never looks, and its outputs are dropped, so its gradient is exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

FILL = 0.75  # a bucket holds segments of at least this share of its longest: little padding, few calls


class Bucket(NamedTuple):
    """A rectangle of segments: rows × length, standing at `start` in the padded row."""

    rows: int
    length: int
    start: int


class _Spread(torch.autograd.Function):
    """Gather whose gradient is a gather too, since padding has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, source: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return grads[0].index_select(0, place), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.padded = y.shape[0]
        return y.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        grad = grads[0].new_zeros((ctx.padded, *grads[0].shape[1:]))
        return grad.index_copy_(0, place, grads[0]), None


class Packing:
    """How a flat row falls into buckets. Built once per forward and shared by all layers.

    lengths: (S,) tokens per segment. ValueError where seg is not 0..S-1 in order.
    """

    def __init__(self, seg: Tensor) -> None:
        tokens = seg.shape[0]
        if tokens == 0:
            raise ValueError("an empty batch: seg has no tokens")
        cpu = seg.cpu()
        step = cpu[1:] - cpu[:-1]
        if int(cpu[0]) != 0 or (tokens > 1 and (int(step.min()) < 0 or int(step.max()) > 1)):
            raise ValueError("seg must number the segments 0, 1, 2, ... in order, each in one piece")
        self.tokens = tokens
        self.lengths = torch.bincount(cpu)  # (S,), on the CPU
        sizes: list[int] = self.lengths.tolist()
        self.buckets: list[Bucket] = []
        self.source: Tensor | None = None  # (P,) flat token of each padded place; None where nothing moves
        self.place: Tensor | None = None  # (T,) padded place of each flat token
        self.sizes: list[list[int]] = []  # tokens of each row of each bucket
        if min(sizes) == max(sizes):
            self.buckets.append(Bucket(len(sizes), sizes[0], 0))
            self.sizes.append(sizes)
            return
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        order = sorted(range(len(sizes)), key=lambda s: (-sizes[s], s))
        sources, places, begin, at = [], torch.empty(tokens, dtype=torch.long), 0, 0
        while begin < len(order):
            length, end = sizes[order[begin]], begin
            while end < len(order) and sizes[order[end]] >= FILL * length:
                end += 1
            rows = torch.tensor(order[begin:end])
            column = torch.arange(length)
            real = column < self.lengths[rows, None]  # (S_b, L_b)
            flat = starts[rows, None] + torch.minimum(column, self.lengths[rows, None] - 1)
            places[flat[real]] = at + torch.arange(real.numel()).view_as(real)[real]
            sources.append(flat.flatten())
            self.buckets.append(Bucket(end - begin, length, at))
            self.sizes.append([sizes[s] for s in order[begin:end]])
            begin, at = end, at + real.numel()
        self.source, self.place = torch.cat(sources).to(seg.device), places.to(seg.device)

    def offsets(self) -> Tensor:
        """(T,) place of each token in its segment, on the CPU."""
        starts = torch.cumsum(self.lengths, 0) - self.lengths
        return torch.arange(self.tokens) - torch.repeat_interleave(starts, self.lengths)

    def real(self, device: torch.device | str | None = None) -> list[Tensor]:
        """Per bucket (S_b, L_b), true where a token stands, false on the padding."""
        pairs = zip(self.buckets, self.sizes)
        return [(torch.arange(b.length) < torch.tensor(sizes)[:, None]).to(device) for b, sizes in pairs]

    def pad(self, x: Tensor) -> list[Tensor]:
        """x (T, heads, D) → per bucket (S_b, heads, L_b, D)."""
        if self.source is not None:
            x = _Spread.apply(x, self.source, self.place)
        return [x[b.start : b.start + b.rows * b.length].unflatten(0, (b.rows, b.length)).transpose(1, 2) for b in self.buckets]

    def unpad(self, parts: Sequence[Tensor]) -> Tensor:
        """Per bucket (S_b, heads, L_b, D) → (T, heads, D)."""
        rows = [p.transpose(1, 2).flatten(0, 1) for p in parts]
        if self.place is None:
            return rows[0]
        out: Tensor = _Collect.apply(torch.cat(rows), self.place)
        return out
