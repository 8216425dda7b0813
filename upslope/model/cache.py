"""Caches of what a mixer must remember of a prefix: append, fork, rewind, free.

A `Cache` spans a model; it holds one member per layer (`KVCache` for attention) and the length of each slot. A forward pass
with `cache.at(slots)` appends its segments to those slots, one segment a slot, so that decoding token by token equals one shot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.model.config import Attention, ModelConfig

Slots = Sequence[int] | range | Tensor


class Step:
    """Where the tokens of one forward pass go. Built once per pass and shared by all layers.

    slots (S,), begin (S,) cached tokens before, counts (S,) new tokens; slot, column (T,) place of each token.
    mask: additive (S, 1, N, L), None where every key may be seen. fresh: nothing was cached, so plain causal attention serves.
    """

    def __init__(self, slots: Tensor, begin: Tensor, counts: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        total, widest = begin + counts, int(counts.max())
        self.keys = int(total.max())  # L: the columns that anyone may see
        self.fresh = int(begin.max()) == 0
        self.single = widest == 1
        rows = len(slots)
        first = int(slots[0])
        run = bool((slots == torch.arange(first, first + rows)).all())
        self.rows: slice | Tensor = slice(first, first + rows) if run else slots.to(device)
        if self.single:
            self.slot, self.column = slots.to(device), begin.to(device)
        else:
            inside = torch.arange(int(counts.sum())) - torch.repeat_interleave(torch.cumsum(counts, 0) - counts, counts)
            self.slot = torch.repeat_interleave(slots, counts).to(device)
            self.column = (torch.repeat_interleave(begin, counts) + inside).to(device)
            self._row = torch.repeat_interleave(torch.arange(rows), counts).to(device)
            self._inside = inside.to(device)
        self.shape = (rows, widest)
        self.mask: Tensor | None = None
        if not self.fresh and not (self.single and int(total.min()) == self.keys):
            last = begin[:, None] + torch.arange(widest)  # (S, N): a query sees columns ≤ its own
            hidden = torch.arange(self.keys) > last[..., None]
            self.mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, -math.inf)[:, None].to(device)

    def pad(self, x: Tensor) -> Tensor:
        """x (T, heads, D) → (S, heads, N, D), zeros on the right."""
        if self.single:
            return x[:, :, None]
        out = x.new_zeros((*self.shape, *x.shape[1:]))
        out[self._row, self._inside] = x
        return out.transpose(1, 2)

    def unpad(self, x: Tensor) -> Tensor:
        """(S, heads, N, D) → (T, heads, D)."""
        return x[:, :, 0] if self.single else x.transpose(1, 2)[self._row, self._inside]


class KVCache:
    """Rotated keys and values of one attention layer: (slots, kv_heads, capacity, D) each."""

    def __init__(self, config: Attention, slots: int, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (slots, config.kv_heads, capacity, config.head_dim)
        self.k = torch.zeros(shape, dtype=dtype, device=device)
        self.v = torch.zeros(shape, dtype=dtype, device=device)

    def append(self, step: Step, k: Tensor, v: Tensor) -> None:
        """Writes k, v (T, kv_heads, D) to the step's places."""
        self.k[step.slot, :, step.column] = k.detach().to(self.k.dtype)
        self.v[step.slot, :, step.column] = v.detach().to(self.v.dtype)

    def read(self, step: Step) -> tuple[Tensor, Tensor]:
        """Keys and values (S, kv_heads, L, D) of the step's slots; views where the slots stand in a row."""
        return self.k[step.rows, :, : step.keys], self.v[step.rows, :, : step.keys]

    def copy(self, src: Tensor, dst: Tensor, length: int) -> None:
        """The first `length` columns of slots src (n,) into slots dst (n,)."""
        self.k[dst, :, :length] = self.k[src, :, :length]
        self.v[dst, :, :length] = self.v[src, :, :length]

    def rewind(self, slot: int, length: int) -> bool:
        """Forgets all but the first `length` tokens: always possible here, since later columns are simply not read."""
        return True

    def grow(self, slots: int, capacity: int) -> None:
        """Makes room, keeping what is there."""
        for name in ("k", "v"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros((slots, old.shape[1], capacity, old.shape[3]))
            new[: old.shape[0], :, : old.shape[2]] = old
            setattr(self, name, new)


class View(NamedTuple):
    """A cache and the slots that the segments of a forward pass append to, in order."""

    cache: Cache
    slots: Tensor


class Cache:
    """The caches of all layers. lengths: (slots,) tokens held, on the CPU. Room grows by itself as slots fill."""

    def __init__(
        self, config: ModelConfig, slots: int, capacity: int = 64, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.slots, self.capacity = slots, capacity
        self.lengths = torch.zeros(slots, dtype=torch.long)
        self.layers = [KVCache(layer.mixer, slots, capacity, dtype, self.device) for layer in config.layers()]

    def at(self, slots: Slots) -> View:
        """The argument for `Transformer.forward`: segment i of the pass is appended to slots[i]."""
        index = slots if isinstance(slots, Tensor) else torch.tensor(list(slots), dtype=torch.long)
        if index.numel() != index.unique().numel():
            raise ValueError(f"slots {index.tolist()}: a slot can take one segment a pass")
        return View(self, index)

    def begin(self, slots: Tensor, counts: Tensor, dtype: torch.dtype) -> Step:
        """Reserves room for counts[i] tokens on slots[i] and says where they go; called by the forward pass."""
        if len(slots) != len(counts):
            raise ValueError(f"{len(counts)} segments for {len(slots)} slots")
        before = self.lengths[slots]
        after = before + counts
        if (need := int(after.max())) > self.capacity:
            self.reserve(self.slots, max(need, self.capacity * 3 // 2))
        self.lengths[slots] = after
        return Step(slots, before, counts, self.device, dtype)

    def reserve(self, slots: int, capacity: int) -> None:
        """Room for at least this many slots and tokens a slot."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots, capacity = max(slots, self.slots), max(capacity, self.capacity)
        for layer in self.layers:
            layer.grow(slots, capacity)
        self.lengths = torch.cat((self.lengths, self.lengths.new_zeros(slots - self.slots)))
        self.slots, self.capacity = slots, capacity

    def fork(self, src: int | Tensor, dst: int | Tensor) -> None:
        """dst holds what src holds; from here on they go their own ways. Tensors (n,) fork many at once."""
        a, b = torch.as_tensor(src).reshape(-1), torch.as_tensor(dst).reshape(-1)
        length = int(self.lengths[a].max()) if len(a) else 0
        if length:
            for layer in self.layers:
                layer.copy(a.to(self.device), b.to(self.device), length)
        self.lengths[b] = self.lengths[a]

    def rewind(self, slot: int, length: int) -> bool:
        """Forgets all but the first `length` tokens of a slot; False where a mixer cannot (the caller forks beforehand)."""
        if not 0 <= length <= int(self.lengths[slot]):
            raise ValueError(f"slot {slot} holds {int(self.lengths[slot])} tokens: cannot go back to {length}")
        if not all(layer.rewind(slot, length) for layer in self.layers):
            return False
        self.lengths[slot] = length
        return True

    def free(self, slot: int) -> None:
        """Empties a slot."""
        self.lengths[slot] = 0
