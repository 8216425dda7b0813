"""Schedules against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest

from upslope.config import UsageError
from upslope.optim.schedule import WSD, Constant, Cosine, LinearToZero


def test_warmup_is_linear_and_never_zero() -> None:
    for schedule in (Constant(warmup=4), Cosine(warmup=4), WSD(warmup=4), LinearToZero(warmup=4)):
        assert [schedule.at(k, 40) for k in range(4)] == [0.25, 0.5, 0.75, 1.0]
        assert schedule.at(4, 40) == 1.0
    assert Constant(warmup=0.1).at(0, 40) == 0.25


def test_cosine() -> None:
    s = Cosine(warmup=10, floor=0.2)
    for k in range(10, 110):
        assert s.at(k, 110) == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * (k - 10) / 100)))
    assert s.at(60, 110) == pytest.approx(0.6)


def test_wsd() -> None:
    s = WSD(warmup=10, decay=0.2, floor=0.1)
    assert all(s.at(k, 100) == 1.0 for k in range(9, 81))
    assert s.at(90, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    root = s.replace(shape="1-sqrt")
    assert root.at(85, 100) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(0.25)))
    assert WSD(decay=0).at(99, 100) == 1.0
    assert WSD(decay=25).at(80, 100) == WSD(decay=0.25).at(80, 100)
    late = WSD(warmup=50, decay=90)
    assert late.at(49, 100) == late.at(50, 100) == 1.0
    assert late.at(75, 100) == pytest.approx(0.5)


def test_linear_to_zero() -> None:
    assert [LinearToZero().at(k, 4) for k in range(4)] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    ("schedule", "change"),
    [
        (Constant(), {"warmup": 5}),
        (Cosine(), {"warmup": 5}),
        (Cosine(), {"floor": 0.0}),
        (WSD(), {"decay": 0.5}),
        (WSD(), {"shape": "1-sqrt"}),
        (WSD(), {"floor": 0.3}),
        (WSD(), {"warmup": 3}),
        (LinearToZero(), {"warmup": 5}),
    ],
)
def test_every_knob_changes_the_curve(schedule: Any, change: dict[str, Any]) -> None:
    assert [schedule.at(k, 20) for k in range(20)] != [schedule.replace(**change).at(k, 20) for k in range(20)]


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), WSD(), LinearToZero()])
def test_a_step_outside_is_refused(schedule: Any) -> None:
    for step in (-1, 10):
        with pytest.raises(UsageError, match="outside"):
            schedule.at(step, 10)
