"""Events: the append-only truth about a stage's execution. Progress, reports and trackers only read them.

One JSON object a line: {"t": unix seconds, "kind": ..., ...}. Kinds: `state` (goodput: what the time goes to), `metric`
(name, step, value), `progress` (done, total, unit), `map` (step, memo: the folder of its results), `alarm`, `note`, `start`, `end`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Events:
    """A writer of one process's event file; a line is written whole or, after a crash, is cut and skipped by readers."""

    def __init__(self, file: Path | None = None, every: float = 0.2) -> None:
        self.file = file
        self._every = every
        self._last = 0.0
        self._state = "work"
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._out = open(file, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  (lives as long as the process)

    def emit(self, kind: str, **fields: Any) -> None:
        """Appends one event."""
        if self.file is not None:
            self._out.write(json.dumps({"t": round(time.time(), 3), "kind": kind, **fields}, ensure_ascii=False, default=str) + "\n")

    def metrics(self, step: int, **values: float) -> None:
        """Scalar metrics at a step; non-finite values are kept as text, so that the file stays JSON."""
        safe = {k: (v if v == v and abs(v) != float("inf") else str(v)) for k, v in ((k, float(v)) for k, v in values.items())}
        self.emit("metric", step=step, values=safe)

    def progress(self, done: float, total: float, unit: str = "", **extra: Any) -> None:
        """How far the stage is; throttled, except for the last one."""
        now = time.monotonic()
        if now - self._last >= self._every or done >= total:
            self._last = now
            self.emit("progress", done=done, total=total, unit=unit, **extra)

    def alarm(self, what: str, **fields: Any) -> None:
        """Something a person should see in the report: a spike, a skipped step, a bad record class."""
        self.emit("alarm", what=what, **fields)

    @contextmanager
    def state(self, name: str) -> Iterator[None]:
        """Attributes the time inside to a goodput state: load, compute, checkpoint, evaluate, wait …"""
        before, self._state = self._state, name
        self.emit("state", state=name)
        try:
            yield
        finally:
            self._state = before
            self.emit("state", state=before)


def parse(text: str) -> list[dict[str, Any]]:
    """The events in a block of lines; torn lines are skipped."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and "t" in row and "kind" in row:
            rows.append(row)
    return rows


def read(folder: Path) -> list[dict[str, Any]]:
    """All events below a folder, merged in time order."""
    rows = [row for file in sorted(folder.glob("*.jsonl")) for row in parse(file.read_text(encoding="utf-8", errors="replace"))]
    return sorted(rows, key=lambda r: r["t"])


def goodput(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by state, from the start of each attempt to its end or last sign of life; `lost` = between attempts."""
    seconds: dict[str, float] = {}
    state, last = None, None
    for row in rows:
        if row["kind"] == "start":
            if last is not None:
                seconds["down"] = seconds.get("down", 0.0) + row["t"] - last
            state, last = "work", row["t"]
            continue
        if last is not None and state is not None:
            seconds[state] = seconds.get(state, 0.0) + max(0.0, row["t"] - last)
        last = row["t"]
        if row["kind"] == "state":
            state = row["state"]
    return seconds


def process_token() -> str:
    """A name for this process in file names that says nothing about host or user."""
    return f"{os.getpid():x}-{time.time_ns() & 0xFFFFFFFF:08x}"
