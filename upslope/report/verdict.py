"""The top of the report: one plain sentence about what came out, key numbers, and every warning."""

from __future__ import annotations

from typing import Any

from upslope.evals.artifacts import NATS, Estimate
from upslope.machine.record import RunRecord, StageRecord
from upslope.report.measured import CORRECT, Gain, Measured, checkpoints, gain, gain_between, measurements, words
from upslope.report.page import bullets, tiles, warnings
from upslope.report.view import alarms, attempts, config, curve, dig, ending, facts, how, of_kind, spent
from upslope.report.words import esc, interval, listing, number, percent, seconds, tight


def header(record: RunRecord) -> str:
    """Run name, sentence, key numbers, and warnings that are never collapsed."""
    states = [how(s, record) for s in record.stages]
    when = f"started {record.started}" if record.started else ""
    line = " · ".join(
        x for x in (record.name, when, f"{sum(s.state == 'sealed' for s in record.stages)} of {len(states)} stages done") if x
    )
    first, *rest = sentences(record)
    failed = [failure(s) for s in record.stages if s.state == "failed"]
    return (
        f'<p class="run">{esc(line)}</p><h1>{esc(tight(first))}</h1>{bullets([esc(tight(x)) for x in rest])}{tiles(numbers(record))}'
        + warnings("Failed", failed, bad=True)
        + warnings("Warnings", [w for w in warned(record) if w not in failed])
    )


def sentence(record: RunRecord) -> str:
    """All that `sentences` says, as one text."""
    return " ".join(sentences(record))


def sentences(record: RunRecord) -> list[str]:
    """What was trained and what it can do, with interval and n; what part of it is learning to think; controls; scope."""
    if not record.stages:
        return ["This run has no stages."]
    done = sum(s.state == "sealed" for s in record.stages)
    if done == 0:
        return [f"Nothing is finished yet: {_states(record)}."]
    said = [x for x in _climb(record) or _measured(record) or _trained(record) if x]
    said = said or [f"{done} of {len(record.stages)} stages are done; none of them trained or measured a model."]
    return [*said, f"The run is not complete: {_states(record)}."] if done < len(record.stages) else said


def _states(record: RunRecord) -> str:
    left: dict[str, list[str]] = {}
    for s in record.stages:
        if s.state != "sealed":
            left.setdefault("unfinished" if s.state == "partial" else "not started" if s.state == "absent" else s.state, []).append(s.name)
    return "; ".join(
        f"{state}: {listing(names if len(names) <= 5 else [*names[:4], f'{len(names) - 4} more'])}" for state, names in left.items()
    )


def _size(record: RunRecord) -> str:
    for stage in reversed(checkpoints(record)):
        value = facts(stage).get("params") or facts(stage).get("parameters")
        if isinstance(value, int | float) and value > 0:
            return f"a model of {number(value)} parameters"
    return "a model"


def rl_stages(record: RunRecord) -> list[StageRecord]:
    """RL stages whose reward is real; see `controls` for the others."""
    return [s for s in of_kind(record, "rl") if not is_control(s, record)]


def controls(record: RunRecord) -> list[StageRecord]:
    """RL stages whose reward says nothing about the answer (random rewards): what training alone does."""
    return [s for s in of_kind(record, "rl") if is_control(s, record)]


def is_control(stage: StageRecord, record: RunRecord) -> bool:
    """Whether an RL stage draws its rewards at random."""

    def kinds(value: Any) -> list[str]:
        if isinstance(value, dict):
            return [str(value.get("kind", "")), *(k for v in value.values() for k in kinds(v))]
        return [k for v in value for k in kinds(v)] if isinstance(value, list | tuple) else []

    return facts(stage).get("reward_kind") == "random" or "random" in kinds(config(stage, record).get("reward"))


def climb(record: RunRecord) -> tuple[StageRecord, Measured, Measured] | None:
    """The first RL stage that was measured before and after: (stage, table before, table after)."""
    tables = {m.model: m for m in measurements(record, "evaluate") if m.free}
    for stage in rl_stages(record):
        before = _init(record, stage)
        if stage.name in tables and before in tables:
            return stage, tables[before], tables[stage.name]
    return None


def _init(record: RunRecord, stage: StageRecord) -> str:
    named = dig(config(stage, record), "init", "checkpoint")
    if isinstance(named, dict):
        named = named.get("stage")
    models = [s.name for s in checkpoints(record)]
    direct = [n for n in record.edges.get(stage.name, ()) if n in models]
    return str(named) if named in models else direct[0] if direct else ""


def _climb(record: RunRecord) -> list[str]:
    found = climb(record)
    if found is None:
        return []
    _, before, after = found
    g = gain(before, after)
    if g is None:
        return []
    same = g.after.value == g.before.value
    verb = "left" if same else "raised" if g.after.value > g.before.value else "lowered"
    ends = f"{'at' if same else f'from {_short(g.before)} to'} {_short(g.after)}, n = {g.after.n:,}"
    change = f"RL {verb} the share of held-out problems answered correctly {ends}, in {_size(record)}."
    out = [change, *_thinking(g, before, after)]
    out += _difference(g)
    out += _control(record, before)
    out += _last(record, after)
    out.append("This describes a model of this size on these problems; it says nothing about models of other sizes.")
    return out


def _short(e: Estimate) -> str:
    limits = interval(e.interval.low, e.interval.high) if e.interval is not None else ""
    return f"{percent(e.value)} {limits}".strip()


def _difference(g: Gain) -> list[str]:
    if g.difference is None:
        return []
    d, low, high = g.difference
    clear = "" if low > 0 or high < 0 else " The interval includes zero: the change may be noise."
    return [f"On the {g.n:,} items that both answered, the change is {100 * d:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}].{clear}"]


def _thinking(g: Gain, before: Measured, after: Measured) -> list[str]:
    """How much of the gain is the discovery that thinking pays: forced-thinking accuracy before RL against free accuracy."""
    forced, later = before.total(before.forced, CORRECT), after.total(after.forced, CORRECT)
    if forced is None:
        return ["How much of that is learning to think is unknown: accuracy with forced thinking was not measured before RL."]
    lift, think = g.after.value - g.before.value, forced.value - g.before.value
    said = f"Made to think, the model already scored {_short(forced)} before RL" + (
        f" and scores {_short(later)} after it" if later is not None else ""
    )
    if lift <= 0 or think <= 0:
        return [said + "."]
    if think >= lift:
        return [f"{said}: learning to think before answering explains the whole gain."]
    rest = gain_between(before, before.forced, after, after.free)
    limits = f" [{100 * rest[1]:+.1f}, {100 * rest[2]:+.1f}]" if rest is not None else ""
    left = f"{100 * (lift - think):.1f} points{limits} are more than that" + (
        ", which may be noise" if rest is not None and rest[1] <= 0 else ""
    )
    return [f"{said}: learning to think before answering explains {100 * think:.1f} of the {100 * lift:.1f} points; {left}."]


def _control(record: RunRecord, before: Measured) -> list[str]:
    tables = {m.model: m for m in measurements(record, "evaluate") if m.free}
    out = []
    for stage in controls(record):
        end = tables[stage.name].total(tables[stage.name].free, CORRECT) if stage.name in tables else None
        start = before.total(before.free, CORRECT)
        if end is not None and start is not None:
            out.append(f"Control: with random rewards the same training ends at {_short(end)}, n = {end.n:,}, from {percent(start.value)}.")
    return out


def _last(record: RunRecord, after: Measured) -> list[str]:
    tables = [m for m in measurements(record, "evaluate") if m.free and m.model]
    controlled = {s.name for s in controls(record)}
    final = next((m for m in reversed(tables) if m.model not in controlled), None)
    if final is None or final.model == after.model:
        return []
    e = final.total(final.free, CORRECT)
    return [f"The last model of the run ({final.model}) scores {_short(e)}, n = {e.n:,}."] if e is not None else []


def _measured(record: RunRecord) -> list[str]:
    """Without a before and after of RL: the last measured model, against the first measured one where there are two."""
    tables = [m for m in measurements(record, "evaluate") if m.model] or measurements(record, "evaluate")
    if not tables:
        return []
    last = tables[-1]
    choices = [(last.free, CORRECT), *((s, CORRECT) for s in last.suites), *((s, NATS) for s in last.suites)]
    suite, metric, e = next(((s, m, e) for s, m in choices if s and (e := last.total(s, m)) is not None), ("", "", None))
    if e is None:
        return []
    name = f"The last measured model ({last.model})" if last.model else "The model"
    said = [f"{name} scores {words(e)} on {suite}." if metric == CORRECT else f"{name} needs {words(e)} for held-out text."]
    first = next((m for m in tables if m.model != last.model and m.total(suite, metric) is not None), None)
    d = gain_between(first, suite, last, suite) if first is not None and metric == CORRECT else None
    if first is not None and d is not None:
        noise = "" if d[1] > 0 or d[2] < 0 else "; the interval includes zero: this may be noise"
        said.append(
            f"That is {100 * d[0]:+.1f} points [{100 * d[1]:+.1f}, {100 * d[2]:+.1f}] against {first.model}, on the same items{noise}."
        )
    return [*said, "Nothing in this run was measured before and after RL." if of_kind(record, "rl") else ""]


def _trained(record: RunRecord) -> list[str]:
    trained = [s for s in record.stages if s.state == "sealed" and curve(s, "loss").x]
    if not trained:
        return []
    last = trained[-1]
    c = curve(last, "loss")
    return [
        f"Trained {_size(record)}; the last training stage ({last.name}) went from loss {number(c.y[0])} to {number(c.y[-1])} "
        f"in {number(c.x[-1])} steps.",
        "What the model can do was not measured in this run.",
    ]


def numbers(record: RunRecord) -> list[tuple[str, str, str]]:
    """Key numbers for the top: accuracy before and after, forced thinking before, time, gate."""
    out: list[tuple[str, str, str]] = []
    found = climb(record)
    if found is not None:
        _, before, after = found
        rows = [("before RL", before, before.free), ("after RL", after, after.free)]
        rows += [("before RL, made to think", before, before.forced), ("after RL, made to think", after, after.forced)]
        for label, table, suite in rows:
            e = table.total(suite, CORRECT)
            if e is not None:
                out.append(
                    (label, percent(e.value), f"{interval(e.interval.low, e.interval.high) if e.interval else ''} n = {e.n:,}".strip())
                )
    total = sum(spent(s) or 0.0 for s in record.stages)
    if total:
        restarts = sum(max(0, attempts(s) - 1) for s in record.stages)
        out.append(
            ("work", seconds(total), f"{len(record.stages)} stages" + (f", {restarts} restart{'s' * (restarts != 1)}" if restarts else ""))
        )
    from upslope.report.sections.safety import gate_word

    word, small = gate_word(record)
    out.append(("gate", word, small))
    return out


def failure(stage: StageRecord) -> str:
    """What a failed stage said, on one line."""
    return f"{stage.name} failed: {' · '.join(ending(stage).split(chr(10))) or 'no message'}"


def warned(record: RunRecord) -> list[str]:
    """Every alarm and every failed stage, as text; equal alarms of a stage are counted, not repeated."""
    out = []
    for stage in record.stages:
        if stage.state == "failed":
            out.append(failure(stage))
        broken = curve(stage, "loss").broken
        if broken:
            out.append(
                f"{stage.name}: loss was not finite at step {listing([number(s) for s, _ in broken[:6]])}{' …' if len(broken) > 6 else ''}"
            )
        counts: dict[str, list[float]] = {}
        for event in alarms(stage):
            fields = {k: v for k, v in event.items() if k not in ("t", "kind", "what", "step")}
            text = str(event.get("what", "alarm")) + (f" ({', '.join(f'{k} {_value(v)}' for k, v in fields.items())})" if fields else "")
            step = event.get("step")
            counts.setdefault(str(event.get("what", "alarm")) if step is not None else text, []).append(
                float(step) if isinstance(step, int | float) else -1.0
            )
        for text, steps in counts.items():
            known = [number(s) for s in steps if s >= 0]
            where = (
                f" at step {known[0]}"
                if len(known) == 1
                else f", {len(steps)} times, at steps {', '.join(known[:6])}{' …' if len(known) > 6 else ''}"
                if known
                else (f", {len(steps)} times" if len(steps) > 1 else "")
            )
            out.append(f"{stage.name}: {text}{where}")
    return out


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_value(v)}" for k, v in value.items())
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
