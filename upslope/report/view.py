"""Questions to a run record that more than one section asks. Nothing here raises on a missing stage, fact or artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from upslope.machine.events import goodput
from upslope.machine.record import RunRecord, StageRecord
from upslope.machine.stage import Artifact, artifact_class
from upslope.report.svg import Mark, Series
from upslope.report.words import finite

A = TypeVar("A", bound=Artifact)


class Curve(NamedTuple):
    """A metric of a stage: finite points in step order, the steps at which it was not finite, and where attempts resumed."""

    x: list[float]
    y: list[float]
    broken: list[tuple[float, str]]

    def series(self, name: str, tone: int = 1, dots: bool = False) -> Series:
        """As a line of a chart."""
        return Series(name, self.x, self.y, tone=tone, dots=dots)


def of_kind(record: RunRecord, *kinds: str) -> list[StageRecord]:
    """Stages of these kinds, in the order of the run."""
    return [s for s in record.stages if s.kind in kinds]


def facts(stage: StageRecord) -> dict[str, Any]:
    """The facts of a sealed stage; {} for any other."""
    value = (stage.manifest or {}).get("facts")
    return value if isinstance(value, dict) else {}


def config(stage: StageRecord, record: RunRecord) -> dict[str, Any]:
    """The stage's config: from its manifest, else from the recipe."""
    found = (stage.manifest or {}).get("config")
    if not isinstance(found, dict):
        found = (record.recipe.get("stages") or {}).get(stage.name)
    return found if isinstance(found, dict) else {}


def dig(value: Any, *path: str) -> Any:
    """A value inside nested dicts, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def metrics(stage: StageRecord) -> Iterator[tuple[float, dict[str, Any]]]:
    """(step, values) of the metric events, in time order."""
    for row in stage.events:
        step = finite(row.get("step"))
        if row.get("kind") == "metric" and step is not None and isinstance(row.get("values"), dict):
            yield step, row["values"]


def names(stage: StageRecord) -> list[str]:
    """Names of all metrics of a stage, in order of appearance."""
    return list(dict.fromkeys(k for _, values in metrics(stage) for k in values))


def curve(stage: StageRecord, *metric: str) -> Curve:
    """The first of these metrics that the stage has. A step that was done twice (a resumed attempt) counts once, the last time."""
    known = set(names(stage))
    name = next((m for m in metric if m in known), None)
    points: dict[float, Any] = {}
    for step, values in metrics(stage):
        if name in values:
            points[step] = values[name]
    good = sorted((s, v) for s, raw in points.items() if (v := finite(raw)) is not None)
    broken = sorted((s, str(raw)) for s, raw in points.items() if finite(raw) is None)
    return Curve([s for s, _ in good], [v for _, v in good], broken)


def restarts(stage: StageRecord) -> list[float]:
    """The first step of every attempt after the first."""
    out: list[float] = []
    attempts, waiting = 0, False
    for row in stage.events:
        if row.get("kind") == "start":
            attempts += 1
            waiting = attempts > 1
        elif waiting and row.get("kind") == "metric" and (step := finite(row.get("step"))) is not None:
            out.append(step)
            waiting = False
    return out


def attempts(stage: StageRecord) -> int:
    """How often the stage was started."""
    return max(sum(e.get("kind") == "start" for e in stage.events), int(finite((stage.manifest or {}).get("attempts")) or 0))


def alarms(stage: StageRecord) -> list[dict[str, Any]]:
    """The stage's alarm events."""
    return [e for e in stage.events if e.get("kind") == "alarm"]


def marks(stage: StageRecord, *broken: Curve) -> list[Mark]:
    """What to draw on the stage's curves: restarts, alarms at a step, values that were not finite."""
    out = [Mark(step, "resumed", "note") for step in restarts(stage)]
    for event in alarms(stage):
        step = finite(event.get("step"))
        if step is not None:
            out.append(Mark(step, _label(str(event.get("what", "alarm"))), "warn"))
    out += [Mark(step, text if len(text) < 5 else "not finite", "bad") for c in broken for step, text in c.broken]
    return out


def _label(what: str) -> str:
    """A word for an alarm that fits beside a line; the whole text is among the warnings."""
    return next((word for word in ("spike", "refused", "constant", "diverged") if word in what.lower()), "alarm")


def ending(stage: StageRecord) -> str:
    """The error of the last attempt, or ""."""
    for row in reversed(stage.events):
        if row.get("kind") == "start":
            return ""
        if row.get("kind") == "end":
            return "" if row.get("code") in (0, 75) else str(row.get("error") or f"exit code {row.get('code')}")
    return ""


def how(stage: StageRecord, record: RunRecord) -> str:
    """built, resumed (more than one attempt), reused (made before this run was asked for), or the state of an unfinished stage."""
    if stage.state != "sealed":
        return stage.state if stage.state in ("partial", "running", "failed", "absent") else "absent"
    finished = (stage.manifest or {}).get("finished")
    if finished and record.started and str(finished) < str(record.started):
        return "reused"
    return "resumed" if attempts(stage) > 1 else "built"


def spent(stage: StageRecord) -> float | None:
    """Seconds of work, over all attempts; for an unfinished stage what its events show. None if it never ran."""
    value = finite((stage.manifest or {}).get("seconds"))
    if value is not None:
        return value
    if not stage.events:
        return None
    return sum(v for k, v in goodput(stage.events).items() if k != "down")


def opened(stage: StageRecord | None, kind: type[A]) -> A | None:
    """The stage's artifact if it is sealed, is of this kind and can be opened; None otherwise."""
    if stage is None or stage.state != "sealed" or not stage.manifest:
        return None
    try:
        cls = artifact_class(str(stage.manifest.get("artifact")))
        return cls.load(stage.data) if issubclass(cls, kind) else None
    except Exception:
        return None


def above(record: RunRecord, name: str) -> set[str]:
    """Names of all stages that a stage reads, directly or not."""
    found: set[str] = set()
    todo = list(record.edges.get(name, ()))
    while todo:
        one = todo.pop()
        if one not in found:
            found.add(one)
            todo += record.edges.get(one, ())
    return found


def checkpoint_before(record: RunRecord, name: str, models: Sequence[str]) -> str:
    """The nearest of these stages that a stage reads, directly or through others; the later in the run of two equally near; or ""."""
    layer, seen = list(record.edges.get(name, ())), {name}
    while layer:
        here = [n for n in layer if n in models]
        if here:
            return max(here, key=models.index)
        seen |= set(layer)
        layer = [p for one in layer for p in record.edges.get(one, ()) if p not in seen]
    return ""
