"""The charts: well-formed whatever the text, true to the numbers whatever the size."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upslope.report import svg
from upslope.report.svg import Chart, Mark, Series
from upslope.report.words import clip, esc, interval, number, percent, seconds, share, size, tight

HOSTILE = '<script>alert("x")</script> & \x00\x1b[31m \u202egnp.exe \ud800'


def parse(text: str) -> ET.Element:
    """The root of a piece of XHTML."""
    return ET.fromstring(text)


def tags(root: ET.Element, name: str) -> list[ET.Element]:
    """All elements of a name."""
    return [e for e in root.iter() if e.tag == name]


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_any_text_is_safe_inside_elements_and_attributes(text: str) -> None:
    root = parse(f'<p title="{esc(text)}">{esc(text)}</p>')
    assert len(root) == 0
    assert not set("\x00\x1b\u202e\u2066").intersection("".join(root.itertext()))


def test_hostile_names_stay_text_in_every_kind_of_picture() -> None:
    bad = HOSTILE
    pictures = [
        svg.line_chart(
            Chart(bad, bad, [Series(bad, [0, 1], [1, 2]), Series("b", [0, 1], [2, 1], tone=2)], bad, bad, [Mark(0.5, bad)], [(1.5, bad)])
        ),
        svg.stacked(bad, [(bad, 1, bad), ("b", 2, "c")]),
        svg.table(bad, [bad, "b"], [[esc(bad), esc(bad)]]),
        svg.heat(bad, [bad], [bad], {(bad, bad): (0.5, bad)}, bad),
    ]
    for picture in pictures:
        root = parse(picture)
        assert not tags(root, "script"), picture
        assert "alert" in "".join(root.itertext())


def test_a_chart_is_where_its_numbers_are() -> None:
    root = parse(svg.line_chart(Chart("k", "t", [Series("a", [0, 50, 100], [0.0, 1.0, 0.5])], percent=True)))
    path = next(e for e in tags(root, "path") if e.get("class") == "line t1")
    points = [tuple(map(float, p.split())) for p in path.get("d", "")[1:].split("L")]
    assert points[0][0] == svg.LEFT and points[2][0] == svg.WIDTH - svg.RIGHT
    assert points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2, abs=0.1)
    top, bottom, middle = points[1][1], points[0][1], points[2][1]
    assert top < middle < bottom and middle == pytest.approx((top + bottom) / 2, abs=0.1)
    desc = next(iter(tags(root, "desc"))).text or ""
    assert "0 % at step 0" in desc and "50 % at step 100" in desc


@pytest.mark.parametrize("y", [[3.0], [2.0, 2.0, 2.0], [0.0, 0.0], [-1.0, 1e-9], [1e-12, 1e12], [5e-324, 1e300]])
def test_every_range_gives_finite_coordinates(y: list[float]) -> None:
    for chart in (
        Chart("k", "t", [Series("a", list(range(len(y))), y)]),
        Chart("k", "t", [Series("a", list(range(len(y))), y)], zero=True),
    ):
        text = svg.line_chart(chart)
        assert "nan" not in text and "inf" not in text
        assert tags(parse(text), "text")


def test_no_points_no_chart() -> None:
    assert svg.line_chart(Chart("k", "t", [])) == "" and svg.line_chart(Chart("k", "t", [Series("a", [], [])])) == ""


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=900))
@settings(max_examples=25, deadline=None)
def test_thinning_keeps_the_ends_and_the_extremes(y: list[float]) -> None:
    x = list(map(float, range(len(y))))
    a, b = svg.thin(x, y)
    assert len(a) <= max(svg.POINTS, 1) and a == sorted(a)
    assert (a[0], a[-1]) == (x[0], x[-1]) and min(b) == min(y) and max(b) == max(y)
    assert all(y[int(i)] == v for i, v in zip(a, b))


def test_a_running_median_has_no_lag_and_forgets_spikes() -> None:
    line = [float(i) for i in range(100)]
    assert svg.running_median(line, line, 9)[1][10:90] == line[10:90]
    line[50] = 1e9
    assert max(svg.running_median(line, line, 9)[1]) < 100
    x = [float(i) for i in range(5001)]
    at, course = svg.running_median(x, x, 200)
    assert len(at) <= svg.POINTS // 2 and (at[0], at[-1]) == (0.0, 5000.0) and course[1:-1] == pytest.approx(at[1:-1], abs=51)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
@settings(max_examples=100, deadline=None)
def test_ticks_are_inside_and_not_too_many(low: float, span: float) -> None:
    values = svg.ticks(low, low + span)
    slack = span * 1e-6 + abs(low) * 1e-12
    assert len(values) <= 10
    assert all(low - slack <= v <= low + span + slack for v in values)
    assert all(a < b for a, b in zip(values, values[1:])) or span < abs(low) * 1e-12


def test_a_mark_outside_the_chart_is_not_drawn_and_labels_do_not_collide() -> None:
    marks = [Mark(50, "resumed"), Mark(51, "spike"), Mark(1000, "far away")]
    root = parse(svg.line_chart(Chart("k", "t", [Series("a", list(range(100)), list(range(100)))], marks=marks)))
    lines = [e for e in tags(root, "line") if "mark" in e.get("class", "")]
    labels = [e.text for e in tags(root, "text") if "mark" in e.get("class", "")]
    assert len(lines) == 2 and labels == ["resumed"]


def test_bars_and_intervals_are_proportional_and_clamped() -> None:
    bar = parse(svg.bar(25, 100, ghost=50))
    assert [e.get("width") for e in tags(bar, "rect")] == ["50.00%", "25.00%"]
    assert parse(svg.bar(5, 0))[0].get("width") == "0.00%"
    dots = parse(svg.dot(0.4, -0.1, 1.2, rule=0.5))
    span = next(e for e in tags(dots, "line") if "span" in e.get("class", ""))
    assert (span.get("x1"), span.get("x2")) == ("0.00%", "100.00%")
    assert next(iter(tags(dots, "circle"))).get("cx") == "40.00%"


def test_a_stacked_bar_fills_its_width() -> None:
    root = parse(svg.stacked("t", [("a", 1, "1"), ("b", 3, "3")]))
    rects = tags(root, "rect")
    assert [e.get("width") for e in rects] == ["25.000%", "75.000%"] and rects[1].get("x") == "25.000%"
    assert svg.stacked("t", [("a", 0, "0")]) == ""


def test_rails_draw_each_needed_edge_once_and_never_share_a_lane() -> None:
    order = ["a", "b", "c", "d", "e"]
    edges = {"b": ("a",), "c": ("a",), "d": ("b", "c", "a"), "e": ("d", "a")}
    assert svg.reduce_edges(order, edges) == {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["d"]}
    rows, across, lanes = svg.rails(order, edges)
    assert len(rows) == 5 and lanes == 2 and all(parse(r).tag == "svg" for r in rows)
    assert across[0] == across[1] or across[0] == across[2]
    assert across[1] != across[2]


@given(st.integers(2, 14), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_reduced_edges_keep_what_reaches_what(n: int, random: object) -> None:
    draw = np.random.default_rng(random.randrange(2**32))  # type: ignore[attr-defined]
    order = [str(i) for i in range(n)]
    edges = {str(i): tuple(str(j) for j in range(i) if draw.random() < 0.4) for i in range(n)}

    def reach(e: dict[str, list[str]] | dict[str, tuple[str, ...]]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for name in order:
            found[name] = set(e.get(name, ())).union(*(found[p] for p in e.get(name, ())))
        return found

    reduced = svg.reduce_edges(order, edges)
    assert reach(reduced) == reach(edges)
    rows, across, lanes = svg.rails(order, edges)
    assert all(0 < x < 1 for x in across) and lanes <= n and len(rows) == n


def test_numbers_read_as_people_write_them() -> None:
    assert [number(x) for x in (0, 1612, 12345, 1_800_000, 0.0041, 2.666, 3e-5, 1.0, 643_000)] == [
        "0",
        "1,612",
        "12,345",
        "1.8M",
        "0.0041",
        "2.67",
        "3.00e-5",
        "1",
        "643k",
    ]
    assert number(math.nan) == number(math.inf) == percent(math.nan) == "not a number"
    assert [seconds(x) for x in (0.01, 0.44, 67.2, 263, 7800)] == ["< 0.1 s", "0.4 s", "67 s", "4 min 23 s", "2 h 10 min"]
    assert size(999) == "999 B" and size(5_200_000) == "5.2 MB"
    assert share(0.336, 0.293, 0.382, 440) == "33.6 % [29.3, 38.2], n = 440" and interval(math.nan, 1) == ""
    assert tight("33.6 % [29.3, 38.2], n = 440") == "33.6\u00a0% [29.3,\u00a038.2], n\u00a0=\u00a0440"
    assert clip("x" * 50, 10) == "x" * 9 + "…"
