"""Which prompts to try next: those whose answer is uncertain, by the policy's own pass rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from upslope.config import Config, UsageError

if TYPE_CHECKING:
    from upslope.rl.protocol import Trace
    from upslope.tasks.task import Task

OUTSIDE = 0.1


class Curriculum(Config):
    """How prompts are chosen: a cell (family, level) has weight p (1 - p), p its estimated pass rate.

    A group of binary rewards teaches in proportion to p (1 - p). p = (s + 1) / (n + 2) (Laplace) over the cell's past
    samples, of which each visit forgets the share 1 - memory. Outside the band [low, high] a cell keeps a tenth of its
    weight, so that it is tested again as the policy changes. uniform: every cell weighs the same instead.

    Source: MAI-Thinking-1 (band of pass rates); DAPO (only informative groups).
    """

    uniform: bool = False
    low: float = Field(default=0.0, ge=0, le=1)
    high: float = Field(default=1.0, ge=0, le=1)
    memory: float = Field(default=0.8, gt=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Curriculum:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low:g} must be below high = {self.high:g}")
        return self


class Buffer:
    """Tasks by cell, with the pass rates seen so far; its state is plain JSON."""

    def __init__(self, tasks: Iterable[Task], curriculum: Curriculum | None = None) -> None:
        self.curriculum = curriculum or Curriculum()
        self.cells: dict[str, list[Task]] = {}
        self._cell: dict[str, str] = {}
        for task in tasks:
            self._cell[task.id] = cell_of(task.family, task.level)
            self.cells.setdefault(self._cell[task.id], []).append(task)
        if not self.cells:
            raise UsageError("no task to learn from: the tasks are empty\nway out: check `families` and the split")
        self.cells = dict(sorted(self.cells.items()))
        self.counts: dict[str, list[float]] = {cell: [0.0, 0.0] for cell in self.cells}

    def pass_rates(self) -> dict[str, float]:
        """Estimated pass rate by cell."""
        return {cell: (s + 1) / (n + 2) for cell, (n, s) in self.counts.items()}

    def weights(self) -> np.ndarray:
        """(cells,) probabilities of the next draw."""
        if self.curriculum.uniform:
            return np.full(len(self.cells), 1 / len(self.cells))
        rates = np.array(list(self.pass_rates().values()))
        inside = (rates >= self.curriculum.low) & (rates <= self.curriculum.high)
        weights = rates * (1 - rates) * np.where(inside, 1.0, OUTSIDE)
        return np.asarray(weights / weights.sum())

    def draw(self, n: int, rng: np.random.Generator) -> list[Task]:
        """n tasks; none twice as long as a cell has others. A function of the state and the generator."""
        names = list(self.cells)
        drawn: list[Task] = []
        order: dict[str, list[int]] = {}
        for index in rng.choice(len(names), size=n, p=self.weights()):
            name = names[index]
            if not order.get(name):
                order[name] = rng.permutation(len(self.cells[name])).tolist()
            drawn.append(self.cells[name][order[name].pop()])
        return drawn

    def update(self, groups: Sequence[Sequence[Trace]]) -> None:
        """Takes in a step's task scores; invalid ones are not counted. A task score is taken as a rate in [0, 1]."""
        from upslope.rl.objective import task_score

        seen: dict[str, list[float]] = {}
        for group in groups:
            for trace in group:
                score = task_score(trace)
                if score.valid:
                    cell = seen.setdefault(self._cell[trace.task], [0.0, 0.0])
                    cell[0] += 1
                    cell[1] += min(1.0, max(0.0, score.value))
        for name, (tries, successes) in sorted(seen.items()):
            n, s = self.counts[name]
            self.counts[name] = [n * self.curriculum.memory + tries, s * self.curriculum.memory + successes]

    def state(self) -> dict[str, list[float]]:
        """Counts by cell."""
        return {cell: list(counts) for cell, counts in self.counts.items()}

    def load(self, state: Mapping[str, Sequence[float]]) -> None:
        """Restores `state()`; ValueError where the cells are not the same."""
        if set(state) != set(self.counts):
            raise ValueError("the saved pass rates belong to other tasks")
        self.counts = {cell: [float(v) for v in state[cell]] for cell in self.counts}


def cell_of(family: str, level: float) -> str:
    """Name of the cell of a task."""
    return f"{family}/{level:g}"
