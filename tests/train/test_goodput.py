"""Time is accounted by category."""

from __future__ import annotations

from typing import Any

import pytest

from upslope.train.goodput import measured


def row(t: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "kind": kind, **fields}


def test_time_by_category_with_lost_steps_as_recompute() -> None:
    rows = [
        row(0, "start"),
        row(1, "state", state="load"),
        row(2, "state", state="compute"),
        row(6, "progress", done=40),
        row(6, "state", state="checkpoint"),
        row(7, "state", state="compute"),
        row(10, "progress", done=70),
        row(15, "start"),
        row(15, "state", state="load"),
        row(16, "state", state="compute"),
        row(18, "progress", done=60),
        row(19, "progress", done=70),
        row(24, "progress", done=120),
        row(24, "end"),
    ]
    found = measured(rows)
    assert found.seconds == {"work": 1, "load": 2, "compute": 4 + 3 + 5, "checkpoint": 1, "down": 5, "recompute": 3}
    assert found.total == 24 and found.goodput == pytest.approx(0.5) and sum(found.shares.values()) == pytest.approx(1)
    assert measured([]).goodput == 0.0
