"""Caches of what a mixer must remember of a prefix: append, fork, rewind, free.

A `Cache` spans a model; it holds one `Memory` per layer, whose fields the mixer's config names, and the length of each slot. A forward
pass with `cache.at(slots)` appends its segments to those slots, one segment a slot, so that decoding token by token equals one shot.

A field with `keep` = W is a ring of R = W + slack columns: the token at position p stands in column p mod R, and the mask is made from the
positions that the columns hold. A mixer writes with `append` and reads with `window`, whether its field is a ring or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upslope.model.config import ModelConfig
from upslope.model.memory import Field, fields

Slots = Sequence[int] | range | Tensor


class Step:
    """Where the tokens of one forward pass go. Built once per pass and shared by all layers.

    slots (S,), begin (S,) cached tokens before, counts (S,) new tokens; slot, column (T,) place of each token.
    fresh: nothing was cached, so the new tokens see only each other.
    """

    def __init__(self, slots: Tensor, begin: Tensor, counts: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        total, widest = begin + counts, int(counts.max())
        self.slots, self.begin, self.counts, self.device, self.dtype = slots, begin, counts, device, dtype
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
            inner = torch.minimum(torch.arange(widest), counts[:, None] - 1)
            self._source = ((torch.cumsum(counts, 0) - counts)[:, None] + inner).to(device)  # (S, N)
        self.shape = (rows, widest)
        self._level = self.single and int(begin.min()) == self.keys - 1  # every slot fills all columns
        self.kept: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}  # a ring's columns before, and the new tokens that overwrite them
        self._masks: dict[tuple[int | None, int | None, bool], Tensor | None] = {}
        self._tails: dict[int, Tensor] = {}

    def positions(self, ring: int | None = None, split: bool = False) -> Tensor:
        """Positions (S or 1, L) of the tokens in the columns, negative where there is none.

        ring: columns of a ring (None: columns stand in order). split: columns as they were before the pass, then the new tokens.
        """
        if ring is None or self.keys <= ring:
            return torch.arange(self.keys)[None]
        end = (self.begin if split else self.begin + self.counts)[:, None] - 1
        at = end - (end - torch.arange(ring)) % ring
        if not split:
            return at
        return torch.cat((at[:, : int(self.begin.max())], self.begin[:, None] + torch.arange(self.shape[1])), 1)

    def mask(self, window: int | None = None, ring: int | None = None, split: bool = False) -> Tensor | None:
        """Additive (S, 1, N, L) over the columns of `positions`: causal, and within the window; None where every key may be seen.

        Right padding sees what the last token of its row sees.
        """
        key = window, ring, split
        if self._level and (window is None or window >= self.keys):
            return None
        if key not in self._masks:
            at, total = self.positions(ring, split)[:, None], self.begin + self.counts
            last = torch.minimum(self.begin[:, None] + torch.arange(self.shape[1]), total[:, None] - 1)[..., None]  # (S, N, 1)
            hidden = (at > last) | (at < 0)
            if window is not None:
                hidden |= at <= last - window
            mask = torch.zeros(hidden.shape, dtype=self.dtype).masked_fill_(hidden, -math.inf)[:, None] if bool(hidden.any()) else None
            self._masks[key] = None if mask is None else mask.to(self.device)
        return self._masks[key]

    def tail(self, columns: int) -> Tensor:
        """Indices of those new tokens that are among the last `columns` of their slot."""
        if columns not in self._tails:
            end = (self.begin + self.counts).repeat_interleave(self.counts).to(self.device)
            self._tails[columns] = (self.column >= end - columns).nonzero()[:, 0]
        return self._tails[columns]

    def pad(self, x: Tensor) -> Tensor:
        """x (T, heads, D) → (S, heads, N, D), or (T, D) → (S, N, D); padded on the right by repeating the last token."""
        if self.single:
            return x.unsqueeze(-2)
        out = x[self._source]
        return out.transpose(1, 2) if x.ndim == 3 else out

    def unpad(self, x: Tensor) -> Tensor:
        """(S, heads, N, D) → (T, heads, D)."""
        return x[:, :, 0] if self.single else x.transpose(1, 2)[self._row, self._inside]


class Memory:
    """The cache of one layer.

    Columns of shape (..., D) stand as (slots, ..., capacity, D), so that heads come first; states as (slots, ...).
    """

    def __init__(self, spec: Sequence[Field], slots: int, capacity: int, dtype: torch.dtype, device: torch.device, slack: int = 0) -> None:
        self.spec = {f.name: f for f in spec}
        self.ring = {f.name: None if f.keep is None else f.keep + slack for f in spec}
        self.dtype, self.device = dtype, device
        self.data = {f.name: torch.zeros(self._shape(f, slots, capacity), dtype=dtype, device=device) for f in spec}

    def _shape(self, f: Field, slots: int, capacity: int) -> tuple[int, ...]:
        if f.every == 0:
            return (slots, *f.shape)
        return (slots, *f.shape[:-1], min(capacity // f.every, self.ring[f.name] or capacity), f.shape[-1])

    def _splits(self, step: Step, name: str) -> bool:
        """Whether the new tokens overwrite what the first of them is yet to see."""
        ring, keep = self.ring[name], self.spec[name].keep
        return ring is not None and keep is not None and step.keys > ring and step.shape[1] > ring - keep + 1

    def append(self, step: Step, name: str, x: Tensor) -> None:
        """Writes x (T, ..., D), a column per token, to the step's places."""
        data, x, ring = self.data[name], x.detach().to(self.dtype), self.ring[name]
        slot, column = step.slot, step.column
        if ring is not None and step.keys > ring:
            if self._splits(step, name):
                step.kept[id(self), name] = self.read(step, name, int(step.begin.max())).clone(), x
                tail = step.tail(ring)
                slot, column, x = slot[tail], column[tail], x[tail]
            column = column % ring
        if data.ndim == 4:
            data[slot, :, column] = x
        else:
            data[slot, column] = x

    def window(self, step: Step, name: str, window: int | None = None) -> tuple[Tensor, Tensor | None]:
        """What the new tokens may see after `append`: columns (S, ..., L, D) and their additive mask (S, 1, N, L), None where all is seen.

        window: tokens that the reader sees, itself included (None: as many as the field keeps). The columns of a ring stand in no
        particular order; a field of shape (D,) gives (S, L, D). Right for any number of new tokens on any slots, empty ones too.
        """
        ring = self.ring[name]
        if ring is None:
            return self.read(step, name), step.mask(window)
        window = self.spec[name].keep if window is None else window
        if not self._splits(step, name):
            return self.read(step, name), step.mask(window, ring)
        before, new = step.kept[id(self), name]
        return torch.cat((before, step.pad(new)), -2), step.mask(window, ring, True)

    def read(self, step: Step, name: str, columns: int | None = None) -> Tensor:
        """The first columns (default: all that anyone may see) of the step's slots, (S, ..., L, D); a view of slots in a row."""
        return self.data[name][step.rows][..., : step.keys if columns is None else columns, :]

    def write(self, name: str, slots: Tensor, columns: Tensor, values: Tensor) -> None:
        """values (n, ..., D) to columns (n,) of slots (n,): for fields with fewer columns than tokens."""
        data, values = self.data[name], values.detach().to(self.dtype)
        if data.ndim == 4:
            data[slots, :, columns] = values
        else:
            data[slots, columns] = values

    def state(self, step: Step, name: str) -> Tensor:
        """The state of the step's slots (S, ...), a copy, zero for slots that held no token."""
        state = self.data[name][step.rows]
        alive = (step.begin > 0).to(self.device).view(-1, *(1,) * (state.ndim - 1))
        return state * alive

    def keep(self, step: Step, name: str, value: Tensor) -> None:
        """Stores the state (S, ...) of the step's slots."""
        self.data[name][step.rows] = value.detach().to(self.dtype)

    def copy(self, src: Tensor, dst: Tensor, length: int) -> None:
        """What slots src (n,) hold, at most `length` tokens, into slots dst (n,)."""
        for name, data in self.data.items():
            every = self.spec[name].every
            if every == 0:
                data[dst] = data[src]
            else:
                data[dst, ..., : length // every, :] = data[src, ..., : length // every, :]

    def rewind(self, length: int, written: int) -> bool:
        """Whether a slot, on which `written` tokens once stood, can go back to its first `length`.

        Columns are simply not read any more; a state cannot go back; a ring can while nothing that it must show was overwritten.
        """

        def held(f: Field) -> bool:
            ring = self.ring[f.name]
            return f.every > 0 and (f.keep is None or ring is None or written - ring <= max(0, length - f.keep + 1))

        return length == 0 or all(map(held, self.spec.values()))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(x.nbytes for x in self.data.values())

    def grow(self, slots: int, capacity: int) -> None:
        """Makes room, keeping what is there."""
        for name, old in self.data.items():
            new = old.new_zeros(self._shape(self.spec[name], slots, capacity))
            new[tuple(slice(n) for n in old.shape)] = old
            self.data[name] = new


class View(NamedTuple):
    """A cache and the slots that the segments of a forward pass append to, in order."""

    cache: Cache
    slots: Tensor


class Cache:
    """The caches of all layers. lengths: (slots,) tokens held, on the CPU. Room grows by itself as slots fill.

    slack: tokens that a window's ring holds beyond the window; a rewind by that many (and one more) is always possible.
    """

    def __init__(
        self,
        config: ModelConfig,
        slots: int,
        capacity: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        slack: int = 16,
    ) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.slots, self.capacity = slots, capacity
        self.lengths = torch.zeros(slots, dtype=torch.long)
        self._written = torch.zeros(slots, dtype=torch.long)  # the most tokens that a slot has held since it was empty
        self.layers = [Memory(fields(layer.mixer, config.d_model), slots, capacity, dtype, self.device, slack) for layer in config.layers()]
        self._rings = any(any(layer.ring.values()) for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.nbytes for layer in self.layers)

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
        if self._rings:
            self._written[slots] = torch.where(before == 0, after, torch.maximum(self._written[slots], after))
        return Step(slots, before, counts, self.device, dtype)

    def reserve(self, slots: int, capacity: int) -> None:
        """Room for at least this many slots and tokens a slot."""
        if slots <= self.slots and capacity <= self.capacity:
            return
        slots, capacity = max(slots, self.slots), max(capacity, self.capacity)
        for layer in self.layers:
            layer.grow(slots, capacity)
        more = self.lengths.new_zeros(slots - self.slots)
        self.lengths, self._written = torch.cat((self.lengths, more)), torch.cat((self._written, more))
        self.slots, self.capacity = slots, capacity

    def fork(self, src: int | Tensor, dst: int | Tensor) -> None:
        """dst holds what src holds; from here on they go their own ways. Tensors (n,) fork many at once."""
        a, b = torch.as_tensor(src).reshape(-1), torch.as_tensor(dst).reshape(-1)
        length = int(self.lengths[a].max()) if len(a) else 0
        if length:
            for layer in self.layers:
                layer.copy(a.to(self.device), b.to(self.device), length)
        self.lengths[b], self._written[b] = self.lengths[a], self._written[a]

    def rewind(self, slot: int, length: int) -> bool:
        """Forgets all but the first `length` tokens of a slot; False where a mixer cannot (the caller forks beforehand)."""
        if not 0 <= length <= int(self.lengths[slot]):
            raise ValueError(f"slot {slot} holds {int(self.lengths[slot])} tokens: cannot go back to {length}")
        if not all(layer.rewind(length, int(self._written[slot])) for layer in self.layers):
            return False
        self.lengths[slot] = length
        return True

    def free(self, slot: int) -> None:
        """Empties a slot."""
        self.lengths[slot] = 0
