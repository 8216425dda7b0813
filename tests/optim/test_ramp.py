"""Batch ramps: totals in closed form, published ramps, and the two ways of asking agree."""

from __future__ import annotations

from itertools import islice
from math import log

import pytest

from upslope.config import UsageError
from upslope.optim.ramp import Line, Stairs, batch_at, steps, steps_for, tokens_before

V3 = Line(first=3072 * 4096, last=15360 * 4096, over=469_000_000_000, grain=4096)
LLAMA = Stairs(since=(0, 252_000_000, 2_870_000_000_000), batches=(4_000_000, 8_000_000, 16_000_000))


def test_published_ramps() -> None:
    assert batch_at(V3, 0) == 3072 * 4096
    assert batch_at(V3, V3.over // 2) == (3072 + 15360) // 2 * 4096
    assert batch_at(V3, V3.over) == batch_at(V3, 14 * 10**12) == 15360 * 4096
    assert all(batch_at(V3, t) % 4096 == 0 for t in range(0, V3.over, 10**10))
    asked = (0, 251_999_999, 252_000_000, 2_869_999_999_999, 2_870_000_000_000)
    assert [batch_at(LLAMA, t) // 10**6 for t in asked] == [4, 4, 8, 8, 16]


def test_totals_of_stairs_in_closed_form() -> None:
    s = Stairs(since=(0, 100, 400), batches=(10, 20, 50))
    assert steps_for(s, 1000) == 100 // 10 + 300 // 20 + 600 // 50
    assert sum(b for _, b in steps(s, 1000)) == 1000
    assert steps_for(s, 0) == 0


@pytest.mark.parametrize("ramp", [Stairs(since=(0, 95, 333), batches=(10, 20, 50)), Line(first=8, last=64, over=700, grain=8)])
@pytest.mark.parametrize("total", [1, 94, 701, 5000])
def test_steps_cover_the_total_and_pass_it_by_less_than_a_batch(ramp: Stairs | Line, total: int) -> None:
    walked = list(steps(ramp, total))
    assert [t for t, _ in walked] == [tokens_before(ramp, k) for k in range(len(walked))]
    assert all(b == batch_at(ramp, t) for t, b in walked)
    end = sum(b for _, b in walked)
    assert total <= end < total + walked[-1][1]
    assert steps_for(ramp, total) == len(walked)
    assert [b for _, b in walked] == sorted(b for _, b in walked)


def test_a_line_takes_as_many_steps_as_its_differential_equation() -> None:
    """dn = dt / (a + (b - a) t / T): T ln(b / a) / (b - a) steps until T."""
    line = Line(first=1000, last=5000, over=4_000_000)
    assert steps_for(line, line.over) == pytest.approx(4_000_000 * log(5) / 4000, rel=2e-3)


def test_every_field_changes_the_batches() -> None:
    a = Line(first=16, last=64, over=1000, grain=4)
    changes: tuple[dict[str, int], ...] = ({}, {"first": 8}, {"last": 128}, {"over": 2000}, {"grain": 16})
    curves = [list(islice(steps(a.replace(**c), 4000), 60)) for c in changes]
    assert all(curves[0] != c for c in curves[1:])
    s = Stairs(since=(0, 100), batches=(10, 20))
    assert list(steps(s, 300)) != list(steps(s.replace(since=(0, 50)), 300))
    assert list(steps(s, 300)) != list(steps(s.replace(batches=(10, 30)), 300))


def test_wrong_ramps_are_refused() -> None:
    for since in ((0,), (1, 2), (0, 0), (5, 0)):
        with pytest.raises(ValueError, match="rising entry"):
            Stairs(since=since, batches=(1, 2))
    with pytest.raises(ValueError, match="must divide"):
        Line(first=10, last=20, over=5, grain=3)
    with pytest.raises(UsageError, match="must be >= 0"):
        batch_at(V3, -1)
