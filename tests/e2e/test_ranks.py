"""A stage on several ranks by the command line: under torchrun, stopped from another shell, continued by the local launcher; kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.test_kill import children
from tests.machine.summing import Sum
from upslope.config import FrozenDict
from upslope.machine.events import read
from upslope.machine.run import record, run
from upslope.machine.stage import Recipe
from upslope.machine.store import Store

pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]
ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "upslope", *argv], cwd=folder, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def recipe(folder: Path, pace: float) -> None:
    (folder / "sum.toml").write_text(
        f'schema = 1\nname = "sum"\n[stages.s]\nkind = "tests.machine.summing:Sum"\nsteps = 300\nranks = 2\npace = {pace}\n'
    )


def under_way(folder: Path, attempt: int) -> None:
    """Waits until this attempt has made some steps."""
    deadline = time.time() + 120
    while True:
        rows = [row for events in folder.glob("store/Sum/*/events") for row in read(events)]
        starts = [row["t"] for row in rows if row["kind"] == "start"]
        if len(starts) == attempt and any(row["kind"] == "progress" and row["t"] > starts[-1] for row in rows):
            return
        assert time.time() < deadline
        time.sleep(0.05)


def gone(pids: list[int]) -> bool:
    """Whether processes are no more (or only wait for their parent to notice)."""
    until = time.time() + 20
    while time.time() < until:
        states = [Path(f"/proc/{p}/stat") for p in pids]
        if all(not s.exists() or s.read_text().rsplit(")", 1)[1].split()[0] == "Z" for s in states):
            return True
        time.sleep(0.1)
    return False


def test_torchrun_stop_kill_and_go_on(tmp_path: Path) -> None:
    recipe(tmp_path, pace=0.1)
    running = start(tmp_path, "run", "sum.toml", "--launcher", "torchrun")
    under_way(tmp_path, 1)
    asked = time.monotonic()
    done, _ = (other := start(tmp_path, "stop", "sum-1", "--json")).communicate(timeout=60)
    out, _ = running.communicate(timeout=60)
    assert (other.returncode, running.returncode) == (0, 75), done + out
    assert json.loads(done)["ended"] and time.monotonic() - asked < 30
    assert "the same command continues" in out

    running = start(tmp_path, "run", "sum.toml")  # the local launcher goes on where torchrun's ranks stopped
    under_way(tmp_path, 2)
    family = children(running.pid)
    assert len(family) == 3, "the warm process and two ranks"
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert gone(family)

    store = Store(tmp_path / "store")
    assert run(Recipe(name="sum", stages=FrozenDict({"s": Sum(steps=300)})), store).code == 0
    made = record(store).stages[0].manifest
    assert made is not None and made["facts"]["total"] == sum(3 * (s + 1) for s in range(300))
    assert (made["bits"]["world"], made["attempts"]) == (2, 3)
