"""A watch over ranks that work in step: heartbeats in files, and who waits for whom when one stops coming."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

WORK, DONE = "work", "done"
FROZEN = 45.0  # seconds without a pulse after which a process is taken for frozen, whatever it does


class Beat(NamedTuple):
    """Where a rank is. reached: points passed since its start; ranks in step pass the same ones. step, at: of the last point,
    `at` being a collective or a phase, "work" outside of them, "done" at the end. attempt: names the launch. pulse: grows while the
    process lives (0: it shows none). pid: of the process on its machine."""

    rank: int
    reached: int
    step: int
    at: str
    attempt: str = ""
    pulse: int = 0
    pid: int = 0


class Heartbeat:
    """A rank's side: `beat(step, "all_reduce gradients")` on the way into everything that waits for other ranks.

    every: 0 writes each beat at once; otherwise a thread writes the newest one, and a pulse, every so many seconds until `stop`, and
    calls `tick` after that.
    """

    def __init__(self, folder: Path, rank: int, attempt: str = "", every: float = 0.0, tick: Callable[[], None] = lambda: None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file, self._every, self._tick = folder / f"rank-{rank:05d}.json", every, tick
        self._last = Beat(rank, 0, 0, "start", attempt, int(every > 0), os.getpid())
        self._end = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        if every:
            self._thread.start()

    def beat(self, step: int, at: str) -> None:
        """Says that this rank has reached a point."""
        self._last = self._last._replace(reached=self._last.reached + 1, step=step, at=at)
        if not self._every:
            self._write()

    def stop(self, at: str = "") -> None:
        """Ends the pulse; at: the last point to tell, e.g. "done"."""
        self._end.set()
        if self._every:
            self._thread.join()
        if at:
            self._last = self._last._replace(reached=self._last.reached + 1, at=at)
            self._write()

    def _run(self) -> None:
        pulse = 1
        while not self._end.wait(self._every):
            pulse += 1
            with contextlib.suppress(OSError):  # a disk that fails for a moment must not look like a frozen process
                self._write(pulse)
                self._tick()

    def _write(self, pulse: int = 0) -> None:
        last = self._last  # the other thread replaces it whole
        temporary = self._file.with_suffix(f".tmp-{os.getpid()}")
        temporary.write_text(json.dumps((last._replace(pulse=pulse) if pulse else last)._asdict()), encoding="utf-8")
        os.replace(temporary, self._file)


class Hang(NamedTuple):
    """missing: ranks that never started. behind: (where it stands, seconds without a sign) of those that the others wait for.
    waiting: those that are further. If all stand at one point, they are `behind` it together: the collective itself does not end.
    frozen: those behind show no pulse, so their processes do nothing at all."""

    missing: tuple[int, ...]
    behind: tuple[tuple[Beat, float], ...]
    waiting: tuple[Beat, ...]
    frozen: bool = False

    def __str__(self) -> str:
        """Who waits for whom, in words."""
        lines = [f"{_ranks(self.missing)} never started"] if self.missing else []
        if not self.waiting and self.behind and not self.missing and not self.frozen:
            beat, seconds = self.behind[0]
            return f"all ranks are in {beat.at!r} of step {beat.step} for {seconds:.0f} s: it does not end"
        inside = [b for b in self.waiting if b.at != WORK]
        if inside and self.behind:
            goal, late = max(inside, key=lambda b: b.reached), [b.rank for b, _ in self.behind]
            verb = "wait" if len(inside) > 1 else "waits"
            since = max(seconds for _, seconds in self.behind)
            lines.append(
                f"{_ranks([b.rank for b in inside])} {verb} in {goal.at!r} of step {goal.step} for {_ranks(late)} since {since:.0f} s"
            )
        elif inside:
            lines.append(f"{_ranks([b.rank for b in inside])} waiting")
        for beat, seconds in self.behind[:4]:
            sign = f"its process does nothing since {seconds:.0f} s" if self.frozen else f"last step forward {seconds:.0f} s ago"
            lines.append(f"rank {beat.rank}: {sign}; it was last seen in {beat.at!r} of step {beat.step}")
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


def diagnose(signs: Sequence[Beat | None], silent: Sequence[float], timeout: float, mute: Sequence[float] = ()) -> Hang | None:
    """Who waits for whom, or None where nobody has waited for `timeout`.

    silent: seconds since each rank last moved on (since the start of the watch for one that gave no sign); mute: the same for its
    pulse. A rank whose pulse stopped is frozen. Otherwise the ranks furthest behind are what the others wait for; it is a hang once they
    have been silent, and somebody has waited, for `timeout`. Ranks that all work by themselves wait for nobody.
    """
    missing = tuple(r for r, b in enumerate(signs) if b is None)
    live = [b for b in signs if b is not None and b.at != DONE]
    if missing:
        late = all(silent[r] >= timeout for r in missing)
        return Hang(missing, (), tuple(live)) if late else None
    stiff = [b for b in live if mute and b.pulse and mute[b.rank] >= min(timeout, FROZEN)]
    if stiff:
        return Hang((), tuple((b, mute[b.rank]) for b in stiff), tuple(b for b in live if b not in stiff), True)
    least = min((b.reached for b in live), default=0)
    finished = max((b.reached for b in signs if b is not None and b.at == DONE), default=0)
    behind = tuple((b, silent[b.rank]) for b in live if b.reached == least)
    waiting = tuple(b for b in live if b.reached > least)
    if not behind or any(seconds < timeout for _, seconds in behind):
        return None
    if waiting and max(silent[b.rank] for b in waiting) < timeout:
        return None
    if not waiting and finished > least:
        waiting = tuple(b for b in signs if b is not None and b.at == DONE)
    if not waiting and all(b.at in (WORK, "start") and b.pulse for b, _ in behind):
        return None
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
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        seen: list[Beat | None] = [None] * self.world
        before = time.monotonic()
        moved, alive = [before] * self.world, [before] * self.world
        while not self._end.wait(self.poll):
            now = time.monotonic()
            if now - before > 4 * self.poll + 2.0:  # it was this process that stood still: what it did not see says nothing
                moved, alive = [now] * self.world, [now] * self.world
            before = now
            for rank, beat in enumerate(beats(self.folder, self.world, self.attempt)):
                old = seen[rank]
                if beat != old:
                    alive[rank] = now
                    if beat is None or old is None or (beat.reached, beat.at) != (old.reached, old.at):
                        moved[rank] = now
                    seen[rank] = beat
            self.found = diagnose(seen, [now - t for t in moved], self.timeout, [now - t for t in alive])
            if self.found is not None:
                self.on_hang(self.found)
                return


def _ranks(ranks: Sequence[int]) -> str:
    """Ranks in words, the first eight."""
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks[:8])) + more
