"""How often something really happens, when the detector that counts it makes errors."""

from __future__ import annotations

import math

from upslope.stats.intervals import Interval, normal_quantile

LEAST_YOUDEN = 0.01  # below it, sensitivity + specificity − 1 is no information at all


def prevalence(k: int, n: int, sensitivity: tuple[int, int], specificity: tuple[int, int], level: float = 0.95) -> Interval:
    """True rate behind k detections in n trials, with the detector's own error propagated.

    Point (Rogan–Gladen, clipped to [0, 1]): p = (k/n + Sp − 1) / (Se + Sp − 1).
    Interval (Lang–Reiczigel): pseudo-counts n' = n + z², p' = (k + z²/2)/n', Se' = (k_Se + 1)/(n_Se + 2), Sp' likewise;
    P' = (p' + Sp' − 1)/J with J = Se' + Sp' − 1; limits P' + dP ± z·sd, clipped, where
    dP = 2z²·(P'·Se'(1−Se')/(n_Se+2) − (1−P')·Sp'(1−Sp')/(n_Sp+2)) and
    sd = sqrt(p'(1−p')/n' + P'²·Se'(1−Se')/(n_Se+2) + (1−P')²·Sp'(1−Sp')/(n_Sp+2)) / J.

    sensitivity, specificity: (right, tried) on cases whose truth is known. A detector with J ≤ 0.01 knows nothing: the
    answer is (k/n, 0, 1). Raises ValueError for n = 0 or an untested detector.
    Source: Rogan, Gladen 1978; Lang, Reiczigel 2014 (Prev. Vet. Med. 113, 13-22).
    """
    for name, (right, tried) in {"k of n": (k, n), "sensitivity": sensitivity, "specificity": specificity}.items():
        if tried < 1 or not 0 <= right <= tried:
            raise ValueError(f"{name} = {right} of {tried}: need at least one trial and a count within it")
    z = normal_quantile(level)
    (k_se, n_se), (k_sp, n_sp) = sensitivity, specificity
    p, se, sp = (k + z * z / 2) / (n + z * z), (k_se + 1) / (n_se + 2), (k_sp + 1) / (n_sp + 2)
    youden = se + sp - 1
    if youden <= LEAST_YOUDEN or k_se / n_se + k_sp / n_sp - 1 <= LEAST_YOUDEN:
        return Interval(k / n, 0.0, 1.0)
    centre = (p + sp - 1) / youden
    var_se, var_sp = se * (1 - se) / (n_se + 2), sp * (1 - sp) / (n_sp + 2)
    shift = 2 * z * z * (centre * var_se - (1 - centre) * var_sp)
    spread = math.sqrt(p * (1 - p) / (n + z * z) + centre**2 * var_se + (1 - centre) ** 2 * var_sp) / youden
    point = (k / n + k_sp / n_sp - 1) / (k_se / n_se + k_sp / n_sp - 1)
    value, low, high = (min(1.0, max(0.0, v)) for v in (point, centre + shift - z * spread, centre + shift + z * spread))
    return Interval(value, min(low, value), max(high, value))
