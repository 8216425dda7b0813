"""Paired comparisons of two systems on the same items."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from upslope.stats.bootstrap import bootstrap_mean
from upslope.stats.intervals import Interval, binomial_test, finite


class McNemar(NamedTuple):
    """Discordant pairs of two binary outcomes, and the exact two-sided p-value of "no difference"."""

    only_a: int
    only_b: int
    p_value: float


def mcnemar(a: Any, b: Any) -> McNemar:
    """McNemar's exact test: of the items on which a and b differ, how many favour a, against a fair coin.

    a, b: (n,) outcomes in {0, 1} of the same items in the same order. No discordant pair → p = 1.
    Source: McNemar 1947, exact binomial form.
    """
    x, y = _same_items(a, b)
    if not (np.isin(x, (0, 1)).all() and np.isin(y, (0, 1)).all()):
        raise ValueError("McNemar's test needs outcomes in {0, 1}")
    only_a, only_b = int(((x == 1) & (y == 0)).sum()), int(((x == 0) & (y == 1)).sum())
    total = only_a + only_b
    return McNemar(only_a, only_b, binomial_test(only_a, total) if total else 1.0)


def paired_difference(a: Any, b: Any, clusters: Any = None, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of mean(a − b) over the same items; whole clusters are resampled where given.

    Pairing removes what the items share: var(a − b) = var a + var b − 2 cov(a, b).
    Source: Miller 2024, "Adding error bars to evals" (arXiv 2411.00640) section 4.
    """
    x, y = _same_items(a, b)
    return bootstrap_mean(x - y, clusters, level=level, draws=draws, seed=seed)


def clustered_error(values: Any, clusters: Any) -> float:
    """Standard error of a mean whose items come in clusters: sqrt(Σ_c (Σ_{i∈c} (x_i − x̄))²) / n.

    Equals the population standard error sqrt(Σ(x−x̄)²)/n where every item is its own cluster.
    Source: Miller 2024 (arXiv 2411.00640) equation 4.
    """
    x = finite(values)
    if x.size == 0:
        raise ValueError("no values")
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    return float(np.sqrt((np.bincount(index, x - x.mean()) ** 2).sum()) / x.size)


def _same_items(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = finite(a), finite(b)
    if x.shape != y.shape or x.size == 0:
        raise ValueError(f"paired comparison of {x.size} and {y.size} items: need the same items, at least one")
    return x, y
