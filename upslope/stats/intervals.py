"""Intervals for one proportion or one mean, and the exact binomial test.

Undefined inputs (n = 0, k > n, non-finite values) raise ValueError: an interval that does not exist is never a number.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np

Alternative = Literal["two-sided", "less", "greater"]


class Interval(NamedTuple):
    """A point estimate and its two-sided confidence limits."""

    value: float
    low: float
    high: float


def normal_quantile(level: float) -> float:
    """z with P(|Z| ≤ z) = level for a standard normal Z."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + 0.5 * _checked_level(level)))


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion, from k successes in n independent trials.

    limits = (p̂ + z²/2n ± z·sqrt(p̂(1−p̂)/n + z²/4n²)) / (1 + z²/n),  p̂ = k/n. Value: p̂.
    Good average coverage at any n; slightly liberal near 0 and 1, where `clopper_pearson` is the safe choice.
    Source: Wilson 1927; Brown, Cai, DasGupta 2001.
    """
    _check_counts(k, n)
    z, p = normal_quantile(level), k / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if k == 0 else max(0.0, (centre - half) / scale)
    high = 1.0 if k == n else min(1.0, (centre + half) / scale)
    return Interval(p, low, high)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> Interval:
    """The exact interval for a proportion: coverage is at least `level` for every true p. Used where a bound must hold.

    low = Beta⁻¹(α/2; k, n−k+1), high = Beta⁻¹(1−α/2; k+1, n−k); 0 at k = 0, 1 at k = n. Value: k/n.
    Source: Clopper, Pearson 1934.
    """
    from scipy.special import betaincinv

    _check_counts(k, n)
    alpha = 1 - _checked_level(level)
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, alpha / 2))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - alpha / 2))
    return Interval(k / n, low, high)


def mean_t(values: Any, level: float = 0.95) -> Interval:
    """Student's t interval of a mean: x̄ ± t·s/√n, s with n−1. values: (n,), n ≥ 2, finite."""
    from scipy.special import stdtrit

    x = finite(values)
    if len(x) < 2:
        raise ValueError(f"a t interval needs at least 2 values, got {len(x)}")
    mean = float(x.mean())
    half = float(stdtrit(len(x) - 1, 0.5 + 0.5 * _checked_level(level))) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def binomial_test(k: int, n: int, p: float = 0.5, alternative: Alternative = "two-sided") -> float:
    """Exact p-value of k successes in n trials under success probability p.

    Two-sided: the total probability of all outcomes that are no likelier than k (relative tolerance 1e-7, so that ties
    count whatever the rounding). Source: Clopper, Pearson 1934; the usual small-p-values definition.
    """
    from scipy.special import gammaln

    _check_counts(k, n)
    if not 0 <= p <= 1:
        raise ValueError(f"p = {p}: must lie in [0, 1]")
    j = np.arange(n + 1)
    if p in (0.0, 1.0):
        mass = (j == round(p * n)).astype(float)
    else:
        mass = np.exp(gammaln(n + 1) - gammaln(j + 1) - gammaln(n - j + 1) + j * math.log(p) + (n - j) * math.log1p(-p))
    if alternative == "less":
        total = mass[: k + 1].sum()
    elif alternative == "greater":
        total = mass[k:].sum()
    else:
        total = mass[mass <= mass[k] * (1 + 1e-7)].sum()
    return float(min(1.0, total))


def finite(values: Any) -> np.ndarray:
    """The values as a float64 vector; ValueError if one is NaN or infinite."""
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite")
    return x


def _check_counts(k: int, n: int) -> None:
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"k = {k}, n = {n}: need n ≥ 1 and 0 ≤ k ≤ n")


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level = {level}: must lie strictly between 0 and 1")
    return level
