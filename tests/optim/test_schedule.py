"""Schedules against their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pytest

from upslope.config import UsageError
from upslope.optim.schedule import WSD, Constant, Cosine, LinearToZero, MultiStep, Piece, Segments, fall, wsd_s


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


LINE = Segments(pieces=(Piece(length=0.5), Piece(length=0.5, end=0.1)))


def test_shapes_of_a_fall() -> None:
    for shape in ("linear", "1-sqrt", "cosine", "exponential"):
        assert fall(shape, 0.0, 0.1) == pytest.approx(1.0)
        assert fall(shape, 1.0, 0.1) == pytest.approx(0.1)
    assert fall("linear", 0.25, 0.2) == pytest.approx(0.8)
    assert fall("1-sqrt", 0.25, 0.2) == pytest.approx(0.6)
    assert fall("cosine", 0.25) == pytest.approx(0.5 + 0.5**1.5)
    assert fall("exponential", 0.5, 0.01) == pytest.approx(0.1)


def test_an_exponential_decay_to_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="never reaches 0"):
        WSD(shape="exponential")
    with pytest.raises(ValueError, match="never reaches 0"):
        Piece(length=1, end=0, shape="exponential")
    assert WSD(shape="exponential", floor=0.01, decay=10).at(95, 100) == pytest.approx(0.1)


def test_multi_step() -> None:
    curve = [MultiStep(warmup=2).at(k, 100) for k in range(100)]
    assert curve[:2] == [0.5, 1.0]
    assert set(curve[2:80]) == {1.0}
    assert set(curve[80:90]) == {0.316}
    assert set(curve[90:]) == {0.316**2}
    assert MultiStep(drops=(60,)).at(60, 100) == 0.316


def test_segments_equal_the_schedules_they_generalise() -> None:
    wsd = WSD(warmup=7, decay=0.3, floor=0.1, shape="1-sqrt")
    same = Segments(warmup=7, pieces=(Piece(length=0.7), Piece(length=0.3, end=0.1, shape="1-sqrt")))
    cosine, one = Cosine(warmup=7, floor=0.1), Segments(warmup=7, pieces=(Piece(length=100, end=0.1, shape="cosine"),))
    for k in range(100):
        assert same.at(k, 100) == pytest.approx(wsd.at(k, 100), rel=1e-14)
        assert one.at(k, 100) == pytest.approx(cosine.at(k, 100), rel=1e-14)


def test_segments_say_the_schedule_of_deepseek_v3() -> None:
    """Constant to 10T, cosine to a tenth over 4.3T, there for 333B, at 7.3/220 for the last 167B; a step here is 1e9 tokens."""
    floor = 7.3e-6 / 2.2e-4
    s = Segments(
        warmup=8,
        pieces=(
            Piece(length=10_000),
            Piece(length=4_300, end=0.1, shape="cosine"),
            Piece(length=333, start=0.1, end=0.1),
            Piece(length=167, start=floor, end=floor),
        ),
    )
    assert s.at(3, 14_800) == 0.5
    assert s.at(9_999, 14_800) == s.at(10_000, 14_800) == 1.0
    assert s.at(12_150, 14_800) == pytest.approx(0.55)
    assert s.at(14_300, 14_800) == s.at(14_632, 14_800) == 0.1
    assert s.at(14_633, 14_800) == s.at(14_799, 14_800) == floor


def test_wsd_s_decays_and_returns_to_the_peak() -> None:
    s = wsd_s((0.25, 0.25, 0.5), decay=0.2, end=0.1, warmup=5)
    curve = [s.at(k, 200) for k in range(200)]
    for begin, end in ((0, 50), (50, 100), (100, 200)):
        decay = (end - begin) // 5
        assert set(curve[max(5, begin) : end - decay]) == {1.0}
        assert curve[end - decay : end] == pytest.approx([1 - 0.9 * j / decay for j in range(decay)])
    with pytest.raises(UsageError, match="decay = 1 must be"):
        wsd_s((0.5,), decay=1.0)
    with pytest.raises(UsageError, match="shorter than a step"):
        wsd_s((4,), decay=0.1)


def test_segments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="pieces end at"):
        Segments(pieces=(Piece(length=60), Piece(length=5))).at(0, 60)
    with pytest.raises(UsageError, match="warm-up ends after the first piece"):
        Segments(warmup=9, pieces=(Piece(length=5), Piece(length=5))).at(0, 10)
    thirds = Segments(pieces=(Piece(length=1 / 3), Piece(length=1 / 3, start=0.5, end=0.5), Piece(length=1 / 3, start=0.2, end=0.2)))
    assert [thirds.at(k, 10) for k in (0, 2, 3, 6, 7, 9)] == [1.0, 1.0, 0.5, 0.5, 0.2, 0.2]


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
        (WSD(floor=0.1), {"shape": "cosine"}),
        (WSD(floor=0.1), {"shape": "exponential"}),
        (MultiStep(), {"warmup": 5}),
        (MultiStep(), {"drops": (0.6, 0.9)}),
        (MultiStep(), {"factor": 0.5}),
        (LINE, {"warmup": 2}),
        (LINE, {"pieces": (Piece(length=0.4), Piece(length=0.6, end=0.1))}),
        (LINE, {"pieces": (Piece(length=0.5), Piece(length=0.5, end=0.2))}),
        (LINE, {"pieces": (Piece(length=0.5), Piece(length=0.5, start=0.9, end=0.1))}),
        (LINE, {"pieces": (Piece(length=0.5), Piece(length=0.5, end=0.1, shape="cosine"))}),
    ],
)
def test_every_knob_changes_the_curve(schedule: Any, change: dict[str, Any]) -> None:
    assert [schedule.at(k, 20) for k in range(20)] != [schedule.replace(**change).at(k, 20) for k in range(20)]


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), WSD(), LinearToZero(), MultiStep(), LINE])
def test_a_step_outside_is_refused(schedule: Any) -> None:
    for step in (-1, 10):
        with pytest.raises(UsageError, match="outside"):
            schedule.at(step, 10)
