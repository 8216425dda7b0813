"""Tables of results: one row per item and metric, with a card that says under which conditions each suite was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from upslope.config import UsageError
from upslope.evals.subject import Subject
from upslope.machine.files import atomic, digest_file, read_json, write_json
from upslope.machine.stage import Artifact
from upslope.stats.bootstrap import bootstrap_ratio
from upslope.stats.intervals import Interval, clopper_pearson, mean_t, wilson

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("run", "step", "suite", "item", "metric", "value", "bytes")
NATS = "nats"
"""The metric whose value is a text's negative log-likelihood in nats; it is reported as bits per byte of that text."""


class Row(NamedTuple):
    """One measured value.

    item: "group/…/id", unique per suite and metric; the parts before the last "/" are the groups that results are shown
    by. bytes: UTF-8 bytes of the text that the value speaks of (0 where it speaks of none). step: training step of the
    weights, 0 for a finished model. run: which weights, first digits of their digest.
    """

    suite: str
    item: str
    metric: str
    value: float
    bytes: int = 0
    step: int = 0
    run: str = ""


class Estimate(NamedTuple):
    """A number with its interval. k: successes, for a proportion. interval: None where n is too small to have one."""

    suite: str
    group: str
    metric: str
    unit: str
    n: int
    k: int | None
    value: float
    interval: Interval | None


class Condition(NamedTuple):
    """Under what one suite was measured: the object, the suite's own settings."""

    subject: Subject
    settings: Mapping[str, Any]


class Table(Artifact):
    """Results: `rows.parquet` and `conditions.json` (which also holds the digest of the rows)."""

    @classmethod
    def write(cls, out: Path, rows: Sequence[Row], conditions: Mapping[str, Condition]) -> Self:
        """Writes rows, sorted, and their card; equal rows give equal bytes.

        UsageError for a value that is not finite, an item measured twice, or a suite without conditions.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = sorted(rows)
        seen: set[tuple[Any, ...]] = set()
        for row in rows:
            if not math.isfinite(row.value):
                raise UsageError(
                    f"suite {row.suite!r}, item {row.item!r}: {row.metric} = {row.value} is not a number\n"
                    "way out: a failed measurement is a missing row, never NaN"
                )
            key = (row.run, row.step, row.suite, row.item, row.metric)
            if key in seen:
                raise UsageError(f"suite {row.suite!r}, item {row.item!r}: {row.metric} is measured twice")
            seen.add(key)
            if row.suite not in conditions:
                raise UsageError(f"suite {row.suite!r} has rows and no conditions")
        kinds = {"step": pa.int64(), "value": pa.float64(), "bytes": pa.int64()}
        columns = {name: pa.array([getattr(row, name) for row in rows], kinds.get(name, pa.string())) for name in COLUMNS}
        with atomic(out / "rows.parquet") as file:
            pq.write_table(pa.table(columns), file, compression="zstd", use_dictionary=True, write_statistics=False)
        counts = {suite: len({r.item for r in rows if r.suite == suite}) for suite in conditions}
        write_json(
            out / "conditions.json",
            {
                "rows": digest_file(out / "rows.parquet"),
                "suites": {
                    suite: {"n": counts[suite], "object": card.subject.json(), "settings": dict(card.settings)}
                    for suite, card in conditions.items()
                },
            },
        )
        return cls.load(out)

    def arrow(self) -> pa.Table:
        """All rows."""
        import pyarrow.parquet as pq

        return pq.read_table(self.path / "rows.parquet")

    def frame(self) -> dict[str, np.ndarray]:
        """All rows as numpy columns by name; strings are numpy objects."""
        table = self.arrow()
        return {name: table.column(name).to_numpy(zero_copy_only=False) for name in COLUMNS}

    def rows(self) -> list[Row]:
        """All rows, in file order."""
        return [Row(**row) for row in self.arrow().to_pylist()]

    def card(self) -> dict[str, Any]:
        """The conditions, as JSON."""
        return dict(read_json(self.path / "conditions.json"))

    def conditions(self) -> dict[str, Condition]:
        """The conditions by suite."""
        return {suite: Condition(Subject(**c["object"]), c["settings"]) for suite, c in self.card()["suites"].items()}

    def intact(self) -> bool:
        """Whether the rows are those that the card was written for."""
        return digest_file(self.path / "rows.parquet") == self.card()["rows"]

    def summary(self, depth: int = 0) -> list[Estimate]:
        """Estimates per suite, group and metric; depth: how many leading parts of the item make a group (0 = all items)."""
        found: dict[tuple[str, str, str], list[Row]] = {}
        for row in self.rows():
            group = "/".join(row.item.split("/")[:-1][:depth])
            found.setdefault((row.suite, group, row.metric), []).append(row)
        return [estimate(rows, group=group) for (_, group, _), rows in sorted(found.items())]


def estimate(rows: Sequence[Row], *, exact: bool = False, level: float = 0.95, group: str | None = None) -> Estimate:
    """The estimate of rows of one suite and metric.

    Nats become bits per byte, Σ nats / (ln 2 · Σ bytes), with items resampled. Values that are all 0 or 1 are a
    proportion: Wilson's interval, or Clopper–Pearson's where `exact` (a bound must hold). Others: mean, t interval.
    Raises ValueError for no rows or a value that is not finite.
    """
    if not rows:
        raise ValueError("no rows")
    first, n = rows[0], len(rows)
    shown = "/".join(first.item.split("/")[:-1]) if group is None else group
    values = np.array([r.value for r in rows])
    if not np.isfinite(values).all():
        raise ValueError(f"{first.suite} {first.metric}: {int((~np.isfinite(values)).sum())} of {n} values are not finite")
    if first.metric == NATS:
        sizes = math.log(2) * np.array([r.bytes for r in rows], dtype=float)
        interval = bootstrap_ratio(values, sizes, level=level) if n > 1 else None
        return Estimate(first.suite, shown, first.metric, "bits per byte", n, None, float(values.sum() / sizes.sum()), interval)
    if np.isin(values, (0.0, 1.0)).all():
        k = int(values.sum())
        return Estimate(first.suite, shown, first.metric, "share", n, k, k / n, (clopper_pearson if exact else wilson)(k, n, level))
    return Estimate(first.suite, shown, first.metric, "mean", n, None, float(values.mean()), mean_t(values, level) if n > 1 else None)


def shown(e: Estimate) -> dict[str, Any]:
    """An estimate as JSON; the interval as [low, high]."""
    return {**e._asdict(), "interval": None if e.interval is None else [e.interval.low, e.interval.high]}


def grouped(rows: Sequence[Row], depth: int) -> Iterator[tuple[str, list[Row]]]:
    """Rows by the leading `depth` parts of their items, in order of the group's name."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault("/".join(row.item.split("/")[:-1][:depth]), []).append(row)
    yield from sorted(found.items())
