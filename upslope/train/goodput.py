"""Where the time went: shares by category, with the work that was done twice counted as lost."""

from __future__ import annotations

from typing import Any, NamedTuple

from upslope.machine.events import goodput

PRODUCTIVE = "compute"
AGAIN = "recompute"


class Goodput(NamedTuple):
    """goodput: share of the time that moved training on. total: seconds, pauses between attempts included. seconds, shares: by
    category: compute, recompute (steps lost at a stop and done again), checkpoint, evaluate, load, down (no attempt ran), work (rest)."""

    goodput: float
    total: float
    seconds: dict[str, float]
    shares: dict[str, float]


def measured(rows: list[dict[str, Any]]) -> Goodput:
    """Goodput of a stage from its events, all attempts, in time order; 0 of everything where there is nothing.

    Source: "goodput = ideal duration / actual duration", with the ideal taken as the time in which new steps were computed.
    """
    seconds = goodput(relabelled(rows))
    total = sum(seconds.values())
    shares = {k: v / total for k, v in seconds.items()} if total else {}
    return Goodput(shares.get(PRODUCTIVE, 0.0), total, seconds, shares)


def relabelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events with `compute` called `recompute` from a new attempt's start until it passes what earlier attempts had reached."""
    found: list[dict[str, Any]] = []
    high, behind, state = 0.0, False, "work"
    for row in rows:
        if row["kind"] == "start":
            behind, state = high > 0, "work"
        elif row["kind"] == "state":
            state = row["state"]
            if behind and state == PRODUCTIVE:
                row = {**row, "state": AGAIN}
        found.append(row)
        if row["kind"] == "progress":
            if behind and row["done"] >= high:
                behind = False
                if state == PRODUCTIVE:
                    found.append({"t": row["t"], "kind": "state", "state": PRODUCTIVE})
            high = max(high, row["done"])
    return found
