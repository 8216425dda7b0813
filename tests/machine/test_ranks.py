"""Stages on several ranks: sums, stops at one step, failures that name the rank, ranks that do not come or freeze."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.machine.summing import Sum
from upslope.config import FrozenDict, UsageError
from upslope.machine import overseer
from upslope.machine.events import read
from upslope.machine.facts import bits
from upslope.machine.files import write_text
from upslope.machine.graph import resolve
from upslope.machine.launcher import Job, Local
from upslope.machine.overseer import Overseer, write_end
from upslope.machine.seats import RankFailed, Seat, Table, cores
from upslope.machine.stage import Need, Recipe
from upslope.machine.store import Manifest, Store
from upslope.machine.torchrun import known_launcher, torchrun
from upslope.machine.worker import work, write_job

pytestmark = [pytest.mark.xdist_group("ranks"), pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")]


class Place(NamedTuple):
    """A store, its warm process, and what happened there. Stages differ by their seed: all else is how they are executed."""

    store: Store
    local: Local

    def ready(self, seed: int, **fields: Any) -> str:
        graph = resolve(Recipe(name="one", seed=seed, stages=FrozenDict({"a": Sum(**fields)})))
        write_job(self.store, graph.nodes["a"], graph.nodes, 1)
        return graph.nodes["a"].fp

    def start(self, seed: int, **fields: Any) -> tuple[str, Job]:
        fp = self.ready(seed, **fields)
        return fp, self.local.start(fp)

    def rows(self, fp: str) -> list[dict[str, Any]]:
        return read(self.store.folder("Sum", fp) / "events")

    def error(self, fp: str) -> str:
        return str([r for r in self.rows(fp) if r["kind"] == "end"][-1]["error"])

    def sealed(self, fp: str) -> Manifest:
        manifest = self.store.find("Sum", fp)
        assert manifest is not None, self.error(fp)
        return manifest

    def reached(self, fp: str, step: int) -> None:
        deadline = time.time() + 60
        while not any(r["kind"] == "progress" and r["done"] >= step for r in self.rows(fp)):
            assert time.time() < deadline
            time.sleep(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("ranks")
    local = Local(folder)
    yield Place(Store(folder), local)
    local.close()


def finish(job: Job, seconds: float = 60.0) -> int:
    deadline = time.time() + seconds
    while (code := job.poll()) is None:
        assert time.time() < deadline, "the job does not end"
        time.sleep(0.01)
    return code


def test_a_stage_runs_on_as_many_ranks_as_it_needs(place: Place) -> None:
    fp, job = place.start(0, steps=3, ranks=3)
    assert finish(job) == 0
    made = place.sealed(fp)
    assert sorted(made.files) == ["rank-0.txt", "rank-1.txt", "rank-2.txt", "sum.json"], "every rank's files are sealed"
    assert made.facts["total"] == sum((s + 1) * (1 + 2 + 3) for s in range(3))
    assert made.facts["threads"] == max(1, cores() // 3) or os.environ.get("OMP_NUM_THREADS") == "1"
    assert (made.bits["world"], made.bits["device"], made.bits["threads"]) == (3, "cpu", made.facts["threads"])
    assert bits()["world"] == 1
    rows = place.rows(fp)
    assert [r["done"] for r in rows if r["kind"] == "progress"][-1] == 3
    assert sum(r["kind"] in ("start", "end") for r in rows) == 2
    assert sum(r.get("text") == "from step 0" for r in rows) == 1, "the run's events are those of rank 0"
    others = read(place.store.folder("Sum", fp) / "events" / "ranks")
    assert sum(r.get("text") == "from step 0" for r in others) == 2, "the other ranks keep their own"


@pytest.mark.parametrize(
    ("harm", "words"), [("raise", "ValueError: bad batch"), ("kill", "killed by signal 9; its last line: about to suffer")]
)
def test_a_rank_that_fails_or_dies_brings_the_job_down_and_is_named(place: Place, harm: str, words: str) -> None:
    fp, job = place.start({"raise": 1, "kill": 2}[harm], steps=4, ranks=3, harm=harm, victim=2)
    assert finish(job, 30.0) == 1
    assert place.error(fp).startswith("rank 2 of 3 failed: ")
    assert words in place.error(fp)
    assert place.store.state("Sum", fp) == "partial", "the lease is free"
    again, job = place.start({"raise": 1, "kill": 2}[harm], steps=4, ranks=2)
    assert (finish(job), again) == (0, fp), "the same artifact on other ranks"


def test_a_rank_that_pauses_alone_is_told_how_to_stop(place: Place) -> None:
    fp, job = place.start(3, steps=4, harm="pause")
    assert finish(job) == 1
    assert place.error(fp).startswith("rank 1 of 2 paused where rank 0 did not")


def test_a_stop_reaches_all_ranks_at_one_step_and_the_same_job_goes_on(place: Place) -> None:
    fp, job = place.start(4, steps=400, ranks=2, pace=0.01)
    place.reached(fp, 20)
    job.stop()
    assert finish(job) == 75
    ends = [r for r in read(place.store.folder("Sum", fp) / "events" / "ranks") if r["kind"] == "end"]
    assert [r["code"] for r in ends] == [75], "rank 1 was never signalled, and paused too"
    stopped, total = map(int, (place.store.folder("Sum", fp) / "work" / "state.txt").read_text().split())
    assert 20 <= stopped < 400 and total == sum((s + 1) * 3 for s in range(stopped))
    _, job = place.start(4, steps=400, ranks=2)
    assert finish(job) == 0
    assert place.sealed(fp).facts["total"] == sum((s + 1) * 3 for s in range(400))
    assert any(r.get("text") == f"from step {stopped}" for r in place.rows(fp))


@pytest.mark.parametrize(
    ("harm", "victim", "words"), [("freeze", 2, "its process does nothing since"), ("loop", 0, "it was last seen in 'work'")]
)
def test_a_rank_that_hangs_is_named_with_the_stacks(place: Place, harm: str, victim: int, words: str) -> None:
    fp, job = place.start(5 + victim, steps=4, ranks=3, harm=harm, victim=victim, wait=2.5)
    assert finish(job, 40.0) == 1
    error = place.error(fp)
    others = ", ".join(str(r) for r in range(3) if r != victim)
    assert error.startswith(f"ranks {others} wait in 'all_reduce' of step 2 for rank {victim} since ")
    assert words in error
    assert [r["what"] for r in place.rows(fp) if r["kind"] == "alarm"] == ["ranks hang"]
    stacks = next((place.store.folder("Sum", fp) / "events" / "ranks").glob("stacks-*.txt")).read_text()
    assert "in all_reduce" in stacks and "summing.py" in stacks and str(Path.home()) not in stacks
    assert place.store.state("Sum", fp) == "partial"


def test_a_frozen_rank_0_is_named_by_another(place: Place) -> None:
    fp, job = place.start(8, steps=4, ranks=2, harm="freeze", victim=0, wait=2.5)
    assert finish(job, 40.0) == 1
    assert place.error(fp).startswith("rank 1 waits in 'all_reduce' of step 2 for rank 0 since ")


@pytest.fixture(scope="module")
def warm() -> BaseContext:
    """Forks processes that have torch behind them, and nothing of this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "upslope.machine.worker", "tests.machine.summing"])
    return context


def sit(root: Path, fp: str, rank: int, world: int, port: int) -> None:
    """One rank as srun would start it."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.exit(work(root, fp, seat=Seat(rank, world, rank, world)))


def by_hand(warm: BaseContext, place: Place, fp: str, ranks: range, world: int) -> list[BaseProcess]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    started: list[BaseProcess] = [warm.Process(target=sit, args=(place.store.root, fp, r, world, port)) for r in ranks]  # type: ignore[attr-defined]
    for process in started:
        process.start()
    return started


def codes(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(60)
    return [p.exitcode for p in processes]


def test_a_rank_that_never_comes_is_named_and_another_number_of_ranks_is_refused(place: Place, warm: BaseContext) -> None:
    fp, other = place.ready(9, ranks=3, start=2.0), place.ready(10, ranks=2)
    late = by_hand(warm, place, fp, range(2), 3)
    assert codes(by_hand(warm, place, other, range(3), 3)) == [2, 2, 2]
    assert "asks for 2 rank(s), and 3 were started" in place.error(other)
    assert codes(late)[0] == 1
    assert place.error(fp).startswith("rank 2 of 3 did not arrive within 2 s: it was never seen")
    assert late[1].exitcode not in (0, None), "the one that came does not wait for ever"


def test_ranks_that_were_started_from_outside_find_each_other(place: Place, warm: BaseContext) -> None:
    fp = place.ready(11, ranks=2)
    assert codes(by_hand(warm, place, fp, range(2), 2)) == [0, 0]
    assert place.sealed(fp).facts["total"] == 18
    place.ready(11, ranks=2)
    assert codes(by_hand(warm, place, fp, range(2), 2)) == [0, 0], "there is nothing to do, and both know"


def asleep(log: Path) -> int:
    """A process that says something and then nothing."""
    to_log = [(os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT, 0o644)]
    return os.posix_spawn("/bin/sh", ["sh", "-c", "echo loading; exec sleep 60"], {**os.environ}, file_actions=to_log)


def until(test: Callable[[], bool]) -> None:
    deadline = time.time() + 20
    while not test():
        assert time.time() < deadline
        time.sleep(0.01)


def test_what_is_known_of_a_process_that_was_started_here_and_how_its_death_calls_the_main_thread_back(tmp_path: Path) -> None:
    over = Overseer(Seat(0, 2, 0, 2), tmp_path, lambda seat: asleep(tmp_path / f"log-{seat.rank:05d}.txt"), None)
    pid = over._children[1]
    until(lambda: over.absence(1) == "its process runs; its last line: loading")
    os.kill(pid, signal.SIGSTOP)
    until(lambda: over.absence(1) == "its process is stopped; its last line: loading")
    assert over.absence(2).startswith("it was never seen") and over.endings() == []
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(RankFailed, match="rank 1 of 2 failed: its process was killed by signal 9; its last line: loading") as failed:
        time.sleep(30)
    assert failed.value.code == 1
    over.leave()
    over.close()
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_blame_goes_to_the_death_without_words_then_to_the_error_then_to_lost_connections(tmp_path: Path) -> None:
    write_end(tmp_path, 1, 1, "RuntimeError: Connection closed by peer", True)
    write_end(tmp_path, 2, 2, "no such file", False)
    write_end(tmp_path, 4, 75, "", False)
    over = Overseer(Seat(0, 5, 0, 1), tmp_path, None, None)
    over.leave()
    assert [e.rank for e in over.endings()] == [2, 4, 1], "rank 3 has not ended"
    found = over.explanation()
    assert found is not None and (str(found), found.code) == ("rank 2 of 5 failed: no such file", 2)
    over.close()


def stuck(folder: Path) -> None:
    """Rank 0 in a call that no signal ends."""
    overseer.SETTLE, overseer.STUCK = 0.1, 0.2
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    Overseer(
        Seat(0, 2, 0, 2), folder, lambda _: os.posix_spawn("/bin/false", ["false"], {}), lambda e: write_text(folder / "words", str(e))
    )
    time.sleep(60)


def test_a_rank_0_that_does_not_come_back_is_ended_with_last_words(tmp_path: Path, warm: BaseContext) -> None:
    process: BaseProcess = warm.Process(target=stuck, args=(tmp_path,))  # type: ignore[attr-defined]
    process.start()
    assert codes([process]) == [1]
    assert (tmp_path / "words").read_text() == "rank 1 of 2 failed: its process ended with code 1"


def test_ranks_without_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match="start the ranks by torchrun"):
        Table(Seat(1, 2, 1, 2))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("MASTER_PORT", str(s.getsockname()[1]))
        with pytest.raises(RankFailed, match="rank 1 does not reach rank 0 at port"):
            Table(Seat(1, 2, 1, 2), seconds=0.5)


def test_seats_and_command_lines() -> None:
    assert Seat(2, 4, 0, 2).environment() == {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    with pytest.raises(UsageError, match="asks for 2 rank"):
        Seat(0, 4, 0, 4).check(Need(ranks=2), "train")
    worker, first = ["-m", "upslope.machine.worker"], [sys.executable, "-m", "torch.distributed.run"]
    assert torchrun(["torchrun"], 4) == [*first, "--standalone", "--nproc-per-node", "4", *worker]
    two = ["torchrun", "--nnodes", "2", "--rdzv-backend=c10d"]
    assert torchrun(two, 8) == [*first, *two[1:], "--nproc-per-node", "4", *worker]
    assert torchrun(["srun", *two, "--nproc_per_node=3"], 8) == ["srun", *two, "--nproc_per_node=3", *worker]
    for known in ("local", "torchrun", "torchrun --nnodes 2"):
        known_launcher(known)
    for unknown in ("slurm", "", "no-such-command torchrun"):
        with pytest.raises(UsageError, match="no such launcher"):
            known_launcher(unknown)
