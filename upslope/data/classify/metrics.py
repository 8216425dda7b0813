"""What a classifier does on documents that it did not learn from.

Intervals of proportions come from the caller (`stats.intervals`, which this layer does not import); those of other metrics are
percentiles of `DRAWS` bootstrap resamples of documents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from upslope.data.classify.heads import Head
from upslope.data.classify.linear import F32
from upslope.machine.rng import rng

DRAWS = 200
BINS = 15
KEPT = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)

Proportion = Callable[[int, int], tuple[float, float, float]]
Floats = NDArray[np.float64]
Number = float | None


def ranks(score: Any) -> NDArray[np.intp]:
    """The rank of each score among the different ones, from 0."""
    return np.unique(np.asarray(score, float), return_inverse=True)[1]


def auc(rank: Any, positive: Any, weight: Any = None) -> Number:
    """P(rank of a positive > rank of a negative) + ½ P(equal), rows weighted; None where one of the two is missing."""
    positive = np.asarray(positive, bool)
    w = np.ones(len(rank)) if weight is None else np.asarray(weight, float)
    top = np.bincount(rank, w * positive, minlength=1)
    low = np.bincount(rank, w * ~positive, minlength=1)
    pairs = top.sum() * low.sum()
    return float(top @ (np.cumsum(low) - low / 2) / pairs) if pairs > 0 else None


def ece(confidence: Any, right: Any, weight: Any = None) -> float:
    """Expected calibration error: Σ_bins share · |mean confidence − share right|, BINS bins of equal width. Source: Guo et al. 2017."""
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    w = np.ones(len(confidence)) if weight is None else np.asarray(weight, float)
    at = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gap = np.bincount(at, w * (confidence - right), minlength=BINS)
    return float(np.abs(gap).sum() / w.sum())


def f1s(confusion: Floats) -> Floats:
    """F1 of each class from a confusion matrix (truth, guess); NaN for a class that neither occurs nor is guessed."""
    hit, total = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.divide(2 * hit, total, out=np.full(len(hit), np.nan), where=total > 0)


def kappa(confusion: Floats) -> Number:
    """Cohen's kappa: (agreement − chance) / (1 − chance), chance from the margins; None where chance is 1. Source: Cohen 1960."""
    n = confusion.sum()
    chance = float(confusion.sum(axis=0) @ confusion.sum(axis=1)) / n**2 if n else 1.0
    return float((np.trace(confusion) / n - chance) / (1 - chance)) if chance < 1 - 1e-12 else None


def confusion_of(truth: Any, guess: Any, k: int, weight: Any = None) -> Floats:
    """(k, k) counts: rows the truth, columns the guess."""
    return np.bincount(np.asarray(truth) * k + np.asarray(guess), weight, minlength=k * k).reshape(k, k).astype(float)


def bootstrapped(statistic: Callable[[Floats], dict[str, Number]], n: int, seed: int) -> dict[str, dict[str, Number]]:
    """{metric: {value, low, high}}: `statistic` of weights (n,), which are all 1 for the value, and multinomial for the limits."""
    value = statistic(np.ones(n))
    draw = rng(seed, "classify.card", n)
    found = [statistic(draw.multinomial(n, np.full(n, 1 / n)).astype(float)) for _ in range(DRAWS)] if n > 1 else []
    out: dict[str, dict[str, Number]] = {}
    for name, v in value.items():
        drawn = [f[name] for f in found if f[name] is not None]
        low, high = np.quantile(np.array(drawn, float), [0.025, 0.975]).tolist() if drawn and v is not None else (None, None)
        out[name] = {"value": v, "low": low, "high": high}
    return out


def share(k: int, n: int, proportion: Proportion) -> dict[str, Number]:
    """A proportion with its limits; all None where n = 0."""
    if n == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    value, low, high = proportion(int(k), int(n))
    return {"value": value, "low": low, "high": high, "n": int(n)}


def measure(head: Head, mean: F32, target: F32, score: F32, positive: str, proportion: Proportion, seed: int = 0) -> dict[str, Any]:
    """Metrics of one head on held-out documents. mean, target: (n, k); score: (n,)."""
    if head.kind == "number":
        return _number(mean[:, 0].astype(float), target[:, 0].astype(float), seed, proportion)
    return _one(head, mean, target, score, positive, proportion, seed) if head.kind == "one" else _any(head, mean, target, proportion, seed)


def _one(head: Head, mean: F32, target: F32, score: F32, positive: str, proportion: Proportion, seed: int) -> dict[str, Any]:
    k, n = len(head.classes), len(mean)
    truth, guess = target.argmax(axis=1), mean.argmax(axis=1)
    confusion = confusion_of(truth, guess, k)
    confidence = mean.max(axis=1)
    at = head.classes.index(positive) if positive else None
    ranked = {c: ranks(mean[:, c]) for c in ([at] if at is not None else range(k))}

    def statistic(w: Floats) -> dict[str, Number]:
        areas = [auc(rank, truth == c, w) for c, rank in ranked.items()]
        known = [a for a in areas if a is not None]
        table = confusion_of(truth, guess, k, w)
        calibration = ece(mean[:, at], truth == at, w) if at is not None else ece(confidence, truth == guess, w)
        f1 = f1s(table)
        return {
            "macro_f1": float(np.nanmean(f1)) if not np.isnan(f1).all() else None,
            "auc": float(np.mean(known)) if known else None,
            "calibration_error": calibration,
            "kappa": kappa(table),
        }

    classes = {
        c: {
            "precision": share(confusion[i, i], confusion[:, i].sum(), proportion),
            "recall": share(confusion[i, i], confusion[i].sum(), proportion),
            "f1": None if np.isnan(f := f1s(confusion)[i]) else float(f),
        }
        for i, c in enumerate(head.classes)
    }
    out = {
        "accuracy": share(np.trace(confusion), n, proportion),
        "majority_class": float(confusion.sum(axis=1).max() / n),
        **bootstrapped(statistic, n, seed),
        "classes": classes,
        "confusion": {"classes": list(head.classes), "truth_by_guess": confusion.astype(int).tolist()},
    }
    if at is not None:
        out["thresholds"] = thresholds(score, truth == at, proportion)
    return out


def _any(head: Head, mean: F32, target: F32, proportion: Proportion, seed: int) -> dict[str, Any]:
    truth, guess = target > 0.5, mean >= 0.5
    ranked = [ranks(mean[:, c]) for c in range(len(head.classes))]

    def statistic(w: Floats) -> dict[str, Number]:
        areas = [a for c, rank in enumerate(ranked) if (a := auc(rank, truth[:, c], w)) is not None]
        hit, both = w @ (truth & guess), w @ truth + w @ guess
        f1 = np.divide(2 * hit, both, out=np.full(len(both), np.nan), where=both > 0)
        return {
            "macro_f1": float(np.nanmean(f1)) if not np.isnan(f1).all() else None,
            "micro_f1": float(2 * hit.sum() / both.sum()) if both.sum() else None,
            "auc": float(np.mean(areas)) if areas else None,
            "calibration_error": ece(mean.ravel(), truth.ravel(), np.repeat(w, truth.shape[1])),
        }

    classes = {
        c: {
            "precision": share((truth & guess)[:, i].sum(), guess[:, i].sum(), proportion),
            "recall": share((truth & guess)[:, i].sum(), truth[:, i].sum(), proportion),
            "auc": auc(ranked[i], truth[:, i]),
        }
        for i, c in enumerate(head.classes)
    }
    exact = share((truth == guess).all(axis=1).sum(), len(truth), proportion)
    return {"accuracy": exact, **bootstrapped(statistic, len(truth), seed), "classes": classes}


def _number(guess: Floats, truth: Floats, seed: int, proportion: Proportion) -> dict[str, Any]:
    low, high = np.floor(truth.min() + 0.5), np.floor(truth.max() + 0.5)
    level = np.floor(truth + 0.5)
    guessed = np.floor(np.clip(guess, low, high) + 0.5)

    def statistic(w: Floats) -> dict[str, Number]:
        mean = w @ truth / w.sum()
        spread = w @ (truth - mean) ** 2
        used = w > 0
        return {
            "mean_absolute_error": float(w @ np.abs(guess - truth) / w.sum()),
            "r2": float(1 - w @ (guess - truth) ** 2 / spread) if spread > 0 else None,
            "spearman": _spearman(np.repeat(guess[used], w[used].astype(int)), np.repeat(truth[used], w[used].astype(int))),
        }

    cuts = np.unique(level)[1:] if len(np.unique(level)) <= 20 else np.empty(0)
    return {
        "accuracy": share((guessed == level).sum(), len(level), proportion),
        **bootstrapped(statistic, len(truth), seed),
        "levels": {str(int(c)): _at_least(guessed >= c, level >= c, proportion) for c in cuts},
    }


def _at_least(guess: Any, truth: Any, proportion: Proportion) -> dict[str, Any]:
    hit = (guess & truth).sum()
    both = guess.sum() + truth.sum()
    return {
        "precision": share(hit, guess.sum(), proportion),
        "recall": share(hit, truth.sum(), proportion),
        "f1": float(2 * hit / both) if both else None,
    }


def _spearman(x: Floats, y: Floats) -> Number:
    found = []
    for v in (x, y):
        _, at, count = np.unique(v, return_inverse=True, return_counts=True)
        found.append((np.cumsum(count) - (count - 1) / 2)[at])
    if min(r.std() for r in found) == 0:
        return None
    return float(np.corrcoef(found[0], found[1])[0, 1])


def thresholds(score: Any, positive: Any, proportion: Proportion) -> list[dict[str, Any]]:
    """Precision and recall of keeping score ≥ threshold, at thresholds that keep about the shares KEPT of the documents."""
    score, positive = np.asarray(score), np.asarray(positive, bool)
    rows, descending = [], np.sort(score)[::-1]
    for cut in dict.fromkeys(descending[max(0, int(np.ceil(q * len(score))) - 1)] for q in KEPT):
        kept = score >= cut
        hit = int((kept & positive).sum())
        rows.append(
            {
                "threshold": float(cut),
                "kept": float(kept.mean()),
                "precision": share(hit, int(kept.sum()), proportion),
                "recall": share(hit, int(positive.sum()), proportion),
            }
        )
    return rows


def breakdown(values: Sequence[str], right: Any, proportion: Proportion) -> dict[str, dict[str, Number]]:
    """The share that is right, by a column of the documents; "" is called unknown."""
    right = np.asarray(right, bool)
    names = np.array([v or "unknown" for v in values], dtype=object)
    return {str(v): share(int(right[names == v].sum()), int((names == v).sum()), proportion) for v in sorted(set(names))}


def right(head: Head, mean: F32, target: F32, bounds: Sequence[float]) -> NDArray[np.bool_]:
    """Which documents got the right class, the right classes, or the right rounded level, (n,)."""
    if head.kind == "any":
        return np.asarray(((mean >= 0.5) == (target > 0.5)).all(axis=1))
    if head.kind == "one":
        return np.asarray(mean.argmax(axis=1) == target.argmax(axis=1))
    return np.asarray(np.floor(np.clip(mean[:, 0], bounds[0], bounds[1]) + 0.5) == np.floor(target[:, 0] + 0.5))


def agreement(
    truth: Sequence[tuple[str, str]], guess: tuple[list[str], list[str], Any], proportion: Proportion, seed: int
) -> dict[str, Any]:
    """How far a student agrees with its teacher on one field: primary codes (−1 is a code like others) and, where the teacher gave one,
    secondary codes."""
    codes = sorted({t[0] for t in truth} | set(guess[0]))
    at = {c: i for i, c in enumerate(codes)}
    a, b = np.array([at[t[0]] for t in truth]), np.array([at[g] for g in guess[0]])
    found = bootstrapped(lambda w: {"kappa": kappa(confusion_of(a, b, len(codes), w))}, len(truth), seed)
    both = [(t[1], g) for t, g in zip(truth, guess[1]) if t[1] != "-1"]
    return {
        "kappa": found["kappa"],
        "agreement": share(int((a == b).sum()), len(truth), proportion),
        "majority": float(np.bincount(a).max() / len(truth)),
        "secondary": share(sum(t == g for t, g in both), len(both), proportion),
    }


def triage(detector: Any, chosen: Floats, signals: Sequence[Floats], fpr: float, exact: Proportion, seed: int) -> dict[str, Any]:
    """Metrics of a detector. chosen: signals of the human documents that the threshold was chosen by; signals: of held-out human and
    machine documents. exact: an interval whose coverage is guaranteed."""
    from upslope.data.classify.aitext import SIGNALS, threshold

    human, machine = (detector.combined(s) for s in signals)
    score = np.concatenate([human, machine])
    positive = np.arange(len(score)) >= len(human)
    rank, p = ranks(score), 1 / (1 + np.exp(-np.clip(score, -500, 500)))
    balance = np.where(positive, 0.5 / max(1, len(machine)), 0.5 / max(1, len(human))) * len(score)

    def statistic(w: Floats) -> dict[str, Number]:
        return {"auc": auc(rank, positive, w), "calibration_error": ece(p, positive, w * balance)}

    bar = detector.body["threshold"]
    out: dict[str, Any] = {
        "false_positive_rate": share(int((human > bar).sum()), len(human), exact),
        "true_positive_rate": share(int((machine > bar).sum()), len(machine), exact),
        "target_false_positive_rate": fpr,
        "threshold_logit": float(bar),
        **bootstrapped(statistic, len(score), seed),
        "signals": {},
    }
    for i, name in enumerate(SIGNALS):  # what each would do alone, at a threshold chosen in the same way
        alone = threshold(chosen[:, i], fpr)
        out["signals"][name] = {
            "auc": auc(ranks(np.concatenate([s[:, i] for s in signals])), positive),
            "false_positive_rate": share(int((signals[0][:, i] > alone).sum()), len(human), exact),
            "true_positive_rate": share(int((signals[1][:, i] > alone).sum()), len(machine), exact),
        }
    return out
