"""Prompt choice: uncertain cells first, nothing starves, state restores."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from tests.rl.support import trace
from upslope.config import UsageError
from upslope.machine.rng import rng
from upslope.rl.buffer import Buffer, Curriculum
from upslope.rl.protocol import TASK, Score, Trace
from upslope.tasks.task import Task

TASKS = [Task(f"{f}{level}{i}", f, (), (), {}, level) for f in ("a", "b") for level in (1.0, 2.0) for i in range(10)]


def graded(family: str, level: float, values: list[float | Score]) -> list[Trace]:
    return [trace(v, group=f"{family}{level}", id=str(i), task=f"{family}{level}0") for i, v in enumerate(values)]


def test_the_weight_of_a_cell_is_p_times_one_minus_p_with_a_prior() -> None:
    buffer = Buffer(TASKS)
    assert np.allclose(buffer.weights(), 0.25)
    buffer.update([graded("a", 1.0, [1.0] * 8), graded("a", 2.0, [1.0, 0.0] * 4)])
    p = np.array([9 / 10, 5 / 10, 1 / 2, 1 / 2])
    assert list(buffer.pass_rates().values()) == pytest.approx(list(p))
    assert buffer.weights() == pytest.approx(p * (1 - p) / (p * (1 - p)).sum())
    assert Buffer(TASKS, Curriculum(uniform=True)).weights() == pytest.approx([0.25] * 4)


def test_outside_the_band_a_cell_keeps_a_tenth() -> None:
    buffer = Buffer(TASKS, Curriculum(low=0.2, high=0.8))
    buffer.update([graded("a", 1.0, [1.0] * 8)])
    free = Buffer(TASKS)
    free.update([graded("a", 1.0, [1.0] * 8)])
    ratio = (buffer.weights()[0] / buffer.weights()[1]) / (free.weights()[0] / free.weights()[1])
    assert ratio == pytest.approx(0.1)


def test_old_visits_are_forgotten() -> None:
    buffer = Buffer(TASKS, Curriculum(memory=0.5))
    buffer.update([graded("a", 1.0, [0.0] * 8)])
    buffer.update([graded("a", 1.0, [1.0] * 8)])
    assert buffer.pass_rates()["a/1"] == pytest.approx((8 + 1) / (4 + 8 + 2))


def test_invalid_scores_and_penalties_do_not_count() -> None:
    buffer = Buffer(TASKS)
    buffer.update([graded("a", 1.0, [Score(0.0, False)] * 3)])
    assert buffer.state()["a/1"] == [0.0, 0.0]
    group = [t._replace(scores={**t.scores, TASK: Score(1.0)}) for t in graded("a", 1.0, [0.7, 0.9])]
    buffer.update([group])
    assert buffer.state()["a/1"] == [2.0, 2.0]


def test_draws_follow_the_weights_without_repeats_inside_a_step() -> None:
    buffer = Buffer(TASKS)
    drawn = buffer.draw(12, rng(0, "prompts", 0))
    assert len({t.id for t in drawn}) == 12
    buffer.update([graded(f, v, [1.0] * 200) for f, v in (("a", 1.0), ("a", 2.0), ("b", 1.0))])
    drawn = buffer.draw(200, rng(0, "prompts", 1))
    assert sum(t.family == "b" and t.level == 2.0 for t in drawn) > 180


def test_the_state_is_all_there_is() -> None:
    one, two = Buffer(TASKS), Buffer(list(reversed(TASKS))[::-1])
    one.update([graded("a", 1.0, [1.0, 0.0])])
    two.load(one.state())
    assert [t.id for t in one.draw(9, rng(0, "x"))] == [t.id for t in two.draw(9, rng(0, "x"))]
    with pytest.raises(ValueError, match="other tasks"):
        Buffer(TASKS[:3]).load(one.state())


def test_bad_curricula_are_refused() -> None:
    with pytest.raises(ValidationError, match="below high"):
        Curriculum(low=0.5, high=0.5)
    with pytest.raises(UsageError, match="no task"):
        Buffer([])
