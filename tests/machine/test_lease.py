"""Leases: never two winners; a dead owner's lease is taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from upslope.machine import lease as module
from upslope.machine.lease import Busy, Lease, Lost, holder


def _contend(path: str, log: str, rounds: int, seed: int) -> None:
    """Takes the lease many times; writes down every entry and exit, so that overlaps show."""
    with open(log, "a", buffering=1) as out:
        done = 0
        while done < rounds:
            try:
                held = Lease(Path(path), heartbeat=0)
            except Busy:
                continue
            out.write(f"{time.monotonic_ns()} in {seed}\n")
            held.check()
            out.write(f"{time.monotonic_ns()} out {seed}\n")
            held.release()
            done += 1


def _die_holding(path: str, ready: str) -> None:
    Lease(Path(path), heartbeat=0)
    Path(ready).write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)


def test_two_processes_contending_never_both_win(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    logs = [tmp_path / f"log{i}" for i in range(2)]
    processes = [context.Process(target=_contend, args=(str(tmp_path / "lease"), str(log), 500, i)) for i, log in enumerate(logs)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(120)
        assert p.exitcode == 0
    rows = sorted((int(t), what, who) for log in logs for t, what, who in (line.split() for line in log.read_text().splitlines()))
    assert len(rows) == 2 * 1000
    for enter, leave in zip(rows[::2], rows[1::2]):
        assert (enter[1], leave[1]) == ("in", "out"), "two holders at once"
        assert enter[2] == leave[2], "two holders at once"
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_killed_owner_is_succeeded_at_once_by_exactly_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for i in range(5):
        path, ready = tmp_path / f"lease{i}", tmp_path / f"ready{i}"
        victim = context.Process(target=_die_holding, args=(str(path), str(ready)))
        victim.start()
        victim.join(20)
        assert ready.exists()
        assert holder(path) is None, "its process is gone"
        logs = [tmp_path / f"log{i}-{k}" for k in range(2)]
        heirs = [context.Process(target=_contend, args=(str(path), str(log), 20, k)) for k, log in enumerate(logs)]
        for p in heirs:
            p.start()
        for p in heirs:
            p.join(60)
            assert p.exitcode == 0
        rows = sorted((int(t), w, who) for log in logs for t, w, who in (line.split() for line in log.read_text().splitlines()))
        assert all(a[1] == "in" and b[1] == "out" and a[2] == b[2] for a, b in zip(rows[::2], rows[1::2]))


def test_an_owner_on_another_machine_counts_by_its_heartbeat_alone(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.write_text(json.dumps({"token": "feed" * 8, "machine": "elsewhere", "pid": 1, "born": "0"}))
    with pytest.raises(Busy):
        Lease(path, stale=5)
    old = time.time() - 60
    os.utime(path, (old, old))
    with Lease(path, stale=5) as mine:
        mine.check()


def test_a_torn_lease_is_busy_until_it_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    path.write_text('{"tok')
    with pytest.raises(Busy):
        Lease(path, stale=5)
    os.utime(path, (1, 1))
    Lease(path, stale=5).release()
    assert not path.exists()


def test_an_owner_that_was_silent_too_long_learns_that_it_lost(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    slow = Lease(path, stale=0.05, heartbeat=0)
    body = json.loads(path.read_text())
    path.write_text(json.dumps({**body, "machine": "elsewhere"}))
    time.sleep(0.1)
    quick = Lease(path, stale=0.05, heartbeat=0)
    with pytest.raises(Lost):
        slow.check()
    slow.release()
    assert path.exists(), "a late release does not take the successor's lease"
    quick.release()


def test_heartbeat_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lease"
    with Lease(path, stale=0.4, heartbeat=0.05):
        body = json.loads(path.read_text())
        path.write_text(json.dumps({**body, "machine": "elsewhere"}))
        time.sleep(0.8)
        with pytest.raises(Busy):
            Lease(path, stale=0.4)


def test_works_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(module.os, "link", no_link)
    with Lease(tmp_path / "lease"), pytest.raises(Busy):
        Lease(tmp_path / "lease")
