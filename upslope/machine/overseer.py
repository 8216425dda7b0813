"""Rank 0's eye on the other ranks: who ended how, who is to blame, and bringing the job down together."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from upslope.machine.files import read_json, write_json
from upslope.machine.guardian import beats
from upslope.machine.privacy import redact
from upslope.machine.seats import RankFailed, Seat, process_state
from upslope.machine.stage import FAILED, PAUSED

SETTLE = 1.0  # seconds in which rank 0 may come by itself to the end that another rank has come to
STUCK = 5.0  # seconds after which a main thread that was called back is taken for stuck in a call


class Ending(NamedTuple):
    """How a rank ended, in the order of blame: 0 died without a word, 1 an error, 2 an error that a lost rank may have caused."""

    order: int
    time: float
    rank: int
    code: int
    words: str


def write_end(folder: Path, rank: int, code: int, line: str, echo: bool) -> None:
    """How a rank other than 0 ended; echo: by an error that looks like a connection to a lost rank."""
    write_json(folder / f"end-{rank:05d}.json", {"code": code, "line": redact(line), "echo": echo, "t": time.time()})


class Overseer:
    """Starts the other ranks (`beside`: seat → process id; None: somebody else does) and watches them until `close`.

    last_words: writes the end of the job where the main thread does not come back from a call; None: it is waited for, as in a notebook.
    """

    def __init__(
        self, seat: Seat, folder: Path, beside: Callable[[Seat], int] | None, last_words: Callable[[RankFailed], None] | None
    ) -> None:
        self._seat, self._folder, self._last_words = seat, folder, last_words
        self._left, self._reaping = threading.Event(), threading.Lock()
        self._codes: dict[int, int] = {}
        self._found: RankFailed | None = None
        self.armed = True  # whether the main thread may be called back
        self._before = signal.signal(signal.SIGUSR1, self._call_back)
        self._children = {r: beside(seat._replace(rank=r, local=r)) for r in range(1, seat.world)} if beside else {}
        self._thread = threading.Thread(target=self._watch, name="overseer", daemon=True)
        self._thread.start()

    def leave(self) -> None:
        """The main thread has come to its end by itself, or came back."""
        self.armed = False
        self._left.set()

    def close(self) -> None:
        """Ends processes that are still there."""
        self.end_children()
        self._thread.join()
        signal.signal(signal.SIGUSR1, self._before)

    # ── how the others are ────────────────────────────────────────────────────────────────────────────────────────

    def endings(self) -> list[Ending]:
        """How ranks have ended so far; first the one to blame."""
        found = []
        for rank in range(1, self._seat.world):
            gone = self._gone(rank)
            try:
                end = read_json(self._folder / f"end-{rank:05d}.json")
                found.append(Ending(2 if end["echo"] else 1, end["t"], rank, int(end["code"]), str(end["line"])))
            except (FileNotFoundError, ValueError):
                if gone:
                    found.append(Ending(0, 0.0, rank, FAILED, gone))
        return sorted(found)

    def all_ended(self, seconds: float) -> bool:
        """Waits until all others have ended."""
        until = time.monotonic() + seconds
        while len(self.endings()) < self._seat.world - 1:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        return True

    def absence(self, rank: int) -> str:
        """Why a rank may not have come."""
        if rank not in self._children:
            return "it was never seen; is its node up, and does it reach this one?"
        state = process_state(self._children[rank])
        said = last_line(self._log(rank))
        words = {"T": "its process is stopped", "Z": "its process has ended", "": "its process is gone"}.get(state, "its process runs")
        return words + (f"; its last line: {said}" if said else "")

    def _gone(self, rank: int) -> str:
        """How a process that is no more ended, where that can be known; "" while it lives, or runs on another machine."""
        if rank in self._children:
            code = self._reap(rank, os.WNOHANG)
            if code is None:
                return ""
            said = last_line(self._log(rank))
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            return f"its process {how}" + (f"; its last line: {said}" if said else "")
        if self._seat.here == self._seat.world and not self._children:
            beat = beats(self._folder, self._seat.world)[rank]
            return "its process is gone" if beat is not None and process_state(beat.pid) in ("", "Z") else ""
        return ""

    def _log(self, rank: int) -> Path:
        return self._folder / f"log-{rank:05d}.txt"

    # ── bringing the job down ─────────────────────────────────────────────────────────────────────────────────────

    def explanation(self) -> RankFailed | None:
        """What lies behind an error of the main thread that looks like a lost connection, if another rank does."""
        until = time.monotonic() + 2 * SETTLE
        while time.monotonic() < until:
            if self._found is not None:
                return self._found
            worst = self._worst()
            if worst is not None and worst.order < 2:
                return self._failed(worst)
            time.sleep(0.05)
        paused = [e.rank for e in self.endings() if e.code == PAUSED]
        if paused:
            world = self._seat.world
            return RankFailed(f"rank {paused[0]} of {world} paused where rank 0 did not\nway out: stop where `ctx.stop_now()` says so")
        return None

    def bring_down(self, found: RankFailed) -> None:
        """Ends the other ranks and calls the main thread back; ends this process where that does not help."""
        self._found = self._found or found
        self.end_children()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        if self._last_words is not None and not self._left.wait(STUCK):
            self._last_words(self._found)
            os._exit(self._found.code)

    def end_children(self) -> None:
        """Kills what was started here and still runs."""
        for rank, pid in self._children.items():
            if self._reap(rank, os.WNOHANG) is None:
                os.kill(pid, signal.SIGKILL)
                self._reap(rank, 0)

    def _watch(self) -> None:
        while not self._left.wait(0.1):
            worst = self._worst()
            if worst is not None:
                if not self._left.wait(SETTLE):
                    self.bring_down(self._failed(self._worst() or worst))
                return

    def _worst(self) -> Ending | None:
        return next((e for e in self.endings() if e.code not in (0, PAUSED)), None)

    def _failed(self, end: Ending) -> RankFailed:
        return RankFailed(f"rank {end.rank} of {self._seat.world} failed: {end.words}", end.code)

    def _call_back(self, signum: int, frame: FrameType | None) -> None:
        if self.armed and self._found is not None:
            self.armed = False
            raise self._found

    def _reap(self, rank: int, how: int) -> int | None:
        """The exit code of a process that was started here; None while it lives."""
        with self._reaping:
            if rank not in self._codes:
                pid, status = os.waitpid(self._children[rank], how)
                if pid == 0:
                    return None
                self._codes[rank] = os.waitstatus_to_exitcode(status)
        return self._codes[rank]


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    try:
        lines = [x for x in log.read_text(encoding="utf-8", errors="replace").splitlines() if x.strip()]
    except OSError:
        return ""
    said: Any = redact(lines[-1].strip()[:300]) if lines else ""
    return str(said)
