"""Optimizers over shards: a parameter may be a DTensor, of which this process holds some rows, or a part of a larger matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds of a DTensor, on the same memory and without gradient; any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor
    with torch.no_grad():
        held: Tensor = to_local()
    return held.detach()


class Shards(Protocol):
    """Ranks that hold parts of one set of parameters."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole parameter."""
        ...

    def first(self, name: str) -> int:
        """The row of the whole parameter that is the first one held here."""
        ...

    def places(self, name: str) -> Tensor | None:
        """Where in the whole, counted along its rows, each element held here stands: int64 in the shape of the part; None = all are."""
        ...

    def over_wholes(
        self, names: Sequence[str], parts: Sequence[Tensor], f: Callable[[list[str], list[Tensor]], list[Tensor]]
    ) -> list[Tensor]:
        """f of whole matrices, cut again into the parts held here. Collective: all ranks call it with the same names.

        f: names and whole tensors → tensors of the same shapes. A stack (E, A, B) cut along E alone stays where it is.
        """
        ...
