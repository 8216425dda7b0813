"""Where the time went, what came from what, under which conditions, and how to do it again."""

from __future__ import annotations

import hashlib
from typing import Any

from upslope.machine.record import RunRecord, StageRecord
from upslope.report.page import Section, bullets, para
from upslope.report.svg import bar, stacked, table
from upslope.report.view import attempts, how, spent
from upslope.report.words import counted, esc, number, seconds, size
from upslope.train.goodput import measured

STATES = {
    "compute": ("computing", "t1"),
    "recompute": ("computing again what a stop had lost", "bad"),
    "replay": ("doing a step twice, as a check", "t5"),
    "rollout": ("sampling", "t2"),
    "grade": ("grading", "t5"),
    "work": ("other work", "t3"),
    "evaluate": ("evaluating", "t4"),
    "load": ("loading", "t6"),
    "wait": ("waiting", "warn"),
    "checkpoint": ("saving", "good"),
    "seal": ("sealing", "idle"),
    "down": ("down between attempts", "bad"),
}
SHORT = 12


def time(record: RunRecord) -> Section | None:
    """Goodput: seconds by what they were spent on, over all stages and attempts, and each stage's own seconds."""
    totals: dict[str, float] = {}
    for stage in record.stages:
        for state, value in measured(stage.events).seconds.items():
            totals[state] = totals.get(state, 0.0) + value
    whole = sum(totals.values())
    if whole <= 0:
        return None
    order = [k for k in STATES if totals.get(k, 0) > 0] + sorted(k for k in totals if k not in STATES and totals[k] > 0)
    parts = [(STATES.get(k, (k, ""))[0], totals[k], f"{seconds(totals[k])}, {100 * totals[k] / whole:.1f} %") for k in order]
    tones = [STATES.get(k, ("", "idle"))[1] for k in order]
    again = [s for s in record.stages if attempts(s) > 1]
    restarts = sum(attempts(s) - 1 for s in again)
    down = totals.get("down", 0.0)
    where = ", ".join(f"{s.name}: {attempts(s) - 1}" for s in again)
    said = (
        f"{counted(restarts, 'restart')} ({where}); {seconds(down)} passed between a stop and the next start."
        if restarts
        else "No restarts."
    )
    ran = [(s, t) for s in record.stages if (t := spent(s)) is not None]
    top = max((t for _, t in ran), default=0.0)
    long = [(s, t) for s, t in sorted(ran, key=lambda p: -p[1]) if t >= top / 100]
    rows = [[esc(s.name), esc(seconds(t)), bar(t, top), esc(_flops(s)), esc(attempts(s) or "")] for s, t in long]
    if len(long) < len(ran):
        rest = sum(t for _, t in ran) - sum(t for _, t in long)
        rows.append([f"{len(ran) - len(long)} others together", esc(seconds(rest)), bar(rest, top, "idle"), "", ""])
    body = para(f"{esc(seconds(whole))} in all stages.", esc(said)) + stacked("Seconds by what they were spent on", parts, tones)
    body += table("Seconds per stage, longest first", ["stage", "seconds", "", "FLOPs", "attempts"], rows, wide=[2], numeric=[1, 3, 4])
    return Section("time", "Time", body + _overheads(record))


OVERHEADS = ("data", "checkpoint", "verify", "replay", "observers")


def _overheads(record: RunRecord) -> str:
    """What the loops of the training stages did besides stepping, as shares of their last attempt; nothing of a record without it."""
    rows = []
    for stage in record.stages:
        found = [e for e in stage.events if e.get("kind") == "overhead" and isinstance(e.get("seconds"), dict)]
        if found and isinstance(total := found[-1].get("total"), int | float) and total > 0:
            spent_on = found[-1]["seconds"]
            shares = [f"{100 * spent_on.get(k, 0.0) / total:.2f} %" if k in spent_on else "" for k in OVERHEADS]
            rows.append([esc(stage.name), esc(seconds(total)), *shares])
    if not rows:
        return ""
    heads = ["stage", "seconds", "reading", "saving", "digests", "steps done twice", "observers"]
    return table("Training loops, last attempt: time beside the steps that count", heads, rows, numeric=[1, 2, 3, 4, 5, 6])


def _flops(stage: StageRecord) -> str:
    value = (stage.manifest or {}).get("flops") or 0
    return f"{value:.1e}".replace("e+", "e") if isinstance(value, int | float) and value > 0 else ""


def lineage(record: RunRecord) -> Section | None:
    """Fingerprint, inputs, digest over all files, size and licences of every sealed artifact."""
    sealed = [s for s in record.stages if s.manifest]
    if not sealed:
        return None
    rows = []
    for stage in sealed:
        m: dict[str, Any] = stage.manifest or {}
        files = m.get("files") or {}
        rows.append(
            [
                esc(stage.name),
                esc(str(m.get("artifact", "")).rpartition(":")[2]),
                f"<code>{esc(stage.fp[:SHORT])}</code>",
                esc(", ".join(record.edges.get(stage.name, ())) or "—"),
                f"<code>{esc(together(files))}</code>",
                f"{esc(len(files))} files, {esc(size(m.get('bytes')))}" if len(files) != 1 else f"1 file, {esc(size(m.get('bytes')))}",
                esc(", ".join(m.get("licences") or ()) or "—"),
            ]
        )
    stated = sorted({x for s in sealed for x in (s.manifest or {}).get("licences") or ()})
    note = para(
        f"Licences of the outside material in this run: {esc(', '.join(stated))}."
        if stated
        else "No stage states a licence for outside material.",
        "A fingerprint names a stage's settings and everything above it; a digest names the bytes that it made.",
    )
    return Section(
        "lineage",
        "Lineage",
        note
        + table(
            "Every sealed artifact of the run", ["stage", "artifact", "fingerprint", "reads", "digest of files", "size", "licences"], rows
        ),
    )


def together(files: dict[str, Any]) -> str:
    """One short digest over a manifest's files: blake2b of the sorted "name digest" lines, first 12 hex digits."""
    lines = "".join(f"{name}\0{(files[name] or {}).get('digest', '')}\n" for name in sorted(files))
    return hashlib.blake2b(lines.encode("utf-8", "replace"), digest_size=16).hexdigest()[:SHORT]


def conditions(record: RunRecord) -> Section | None:
    """Versions, device, threads and seeds; a value that differs between stages names the stages."""
    sealed = [s for s in record.stages if s.manifest]
    found: dict[str, dict[str, list[str]]] = {}
    for stage in sealed:
        for key, value in ((stage.manifest or {}).get("bits") or {}).items():
            found.setdefault(str(key), {}).setdefault(str(value), []).append(stage.name)
    rows = []
    for key in sorted(found):
        for value, where in found[key].items():
            rows.append([esc(key), esc(value), esc(_who(where, len(sealed)))])
    seeds: dict[str, list[str]] = {}
    for stage in sealed:
        seed = (stage.manifest or {}).get("seed")
        if seed is not None:
            seeds.setdefault(str(seed), []).append(stage.name)
    rows += [["seed", esc(seed), esc(_who(where, len(sealed)))] for seed, where in seeds.items()]
    drifted = [s.name for s in sealed if how(s, record) == "reused"]
    notes = [f"Reused from earlier runs, under the conditions recorded then: {esc(', '.join(drifted))}."] if drifted else []
    if record.overrides:
        rows += [[esc(f"--set {k}"), f"<code>{esc(v)}</code>", "changed from the recipe"] for k, v in sorted(record.overrides.items())]
    if not rows:
        return None
    return Section("conditions", "Conditions", bullets(notes) + table("Under what the artifacts were made", ["", "value", "stages"], rows))


def _who(where: list[str], all_of_them: int) -> str:
    if len(where) == all_of_them:
        return "all stages"
    return ", ".join(where) if len(where) <= 6 else f"{', '.join(where[:5])} and {len(where) - 5} more"


def reproduce(record: RunRecord) -> Section | None:
    """The command, and what makes two runs the same."""
    if not record.command:
        return None
    recipe = record.recipe
    said = [f"Recipe <code>{esc(recipe.get('name', record.name))}</code>, seed {esc(number(recipe.get('seed', 0)))}." if recipe else ""]
    same = (
        "The same command on the same versions and device type gives artifacts with the digests under Lineage; "
        "on others it gives the same fingerprints, "
        "and numbers that agree only up to rounding and what follows from it."
    )
    return Section("reproduce", "Do it again", f"<pre>{esc(record.command)}</pre>" + para(*said, same))
