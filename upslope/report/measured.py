"""What was measured about which model: the run's result tables, each tied to the checkpoint that its stage read."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

from upslope.evals.artifacts import NATS, Estimate, Row, Table, estimate, grouped
from upslope.machine.record import RunRecord, StageRecord
from upslope.report.view import above, opened
from upslope.report.words import interval, number, share

CORRECT = "correct"


class Measured:
    """One result table. stage: the stage that made it. model: the checkpoint stage that it speaks of ("" if unknown)."""

    def __init__(self, stage: str, model: str, table: Table) -> None:
        self.stage, self.model, self.table = stage, model, table

    @cached_property
    def rows(self) -> list[Row]:
        """All rows."""
        return self.table.rows()

    @cached_property
    def suites(self) -> list[str]:
        """Names of its suites, sorted."""
        return sorted({r.suite for r in self.rows})

    def of(self, suite: str, metric: str) -> list[Row]:
        """The rows of one suite and metric."""
        return [r for r in self.rows if r.suite == suite and r.metric == metric]

    def _accuracy(self, think: str) -> str:
        for suite in self.suites:
            how = self.settings(suite)
            if (
                how.get("kind", "accuracy") == "accuracy"
                and how.get("think", "free") == think
                and how.get("temperature") is None
                and self.of(suite, CORRECT)
            ):
                return suite
        return ""

    @cached_property
    def free(self) -> str:
        """The suite of accuracy as deployed, the model deciding whether to think; "" if it was not measured."""
        return self._accuracy("free")

    @cached_property
    def forced(self) -> str:
        """The suite of accuracy with the model made to think; "" if it was not measured."""
        return self._accuracy("forced")

    def total(self, suite: str, metric: str) -> Estimate | None:
        """The estimate over all items, or None where there are none."""
        return safe_estimate(self.of(suite, metric))

    def cells(self, suite: str, metric: str, depth: int) -> dict[str, Estimate]:
        """Estimates by the leading `depth` parts of the items."""
        return {group: e for group, rows in grouped(self.of(suite, metric), depth) if (e := safe_estimate(rows)) is not None}

    def settings(self, suite: str) -> dict[str, Any]:
        """The settings under which the suite was measured."""
        found = (self.table.card().get("suites") or {}).get(suite) or {}
        return dict(found.get("settings") or {})


class Gain(NamedTuple):
    """Two models on one suite. difference: paired over the items that both answered, None where there are none.

    n: items of the comparison.
    """

    before: Estimate
    after: Estimate
    difference: tuple[float, float, float] | None
    n: int


def safe_estimate(rows: list[Row]) -> Estimate | None:
    """`estimate`, or None where there is nothing to estimate from or a value is not a number."""
    try:
        return estimate(rows) if rows else None
    except ValueError:
        return None


def checkpoints(record: RunRecord) -> list[StageRecord]:
    """Stages whose artifact is a checkpoint, in the order of the run."""
    return [s for s in record.stages if str((s.manifest or {}).get("artifact", "")).endswith(":Checkpoint")]


def measurements(record: RunRecord, *kinds: str) -> list[Measured]:
    """All result tables of stages of these kinds that can be opened, in the order of the models that they speak of."""
    models = [s.name for s in checkpoints(record)]
    found = []
    for stage in record.stages:
        if stage.kind in kinds and (table := opened(stage, Table)) is not None:
            try:
                measured = Measured(stage.name, _model(record, stage.name, models), table)
                _ = measured.rows
            except Exception:
                continue
            found.append(measured)
    return sorted(found, key=lambda m: models.index(m.model) if m.model in models else -1)


def _model(record: RunRecord, name: str, models: list[str]) -> str:
    direct = [p for p in record.edges.get(name, ()) if p in models]
    if direct:
        return max(direct, key=models.index)
    further = [p for p in models if p in above(record, name)]
    return further[-1] if further else ""


def unreadable(record: RunRecord, *kinds: str) -> list[str]:
    """Sealed stages of these kinds whose table could not be read."""
    readable = {m.stage for m in measurements(record, *kinds)}
    return [s.name for s in record.stages if s.kind in kinds and s.state == "sealed" and s.name not in readable]


def gain(before: Measured, after: Measured) -> Gain | None:
    """The change in accuracy as deployed between two models; the difference is over the items that both have."""
    a, b = before.total(before.free, CORRECT), after.total(after.free, CORRECT)
    if a is None or b is None:
        return None
    both = _both(before.of(before.free, CORRECT), after.of(after.free, CORRECT))
    return Gain(a, b, gain_between(before, before.free, after, after.free), len(both))


def gain_between(before: Measured, old: str, after: Measured, new: str, metric: str = CORRECT) -> tuple[float, float, float] | None:
    """Paired difference, low and high limit of suite `new` of one model over suite `old` of another, on the items of both."""
    from upslope.stats.paired import paired_difference

    pairs = _both(before.of(old, metric), after.of(new, metric))
    if len(pairs) < 2:
        return None
    d = paired_difference([b for _, b in pairs], [a for a, _ in pairs])
    return d.value, d.low, d.high


def _both(old: list[Row], new: list[Row]) -> list[tuple[float, float]]:
    """(old, new) values of the items that both have."""
    values = {r.item: r.value for r in new}
    return [(r.value, values[r.item]) for r in old if r.item in values]


def words(e: Estimate) -> str:
    """An estimate as text: share with interval and n, or value with interval, unit and n."""
    low, high = (e.interval.low, e.interval.high) if e.interval is not None else (None, None)
    if e.k is not None or e.metric in (CORRECT, "ended"):
        return share(e.value, low, high, e.n)
    limits = interval(low, high, scale=1.0, digits=3)
    unit = "bits per byte" if e.metric == NATS else ""
    return " ".join(x for x in (number(e.value, 4), limits, unit) if x) + f", n = {e.n:,}"
