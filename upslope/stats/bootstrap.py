"""Bootstraps that resample whole clusters, with counter-based seeds: the same numbers in any process.

All statistics here are ratios Σ num / Σ den (a mean is the case den = 1), so a resample is a weighted sum and needs
no loop over items.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from upslope.machine.rng import rng
from upslope.stats.intervals import Interval, finite

CHUNK = 1 << 22  # resampled counts held at once


def bootstrap_mean(values: Any, clusters: Any = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval of a mean under resampling of clusters (of single items where `clusters` is None)."""
    x = finite(values)
    return bootstrap_ratio(x, np.ones_like(x), clusters, level=level, draws=draws, seed=seed)


def bootstrap_ratio(num: Any, den: Any, clusters: Any = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile interval of Σ num / Σ den, such as bits per byte with documents as clusters.

    num, den: (n,), finite; Σ den > 0. clusters: (n,) labels; whole clusters are drawn with replacement, as many as there
    are. Raises ValueError for no items or fewer than two clusters.
    Source: Efron 1979; cluster resampling: Cameron, Gelbach, Miller 2008 section 3.
    """
    top, bottom = finite(num), finite(den)
    if top.shape != bottom.shape or top.size == 0:
        raise ValueError(f"num has {top.size} values, den {bottom.size}: need equally many, at least one")
    if clusters is not None:
        _, index = np.unique(np.asarray(clusters), return_inverse=True)
        top, bottom = np.bincount(index, top), np.bincount(index, bottom)
    if top.size < 2:
        raise ValueError("a bootstrap needs at least 2 clusters")
    if bottom.sum() <= 0:
        raise ValueError("the denominator must be positive")
    drawn = resampled(np.stack([top, bottom], axis=1), draws, seed)  # (draws, 2)
    ratio = drawn[:, 0] / drawn[:, 1]
    low, high = np.quantile(finite(ratio), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high))


def resampled(sums: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Totals of `draws` resamples of the rows of `sums` (n, m) → (draws, m). Draw d depends on (seed, d's block) alone."""
    n = len(sums)
    rows = max(1, min(draws, CHUNK // n))
    blocks = []
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        counts = rng(seed, "bootstrap", n, start).multinomial(n, np.full(n, 1 / n), size=count)
        blocks.append(counts @ sums)
    return np.concatenate(blocks)
