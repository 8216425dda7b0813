"""The baseline that every language model must beat: an interpolated bigram of exactly the tokens that training saw."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

EM_STEPS = 50


@dataclass(frozen=True)
class Bigram:
    """p(w | v) = λ₂·c(v,w)/c(v) + λ₁·c(w)/N + λ₀/V;  where v was never seen, λ₂'s share goes to the unigram.

    keys, counts: the seen pairs v·V + w, sorted, and how often. first: (V,) c(v) as first of a pair. unigram: (V,) shares
    of w as second of a pair. weights: (λ₀, λ₁, λ₂), sum 1. Source: Jelinek, Mercer 1980.
    """

    vocab: int
    keys: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    unigram: np.ndarray
    weights: tuple[float, float, float]

    @classmethod
    def fit(cls, rows: Iterable[tuple[np.ndarray, np.ndarray]], vocab: int, tune_every: int = 20) -> Bigram:
        """Fits counts on all rows and λ on one row in `tune_every`, held out of the counts while λ is fitted.

        rows: (ids, seg) pairs of equal length: the token rows as trained on, repeats included. Pairs do not cross
        segments: like a model that is trained on them, it learns nothing of how documents begin.
        Raises ValueError for fewer than two rows.
        """
        kept: list[np.ndarray] = []
        tuned: list[np.ndarray] = []
        for k, (ids, seg) in enumerate(rows):
            ids = np.asarray(ids, dtype=np.int64)
            pairs = (ids[:-1] * vocab + ids[1:])[np.asarray(seg)[1:] == np.asarray(seg)[:-1]]
            (tuned if k % tune_every == tune_every - 1 else kept).append(pairs)
        if not tuned and len(kept) > 1:
            tuned.append(kept.pop())
        if not kept or not tuned:
            raise ValueError("a bigram needs at least two rows: one to count, one to weigh")
        part = cls._count(np.concatenate(kept), vocab, (1 / 3, 1 / 3, 1 / 3))
        weights = part._weigh(np.concatenate(tuned))
        return cls._count(np.concatenate(kept + tuned), vocab, weights)

    @classmethod
    def _count(cls, pairs: np.ndarray, vocab: int, weights: tuple[float, float, float]) -> Bigram:
        keys, counts = np.unique(pairs, return_counts=True)
        first = np.bincount(keys // vocab, counts, minlength=vocab)
        second = np.bincount(keys % vocab, counts, minlength=vocab)
        return cls(vocab, keys, counts.astype(float), first, second / max(1.0, second.sum()), weights)

    def _parts(self, pairs: np.ndarray) -> np.ndarray:
        """(N, 3): probability of each pair's second token under the uniform, unigram and bigram model."""
        v, w = pairs // self.vocab, pairs % self.vocab
        at = np.minimum(np.searchsorted(self.keys, pairs), len(self.keys) - 1)
        seen = np.where(self.keys[at] == pairs, self.counts[at], 0.0)
        known = self.first[v] > 0
        bigram = np.where(known, seen / np.maximum(self.first[v], 1.0), self.unigram[w])
        return np.stack([np.full(len(pairs), 1.0 / self.vocab), self.unigram[w], bigram], axis=1)

    def _weigh(self, pairs: np.ndarray) -> tuple[float, float, float]:
        """λ by expectation maximisation: λ_i ← mean over pairs of λ_i p_i / Σ_j λ_j p_j."""
        parts, weights = self._parts(pairs), np.array(self.weights)
        for _ in range(EM_STEPS):
            share = parts * weights
            weights = (share / share.sum(axis=1, keepdims=True)).mean(axis=0)
        uniform, unigram, bigram = (float(x) for x in weights)
        floor = 1e-6  # a slice without a surprise must not leave a test token impossible
        scale = 1 + floor
        return (uniform + floor) / scale, unigram / scale, bigram / scale

    def nats(self, ids: np.ndarray) -> np.ndarray:
        """−ln p of each token of a document given the one before it; the first, which nothing precedes, costs ln V. (N,) float64."""
        line = np.asarray(ids, dtype=np.int64)
        found = np.full(len(line), math.log(self.vocab))
        found[1:] = -np.log(self._parts(line[:-1] * self.vocab + line[1:]) @ np.array(self.weights))
        return found
