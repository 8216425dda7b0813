"""Formulas against scipy, closed forms and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from upslope.machine.rng import rng
from upslope.stats.bootstrap import bootstrap_mean, bootstrap_ratio
from upslope.stats.intervals import binomial_test, clopper_pearson, mean_t, wilson
from upslope.stats.paired import clustered_error, mcnemar, paired_difference
from upslope.stats.prevalence import prevalence

CASES = [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (7, 400), (399, 400)]


@pytest.mark.parametrize(("k", "n"), CASES)
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_proportion_intervals_equal_scipy(k: int, n: int, level: float) -> None:
    for ours, method in ((wilson, "wilson"), (clopper_pearson, "exact")):
        theirs = stats.binomtest(k, n).proportion_ci(level, method=method)
        assert ours(k, n, level) == pytest.approx((k / n, theirs.low, theirs.high), abs=1e-10)


def test_clopper_pearson_covers_at_least_its_level_for_every_p() -> None:
    n = 12
    intervals = [clopper_pearson(k, n) for k in range(n + 1)]
    for p in np.linspace(0.005, 0.995, 67):
        mass = stats.binom.pmf(np.arange(n + 1), n, p)
        assert sum(m for m, i in zip(mass, intervals, strict=True) if i.low <= p <= i.high) >= 0.95 - 1e-9


@pytest.mark.parametrize("alternative", ["two-sided", "less", "greater"])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.83, 1.0])
def test_binomial_test_equals_scipy(p: float, alternative: str) -> None:
    for k, n in CASES:
        assert binomial_test(k, n, p, alternative) == pytest.approx(stats.binomtest(k, n, p, alternative).pvalue, abs=1e-9)  # type: ignore[arg-type]


def test_mean_t_equals_scipy() -> None:
    x = rng(0, "x").normal(3, 2, 17)
    low, high = stats.t.interval(0.95, 16, loc=x.mean(), scale=stats.sem(x))
    assert mean_t(x) == pytest.approx((x.mean(), low, high), abs=1e-10)


def test_mcnemar_equals_enumeration_of_coin_flips() -> None:
    a, b = np.array([1, 1, 1, 1, 0, 0, 1, 0]), np.array([0, 0, 0, 1, 0, 1, 0, 0])  # 4 only a, 1 only b
    counts = [sum(flips) for flips in itertools.product((0, 1), repeat=5)]
    assert mcnemar(a, b) == (4, 1, pytest.approx(sum(abs(c - 2.5) >= 1.5 for c in counts) / 32))
    assert mcnemar(a, a).p_value == 1.0


def test_bootstrap_equals_enumeration_of_all_resamples() -> None:
    x = np.array([1.0, 2.0, 4.0, 9.0])
    means = [np.mean(c) for c in itertools.product(x, repeat=4)]
    ours = bootstrap_mean(x, level=0.8, draws=40_000)
    assert ours.value == 4.0
    for limit, q in ((ours.low, 0.1), (ours.high, 0.9)):  # the exact distribution is discrete: bracket it by nearby ranks
        assert np.quantile(means, q - 0.01) <= limit <= np.quantile(means, q + 0.01)


def test_bootstrap_width_matches_the_normal_limit_and_pairing_shrinks_it() -> None:
    g = rng(1, "paired")
    item = g.normal(0, 3, 600)
    a, b = item + g.normal(0.3, 0.5, 600), item + g.normal(0, 0.5, 600)
    paired = paired_difference(a, b)
    assert (paired.high - paired.low) / 2 == pytest.approx(1.96 * np.std(a - b, ddof=1) / math.sqrt(600), rel=0.07)
    assert paired.low > 0  # visible paired, invisible unpaired
    assert bootstrap_mean(a).low < bootstrap_mean(b).high
    assert paired_difference(a, b) == paired
    assert paired_difference(a, b, seed=1) != paired


def test_clusters_widen_the_interval_as_copies_bring_no_information() -> None:
    x = rng(2, "x").normal(size=50)
    copies, label = np.repeat(x, 8), np.repeat(np.arange(50), 8)
    single, clustered = bootstrap_mean(x, draws=4000), bootstrap_mean(copies, label, draws=4000)
    assert clustered == pytest.approx(single, abs=1e-12)
    assert clustered_error(copies, label) == pytest.approx(x.std() / math.sqrt(50))
    assert clustered_error(x, np.arange(50)) == pytest.approx(x.std() / math.sqrt(50))


def test_bootstrap_ratio_of_proportional_parts_has_no_width() -> None:
    den = np.arange(1.0, 30.0)
    assert bootstrap_ratio(2.5 * den, den) == pytest.approx((2.5, 2.5, 2.5))


def test_prevalence_is_rogan_gladen_and_covers_the_truth() -> None:
    assert prevalence(30, 100, (90, 100), (95, 100)).value == pytest.approx((0.30 + 0.95 - 1) / (0.90 + 0.95 - 1))
    g = rng(3, "coverage")
    for truth, se, sp in ((0.05, 0.9, 0.98), (0.4, 0.8, 0.95), (0.9, 0.95, 0.9), (0.0, 0.9, 0.97)):
        p, hits = truth * se + (1 - truth) * (1 - sp), 0
        for _ in range(800):
            found = prevalence(g.binomial(150, p), 150, (g.binomial(120, se), 120), (g.binomial(120, sp), 120))
            hits += found.low <= truth <= found.high
        assert hits / 800 >= 0.935, (truth, se, sp)


def test_prevalence_with_a_perfect_well_tested_detector_is_near_wilson() -> None:
    many = (10**7, 10**7)
    assert prevalence(12, 80, many, many) == pytest.approx(wilson(12, 80), abs=0.012)


def test_detector_uncertainty_widens_and_a_useless_detector_says_nothing() -> None:
    sharp, vague = prevalence(10, 100, (900, 1000), (990, 1000)), prevalence(10, 100, (9, 10), (99, 100))
    assert vague.high - vague.low > sharp.high - sharp.low
    assert prevalence(10, 100, (5, 10), (5, 10)) == (0.1, 0.0, 1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson(0, 0),
        lambda: clopper_pearson(3, 2),
        lambda: wilson(-1, 2),
        lambda: mean_t([1.0, math.nan]),
        lambda: mean_t([1.0]),
        lambda: bootstrap_mean([1.0, math.inf]),
        lambda: bootstrap_mean([1.0]),
        lambda: bootstrap_ratio([1.0, 2.0], [0.0, 0.0]),
        lambda: mcnemar([1, 0], [1]),
        lambda: mcnemar([0.5], [1]),
        lambda: prevalence(0, 0, (1, 1), (1, 1)),
        lambda: prevalence(0, 5, (0, 0), (1, 1)),
        lambda: wilson(1, 2, 1.0),
        lambda: binomial_test(1, 2, math.nan),
    ],
)
def test_what_is_undefined_is_refused(call) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        call()
