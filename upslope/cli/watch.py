"""Progress on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from upslope.machine.graph import Graph, Node
from upslope.machine.run import OK, PAUSED, Watch
from upslope.machine.store import Manifest

QUIET = 10.0  # seconds between progress lines where there is no terminal


def seconds(value: float) -> str:
    """12 s, 3 min 20 s, 2 h 5 min."""
    if value < 100:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class Lines(Watch):
    """One line per stage as it ends, and one that moves while it runs: share done, rate, time left."""

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stdout
        self.live = self.out.isatty()
        self.began = time.monotonic()
        self._stage = self._last = 0.0
        self._from: tuple[float, float] | None = None
        self._width = 12
        self._count = (0, 0)

    def begin(self, name: str, graph: Graph, todo: int) -> None:
        self._width = max(map(len, graph.nodes))
        self._count = (0, todo)
        reused = len(graph.nodes) - todo
        if todo:
            from upslope.cli.look import found_here

            self._line(found_here())
            self._line(f"{name}: {todo} stages to do" + (f", {reused} reused" if reused else ""))

    def started(self, node: Node, resumed: bool) -> None:
        self._stage = self._last = time.monotonic()
        self._from = None
        self._count = (self._count[0] + 1, self._count[1])
        if resumed:
            self._line(f"  {node.name:<{self._width}}  continues where it stopped")
        self._moving(f"  {node.name:<{self._width}}  …")

    def row(self, node: Node, row: Mapping[str, Any]) -> None:
        if row["kind"] == "alarm":
            more = ", ".join(f"{k} {v}" for k, v in row.items() if k not in ("t", "kind", "what"))
            self._line(f"  {node.name:<{self._width}}  ! {row['what']}" + (f" ({more})" if more else ""))
        elif row["kind"] == "note":
            self._line(f"  {node.name:<{self._width}}  {row['text']}")
        elif row["kind"] == "progress" and row.get("total"):
            now = time.monotonic()
            if self._from is None:
                self._from = (now, row["done"])
            rate = (row["done"] - self._from[1]) / max(now - self._from[0], 1e-9)
            left = f", {seconds((row['total'] - row['done']) / rate)} left" if rate > 0 and now - self._from[0] > 0.5 else ""
            speed = f", {rate:,.0f} {row['unit']}/s" if rate >= 10 and row.get("unit") else ""
            extra = "".join(
                f"  {k} {v:.4g}" if isinstance(v, float) else f"  {k} {v}"
                for k, v in row.items()
                if k not in ("t", "kind", "done", "total", "unit")
            )
            text = f"  {node.name:<{self._width}}  {row['done'] / row['total']:4.0%}{speed}{left}{extra}"
            if self.live:
                self._moving(text)
            elif now - self._last >= QUIET:
                self._last = now
                self._line(text)

    def ended(self, node: Node, manifest: Manifest | None, code: int, error: str, took: float) -> None:
        if code == OK and manifest is not None:
            self._line(f"  {node.name:<{self._width}}  {manifest.headline or node.kind}  ·  {seconds(took)}")
        elif code == PAUSED:
            self._line(f"  {node.name:<{self._width}}  {error or 'stopped; the same command continues'}")
        else:
            first, *rest = (error or f"exit code {code}").splitlines()
            self._line(f"  {node.name:<{self._width}}  ✗ {first}")
            for line in rest[:5]:
                self._line(f"  {'':<{self._width}}    {line}")

    def _moving(self, text: str) -> None:
        if self.live:
            self.out.write(f"\r\x1b[2K[{self._count[0]}/{self._count[1]}]{text}"[:200])
            self.out.flush()

    def _line(self, text: str) -> None:
        self.out.write(("\r\x1b[2K" if self.live else "") + text + "\n")
        self.out.flush()
