"""Conformance: any launcher runs `worker STORE FP`, reports its code, stops it and outlives its death."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.machine.toy import Number
from upslope.machine.events import read
from upslope.machine.graph import resolve
from upslope.machine.launcher import Inline, Job, Launcher, Local
from upslope.machine.stage import Recipe
from upslope.machine.store import Store
from upslope.machine.worker import write_job

LAUNCHERS: dict[str, Callable[[Path], Launcher]] = {"inline": Inline, "local": Local}


@pytest.fixture(params=sorted(LAUNCHERS))
def launcher(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Launcher]:
    made = LAUNCHERS[request.param](tmp_path)
    yield made
    made.close()


def ready(store: Store, stage: Number) -> str:
    graph = resolve(Recipe(name="one", stages={"a": stage}))
    write_job(store, graph.nodes["a"], graph.nodes, 1)
    return graph.nodes["a"].fp


def finish(job: Job) -> int:
    deadline = time.time() + 60
    while (code := job.poll()) is None and time.time() < deadline:
        time.sleep(0.01)
    assert code is not None
    return code


def test_runs_to_sealed(launcher: Launcher, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fp = ready(store, Number())
    assert finish(launcher.start(fp)) == 0
    assert store.state("Number", fp) == "sealed"
    assert not (tmp_path / "jobs" / f"{fp}.json").exists()


def test_reports_failure(launcher: Launcher, tmp_path: Path) -> None:
    store = Store(tmp_path)
    fp = ready(store, Number(parents=()).replace(steps=10**9))
    (store.folder("Number", fp) / "work").mkdir(parents=True)
    (store.folder("Number", fp) / "work" / "state.json").write_text("not a number")
    assert finish(launcher.start(fp)) == 1
    rows = read(store.folder("Number", fp) / "events")
    assert "ValueError" in rows[-1]["error"]


def test_local_stops_and_kills(tmp_path: Path) -> None:
    store, launcher = Store(tmp_path), Local(tmp_path)
    try:
        fp = ready(store, Number(steps=10**6, wait=0.01))
        for end, expected in ((lambda j: j.stop(), 75), (lambda j: j.kill(), -signal.SIGKILL)):
            job = launcher.start(fp)
            state = store.folder("Number", fp) / "work" / "state.json"
            before = state.read_text() if state.exists() else ""
            deadline = time.time() + 30
            while (not state.exists() or state.read_text() == before) and time.time() < deadline:
                time.sleep(0.01)
            end(job)
            assert finish(job) == expected
            assert store.state("Number", fp) == "partial"
    finally:
        launcher.close()


def test_local_survives_the_death_of_its_warm_process(tmp_path: Path) -> None:
    store, launcher = Store(tmp_path), Local(tmp_path)
    try:
        fp = ready(store, Number(steps=10**6, wait=0.01))
        job = launcher.start(fp)
        time.sleep(0.1)
        os.kill(launcher._zygote.pid, signal.SIGKILL)
        assert finish(job) == 1
    finally:
        launcher.close()
