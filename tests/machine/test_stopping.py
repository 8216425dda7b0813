"""Stopping a run from elsewhere: it saves and pauses, the same run goes on; errors; requests that come too late stop nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.machine.summing import Sum
from tests.machine.toy import Number
from upslope import api
from upslope.cli.app import app
from upslope.config import FrozenDict, Input, UsageError
from upslope.machine.events import read
from upslope.machine.run import OK, PAUSED, Outcome, run
from upslope.machine.stage import Recipe
from upslope.machine.stopping import Presence, living, stop
from upslope.machine.store import Store


def slow(wait: float = 0.02) -> Recipe:
    return Recipe(
        name="slow", stages=FrozenDict({"a": Number(steps=1), "b": Number(value=2, steps=300, wait=wait, parents=(Input(stage="a"),))})
    )


def under_way(store: Store, kind: str) -> None:
    """Waits until a stage of this kind has made some steps."""
    deadline = time.time() + 60
    while not any(row["kind"] == "progress" and row["done"] >= 3 for e in store.root.glob(f"{kind}/*/events") for row in read(e)):
        assert time.time() < deadline
        time.sleep(0.01)


def in_thread(recipe: Recipe, store: Store, **options: Any) -> tuple[threading.Thread, list[Outcome]]:
    ended: list[Outcome] = []
    thread = threading.Thread(target=lambda: ended.append(run(recipe, store, **options)))
    thread.start()
    return thread, ended


def test_a_run_elsewhere_on_two_ranks_saves_and_pauses_within_10_seconds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    thread, ended = in_thread(Recipe(name="slow", stages=FrozenDict({"s": Sum(steps=600, pace=0.02)})), store)
    under_way(store, "Sum")
    done = stop(store, "slow-1")
    thread.join(10)
    assert (done.run, done.processes, done.ended) == ("slow-1", 1, True) and done.seconds < 10
    assert ended[0].code == PAUSED
    assert living(store, "slow-1") == [] and not list((tmp_path / "runs" / "slow-1" / "running").iterdir())
    assert next(store.root.glob("Sum/*/work/state.txt")).read_text().split()[0] != "0", "the state that the next run goes on from"


def test_a_run_inline_hears_it_too_and_the_next_one_in_this_process_runs(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def ask() -> None:
        under_way(store, "Number")
        stop(store, "slow-1")

    asking = threading.Thread(target=ask)
    asking.start()
    assert run(slow(), store, inline=True).code == PAUSED
    asking.join()
    assert run(slow(0.0), store, inline=True).code == OK


def test_all_processes_of_a_run_are_asked(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(slow(0.0), store, inline=True)
    called: list[int] = []
    both = [Presence(store, "slow-1", lambda: called.append(1)) for _ in range(2)]
    late = stop(store, "slow-1", wait=0.6)
    assert (late.processes, late.ended) == (2, False) and late.seconds >= 0.6
    assert [p.asked for p in both] == [True, True] and called == [1, 1]
    for p in both:
        p.close()


def test_errors_say_what_is_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(UsageError, match="no run named 'slow-1'"):
        stop(store, "slow-1")
    assert run(slow(), store, inline=True, stop=lambda: 1).code == PAUSED
    with pytest.raises(UsageError, match="slow-1 is not running: 0 of 2 stages are done\nway out: the command that started it"):
        stop(store, "slow-1")
    run(slow(0.0), store, inline=True)
    with pytest.raises(UsageError, match="slow-1 is not running: 2 of 2 stages are done"):
        api.stop(api.open("slow-1", tmp_path))
    (tmp_path / "Number").rename(tmp_path / "gone")
    stage = store.run_json("slow-1")["stages"][0]
    with store.lease(stage["kind"], stage["fp"]), pytest.raises(UsageError, match="the worker started by hand"):
        stop(store, "slow-1")


def test_a_dead_process_is_not_running_and_a_request_to_it_stops_no_other(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(slow(0.0), store, inline=True)
    code = f"import os; from upslope.machine.stopping import *; Presence(Store({str(tmp_path)!r}), 'slow-1'); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    folder = tmp_path / "runs" / "slow-1" / "running"
    (dead,) = folder.iterdir()
    dead.with_suffix(".stop").touch()
    here = Presence(store, "slow-1")
    assert len(living(store, "slow-1")) == 1
    time.sleep(0.6)
    assert not here.asked
    here.close()
    with pytest.raises(UsageError, match="not running"):
        stop(store, "slow-1")
    assert not list(folder.iterdir())


def test_the_verb(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run(slow(0.0), store, inline=True)
    shell, argv = CliRunner(), ["stop", "slow-1", "--store", str(tmp_path)]
    deaf = Presence(store, "slow-1")
    done = shell.invoke(app, [*argv, "--wait", "0.5s", "--json"])
    assert done.exit_code == 1 and '"ended": false' in done.output
    deaf.close()
    good: list[Presence] = []
    good.append(Presence(store, "slow-1", lambda: threading.Thread(target=good[0].close).start()))
    done = shell.invoke(app, argv)
    assert done.exit_code == 0 and "slow-1: stopped after" in done.output
    assert os.listdir(tmp_path / "runs" / "slow-1" / "running") == []
