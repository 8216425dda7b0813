"""A watch over ranks that work in step: heartbeats in files, and who waits for whom when one stops coming."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

DONE = "done"


class Beat(NamedTuple):
    """Where a rank is. reached: points passed since its start; ranks in step pass the same ones. step, at: of the last point,
    `at` being a collective or a phase, "done" at the end. attempt: names the launch."""

    rank: int
    reached: int
    step: int
    at: str
    attempt: str = ""


class Heartbeat:
    """A rank's side: `beat(step, "all_reduce gradients")` on the way into everything that waits for other ranks."""

    def __init__(self, folder: Path, rank: int, attempt: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._last = folder / f"rank-{rank:05d}.json", Beat(rank, 0, 0, "start", attempt)
        self._write()

    def beat(self, step: int, at: str) -> None:
        """Says that this rank has reached a point."""
        self._last = self._last._replace(reached=self._last.reached + 1, step=step, at=at)
        self._write()

    def _write(self) -> None:
        temporary = self._file.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps(self._last._asdict()), encoding="utf-8")
        os.replace(temporary, self._file)


class Hang(NamedTuple):
    """missing: ranks that never started. behind: (where it stands, seconds without a sign) of those that the others wait for.
    waiting: those that are further. If all stand at one point, they are `behind` it together: the collective itself does not end."""

    missing: tuple[int, ...]
    behind: tuple[tuple[Beat, float], ...]
    waiting: tuple[Beat, ...]

    def __str__(self) -> str:
        """Who waits for whom, in words."""
        lines = [f"rank {_list(self.missing)} never started"] if self.missing else []
        if not self.waiting and self.behind and not self.missing:
            beat, seconds = self.behind[0]
            return f"all ranks are in {beat.at!r} of step {beat.step} for {seconds:.0f} s: it does not end"
        goal = max(self.waiting, key=lambda b: b.reached) if self.waiting else None
        for beat, seconds in self.behind:
            missed = "" if goal is None else f" has not reached {goal.at!r} of step {goal.step};"
            lines.append(f"rank {beat.rank}{missed} last sign {seconds:.0f} s ago: {beat.at!r} of step {beat.step}")
        if self.waiting:
            lines.append(f"rank {_list([b.rank for b in self.waiting])} waiting")
        return "; ".join(lines)


def beats(folder: Path, world: int, attempt: str = "") -> list[Beat | None]:
    """The last sign of each rank of this attempt; None for one that has given none."""
    found: list[Beat | None] = []
    for rank in range(world):
        try:
            beat = Beat(**json.loads((folder / f"rank-{rank:05d}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            found.append(None)
            continue
        found.append(beat if beat.attempt == attempt else None)
    return found


def diagnose(signs: Sequence[Beat | None], silent: Sequence[float], timeout: float) -> Hang | None:
    """Who waits for whom, or None where some wait is shorter than `timeout`.

    silent: seconds since each rank's last new sign (since the start of the watch for one that gave none). The ranks furthest behind
    are what the others wait for; it is a hang once they have been silent for `timeout`.
    """
    missing = tuple(r for r, b in enumerate(signs) if b is None)
    live = [b for b in signs if b is not None and b.at != DONE]
    least = min((b.reached for b in live), default=0)
    finished = max((b.reached for b in signs if b is not None and b.at == DONE), default=0)
    behind = tuple((b, silent[b.rank]) for b in live if b.reached == least)
    waiting = tuple(b for b in live if b.reached > least)
    if missing:
        late = all(silent[r] >= timeout for r in missing)
        return Hang(missing, (), tuple(live)) if late else None
    if not behind or any(seconds < timeout for _, seconds in behind):
        return None
    if not waiting and finished > least:
        waiting = tuple(b for b in signs if b is not None and b.at == DONE)
    return Hang((), behind, waiting)


class Guardian:
    """The watchdog: a thread that reads the heartbeats of all ranks and calls `on_hang` once when some rank is waited for too long.

    Ages are taken by this machine's own clock from when a sign was first seen, so clocks of machines need not agree. `found`: the hang.
    Use as a context manager, or `start` and `stop`.
    """

    def __init__(
        self, folder: Path, world: int, timeout: float, on_hang: Callable[[Hang], None], *, attempt: str = "", poll: float | None = None
    ) -> None:
        self.folder, self.world, self.timeout, self.on_hang, self.attempt = folder, world, timeout, on_hang, attempt
        self.poll = min(5.0, timeout / 4) if poll is None else poll
        self.found: Hang | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="guardian", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the watch."""
        self._end.set()
        self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        seen: list[Beat | None] = [None] * self.world
        since = [time.monotonic()] * self.world
        while not self._end.wait(self.poll):
            now = time.monotonic()
            for rank, beat in enumerate(beats(self.folder, self.world, self.attempt)):
                if beat != seen[rank]:
                    seen[rank], since[rank] = beat, now
            self.found = diagnose(seen, [now - t for t in since], self.timeout)
            if self.found is not None:
                self.on_hang(self.found)
                return


def _list(ranks: Sequence[int]) -> str:
    """Ranks in words, the first eight."""
    return ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
