"""Hangs are named by who waits for whom; time is accounted by category."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from upslope.train.goodput import measured
from upslope.train.guardian import DONE, Beat, Guardian, Hang, Heartbeat, beats, diagnose


def test_the_rank_that_others_wait_for_is_named_with_the_collective(tmp_path: Path) -> None:
    ranks = [Heartbeat(tmp_path, r) for r in range(4)]
    for r, h in enumerate(ranks):
        h.beat(6, "all_reduce gradients")
        if r != 2:
            h.beat(7, "all_gather weights")
    told: list[Hang] = []
    called = threading.Event()

    def tell(hang: Hang) -> None:
        told.append(hang)
        called.set()

    with Guardian(tmp_path, 4, 0.1, tell, poll=0.02):
        assert called.wait(5)
    assert [b.rank for b, _ in told[0].behind] == [2] and [b.rank for b in told[0].waiting] == [0, 1, 3]
    text = str(told[0])
    assert "rank 2 has not reached 'all_gather weights' of step 7" in text
    assert "'all_reduce gradients' of step 6" in text and "rank 0, 1, 3 waiting" in text


def test_ranks_that_go_on_or_are_done_are_no_hang(tmp_path: Path) -> None:
    ranks = [Heartbeat(tmp_path, r) for r in range(2)]
    told: list[Hang] = []
    pause = threading.Event()
    with Guardian(tmp_path, 2, 0.4, told.append, poll=0.02):
        for k in range(30):
            for h in ranks:
                h.beat(k, "step")
            pause.wait(0.02)
        for h in ranks:
            h.beat(30, DONE)
        pause.wait(0.6)
    assert told == []


def test_diagnoses() -> None:
    at = [Beat(r, 5, 2, "all_reduce") for r in range(3)]
    assert diagnose(at, [9.0, 9.0, 1.0], 5.0) is None
    assert "all ranks are in 'all_reduce' of step 2 for 9 s" in str(diagnose(at, [9.0, 9.0, 9.0], 5.0))
    slow = [at[0], Beat(1, 4, 1, "load"), at[2]]
    assert diagnose(slow, [60.0, 1.0, 60.0], 5.0) is None
    found = diagnose(slow, [60.0, 6.0, 60.0], 5.0)
    assert found is not None and [(b.rank, s) for b, s in found.behind] == [(1, 6.0)]
    ended = [at[0]._replace(at=DONE, reached=9), at[1], at[2]._replace(at=DONE, reached=9)]
    left = diagnose(ended, [60.0, 60.0, 60.0], 5.0)
    assert left is not None and [b.rank for b in left.waiting] == [0, 2]
    assert diagnose([b._replace(at=DONE) for b in at], [60.0] * 3, 5.0) is None


def test_a_rank_that_never_started_is_named_and_signs_of_another_launch_do_not_count(tmp_path: Path) -> None:
    Heartbeat(tmp_path, 1, "old").beat(3, "step")
    Heartbeat(tmp_path, 0, "new").beat(0, "init")
    signs = beats(tmp_path, 3, "new")
    assert [b is None for b in signs] == [False, True, True]
    assert diagnose(signs, [4.0, 4.0, 4.0], 5.0) is None
    assert "rank 1, 2 never started; rank 0 waiting" in str(diagnose(signs, [6.0, 6.0, 6.0], 5.0))
    (tmp_path / "rank-00002.json").write_text("{torn")
    assert beats(tmp_path, 3, "new")[2] is None


def row(t: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "kind": kind, **fields}


def test_time_by_category_with_lost_steps_as_recompute() -> None:
    rows = [
        row(0, "start"),
        row(1, "state", state="load"),
        row(2, "state", state="compute"),
        row(6, "progress", done=40),
        row(6, "state", state="checkpoint"),
        row(7, "state", state="compute"),
        row(10, "progress", done=70),
        row(15, "start"),
        row(15, "state", state="load"),
        row(16, "state", state="compute"),
        row(18, "progress", done=60),
        row(19, "progress", done=70),
        row(24, "progress", done=120),
        row(24, "end"),
    ]
    found = measured(rows)
    assert found.seconds == {"work": 1, "load": 2, "compute": 4 + 3 + 5, "checkpoint": 1, "down": 5, "recompute": 3}
    assert found.total == 24 and found.goodput == pytest.approx(0.5) and sum(found.shares.values()) == pytest.approx(1)
    assert measured([]).goodput == 0.0
