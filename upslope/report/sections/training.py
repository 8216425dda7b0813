"""Curves of every stage that trains: loss with spikes and restarts, learning rate, gradient norm; RL's reward, entropy and lengths."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from upslope.machine.record import RunRecord, StageRecord
from upslope.report.page import Section, gallery, para
from upslope.report.svg import Chart, Mark, Series, table
from upslope.report.view import Curve, attempts, curve, facts, marks, names, restarts
from upslope.report.words import esc, finite, listing, number

WINDOW, SIGMAS, LEAST = 32, 6.0, 16

GROUPS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("reward", "reward", "mean over the answers of a step", ("reward", "task")),
    ("thinking", "how it answers", "share of answers that think; that ran out of tokens", ("thinking", "truncated")),
    ("length", "length of answers", "sampled tokens", ("length",)),
    ("entropy", "entropy", "nats per sampled token", ("entropy",)),
    ("scores", "parts of the reward", "means over the answers of a step", ("score_",)),
    (
        "idle",
        "what taught nothing",
        "shares: groups with equal scores, answers without a valid score, answers left out",
        ("constant", "invalid", "left_out_"),
    ),
    ("grad_norm", "gradient norm", "before clipping", ("grad_norm",)),
    ("speed", "speed", "tokens per second", ("rollout_tokens_per_second", "train_tokens_per_second")),
)
"""Charts of an RL stage: key, title, unit, and the metrics in it (a name that ends in "_" stands for all that begin so)."""
NOT_DRAWN = ("loss",)
"""An RL loss says nothing by itself: its expected value does not fall as the policy gets better."""


def spikes(y: Sequence[float], window: int = WINDOW, sigmas: float = SIGMAS, least: int = LEAST) -> list[int]:
    """Places of values more than `sigmas` standard deviations above the mean of the (at most) `window` values before them.

    Judged once `least` values precede; a constant past judges nothing. Source: OLMo-core's monitor (6 sd; there over 128
    steps, here over fewer because not every step is logged and the loss falls fast).
    """
    values = np.asarray(y, dtype=float)
    found = [i for i in range(least, min(window, len(values))) if _jumps(values[:i], values[i], sigmas)]
    if len(values) > window:
        past = np.lib.stride_tricks.sliding_window_view(values[:-1], window)  # (n - window, window)
        mean, spread = past.mean(axis=1), past.std(axis=1)
        found += (window + np.flatnonzero((spread > 0) & (values[window:] - mean > sigmas * spread))).tolist()
    return found


def _jumps(past: np.ndarray, value: float, sigmas: float) -> bool:
    spread = float(past.std())
    return spread > 0 and value - float(past.mean()) > sigmas * spread


def training(record: RunRecord) -> Section | None:
    """Loss and learning rate of all training stages but RL."""
    charts: list[Chart] = []
    said: list[list[str]] = []
    for stage in record.stages:
        loss = curve(stage, "loss")
        if stage.kind == "rl" or not (loss.x or loss.broken):
            continue
        high = [loss.x[i] for i in spikes(loss.y)]
        events = marks(stage, loss)
        taken = {m.x for m in events}
        events += [Mark(x, "spike") for x in high if x not in taken]
        charts.append(
            Chart(f"{stage.name}-loss", f"{stage.name}: loss", [loss.series("loss")], y_label=_loss_words(stage), marks=events, smooth=True)
        )
        lr, norm, right = curve(stage, "lr"), curve(stage, "grad_norm"), curve(stage, "accuracy")
        if len(lr.x) > 1:
            charts.append(Chart(f"{stage.name}-lr", f"{stage.name}: learning rate", [lr.series("learning rate", 4)], zero=True))
        if len(right.x) > 1:
            charts.append(
                Chart(
                    f"{stage.name}-accuracy",
                    f"{stage.name}: pairs ordered rightly",
                    [right.series("accuracy", 3)],
                    y_label="training pairs",
                    marks=marks(stage),
                    levels=[(0.5, "chance")],
                    percent=True,
                    smooth=True,
                )
            )
        elif len(norm.x) > 1:
            charts.append(
                Chart(
                    f"{stage.name}-norm",
                    f"{stage.name}: gradient norm",
                    [norm.series("gradient norm", 5)],
                    y_label="before clipping",
                    marks=marks(stage),
                    smooth=True,
                )
            )
        charts += _observed(stage)
        said.append(_line(stage, loss, high))
    if not charts:
        return None
    caption = f"Stages that train; a spike is a logged loss more than {SIGMAS:g} sd above the {WINDOW} logged before it"
    lines = table(
        caption,
        ["stage", "loss", "steps", "tokens", "spikes", "steps without update", "restarts", "read, in epochs"],
        said,
        numeric=[2, 3, 4, 5, 6],
    )
    return Section("training", "Training", lines + gallery(charts), tuple(charts))


def _loss_words(stage: StageRecord) -> str:
    return {"preference": "per pair", "reward_model": "per pair", "distill": "divergence from the teacher, nats per token"}.get(
        stage.kind, "nats per trained token"
    )


def _line(stage: StageRecord, loss: Curve, high: list[float]) -> list[str]:
    f = facts(stage)
    epochs = f.get("epochs")
    read = (
        ", ".join(f"{k} {number(v)}" for k, v in epochs.items())
        if isinstance(epochs, dict)
        else number(epochs)
        if finite(epochs) is not None
        else ""
    )
    broken = f"; not finite at step {listing([number(s) for s, _ in loss.broken[:5]])}" if loss.broken else ""
    spiky = f"{len(high)} of {len(loss.x)}" if len(loss.x) > LEAST else "too few"
    at = restarts(stage)
    again = f"{attempts(stage) - 1}" + (f" (step {listing([number(s) for s in at])})" if at else "") if attempts(stage) > 1 else "0"
    span = f"{number(loss.y[0])} → {number(loss.y[-1])}" if loss.y else "—"
    done = number(f["steps"]) if finite(f.get("steps")) is not None else number(loss.x[-1]) if loss.x else "—"
    return [
        esc(x)
        for x in (stage.name, span + broken, done, number(f["tokens"]) if finite(f.get("tokens")) else "—", spiky, _refused(f), again, read)
    ]


def _refused(f: dict[str, Any]) -> str:
    """Steps that were not finite, with those that a rule skipped and the times it went back, where there were any."""
    if finite(f.get("refused_steps")) is None:
        return "—"
    more = [f"{number(f[k])} {word}" for k, word in (("skipped_steps", "in all"), ("rewinds", "times back")) if finite(f.get(k))]
    return ", ".join([f"{number(f['refused_steps'])}", *more])


def _observed(stage: StageRecord) -> list[Chart]:
    """Rows of in-loop observers, a chart each, at most six lines in it."""
    seen: dict[str, dict[str, dict[float, float]]] = {}
    for row in stage.events:
        step = finite(row.get("step"))
        if row.get("kind") == "observation" and step is not None and isinstance(row.get("values"), dict):
            for name, value in row["values"].items():
                if (v := finite(value)) is not None:
                    seen.setdefault(str(row.get("observer", "observer")), {}).setdefault(str(name), {})[step] = v
    return [
        Chart(
            f"{stage.name}-{observer}",
            f"{stage.name}: {observer}",
            [
                Series(n, sorted(p), [p[s] for s in sorted(p)], tone=i % 6 + 1, dots=len(p) < 12)
                for i, (n, p) in enumerate(lines.items())
                if i < 6
            ],
        )
        for observer, lines in seen.items()
    ]


def climbing(record: RunRecord) -> Section | None:
    """Reward, thinking, length, entropy and truncation of each RL stage, and whatever else it logged."""
    charts: list[Chart] = []
    said: list[str] = []
    for stage in record.stages:
        if stage.kind != "rl" or not names(stage):
            continue
        left = [n for n in names(stage) if n not in NOT_DRAWN]
        for key, title, unit, wanted in GROUPS:
            inside = [n for w in wanted for n in left if n == w or (w.endswith("_") and n.startswith(w))]
            left = [n for n in left if n not in inside]
            charts += _drawn(stage, key, title, unit, inside)
        for name in left:
            charts += _drawn(stage, name, name.replace("_", " ").replace("/", ": "), "", [name])
        said.append(_summary(stage))
    return Section("rl", "Reinforcement learning", "".join(said) + gallery(charts), tuple(charts)) if charts else None


def _drawn(stage: StageRecord, key: str, title: str, unit: str, metrics: list[str]) -> list[Chart]:
    lines = [(n, c) for n in metrics if len((c := curve(stage, n)).x) > 1]
    if key == "reward" and len(lines) == 2 and lines[0][1].y == lines[1][1].y:
        lines = lines[:1]
    if key == "idle":
        lines = [(n, c) for n, c in lines if any(c.y)]
    if not lines:
        return []
    values = [v for _, c in lines for v in c.y]
    shares = key in ("thinking", "idle") and min(values) >= 0 and max(values) <= 1
    series = [
        c.series(n.removeprefix("score_").removesuffix("_tokens_per_second").replace("_", " "), i % 6 + 1)
        for i, (n, c) in enumerate(lines[:6])
    ]
    return [
        Chart(
            f"{stage.name}-{key}",
            f"{stage.name}: {title}",
            series,
            y_label=unit,
            marks=marks(stage, *(c for _, c in lines)),
            percent=shares,
            zero=key in ("thinking", "idle", "length", "entropy"),
            smooth=key in ("reward", "grad_norm", "speed", "scores"),
        )
    ]


def _summary(stage: StageRecord) -> str:
    parts = []
    for name, label in (("reward", "reward"), ("thinking", "share that thinks"), ("length", "tokens per answer"), ("entropy", "entropy")):
        y = curve(stage, name).y
        if y:
            few = max(1, min(5, len(y) // 2))
            parts.append(f"{label} {number(statistics.fmean(y[:few]))} → {number(statistics.fmean(y[-few:]))}")
    return para(f"<b>{esc(stage.name)}</b>: {esc('; '.join(parts))} (means of the first and last few steps).") if parts else ""
