"""Dealing tasks: a long, balanced sequence of tasks by family and level, each cell gone through before any task comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from upslope.config import UsageError
from upslope.machine.rng import rng
from upslope.tasks.task import Task


def deal(tasks: Sequence[Task], count: int, level_weights: Sequence[float], seed: int) -> Iterator[Task]:
    """`count` tasks: families with equal chance, levels within a family by weight (level l has weight l - 1 of the tuple).

    Inside a (family, level) cell tasks come in a random order, all of them before one is repeated, then in a new order.
    UsageError for no tasks, or a family none of whose levels has a positive weight.
    """
    cells: dict[tuple[str, float], list[Task]] = {}
    for task in tasks:
        cells.setdefault((task.family, task.level), []).append(task)
    names = sorted(cells)
    families = sorted({family for family, _ in names})
    if not families:
        raise UsageError("no tasks to deal\nway out: give a Tasks artifact with a train split")
    chances = np.zeros(len(names))
    for family in families:
        mine = [i for i, (f, _) in enumerate(names) if f == family]
        weights = np.array([_weight(level_weights, names[i][1]) for i in mine])
        if not weights.sum() > 0:
            levels = ", ".join(f"{names[i][1]:g}" for i in mine)
            raise UsageError(f"level_weights = {tuple(level_weights)}: no weight for the levels of family {family!r}: {levels}")
        chances[mine] = weights / weights.sum() / len(families)
    picks = rng(seed, "deal").choice(len(names), size=count, p=chances / chances.sum())
    dealt = [0] * len(names)
    orders: dict[int, np.ndarray] = {}
    for pick in picks.tolist():
        pile = cells[names[pick]]
        again, at = divmod(dealt[pick], len(pile))
        if at == 0:
            orders[pick] = rng(seed, "deal", *map(str, names[pick]), again).permutation(len(pile))
        dealt[pick] += 1
        yield pile[int(orders[pick][at])]


def _weight(weights: Sequence[float], level: float) -> float:
    at = int(level) - 1
    return float(weights[at]) if level == int(level) and 0 <= at < len(weights) else 0.0
