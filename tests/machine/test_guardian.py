"""Hangs are named by who waits for whom."""

from __future__ import annotations

import threading
from pathlib import Path

from upslope.machine.guardian import DONE, Beat, Guardian, Hang, Heartbeat, beats, diagnose


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
    assert "ranks 0, 1, 3 wait in 'all_gather weights' of step 7 for rank 2 since 0 s" in text
    assert "rank 2: last step forward 0 s ago; it was last seen in 'all_reduce gradients' of step 6" in text


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
    assert "ranks 1, 2 never started; rank 0 waiting" in str(diagnose(signs, [6.0, 6.0, 6.0], 5.0))
    (tmp_path / "rank-00002.json").write_text("{torn")
    assert beats(tmp_path, 3, "new")[2] is None


def test_waits_count_from_when_somebody_waits() -> None:
    at = [Beat(0, 5, 3, "all_reduce"), Beat(1, 4, 2, "work")]
    assert diagnose(at, [1.0, 99.0], 5.0) is None, "rank 1 is long at it, but nobody has waited for it yet"
    assert "rank 0 waits in 'all_reduce' of step 3 for rank 1 since 99 s" in str(diagnose(at, [5.0, 99.0], 5.0))
    busy = [Beat(r, 4, 2, "work", pulse=3) for r in range(2)]
    assert diagnose(busy, [99.0, 99.0], 5.0, [0.1, 0.1]) is None, "both work, neither waits"


def test_a_process_without_a_pulse_is_named_even_where_all_stand_at_one_point() -> None:
    at = [Beat(r, 5, 3, "all_reduce", pulse=7) for r in range(3)]
    found = diagnose(at, [60.0, 60.0, 60.0], 600.0, [0.2, 46.0, 0.2])
    assert found is not None and found.frozen
    assert str(found) == (
        "ranks 0, 2 wait in 'all_reduce' of step 3 for rank 1 since 46 s; "
        "rank 1: its process does nothing since 46 s; it was last seen in 'all_reduce' of step 3"
    )
    assert diagnose(at, [60.0] * 3, 600.0, [0.2, 40.0, 0.2]) is None


def test_a_heartbeat_with_a_pulse_lives_until_it_stops(tmp_path: Path) -> None:
    ticks: list[int] = []
    heart = Heartbeat(tmp_path, 0, every=0.01, tick=lambda: ticks.append(1))
    heart.beat(3, "step")
    for _ in range(500):
        if len(ticks) >= 2:
            break
        threading.Event().wait(0.01)
    heart.stop(DONE)
    seen = beats(tmp_path, 1)[0]
    assert seen is not None and (seen.step, seen.at, seen.reached) == (3, DONE, 2)
    assert len(ticks) >= 2
