"""Side outputs of a forward pass.

Handed to `Transformer.forward` by whoever wants them; nothing is kept in modules, so recomputation and micro-batches are safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Want = Literal["max_logit", "router", "index", "mtp"]
ALL: frozenset[Want] = frozenset(("max_logit", "router", "index", "mtp"))


class RouterStats(NamedTuple):
    """Statistics of one router per segment, so that any population of sequences can be summed from them.

    counts (S, E): choices that fell on each expert, no gradient. probs (S, E): sums over tokens of the normalised scores, with gradient.
    square (S,): sums of logsumexp(logits)². lengths (S,): tokens. k: choices per token. Adding concatenates segments.
    """

    counts: Tensor
    probs: Tensor
    square: Tensor
    lengths: Tensor
    k: int

    def plus(self, other: RouterStats) -> RouterStats:
        """The segments of both, in order."""
        counts, probs, square, lengths = (torch.cat(pair) for pair in zip(self[:4], other[:4]))
        return RouterStats(counts, probs, square, lengths, self.k)


@dataclass
class Aux:
    """Side outputs, merged over micro-batches and ranks with `+`. wants: those to compute; max_logit makes attention run eagerly.

    max_logit: layer → (heads,) largest attention logit over allowed pairs. Source: arXiv 2309.14322 §3.1.
    router: layer → statistics. index: layer → (sum over tokens of the indexer's KL, tokens).
    mtp: hidden states (T, d) per depth k = 1, 2, ...; row t predicts token t + k + 1.
    """

    wants: frozenset[Want] = ALL
    max_logit: dict[int, Tensor] = field(default_factory=dict)
    router: dict[int, RouterStats] = field(default_factory=dict)
    index: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    mtp: list[Tensor] = field(default_factory=list)

    def saw_logit(self, layer: int, largest: Tensor) -> None:
        """Takes in the largest logits (heads,) of a layer."""
        before = self.max_logit.get(layer)
        self.max_logit[layer] = largest if before is None else torch.maximum(before, largest)

    def saw_router(self, layer: int, stats: RouterStats) -> None:
        """Takes in a router's statistics."""
        self.router[layer] = self.router[layer].plus(stats) if layer in self.router else stats

    def saw_index(self, layer: int, total: Tensor, tokens: int) -> None:
        """Takes in the summed KL of an indexer."""
        before = self.index.get(layer)
        self.index[layer] = (total, tokens) if before is None else (before[0] + total, before[1] + tokens)

    def __add__(self, other: Aux) -> Aux:
        merged = Aux(self.wants, dict(self.max_logit), dict(self.router), dict(self.index))
        for layer, largest in other.max_logit.items():
            merged.saw_logit(layer, largest)
        for layer, stats in other.router.items():
            merged.saw_router(layer, stats)
        for layer, (total, tokens) in other.index.items():
            merged.saw_index(layer, total, tokens)
        merged.mtp = [torch.cat(pair) for pair in zip(self.mtp, other.mtp)] if self.mtp and other.mtp else [*self.mtp, *other.mtp]
        return merged
