"""kill -9 at random instants, then the same command: every artifact has the digests of the uninterrupted run."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Home, make_home
from upslope.machine.run import record
from upslope.machine.store import Store

pytestmark = pytest.mark.xdist_group("e2e")


def digests(home: Home) -> dict[str, Any]:
    """Stage → file → digest."""
    return {
        s.name: {f: e["digest"] for f, e in s.manifest["files"].items()} if s.manifest else None
        for s in record(Store(home.folder / "store")).stages
    }


def killed(home: Home, kills: int, longest: float, seed: int, recipe: str = "mine.toml") -> None:
    """Starts the run and kills its whole process family, again and again; then lets it end."""
    rng = random.Random(seed)
    for _ in range(kills):
        process = home.start("run", recipe)
        time.sleep(rng.uniform(1.0, longest))
        family = children(process.pid)
        for pid in [process.pid, *family]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
    home.upslope("run", recipe)


def children(pid: int) -> list[int]:
    """All descendants of a process, from /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found, todo = [], [pid]
    while todo:
        new = parents.get(todo.pop(), [])
        found += new
        todo += new
    return found


def test_three_kills(done: Home, crawl: Path, tmp_path: Path) -> None:
    home = make_home(tmp_path, crawl)
    killed(home, kills=3, longest=20.0, seed=1)
    assert digests(home) == digests(done)


@pytest.mark.slow
def test_twenty_kills_of_the_tiny_run(tmp_path: Path, crawl: Path) -> None:
    whole, home = make_home(tmp_path / "whole", crawl), make_home(tmp_path / "killed", crawl)
    whole.upslope("run", "tiny")
    killed(home, kills=20, longest=45.0, seed=2, recipe="tiny")
    assert digests(home) == digests(whole)


@pytest.mark.slow
def test_ctrl_c_in_every_stage(done: Home, crawl: Path, tmp_path: Path) -> None:
    """Each stage in turn is interrupted as soon as it starts; the same command goes on to the same bits."""
    home = make_home(tmp_path, crawl)
    store = Store(home.folder / "store")
    stopped = set()
    for stage in record(Store(done.folder / "store")).stages:
        process = home.start("run", "mine.toml")
        folder = store.folder(stage.kind, stage.fp) / "events"
        deadline = time.time() + 120
        while not list(folder.glob("*.jsonl")) and process.poll() is None and time.time() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
        assert process.returncode in (0, 75), out
        assert "Traceback" not in out
        stopped |= {stage.name} if process.returncode == 75 else set()
    home.upslope("run", "mine.toml")
    assert len(stopped) > 20, "most stages are long enough to be interrupted"
    assert digests(home) == digests(done)
