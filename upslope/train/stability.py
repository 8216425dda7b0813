"""How often a training series jumps."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def spike_score(series: npt.ArrayLike, window: int = 1000, sigmas: float = 7.0) -> float:
    """Percentage of values at least `sigmas` standard deviations from the mean of the `window` values before them.

    A value is judged once at least 30 values precede it. Non-finite values are spikes and never enter a window.
    Returns 0 for a series too short to judge. Source: OLMo 2 report, section 3.1 (7 sd, last 1000 values).
    """
    return _score(np.asarray(series, dtype=np.float64), window, sigmas, both=True)


def live_spike_score(series: npt.ArrayLike, window: int = 128, sigmas: float = 6.0) -> float:
    """Percentage of values more than `sigmas` standard deviations above the mean of the last `window`: OLMo-core's monitor."""
    return _score(np.asarray(series, dtype=np.float64), window, sigmas, both=False)


def _score(values: npt.NDArray[np.float64], window: int, sigmas: float, both: bool, least: int = 30) -> float:
    spikes, judged = 0, 0
    past: list[float] = []
    for value in values:
        if len(past) >= least:
            judged += 1
            recent = np.asarray(past[-window:])
            away = float(value) - float(recent.mean())
            limit = sigmas * float(recent.std())
            far = abs(away) >= limit if both else away > limit
            spikes += not np.isfinite(value) or (far and away != 0)
        if np.isfinite(value):
            past.append(float(value))
    return 100.0 * spikes / judged if judged else 0.0
