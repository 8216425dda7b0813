"""What a trainer asks of the ranks that share its steps; `Alone` answers for one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from upslope.train.batch import Batch
from upslope.train.parts import Piece, Saved, pieces, read

Part = tuple[Batch, Tensor]
"""A micro-batch, and which segments (S_part,) int64 of the whole batch it holds."""


class Ranks(Protocol):
    """Every rank knows the whole batch of a step and trains on its share; losses are divided by its totals, so gradients add.

    rank, world: of all ranks. Methods are collective: every rank calls them in the same order.
    """

    rank: int
    world: int

    @property
    def shards(self) -> Any:
        """For the optimizer: which rows of which parameter this rank holds; None = all."""
        ...

    def count(self, named: Mapping[str, Tensor]) -> int:
        """Numbers in the whole parameters of these names, all ranks together."""
        ...

    def parts(self, batch: Batch, micro_tokens: int) -> list[Part]:
        """This rank's micro-batches, equally many on every rank: one that has no work left gets a part with weights of zero."""
        ...

    def last(self, last: bool) -> None:
        """Said before the backward pass of each part: only after the last one need gradients be summed over ranks."""
        ...

    def reduce(self) -> None:
        """After the last backward pass: whatever gradients are not summed over ranks yet."""
        ...

    def add(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the ranks that hold other data; same names on every rank, in any order; float64."""
        ...

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over all ranks."""
        ...

    def together(self, value: int) -> tuple[int, ...]:
        """A 64-bit number of every rank, in order of rank."""
        ...

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """L2 norm of all gradients: shards add up, copies count once."""
        ...

    def pieces(self, state: Mapping[str, Tensor]) -> list[Piece]:
        """The rows of the whole tensors of a training state that this rank saves.

        What is neither of the model nor of the optimizer is alike on all ranks, and rank 0 saves it.
        """
        ...

    def read(self, manifest: Path, mine: Mapping[str, Tensor]) -> Saved:
        """A saved state, whatever mesh wrote it, cut like the tensors of this rank's state."""
        ...

    def cut(self, whole: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors of a training state, cut like those of this rank's."""
        ...

    def copies(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Tensors that should be equal on several ranks and are not, with the ranks in the minority."""
        ...


class Alone:
    """One process."""

    rank, world = 0, 1
    shards: Any = None

    def count(self, named: Mapping[str, Tensor]) -> int:
        """Their sizes."""
        return sum(p.numel() for p in named.values())

    def parts(self, batch: Batch, micro_tokens: int) -> list[Part]:
        """All of the batch."""
        numbered = replace(batch, origin=torch.arange(batch.segments, device=batch.ids.device))
        return [(replace(p, origin=batch.origin[p.origin]), p.origin) for p in numbered.split(micro_tokens)]

    def last(self, last: bool) -> None:
        """Nothing to hold back."""

    def reduce(self) -> None:
        """Nothing to sum."""

    def add(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values."""
        return dict(values)

    def largest(self, values: Tensor) -> Tensor:
        """The values."""
        return values

    def together(self, value: int) -> tuple[int, ...]:
        """The value."""
        return (value,)

    def norm(self, grads: Mapping[str, Tensor]) -> float:
        """Of the gradients, squares added in float64."""
        return norm_of(list(grads.values()))

    def pieces(self, state: Mapping[str, Tensor]) -> list[Piece]:
        """All rows."""
        return pieces(state)

    def read(self, manifest: Path, mine: Mapping[str, Tensor]) -> Saved:
        """The state as it was saved."""
        return read(manifest)

    def cut(self, whole: Mapping[str, Tensor], mine: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are."""
        return dict(whole)

    def copies(self, state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """There are none."""
        return {}


def norm_of(tensors: Sequence[Tensor]) -> float:
    """L2 norm of several tensors, their squares added in float64."""
    norms: list[Any] = list(torch._foreach_norm(list(tensors)))
    return float(torch.stack([n.to(torch.float64) for n in norms]).square().sum().sqrt())
