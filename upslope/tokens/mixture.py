"""A mixture: how much of each source a run reads, over its progress, and how often a source may come round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from upslope.config import UsageError
from upslope.machine.files import read_json, write_json
from upslope.machine.stage import Artifact
from upslope.tokens.shards import HELDOUT

Weight = float | tuple[tuple[float, float], ...]
"""A constant, or points (progress in [0, 1], weight) joined by straight lines; constant outside them."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture(Artifact):
    """`mixture.json`: points of the weight of each source, repetition caps in epochs, and the tokens that were planned."""

    @cached_property
    def _body(self) -> dict[str, Any]:
        file = self.path / "mixture.json"
        if not file.is_file():
            raise UsageError(f"{self.path.name!r} holds no mixture: no mixture.json\nway out: make it with a 'mix' stage")
        body: dict[str, Any] = read_json(file)
        return body

    @classmethod
    def write(
        cls,
        folder: Path,
        weights: Mapping[str, Weight],
        tokens: int,
        caps: Mapping[str, float] | None = None,
        over: Literal["refuse", "alarm"] = "refuse",
    ) -> Mixture:
        """Writes a mixture. Weights need not sum to 1. caps: most epochs of a source; over: what exceeding one does.

        UsageError for a weight that is negative or not finite, points out of order, no positive weight at some progress,
        or a held-out source.
        """
        points = {source: _points(source, weight) for source, weight in weights.items()}
        if tokens <= 0:
            raise UsageError(f"mixture tokens = {tokens}: must be > 0, the tokens that the run will read")
        for source, cap in (caps or {}).items():
            if source not in points or not cap > 0:
                raise UsageError(f"mixture caps.{source} = {cap}: must be > 0 epochs, of a source with a weight: {', '.join(points)}")
        write_json(folder / "mixture.json", {"weights": points, "tokens": tokens, "caps": dict(caps or {}), "over": over})
        mixture = cls.load(folder)
        _ = mixture._shares  # refuses a progress without any positive weight
        return mixture

    @property
    def sources(self) -> tuple[str, ...]:
        """Sources with a weight, sorted; the order of all arrays here."""
        return tuple(sorted(self._body["weights"]))

    @property
    def tokens(self) -> int:
        """Tokens that the run is planned to read: progress 1."""
        return int(self._body["tokens"])

    @property
    def caps(self) -> dict[str, float]:
        """Most epochs of a source, where capped."""
        return dict(self._body["caps"])

    @property
    def refuses(self) -> bool:
        """Whether exceeding a cap is an error, not just an alarm."""
        return bool(self._body["over"] == "refuse")

    @cached_property
    def _knots(self) -> F64:
        found = {0.0, 1.0} | {float(p) for points in self._body["weights"].values() for p, _ in points}
        return np.array(sorted(found))

    @cached_property
    def _shares(self) -> F64:
        """Normalised weights at the knots, (knots, sources); between knots they are straight lines, so they still sum to 1."""
        points = [np.asarray(self._body["weights"][s], np.float64) for s in self.sources]
        raw = np.stack([np.interp(self._knots, p[:, 0], p[:, 1]) for p in points], axis=1)
        total = raw.sum(axis=1)
        if not (total > 0).all():
            where = float(self._knots[int(np.argmin(total))])
            raise UsageError(f"mixture: no source has a positive weight at progress {where:g}\nway out: give one of them a weight there")
        return raw / total[:, None]

    def shares(self, progress: float) -> dict[str, float]:
        """Share of each source at a progress in [0, 1]; they sum to 1."""
        return {s: float(np.interp(progress, self._knots, self._shares[:, i])) for i, s in enumerate(self.sources)}

    def cumulative(self, x: NDArray[Any] | Sequence[float], total: int) -> F64:
        """T_s(x) = ∫₀ˣ share_s(u / total) du: samples of each source that are due after x of `total` samples.

        x: (n,) ≥ 0; beyond `total` the last shares go on. Returns (n, sources); rows sum to x.
        """
        at = np.asarray(x, np.float64) / total
        knots, shares = self._knots, self._shares
        widths = np.diff(knots)[:, None]
        before = np.concatenate([np.zeros((1, shares.shape[1])), np.cumsum(widths * (shares[1:] + shares[:-1]) / 2, axis=0)])
        i = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
        inside = np.minimum(at, 1.0) - knots[i]
        slope = (shares[i + 1] - shares[i]) / (knots[i + 1] - knots[i])[:, None]
        due = before[i] + inside[:, None] * shares[i] + inside[:, None] ** 2 / 2 * slope + np.maximum(at - 1.0, 0.0)[:, None] * shares[-1]
        return np.asarray(due * total)

    def asked(self) -> dict[str, float]:
        """Tokens that the plan takes from each source."""
        return dict(zip(self.sources, (self.cumulative([1.0], 1)[0] * self.tokens).tolist(), strict=True))


def _points(source: str, weight: Weight) -> list[list[float]]:
    points = [[0.0, float(weight)]] if isinstance(weight, int | float) else [[float(p), float(w)] for p, w in weight]
    progress = [p for p, _ in points]
    if source.endswith(HELDOUT):
        raise UsageError(f"mixture weights.{source}: held-out documents are for evaluation\nway out: name the source without {HELDOUT!r}")
    if not points or not all(np.isfinite(w) and w >= 0 for _, w in points):
        raise UsageError(f"mixture weights.{source} = {weight!r}: weights must be finite and ≥ 0")
    if not all(0 <= p <= 1 for p in progress) or any(b <= a for a, b in zip(progress, progress[1:], strict=False)):
        raise UsageError(f"mixture weights.{source} = {weight!r}: progress must rise strictly, within [0, 1]")
    return points
