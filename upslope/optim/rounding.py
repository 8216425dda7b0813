"""What an optimizer keeps in 16 bits: stochastic rounding, narrow moments, and narrow weights with or without a float32 copy.

    SR(x) = lower + ulp [u < (x - lower) / ulp],  u ~ U(0, 1):  E SR(x) = x

Random bits are a hash of (seed, step, parameter name) and of the place within the parameter, so replicas and devices agree and
a resumed run repeats them. Source: Zamirai et al. 2020, arXiv 2010.06192; hash: SplitMix64 (Steele et al. 2014).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from upslope.machine.rng import seed_of
from upslope.optim.config import NarrowWeights
from upslope.optim.shards import Shards


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether a dtype is too coarse to add small updates to."""
    return dtype in (torch.bfloat16, torch.float16)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which updates of such a parameter are computed: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def random_bits(shape: torch.Size, key: int, device: torch.device | str = "cpu", places: Tensor | None = None) -> Tensor:
    """16 random bits per element, int32 in [0, 65536): SplitMix64 of key + place. places: int64 of this shape; None = 0, 1, 2, ..."""
    at = torch.arange(shape.numel(), dtype=torch.int64, device=device) if places is None else places.flatten().to(device)
    x = at * _signed(0x9E3779B97F4A7C15) + _signed(key)
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return _shifted(x, 48).to(torch.int32).view(shape)


def stochastic(x: Tensor, key: int, places: Tensor | None = None) -> Tensor:
    """x rounded to bfloat16, up with a probability equal to the fraction passed; inf and nan stay what they are.

    x: float32 or wider (wider is first rounded to float32). The low 16 bits of a float32 are that fraction: adding 16 random bits
    carries into the high 16, which are the bfloat16, exactly as often as it should. places: as of `random_bits`.
    """
    x = x.to(torch.float32).contiguous()
    bits = x.view(torch.int32)
    rounded = ((bits + random_bits(x.shape, key, x.device, places)) & -65536).view(torch.float32)
    return torch.where(x.isfinite(), rounded, x).to(torch.bfloat16)


class Kept:
    """One set of tensors by name, kept in a precision of its own between steps and opened wide for an update.

    what: names the set in the random bits. rounding: of tensors stored in 16 bits. shards: who holds the rest of each.
    """

    def __init__(self, tensors: Mapping[str, Tensor], what: str, rounding: NarrowWeights, seed: int, shards: Shards | None = None) -> None:
        self.tensors, self.what, self.rounding, self.seed, self.shards = dict(tensors), what, rounding, seed, shards
        self.masters: dict[str, Tensor] = {}
        if rounding == "master":
            self.masters = {n: t.detach().float() for n, t in tensors.items() if is_narrow(t.dtype)}

    @property
    def random(self) -> bool:
        """Whether closing draws random bits."""
        return self.rounding == "stochastic" and any(is_narrow(t.dtype) for t in self.tensors.values())

    def open(self, names: Sequence[str]) -> list[Tensor]:
        """Tensors to update in place: the kept ones where they are wide, else their masters or wide copies.

        A value that someone else has changed since (a loaded weight) counts, not what its master remembers.
        """
        found = []
        for n in names:
            kept = self.tensors[n]
            if n in self.masters:
                master = self.masters[n]
                master.copy_(torch.where(master.to(kept.dtype) == kept, master, kept.float()))
                found.append(master)
            else:
                found.append(kept.float() if is_narrow(kept.dtype) else kept)
        return found

    def close(self, names: Sequence[str], updated: Sequence[Tensor], step: int) -> None:
        """Takes what `open` gave, after the update number `step`."""
        for n, value in zip(names, updated):
            kept = self.tensors[n]
            if value is kept:
                continue
            if self.rounding == "stochastic" and kept.dtype == torch.bfloat16:
                places = None if self.shards is None else self.shards.places(n)
                value = stochastic(value, seed_of(self.seed, "optim", self.what, step, n), places)
            kept.copy_(value)


def moments(named: Mapping[str, Tensor], what: str, state: str, seed: int, shards: Shards | None = None) -> Kept:
    """Zero moments of parameters in a `State` precision."""
    zeros = {n: torch.zeros_like(p, dtype=wide_dtype(p.dtype) if state == "fp32" else torch.bfloat16) for n, p in named.items()}
    return Kept(zeros, what, "stochastic" if state == "bf16-sr" else "nearest", seed, shards)


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that has it."""
    return (value + 2**63) % 2**64 - 2**63


def _shifted(x: Tensor, by: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> by) & ((1 << (64 - by)) - 1)
