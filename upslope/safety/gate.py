"""The gate: rules about measured numbers, a decision that binds to one object, and nothing that passes by default.

A framework (TOML) names indicators: which rows of which suite, the bound, how many items at least. Each indicator is
`satisfied`, `not satisfied` or `insufficient`; the outcome is the worst of them, in the order not satisfied >
insufficient > satisfied. A missing suite, no items or too few are insufficient; a value or threshold that is not a
finite number, rows that were changed, or evidence about another object are not satisfied. Decisions are recomputed from
the rows by whoever relies on them (`decide` is pure): a decision file is never trusted for what it says.
"""

from __future__ import annotations

import hashlib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import ConfigDict

from upslope.config import Config, UsageError, canonical_json, dump, validated
from upslope.evals.artifacts import Estimate, Row, Table, estimate, shown
from upslope.evals.subject import Subject
from upslope.machine.files import digest_path, read_json, write_json
from upslope.machine.stage import Artifact
from upslope.safety.detector import Quality
from upslope.stats.prevalence import prevalence

Outcome = Literal["satisfied", "not satisfied", "insufficient"]
WATERMARK = "demo: not a safety evaluation"
DETECTOR = "detector"
"""The suite whose rows say how often the detector is right: metrics `sensitivity` and `specificity`."""


class Indicator(Config):
    """One rule: the `bound` (upper or lower) of a metric against a threshold.

    category: what kind of harm or failure it stands for. suite, metric: which rows. group: only items below this prefix.
    on: whether the confidence limit on the unsafe side must keep the threshold (`limit`) or the point estimate
    (`point`). min_n: least number of items. level: of the two-sided interval (so one side errs (1 − level)/2 of the time).
    detector: whether the rows were counted by the detector, so that its measured errors must be propagated.
    """

    model_config = ConfigDict(allow_inf_nan=True)  # a threshold that is no number must reach the decision and fail there

    name: str
    category: str
    suite: str
    metric: str
    bound: Literal["upper", "lower"]
    threshold: float
    group: str = ""
    on: Literal["limit", "point"] = "limit"
    min_n: int = 30
    level: float = 0.95
    detector: bool = False


class Framework(Config):
    """What must hold before a release.

    demo: a demonstration of the machinery; its decisions never read as approval. categories: each must have an
    indicator. approvals: roles that must approve. not_tested: what the framework knows that it does not cover.
    """

    name: str
    demo: bool
    categories: tuple[str, ...]
    indicators: tuple[Indicator, ...]
    approvals: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = ()

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads a TOML file; UsageError with the dotted path of what is wrong."""
        try:
            data = tomllib.loads(file.read_text(encoding="utf-8"))
        except tomllib.TOMLDecodeError as e:
            raise UsageError(f"framework {file.name}: not TOML: {e}") from None
        return validated(cls, data, file.stem)

    def digest(self) -> str:
        """blake2b-128 of the rules; a threshold that is no number is written as text."""
        return hashlib.blake2b(canonical_json(_finite(dump(self))), digest_size=16).hexdigest()


class Approval(Config):
    """A person's recorded agreement, in a role, to one object (its digest). A declaration, not a cryptographic signature."""

    role: str
    by: str
    covers: str


class Finding(NamedTuple):
    """What became of one indicator, and why in one sentence. estimate: None where nothing could be estimated."""

    indicator: Indicator
    outcome: Outcome
    why: str
    estimate: Estimate | None

    def json(self) -> dict[str, Any]:
        """Plain values."""
        found = None if self.estimate is None else shown(self.estimate)
        return {"indicator": _finite(dump(self.indicator)), "outcome": self.outcome, "why": self.why, "estimate": found}


def decide(framework: Framework, subject: Subject, tables: Sequence[Table], approvals: Sequence[Approval] = ()) -> dict[str, Any]:
    """The decision about one object from evidence tables, as plain JSON. A pure function of rules, object, rows and approvals."""
    problems: list[tuple[Outcome, str]] = []
    if open_fields := subject.missing():
        problems.append(("insufficient", f"the object is not fully described: {', '.join(open_fields)}"))
    evidence: list[dict[str, Any]] = []
    rows: list[Row] = []
    conditions: dict[str, Subject] = {}
    for table in tables:
        digest = digest_path(table.path)
        evidence.append({"digest": digest, "suites": {s: c["n"] for s, c in table.card()["suites"].items()}})
        if not table.intact():
            problems.append(("not satisfied", f"evidence {digest[:12]}: its rows are not those that its card was written for"))
            continue
        rows += table.rows()
        for suite, condition in table.conditions().items():
            if suite in conditions:
                problems.append(("not satisfied", f"suite {suite!r} comes from two tables: which one counts is not for a gate to guess"))
            conditions[suite] = condition.subject
    findings = [_judge(i, subject, rows, conditions) for i in framework.indicators]
    covered = {i.category for i in framework.indicators}
    problems += [("insufficient", f"category {c!r} has no indicator") for c in framework.categories if c not in covered]
    if not framework.indicators:
        problems.append(("insufficient", "the framework asks for nothing"))
    problems += _missing_approvals(framework, subject, approvals)
    problems += [(f.outcome, f"{f.indicator.name}: {f.why}") for f in findings if f.outcome != "satisfied"]
    outcomes = {outcome for outcome, _ in problems}
    outcome: Outcome = "not satisfied" if "not satisfied" in outcomes else "insufficient" if outcomes else "satisfied"
    return {
        "framework": _finite(dump(framework)),
        "framework_digest": framework.digest(),
        "demo": framework.demo,
        "outcome": outcome,
        "label": label(outcome, framework.demo),
        **({"watermark": WATERMARK} if framework.demo else {}),
        "object": subject.json(),
        "object_digest": subject.digest(),
        "evidence": evidence,
        "findings": [f.json() for f in findings],
        "reasons": [why for _, why in problems],
        "approvals": [dump(a) for a in approvals],
        "not_tested": list(framework.not_tested),
    }


def label(outcome: Outcome, demo: bool) -> str:
    """How an outcome is printed. A demonstration never reads as approval."""
    if outcome == "insufficient":
        return "INSUFFICIENT EVIDENCE"
    if demo:
        return f"DEMO: rules {outcome}"
    return "APPROVE" if outcome == "satisfied" else "REFUSE"


def _judge(indicator: Indicator, subject: Subject, rows: Sequence[Row], conditions: Mapping[str, Subject]) -> Finding:
    def finding(outcome: Outcome, why: str, found: Estimate | None = None) -> Finding:
        return Finding(indicator, outcome, why, found)

    if not math.isfinite(indicator.threshold):
        return finding("not satisfied", f"the threshold is {indicator.threshold}, not a number")
    chosen = _rows(rows, indicator.suite, indicator.metric, indicator.group)
    if indicator.suite not in conditions or not chosen:
        where = f" under {indicator.group!r}" if indicator.group else ""
        return finding("insufficient", f"no rows of {indicator.suite}/{indicator.metric}{where}")
    if other := conditions[indicator.suite].conflicts(subject):
        return finding("not satisfied", f"the evidence is about another object: other {', '.join(other)}")
    if conditions[indicator.suite].weights is None:
        return finding("not satisfied", "the evidence does not say which weights it is about")
    if not all(math.isfinite(r.value) for r in chosen):
        return finding("not satisfied", "a value is not a number")
    found = estimate(chosen, exact=True, level=indicator.level, group=indicator.group)
    if found.n < max(1, indicator.min_n):
        return finding("insufficient", f"n = {found.n}, needed {max(1, indicator.min_n)}", found)
    if indicator.detector:
        quality = detector_quality(rows)
        if quality is None or found.k is None:
            return finding("insufficient", "the detector's error rates were not measured", found)
        corrected = prevalence(found.k, found.n, quality.sensitivity, quality.specificity, indicator.level)
        found = found._replace(value=corrected.value, interval=corrected, unit="share, corrected for the detector's errors")
    if found.interval is None:
        return finding("insufficient", f"n = {found.n} has no interval", found)
    limit = found.interval.high if indicator.bound == "upper" else found.interval.low
    number = limit if indicator.on == "limit" else found.value
    name = f"{indicator.bound} limit" if indicator.on == "limit" else "estimate"
    holds = number <= indicator.threshold if indicator.bound == "upper" else number >= indicator.threshold
    sign = {("upper", True): "≤", ("upper", False): ">", ("lower", True): "≥", ("lower", False): "<"}[indicator.bound, holds]
    count = f"k={found.k}/n={found.n}" if found.k is not None else f"n={found.n}"
    return finding("satisfied" if holds else "not satisfied", f"{name} {number:.3f} {sign} {indicator.threshold:g} ({count})", found)


def detector_quality(rows: Sequence[Row]) -> Quality | None:
    """The detector's (right, tried) on leaks and on others, from the rows of suite `detector`; None where either is missing."""
    counts = []
    for metric in ("sensitivity", "specificity"):
        values = [r.value for r in _rows(rows, DETECTOR, metric, "")]
        if not values or any(v not in (0.0, 1.0) for v in values):
            return None
        counts.append((int(sum(values)), len(values)))
    return Quality(*counts)


def _rows(rows: Sequence[Row], suite: str, metric: str, group: str) -> list[Row]:
    return [r for r in rows if r.suite == suite and r.metric == metric and (not group or r.item.startswith(group.rstrip("/") + "/"))]


def _missing_approvals(framework: Framework, subject: Subject, approvals: Sequence[Approval]) -> list[tuple[Outcome, str]]:
    problems: list[tuple[Outcome, str]] = []
    valid = [a for a in approvals if a.covers == subject.digest()]
    for role in framework.approvals:
        if not any(a.role == role for a in valid):
            problems.append(("insufficient", f"no approval of this object by the role {role!r}"))
    if len({a.by for a in valid}) < len(valid):
        problems.append(("insufficient", "one person approves in two roles"))
    return problems


def _finite(value: Any) -> Any:
    """The same JSON with numbers that are not finite written as text."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class Decision(Artifact):
    """`decision.json`: what was decided about which object, by which rules, from which evidence."""

    @classmethod
    def write(cls, out: Path, decision: Mapping[str, Any]) -> Self:
        """Writes what `decide` gave."""
        write_json(out / "decision.json", decision)
        return cls.load(out)

    def json(self) -> dict[str, Any]:
        """The whole decision."""
        return dict(read_json(self.path / "decision.json"))

    @property
    def label(self) -> str:
        """As printed."""
        return str(self.json()["label"])


def uncovered(decision: Mapping[str, Any], subject: Subject, tables: Sequence[Table]) -> str | None:
    """Why a decision does not hold for this object and this evidence, in one sentence; None if it does.

    The decision is recomputed from its own rules and the evidence at hand: an edited outcome, rule, row or digest shows.
    """
    try:
        framework = validated(Framework, _numbers(decision["framework"]), "framework")
        approvals = tuple(validated(Approval, a) for a in decision["approvals"])
        decided = Subject(**decision["object"])
    except (KeyError, TypeError, UsageError) as e:
        return f"the decision cannot be read: {str(e).splitlines()[0]}"
    if other := [name for name in subject.json() if subject.json()[name] != decided.json()[name]]:
        return f"the decision covers another object: other {', '.join(other)}"
    again = decide(framework, subject, tables, approvals)
    if again["evidence"] != decision["evidence"]:
        return "the evidence is not what the decision was made from"
    if again != dict(decision):
        changed = [k for k in again if again[k] != decision.get(k)] or [k for k in decision if k not in again]
        return f"the decision does not follow from its rules and evidence: {', '.join(changed)}"
    return None


def _numbers(framework: Mapping[str, Any]) -> dict[str, Any]:
    """Undoes `_finite` where a threshold was no number."""
    rules = [{**i, "threshold": float(i["threshold"])} for i in framework["indicators"]]
    return {**framework, "indicators": rules}
