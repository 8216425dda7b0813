"""What a stage will probably take here: its operations at the speed of earlier stages of its kind in the same store."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from math import log
from statistics import median
from typing import TYPE_CHECKING

from upslope.cli.watch import seconds

if TYPE_CHECKING:
    from upslope.machine.run import Step
    from upslope.machine.store import Manifest, Store

NEAREST = 5
"""Earlier stages that are asked: those whose number of operations is nearest."""


def expected(flops: float, kind: str, known: Sequence[Manifest]) -> tuple[float, int] | None:
    """(seconds, earlier stages that say so): operations by the median speed of the nearest stages of a kind; None where there are none.

    Only stages of one process on this kind of processor count: a manifest does not name its machine.
    """
    same = [
        m
        for m in known
        if m.kind == kind and m.flops > 0 and m.seconds > 0 and m.bits.get("machine") == platform.machine() and m.bits.get("world", 1) == 1
    ]
    if not flops or not same:
        return None
    nearest = sorted(same, key=lambda m: abs(log(m.flops / flops)))[:NEAREST]
    return flops / median(m.flops / m.seconds for m in nearest), len(nearest)


def lines(steps: Sequence[Step], place: Store) -> list[str]:
    """A line for each stage that is to be built, whose operations are known, and whose kind this store has built before."""
    waiting = [s for s in steps if s.state == "build" and s.cost.flops and not s.cost.seconds]
    known = [m for _, m in place.artifacts() if m is not None] if waiting and place.root.is_dir() else []
    out = []
    for step in waiting:
        found = expected(step.cost.flops, step.node.kind, known)
        if found is not None:
            took, runs = found
            out.append(
                f"{step.node.name}: about {seconds(took)}, from {runs} earlier {'run' if runs == 1 else 'runs'} of its kind in this store"
            )
    return out
