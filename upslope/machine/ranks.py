"""A job on several ranks: its processes find each other, stop at one step, and fall together with the rank at fault named.

What the ranks tell each other lies in one folder that all of them see, new for each attempt: `rank-N.json` (heartbeats), `end-N.json` (how
rank N ended), `log-N.txt` (what a rank beside rank 0 printed), `hang.json` and `stacks-N.txt`. Only tensors go through torch.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from upslope.machine.events import Events, process_token
from upslope.machine.files import write_json, write_text
from upslope.machine.guardian import DONE, WORK, Guardian, Hang, Heartbeat, beats
from upslope.machine.overseer import Overseer
from upslope.machine.privacy import redact
from upslope.machine.seats import RankFailed, Seat, Table, cores
from upslope.machine.stage import FAILED, Need, Paused


class Group:
    """The ranks of a job as one of them sees them; a context manager around the stage's run.

    Entering waits for all ranks, makes torch's process groups (gloo; with nccl for tensors on GPUs where each rank has one) and takes
    its share of the cores; leaving waits until all ranks have ended, and undoes that. beside, last_words: of rank 0, see `Overseer`.
    """

    def __init__(
        self,
        seat: Seat,
        folder: Path,
        need: Need,
        events: Events,
        table: Table | None = None,
        beside: Callable[[Seat], int] | None = None,
        last_words: Callable[[RankFailed], None] | None = None,
    ) -> None:
        self.rank, self.world, self.step = seat.rank, seat.world, 0
        self._seat, self._folder, self._need, self._events, self._table = seat, folder, need, events, table
        self._oversee = functools.partial(Overseer, seat, folder, beside, last_words)
        self._over: Overseer | None = None
        self._undo = contextlib.ExitStack()

    # ── what a stage may ask ──────────────────────────────────────────────────────────────────────────────────────

    def agree(self, value: bool) -> bool:
        """True on every rank if it is true on any; all ranks must call it, equally often."""
        import torch
        import torch.distributed as dist

        flag = torch.tensor([float(value)])
        with self.waiting("agree"):
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._small)
        return bool(flag.item())

    @contextlib.contextmanager
    def waiting(self, at: str) -> Iterator[None]:
        """Around anything that waits for other ranks; at: its name, for the words on who waits for whom."""
        self._heart.beat(self.step, at)
        yield
        self._heart.beat(self.step, WORK)

    # ── entering and leaving ──────────────────────────────────────────────────────────────────────────────────────

    def __enter__(self) -> Self:
        self._heart = Heartbeat(self._folder, self.rank, every=min(1.0, self._need.wait / 4), tick=self._look)
        try:
            if self.rank == 0:
                self._gather()
            self._connect()
        except BaseException as e:
            self._leave(e)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            try:
                self.agree(False)  # the last files of all ranks are there
            except BaseException as e:
                self._leave(e)
                raise
        self._leave(error)

    def _gather(self) -> None:
        """Rank 0 waits until all ranks have shown up."""
        self._over = over = self._oversee()
        if self._table is not None:
            self._table.say(f"run {self._folder.name}")
        until = time.monotonic() + self._need.start
        while absent := [r for r, b in enumerate(beats(self._folder, self.world)) if b is None]:
            if time.monotonic() > until:
                late = f"of {self.world} did not arrive within {self._need.start:.0f} s"
                raise RankFailed("\n".join(f"rank {r} {late}: {over.absence(r)}" for r in absent[:4]))
            time.sleep(0.02)

    def _connect(self) -> None:
        import torch
        import torch.distributed as dist

        seat, seconds = self._seat, datetime.timedelta(seconds=self._need.start + 2 * self._need.wait)
        self._undo.callback(_restore, {k: os.environ.get(k) for k in seat.environment()})
        os.environ.update(seat.environment())
        cuda = torch.cuda.is_available() and torch.cuda.device_count() >= seat.here
        if cuda:
            torch.cuda.set_device(seat.local)
        store = self._table.store if self._table is not None else dist.FileStore(str(seat.meet), seat.world)
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        threads = torch.get_num_threads()
        self._undo.callback(torch.set_num_threads, threads)
        torch.set_num_threads(min(threads, max(1, cores() // seat.here)))
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=seat.rank, world_size=seat.world, timeout=seconds)
        self._undo.callback(dist.destroy_process_group)
        self._small = dist.new_group(backend="gloo", timeout=seconds)
        if self.rank < 2:  # two watch: rank 0, and one that sees when rank 0 itself is frozen
            guardian = Guardian(self._folder, self.world, self._need.wait, self._hang, poll=min(1.0, self._need.wait / 8))
            guardian.start()
            self._undo.callback(guardian.stop)
        self._heart.beat(0, WORK)

    def _leave(self, error: BaseException | None) -> None:
        """Ends the group; raises RankFailed from an error that another rank explains."""
        explained, over = None, self._over
        if over is not None:
            over.armed = False
            if isinstance(error, Paused):
                over.all_ended(self._need.wait)
            elif isinstance(error, RuntimeError):  # what a lost connection looks like
                explained = over.explanation()
            over.leave()
        self._heart.stop(DONE)
        if over is not None:
            if error is None:
                over.all_ended(self._need.start)
            over.end_children()
        with contextlib.suppress(Exception):  # a group that has lost a rank may not end well
            self._undo.close()
        if over is not None:
            over.close()
        if explained is not None:
            raise explained from error

    # ── hangs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _look(self) -> None:
        """Each rank, at every pulse: where a hang was found, it says where it stands."""
        mine = self._folder / f"stacks-{self.rank:05d}.txt"
        if (self._folder / "hang.json").exists() and not mine.exists():
            with open(mine, "w", encoding="utf-8") as f:
                faulthandler.dump_traceback(f)

    def _hang(self, hang: Hang) -> None:
        late = [b.rank for b, _ in hang.behind]
        if self.rank == 1 and not (hang.frozen and 0 in late):
            return  # rank 0 sees it too
        text = str(hang)
        write_json(self._folder / "hang.json", {"text": text})
        until = time.monotonic() + 2.0 + min(1.0, self._need.wait / 4)
        others = [r for r in range(self.world) if not (hang.frozen and r in late)]
        while any(not (self._folder / f"stacks-{r:05d}.txt").exists() for r in others) and time.monotonic() < until:
            time.sleep(0.05)
        stacks = {p.stem.rpartition("-")[2]: p.read_text(encoding="utf-8") for p in sorted(self._folder.glob("stacks-*.txt"))}
        artifact = self._folder.parents[2]
        place = artifact / "events" / "ranks" / f"stacks-{self._folder.name}.txt"
        write_text(place, redact("\n".join(f"rank {int(r)}\n{s}" for r, s in stacks.items())))
        where = place.relative_to(artifact.parents[1]).as_posix()
        found = RankFailed(f"{text.replace('; ', chr(10), 1)}\nstacks of the ranks: {where}\nway out: run again to continue")
        if self._over is not None:
            self._events.alarm("ranks hang", who=text, stacks=where)
            self._over.bring_down(found)
            return
        events = Events(artifact / "events" / f"{process_token()}.jsonl")  # rank 0 cannot say it
        events.alarm("ranks hang", who=text, stacks=where)
        events.emit("end", code=FAILED, error=str(found), details="")
        first = beats(self._folder, self.world)[0]
        if first is not None and self._seat.here == self.world:
            os.kill(first.pid, signal.SIGKILL)
        os._exit(FAILED)


def _restore(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
