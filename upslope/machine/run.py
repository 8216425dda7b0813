"""Running a recipe: what is there is reused, what is partial is continued, what is missing is built."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from upslope.config import UsageError, dump
from upslope.machine import events as ev
from upslope.machine.engines import engine
from upslope.machine.files import digest_path, read_json, write_json
from upslope.machine.graph import Graph, Node, resolve
from upslope.machine.launcher import Inline, Job, Launcher
from upslope.machine.privacy import redact
from upslope.machine.record import RunRecord
from upslope.machine.stage import Cost, Recipe
from upslope.machine.stopping import Presence
from upslope.machine.store import Manifest, Store
from upslope.machine.torchrun import known_launcher, launched_by
from upslope.machine.worker import FAILED, OK, PAUSED, USAGE, Executing, write_job

GRACE = 20.0


@dataclass(frozen=True)
class Step:
    """One line of a plan. state: reuse, resume or build."""

    node: Node
    state: str
    cost: Cost
    manifest: Manifest | None


@dataclass
class Watch:
    """What a face may listen to; every method may be overridden, none can change a result."""

    def begin(self, name: str, graph: Graph, todo: int) -> None:
        """The run starts; `todo` stages are not there yet."""

    def started(self, node: Node, resumed: bool) -> None:
        """A stage starts or continues."""

    def row(self, node: Node, row: Mapping[str, Any]) -> None:
        """An event of a running stage."""

    def ended(self, node: Node, manifest: Manifest | None, code: int, error: str, seconds: float) -> None:
        """A stage has ended, well or not."""


class Stopper(Protocol):
    """Tells whether the run should stop now: 0 no, 1 save and pause, 2 at once."""

    def __call__(self) -> int: ...


@dataclass
class Outcome:
    """How a run ended. code: the process exit code; errors: by stage name."""

    name: str
    code: int
    reused: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


def source_digests(store: Store) -> Callable[[Path], str]:
    """Content digests of outside files, remembered by (size, modification time, inode) so that a second plan is quick."""
    file = store.root / "jobs" / "sources.json"
    known: dict[str, str] = read_json(file) if file.exists() else {}

    def digest(path: Path) -> str:
        if path.is_dir():
            return digest_path(path)
        stat = path.stat()
        key = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
        if key not in known:
            known[key] = digest_path(path)
            write_json(file, known)
        return known[key]

    return digest


def plan(graph: Graph, store: Store) -> list[Step]:
    """What would happen, in order, and what it would cost."""
    steps = []
    for node in graph.nodes.values():
        manifest = store.find(node.kind, node.fp)
        state = {"sealed": "reuse", "absent": "build"}.get(store.state(node.kind, node.fp), "resume")
        upstream = {f: graph.nodes[n[0]].stage if len(n) == 1 else tuple(graph.nodes[m].stage for m in n) for f, n in node.inputs.items()}
        steps.append(Step(node, state, node.stage.cost(upstream), manifest))
    return steps


def run(
    recipe: Recipe,
    store: Store,
    *,
    until: tuple[str, ...] = (),
    inline: bool = False,
    jobs: int = 1,
    workers: int | None = None,
    where: str = "local",
    watch: Watch | None = None,
    stop: Stopper = lambda: 0,
    command: str = "",
    overrides: Mapping[str, str] | None = None,
    budget: float | None = None,
    launch: str = "local",
) -> Outcome:
    """Runs or resumes a recipe.

    until: stage names or globs to stop after. inline: in this process. jobs: stages at a time. workers: processes for map stages, or
    tasks of an array. where: their engine (`engines.engine`). budget: a hard cap in seconds, after which the run saves and pauses
    (code 75). launch: what starts the ranks of a stage that has several, local or torchrun (`torchrun.launched_by`). From another process,
    `stopping.stop` ends it as `stop` does.
    """
    watch = watch or Watch()
    engine(where, 1)  # an unknown one is told before anything is written
    known_launcher(launch)
    whole = resolve(recipe, source_digests(store))
    graph = whole.upto([n for pattern in until for n in whole.match(pattern)]) if until else whole
    name = store.run_name(recipe.name, {n.name: n.fp for n in whole.nodes.values()})
    _describe(store, name, whole, command, overrides or {})
    log = ev.Events(store.root / "runs" / name / "events" / f"{ev.process_token()}.jsonl")
    outcome = Outcome(name, OK)
    waiting = {}
    for node in graph.nodes.values():
        if store.find(node.kind, node.fp) is not None:
            outcome.reused.append(node.name)
        else:
            waiting[node.name] = node
    log.emit("start", reused=outcome.reused, todo=list(waiting), workers=workers)
    watch.begin(name, graph, len(waiting))
    if not waiting:
        log.emit("end", code=OK)
        return outcome
    launcher: Launcher = Inline(store.root) if inline else launched_by(launch, store.root)
    here = Presence(store, name, Executing.stop if inline else None)
    workers = workers or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else workers or os.cpu_count() or 1
    running: dict[str, _Running] = {}
    broken: set[str] = set()
    began, asked, asked_at = time.monotonic(), 0, 0.0
    try:
        while waiting or running:
            over = budget is not None and time.monotonic() - began >= budget
            wanted = max(stop(), here.asked, 1 if over else 0)
            if wanted > asked or (asked == 1 and time.monotonic() - asked_at > GRACE and running):
                asked, asked_at = max(wanted, asked + (wanted <= asked)), time.monotonic()
                for item in running.values():
                    item.job.stop() if asked == 1 else item.job.kill()
            while not asked and len(running) < jobs:
                ready = next((n for n in waiting.values() if not any(r in waiting or r in running or r in broken for r in n.reads)), None)
                if ready is None:
                    break
                node = ready
                del waiting[node.name]
                resumed = store.state(node.kind, node.fp) != "absent"
                write_job(store, node, whole.nodes, workers, where)
                watch.started(node, resumed)
                log.emit("stage", name=node.name, fp=node.fp, what="resume" if resumed else "build")
                item = _Running(node, store.folder(node.kind, node.fp) / "events")
                item.job = launcher.start(node.fp)
                running[node.name] = item
            for item in list(running.values()):
                code = item.job.poll()
                for row in item.rows():
                    watch.row(item.node, row)
                if code is None:
                    continue
                del running[item.node.name]
                manifest = store.find(item.node.kind, item.node.fp) if code == OK else None
                error = item.error if code != OK else ""
                if code < 0:
                    code, error = (
                        (PAUSED, "stopped at once; the same command continues")
                        if asked
                        else (FAILED, f"its process was killed by signal {-code}; run again to continue")
                    )
                log.emit("stage", name=item.node.name, fp=item.node.fp, what="end", code=code, error=error)
                watch.ended(item.node, manifest, code, error, item.seconds())
                if code == OK:
                    outcome.built.append(item.node.name)
                    continue
                outcome.errors[item.node.name] = error
                outcome.code = outcome.code if outcome.code not in (OK, PAUSED) else code
                lost = whole.below(item.node.name)
                broken |= {item.node.name, *lost}
                for gone in lost & waiting.keys():
                    del waiting[gone]
            if asked and not running:
                outcome.code = outcome.code if outcome.code not in (OK, PAUSED) else PAUSED
                break
            if running:
                time.sleep(0.02)
    finally:
        for item in running.values():
            item.job.stop()
        launcher.close()
        here.close()
        log.emit("end", code=outcome.code)
    return outcome


class _Running:
    """A stage under way: its job, and a cursor into the event files that its process writes."""

    job: Job

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self.folder = node, folder
        self.began, self.error = time.monotonic(), ""
        self._at = {p.name: p.stat().st_size for p in folder.glob("*.jsonl")}

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def rows(self) -> list[dict[str, Any]]:
        """Events since the last call; torn lines wait for their end."""
        rows = []
        for path in sorted(self.folder.glob("*.jsonl")):
            with open(path, "rb") as f:
                f.seek(self._at.get(path.name, 0))
                block = f.read()
            whole, _, _ = block.rpartition(b"\n")
            if whole:
                self._at[path.name] = self._at.get(path.name, 0) + len(whole) + 1
                rows += ev.parse(whole.decode("utf-8", "replace"))
        for row in rows:
            if row["kind"] == "end":
                self.error = row.get("error", "")
        return rows


def _describe(store: Store, name: str, graph: Graph, command: str, overrides: Mapping[str, str]) -> None:
    known = store.run_json(name) if (store.root / "runs" / name / "run.json").is_file() else {}
    stages = [{"name": n.name, "kind": n.kind, "fp": n.fp, "reads": list(n.reads)} for n in graph.nodes.values()]
    created = known.get("created") or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    body = {"recipe": dump(graph.recipe), "stages": stages, "command": command, "overrides": dict(overrides), "created": created}
    if redact(body) != known:
        store.write_run(name, body)


def rebuild(store: Store, graph: Graph, patterns: tuple[str, ...]) -> list[str]:
    """Sets the artifacts of these stages aside, so that the next run makes them anew; returns their names."""
    moved = []
    for name in dict.fromkeys(n for p in patterns for n in graph.match(p)):
        folder = store.folder(graph.nodes[name].kind, graph.nodes[name].fp)
        if folder.exists():
            store.set_aside(folder)
            moved.append(name)
    return moved


def record(store: Store, name: str | None = None) -> RunRecord:
    """The record of a run, the newest by default; UsageError if there is none."""
    names = store.runs()
    if name is None and not names:
        raise UsageError("there are no runs yet\nway out: `upslope run`")
    return store.record(name or names[-1])


__all__ = ["FAILED", "OK", "PAUSED", "USAGE", "Outcome", "Step", "Watch", "plan", "rebuild", "record", "run", "source_digests"]
