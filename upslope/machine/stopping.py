"""Stopping a run from another process, by files: who runs is a lease in the run's folder, and a request is a file beside that lease.

Files and not signals, because they reach a run on another machine, in a container or under a scheduler, wherever the store is seen, and
because a process id alone may name another process by now. A request is addressed to one living process, so it cannot stop a later one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from upslope.config import UsageError
from upslope.machine.events import process_token
from upslope.machine.lease import Lease, holder
from upslope.machine.store import Store

POLL = 0.25


class Presence:
    """Shows that this process works on a run, and hears requests to stop, until `close`.

    asked: whether it was asked. on_stop: called once then, from a thread of its own.
    """

    def __init__(self, store: Store, run: str, on_stop: Callable[[], object] | None = None) -> None:
        self.asked = False
        self._file, self._on_stop = _folder(store, run) / process_token(), on_stop
        self._lease, self._end = Lease(self._file), threading.Event()
        self._thread = threading.Thread(target=self._listen, name="stop", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The process no longer works on the run."""
        self._end.set()
        self._thread.join()
        _request(self._file).unlink(missing_ok=True)
        self._lease.release()

    def _listen(self) -> None:
        while not self._end.wait(POLL):
            if _request(self._file).exists():
                self.asked = True
                if self._on_stop is not None:
                    self._on_stop()
                return


class Stopped(NamedTuple):
    """run: its name. processes: how many were asked to stop. ended: whether all have ended. seconds: waited for that."""

    run: str
    processes: int
    ended: bool
    seconds: float


def stop(store: Store, run: str, wait: float = 60.0) -> Stopped:
    """Asks every process that works on a run to save and pause, and waits until they have, at most `wait` seconds.

    UsageError if there is no such run, or nobody works on it.
    """
    states = [store.state(s["kind"], s["fp"]) for s in store.run_json(run)["stages"]]
    files = living(store, run)
    if not files:
        done = states.count("sealed")
        if "running" in states:
            way = "stop the other run, or the worker started by hand, that works on a stage of it"
        else:
            way = "see `upslope show`" if done == len(states) else "the command that started it continues it"
        raise UsageError(f"{run} is not running: {done} of {len(states)} stages are done\nway out: {way}")
    for file in files:
        _request(file).touch()
    began = time.monotonic()
    while (left := [f for f in files if holder(f)]) and time.monotonic() - began < wait:
        time.sleep(0.1)
    return Stopped(run, len(files), not left, time.monotonic() - began)


def living(store: Store, run: str) -> list[Path]:
    """The presences of living processes of a run; those of dead ones are cleared away."""
    found = []
    for file in sorted(_folder(store, run).glob("*")):
        if file.suffix == ".stop" and not file.with_suffix("").exists():
            file.unlink(missing_ok=True)
        if file.suffix or file.name.startswith("."):
            continue
        if holder(file):
            found.append(file)
        else:
            _request(file).unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    return found


def _folder(store: Store, run: str) -> Path:
    return store.root / "runs" / run / "running"


def _request(file: Path) -> Path:
    return file.with_suffix(".stop")
