"""What the looking verbs print: why, compare, rollouts, funnel, doctor. Each gives text and the same as plain values."""

from __future__ import annotations

import contextlib
import csv as csv_module
import io
import json
import os
import platform
import shutil
import sys
from dataclasses import asdict
from typing import Any, Literal, cast

from upslope.cli.tables import size, table
from upslope.config import UsageError
from upslope.machine.record import RunRecord, StageRecord
from upslope.machine.store import Store

Answer = tuple[str, Any]


# ── why ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def why_anything(what: str, recipe: str, sets: list[str], store: Store) -> Answer:
    """A stage (by name, or RUN/STAGE), a fingerprint, a page URL or a document number: finds which it is."""
    if "://" in what or what.isdigit():
        return _why_page(what, store)
    run, _, stage = what.partition("/")
    if stage and run in store.runs():
        return _why_built(store.record(run), stage, store)
    from upslope.machine.compare import why_stage
    from upslope.machine.graph import resolve
    from upslope.machine.run import source_digests
    from upslope.recipes.load import load

    if not stage and len(what) >= 6 and all(c in "0123456789abcdef" for c in what) and (folder := store.locate(what)) is not None:
        manifest = store.manifest(folder)
        body = asdict(manifest) if manifest else {"state": "partial"}
        return f"{folder.parent.name}/{folder.name}: " + (manifest.headline if manifest else "unfinished"), body
    graph = resolve(load(recipe, sets).recipe, source_digests(store))
    name = graph.match(what)[0]
    why = why_stage(graph, name, store)
    body = {"stage": name, "state": why.state, "changes": [c.__dict__ for c in why.changes]}
    if why.state == "sealed":
        return f"{name}: reused; an artifact with exactly this identity is in the store", body
    if why.nearest is None:
        return f"{name}: {'continued' if why.state == 'partial' else 'built'}; there is no {why.node.kind} artifact to reuse", body
    lines = [f"{name}: {'continued' if why.state == 'partial' else 'built'}; the nearest artifact differs in {len(why.changes)} values:"]
    for change in why.changes[:12]:
        upstream = change.path.startswith("inputs.")
        shown = "something upstream changed" if upstream else f"{change.left!r} → {change.right!r}"
        lines.append(f"  {change.path.removeprefix('config.')}: {shown}")
    return "\n".join(lines), body


def _why_built(seen: RunRecord, name: str, store: Store) -> Answer:
    stage = seen.stage(name)
    if stage is None:
        raise UsageError(f"run {seen.name} has no stage {name!r}; stages: {', '.join(s.name for s in seen.stages)}")
    starts = [e for e in seen.events if e["kind"] == "stage" and e.get("name") == name]
    body = {"stage": name, "state": stage.state, "fp": stage.fp, "events": starts, "headline": (stage.manifest or {}).get("headline", "")}
    lines = [f"{seen.name}/{name}: {stage.state}" + (f", {body['headline']}" if body["headline"] else "")]
    for entry in starts:
        code = f" with code {entry['code']}" if "code" in entry else ""
        lines.append(f"  {entry['what']}{code}" + (f": {entry['error']}" if entry.get("error") else ""))
    if not starts:
        lines.append("  reused: it was in the store before this run")
    drift = _drift(stage)
    if drift:
        lines.append(f"  package code that it used has changed since: {', '.join(drift[:6])}; `--rebuild {name}` makes it anew")
    return "\n".join(lines), {**body, "drift": drift}


def _drift(stage: StageRecord) -> list[str]:
    """Files of the package whose syntax tree is not the one that the artifact was made with."""
    from upslope.machine.identity import advisory

    recorded: dict[str, str] = (stage.manifest or {}).get("code", {})
    packages = tuple(dict.fromkeys(".".join(f.removesuffix(".py").split("/")[:2]) for f in recorded))
    now = advisory(packages)
    return sorted(f for f in recorded.keys() | now.keys() if recorded.get(f) != now.get(f)) if recorded else []


def _why_page(what: str, store: Store) -> Answer:
    from upslope.cli.corpora import find_corpus

    fates = find_corpus(None, store)[1].why(what)
    return "\n".join(str(f) for f in fates), [asdict(f) for f in fates]


# ── compare ───────────────────────────────────────────────────────────────────────────────────────────────────────


def compare_anything(left: str, right: str, store: Store, csv: bool) -> Answer:
    """Runs if both are run names, else recipes."""
    runs = store.runs()
    if left in runs and right in runs:
        return _compare_runs(store.record(left), store.record(right), csv)
    from upslope.config import dump
    from upslope.machine.compare import diff
    from upslope.recipes.load import load, presets

    for name in (left, right):
        if not name.endswith(".toml") and name.replace("-", "_") not in presets() and name not in runs:
            raise UsageError(
                f"{name!r} is neither a run nor a recipe\nruns: {', '.join(runs[-6:]) or 'none'}\npresets: {', '.join(presets())}"
            )
    one, other = (store.record(n).recipe if n in runs else dump(load(n).recipe) for n in (left, right))
    changes = [c for c in diff(one, other) if c.path != "name"]
    rows = [(c.path.removeprefix("stages."), _short(c.left), _short(c.right)) for c in changes]
    body = [c.__dict__ for c in changes]
    return _rows(rows, ("knob", left, right), csv) or "no difference", body


def _compare_runs(left: RunRecord, right: RunRecord, csv: bool) -> Answer:
    from upslope.machine.compare import compare_runs

    seen = compare_runs(left, right)
    paired = _paired(left, right)
    knobs = [(c.path.removeprefix("stages."), _short(c.left), _short(c.right)) for c in seen.knobs]
    results = [
        (
            p["stage"],
            p["suite"],
            p["metric"],
            f"{p['left']:.4f}",
            f"{p['right']:.4f}",
            f"{p['difference']:+.4f} [{p['low']:+.4f}, {p['high']:+.4f}]",
            p["n"],
        )
        for p in paired
    ]
    total = [sum(s[i] for s in seen.seconds.values()) for i in (0, 1)]
    body = {
        "knobs": [c.__dict__ for c in seen.knobs], "first": seen.first, "cause": seen.cause, "paired": paired,
        "seconds": seen.seconds, "facts": [c.__dict__ for c in seen.facts],
    }  # fmt: skip
    head = ("stage", "suite", "metric", left.name, right.name, "difference [95 %], paired", "n")
    if csv:
        return _rows(results, head, True), body
    parts = [
        "knobs\n" + (table(knobs, ("", left.name, right.name)) if knobs else "  none differ"),
        f"first difference: {seen.first}: {seen.cause}" if seen.first else "first difference: none; " + seen.cause,
        "paired results\n" + table(results, head, right=(3, 4, 6)) if results else "paired results: no evaluation that both runs have",
        f"stage seconds: {total[0]:.0f} and {total[1]:.0f}",
    ]
    return "\n\n".join(parts), body


def _paired(left: RunRecord, right: RunRecord) -> list[dict[str, Any]]:
    """Paired differences (right − left) of every suite and metric that evaluations of the same name share, item by item."""
    from upslope.evals.artifacts import NATS, Table
    from upslope.stats.paired import paired_difference

    found = []
    for stage in left.stages:
        other = right.stage(stage.name)
        if stage.kind != "evaluate" or other is None or "sealed" not in (stage.state, other.state) or stage.state != other.state:
            continue
        values: list[dict[tuple[str, str], dict[str, float]]] = []
        for side in (stage, other):
            by: dict[tuple[str, str], dict[str, float]] = {}
            for row in Table.load(side.data).rows():
                scale = row.bytes * 0.6931471805599453 if row.metric == NATS else 1.0
                by.setdefault((row.suite, row.metric), {})[row.item] = row.value / scale if scale else row.value
            values.append(by)
        for key in values[0].keys() & values[1].keys():
            items = sorted(values[0][key].keys() & values[1][key].keys())
            if len(items) < 2:
                continue
            a, b = [values[0][key][i] for i in items], [values[1][key][i] for i in items]
            interval = paired_difference(b, a)
            found.append({
                "stage": stage.name, "suite": key[0], "metric": key[1], "n": len(items), "left": sum(a) / len(a), "right": sum(b) / len(b),
                "difference": (sum(b) - sum(a)) / len(a), "low": interval.low, "high": interval.high,
            })  # fmt: skip
    return sorted(found, key=lambda p: (p["stage"], p["suite"], p["metric"]))


def _short(value: Any) -> str:
    text = "—" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _rows(rows: list[Any], head: tuple[str, ...], csv: bool) -> str:
    if not csv:
        return table(rows, head) if rows else ""
    out = io.StringIO()
    csv_module.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue().rstrip()


# ── rollouts, funnel, doctor ──────────────────────────────────────────────────────────────────────────────────────


def rollouts(seen: RunRecord, which: str, count: int = 8) -> str:
    """Sampled answers of the run's last rl stage with their rewards."""
    from upslope.rl.artifacts import Traces

    if which not in ("best", "worst", "changed"):
        raise UsageError(f"--samples {which!r}: best, worst or changed")
    stages = [
        s for s in seen.stages if (s.state == "sealed" and (s.data / "traces").is_dir()) or (s.kind == "sample" and s.state == "sealed")
    ]
    if not stages:
        raise UsageError(f"run {seen.name} has no finished stage with rollouts")
    folder = stages[-1].data
    traces = Traces.load(folder / "traces" if (folder / "traces").is_dir() else folder)
    return f"{seen.name}/{stages[-1].name}\n\n" + "\n\n".join(
        str(s) for s in traces.samples(cast(Literal["best", "worst", "changed"], which), count)
    )


def found_here() -> str:
    """One line on what this machine is, without loading torch."""
    from upslope.sandbox.box import probe

    parts = ["gpu" if shutil.which("nvidia-smi") else "cpu"]
    parts.append(f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores")
    with contextlib.suppress(ValueError, OSError):
        parts.append(size(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    missing = [b.name for b in probe() if not b.ok]
    return f"found: {', '.join(parts)} · sandbox: {'without ' + ', '.join(missing) if missing else 'ok'}"


def diagnose(store: Store) -> list[tuple[str, str, str]]:
    """(what, found, remedy) for everything that decides what this machine can do."""
    rows = [
        ("python", platform.python_version(), "" if sys.version_info >= (3, 11) else "upslope needs 3.11"),
        ("cores", f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}", ""),
    ]
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        rows.append(("memory", size(pages), "" if pages > 4e9 else "the tiny recipe wants 4 GB"))
    except (ValueError, OSError):
        pass
    parent = next(p for p in [store.root.absolute(), *store.root.absolute().parents] if p.exists())
    free = shutil.disk_usage(parent).free
    rows.append(("disk", f"{size(free)} free", "" if free > 2e9 else "the tiny recipe writes up to 1 GB; `upslope gc` frees space"))
    import torch

    rows.append(("torch", torch.__version__, ""))
    if torch.cuda.is_available():
        name, bf16 = torch.cuda.get_device_name(), torch.cuda.is_bf16_supported()
        rows.append(("device", f"{name}, {'bf16' if bf16 else 'no bf16'}", "" if bf16 else "fp32 is used"))
    else:
        rows.append(("device", f"cpu, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads", ""))
    from upslope.sandbox.box import probe

    rows += [(f"sandbox: {b.name}", "ok" if b.ok else b.why, "" if b.ok else b.remedy) for b in probe()]
    for module, what in (("transformers", "export --verify"),):
        import importlib.util

        found = importlib.util.find_spec(module) is not None
        rows.append(
            (module, "installed" if found else "not installed", "" if found else f"only {what} needs it: pip install 'upslope[hf]'")
        )
    stuck = [f"{f.parent.name}/{f.name}" for f, m in store.artifacts() if m is None] if store.root.is_dir() else []
    rows.append(("unfinished", f"{len(stuck)} artifacts" if stuck else "none", "the same `upslope run` continues them" if stuck else ""))
    return rows
