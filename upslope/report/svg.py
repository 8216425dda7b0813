"""Charts as text: pure functions from numbers to inline SVG (or a table with SVG cells), escaped, styled by page.css.

Two kinds. A *line chart* is drawn in a fixed box that scales as one picture. A *bar* or an *interval* is a small SVG that uses
percentages and no text, in the cell of a table: the words stay HTML, so they wrap on a phone, can be copied, and cannot overlap.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from upslope.report.words import esc, finite, number

WIDTH, HEIGHT = 400, 230
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 14, 38
POINTS = 200  # per line after thinning; each bucket of four keeps its extremes, so spikes survive


@dataclass(frozen=True)
class Series:
    """One line. x, y: equal lengths, finite. low, high: an optional band, same length. tone: colour 1-6."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    tone: int = 1
    dots: bool = False


@dataclass(frozen=True)
class Mark:
    """An event at x: a restart, a spike, a non-finite value. tone: "warn", "bad" or "note"."""

    x: float
    label: str
    tone: str = "warn"


@dataclass(frozen=True)
class Chart:
    """A line chart. levels: horizontal lines (value, label), such as chance. percent: y is a share, shown as percent."""

    key: str
    title: str
    series: Sequence[Series]
    x_label: str = "step"
    y_label: str = ""
    marks: Sequence[Mark] = ()
    levels: Sequence[tuple[float, str]] = ()
    percent: bool = False
    zero: bool = False
    smooth: bool = False


def thin(x: Sequence[float], y: Sequence[float], points: int = POINTS) -> tuple[list[float], list[float]]:
    """At most about `points` points: each bucket keeps its first, lowest, highest and last, so that no spike is lost."""
    if len(x) <= points:
        return list(x), list(y)
    keep: set[int] = set()
    buckets = max(1, points // 4)
    for b in range(buckets):
        a, z = b * len(x) // buckets, (b + 1) * len(x) // buckets
        inside = range(a, z)
        keep |= {a, z - 1, min(inside, key=lambda i: y[i]), max(inside, key=lambda i: y[i])}
    order = sorted(keep)
    return [x[i] for i in order], [y[i] for i in order]


def running_median(x: Sequence[float], y: Sequence[float], window: int, places: int = POINTS // 2) -> tuple[list[float], list[float]]:
    """The median of the `window` values around each of at most `places` evenly spread points (fewer values at the ends).

    The course of a series, without lag and without its spikes. Returns (x, median), the first and last point included.
    """
    half, last = max(1, window // 2), len(y) - 1
    at = list(range(len(y))) if len(y) <= places else sorted({round(i * last / (places - 1)) for i in range(places)})
    return [x[i] for i in at], [statistics.median(y[max(0, i - half) : i + half + 1]) for i in at]


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round values (1, 2, 2.5 or 5 × 10^k) inside [low, high]; at least two where the range is not empty."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / about
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(m * base for m in (1, 2, 2.5, 5, 10) if m * base >= raw * 0.999)
    values = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [0.0 if abs(v) < step * 1e-9 else v for v in values]


def _range(values: Sequence[float], zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        pad = abs(high) * 0.1 or 1.0
        return (0.0, high + pad) if zero and high >= 0 else (low - pad, high + pad)
    pad = (high - low) * 0.05
    return (low if zero and low == 0 else low - pad), high + pad


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _said(chart: Chart) -> str:
    parts = []
    for s in chart.series:
        show = _tick(chart)
        best, worst = min(s.y), max(s.y)
        parts.append(
            f"{s.name}: {show(s.y[0])} at {chart.x_label} {number(s.x[0])}, {show(s.y[-1])} at {chart.x_label} {number(s.x[-1])}, "
            f"between {show(best)} and {show(worst)}"
        )
    parts += [f"{m.label} at {chart.x_label} {number(m.x)}" for m in chart.marks]
    return "; ".join(parts) + "."


def _tick(chart: Chart) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:.3g} %") if chart.percent else number


def line_chart(chart: Chart) -> str:
    """A figure with caption, legend and SVG. Series without points are left out; with none left the result is "".

    Long series are thinned for drawing, and with `smooth` a running median is drawn over the raw line.
    """
    series = [s for s in chart.series if len(s.x)]
    if not series:
        return ""
    chart = replace(chart, series=series)
    xs = [v for s in series for v in (s.x[0], s.x[-1])]
    ys = [v for s in series for v in (*s.y, *s.low, *s.high)] + [v for v, _ in chart.levels]
    x0, x1 = min(xs), max(xs)
    if x1 == x0:
        x0, x1 = x0 - 0.5, x1 + 0.5
    y0, y1 = _range(ys, chart.zero)
    if chart.percent and min(ys) >= 0 and max(ys) <= 1:
        y0, y1 = max(y0, 0.0), min(y1, 1.0)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * width

    def py(y: float) -> float:
        return TOP + (y1 - y) / (y1 - y0) * height

    show = _tick(chart)
    grid = "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(t):.1f}" y2="{py(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{py(t) + 4:.1f}" text-anchor="end">{esc(show(t))}</text>'
        for t in ticks(y0, y1)
    )
    for t in ticks(x0, x1, 5):
        where = "start" if px(t) < LEFT + 8 else "end" if px(t) > WIDTH - RIGHT - 12 else "middle"
        grid += f'<text class="tick" x="{px(t):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{where}">{esc(number(t))}</text>'
    body = [
        f'<g class="axis">{grid}<text class="tick" x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{esc(chart.x_label)}</text></g>'
    ]
    for value, label in chart.levels:
        body.append(
            f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(value):.1f}" y2="{py(value):.1f}"/>'
            f'<text class="tick level" x="{WIDTH - RIGHT - 2}" y="{py(value) - 4:.1f}" text-anchor="end">{esc(label)}</text>'
        )
    body.append(_marks(chart.marks, px, x0, x1))
    for s in series:
        if len(s.low) == len(s.x) == len(s.high):
            edge = [(px(x), py(y)) for x, y in zip(s.x, s.high)] + [(px(x), py(y)) for x, y in zip(reversed(s.x), reversed(s.low))]
            body.append(f'<path class="band t{s.tone}" d="{_path(edge)}Z"/>')
        smooth = chart.smooth and len(s.x) >= 60
        body.append(
            f'<path class="line t{s.tone}{" raw" if smooth else ""}" d="{_path([(px(x), py(y)) for x, y in zip(*thin(s.x, s.y))])}"/>'
        )
        if smooth:
            course = running_median(s.x, s.y, len(s.y) // 25)
            body.append(f'<path class="line t{s.tone} course" d="{_path([(px(x), py(y)) for x, y in zip(*course)])}"/>')
        if s.dots or len(s.x) == 1:
            body.append("".join(f'<circle class="dot t{s.tone}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="3"/>' for x, y in zip(s.x, s.y)))
    key = esc(chart.key)
    smoothed = chart.smooth and any(len(s.x) >= 60 for s in series)
    note = " Thin: as logged; thick: running median." if smoothed else ""
    unit = f'<span class="unit">{esc(chart.y_label)}.{note}</span>' if chart.y_label or note else ""
    legend = "".join(f'<span class="key t{s.tone}">{esc(s.name)}</span>' for s in series) if len(series) > 1 else ""
    return (
        f'<figure class="chart"><figcaption><b>{esc(chart.title)}</b>{unit}{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{key}-t {key}-d" data-chart="{key}">'
        f'<title id="{key}-t">{esc(chart.title)}</title><desc id="{key}-d">{esc(_said(chart))}</desc>{"".join(body)}</svg></figure>'
    )


def _marks(marks: Sequence[Mark], px: Callable[[float], float], x0: float, x1: float) -> str:
    out, last = "", -1e9
    for m in sorted(marks, key=lambda m: m.x):
        if not x0 <= m.x <= x1:
            continue
        x = px(m.x)
        out += f'<line class="mark {m.tone}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        if x - last > 6.2 * len(m.label) + 8:
            side, dx = ("end", -3) if x > WIDTH - RIGHT - 6.2 * len(m.label) else ("start", 3)
            out += f'<text class="tick mark {m.tone}" x="{x + dx:.1f}" y="{TOP + 8}" text-anchor="{side}">{esc(m.label)}</text>'
            last = x
    return out


def plotted(chart: Chart) -> dict[str, object]:
    """The chart's numbers as JSON, as drawn (thinned): what the page embeds, and what its script reads."""
    series = []
    for s in chart.series:
        x, y = thin(s.x, s.y)
        series.append(
            {
                "name": s.name,
                "tone": s.tone,
                "x": [_short(v) for v in x],
                "y": [_short(v) for v in y],
                "low": [_short(v) for v in s.low],
                "high": [_short(v) for v in s.high],
            }
        )
    return {
        "title": chart.title,
        "x_label": chart.x_label,
        "y_label": chart.y_label,
        "percent": chart.percent,
        "zero": chart.zero,
        "smooth": chart.smooth,
        "series": series,
        "marks": [{"x": m.x, "label": m.label, "tone": m.tone} for m in chart.marks],
        "levels": [list(v) for v in chart.levels],
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def bar(value: float, top: float, tone: str = "t1", ghost: float | None = None) -> str:
    """A horizontal bar of length value / top for a table cell; `ghost` is a fainter bar behind it, on the same scale."""

    def width(v: float) -> float:
        return 100.0 * min(1.0, max(0.0, v / top)) if top > 0 else 0.0

    behind = f'<rect class="ghost" width="{width(ghost):.2f}%" height="100%"/>' if ghost is not None else ""
    return f'<svg class="bar" aria-hidden="true">{behind}<rect class="{tone}" width="{width(value):.2f}%" height="100%"/></svg>'


def dot(value: float, low: float | None, high: float | None, rule: float | None = None, tone: str = "t1", top: float = 1.0) -> str:
    """A point with its interval on [0, top], and a vertical rule (chance, a threshold), for a table cell."""

    def at(v: float) -> float:
        return 100.0 * min(1.0, max(0.0, v / top)) if top > 0 else 0.0

    parts = ['<line class="base" x1="0" x2="100%" y1="50%" y2="50%"/>']
    if rule is not None:
        parts.append(f'<line class="rule" x1="{at(rule):.2f}%" x2="{at(rule):.2f}%" y1="0" y2="100%"/>')
    if low is not None and high is not None:
        parts.append(f'<line class="span {tone}" x1="{at(low):.2f}%" x2="{at(high):.2f}%" y1="50%" y2="50%"/>')
    parts.append(f'<circle class="{tone}" cx="{at(value):.2f}%" cy="50%" r="4.5"/>')
    return f'<svg class="dots" aria-hidden="true">{"".join(parts)}</svg>'


def stacked(title: str, parts: Sequence[tuple[str, float, str]], tones: Sequence[str] = ()) -> str:
    """One bar cut into parts (name, amount, words for it), with a legend that carries the numbers."""
    total = sum(max(0.0, v) for _, v, _ in parts)
    if total <= 0:
        return ""
    x, rects, keys = 0.0, "", ""
    for i, (name, value, words) in enumerate(parts):
        tone = tones[i] if i < len(tones) else f"t{i % 6 + 1}"
        width = 100.0 * max(0.0, value) / total
        rects += f'<rect class="{tone}" x="{x:.3f}%" width="{width:.3f}%" height="100%"><title>{esc(name)}: {esc(words)}</title></rect>'
        keys += f'<span class="key {tone}">{esc(name)} <small>{esc(words)}</small></span>'
        x += width
    bars = f'<svg class="stacked" role="img" aria-label="{esc(title)}">{rects}</svg>'
    return f'<figure class="stack">{bars}<figcaption>{keys}</figcaption></figure>'


def rails(order: Sequence[str], edges: Mapping[str, Sequence[str]]) -> tuple[list[str], list[float], int]:
    """A graph drawn beside the rows of a table: one SVG a row, a node's place across (0-1), and the number of lanes.

    order: nodes, each after all that it reads. edges: node → nodes it reads. Only edges that no longer path implies are drawn
    (a transitive reduction). A node keeps its lane until the last row that reads it; a row takes over the lane of a parent that
    ends there, else the first free one. Rows stretch with their text: lines are strokes that do not scale.
    """
    place = {name: i for i, name in enumerate(order)}
    reads = reduce_edges(order, edges)
    until = {name: max([place[c] for c in order if name in reads[c]], default=place[name]) for name in order}
    lane: dict[str, int] = {}
    busy: dict[int, str] = {}
    before: list[dict[int, str]] = []
    for i, name in enumerate(order):
        before.append(dict(busy))
        ending = [p for p in reads[name] if until[p] == i]
        own = min((lane[p] for p in ending), default=-1)
        for p in ending:
            busy.pop(lane[p])
        if own < 0:
            own = next(k for k in range(len(order) + 1) if k not in busy)
        lane[name] = own
        if until[name] > i:
            busy[own] = name
    lanes = max(lane.values(), default=0) + 1

    def at(k: int) -> float:
        return (k + 0.5) / lanes * 100

    rows = []
    for i, name in enumerate(order):
        x, parts = at(lane[name]), []
        for k, other in sorted(before[i].items()):
            if until[other] > i:
                parts.append(f"M{at(k):.1f} 0V100")
            if other in reads[name]:
                parts.append(f"M{at(k):.1f} 0V50" if k == lane[name] else f"M{at(k):.1f} 0C{at(k):.1f} 40 {x:.1f} 10 {x:.1f} 50")
        if until[name] > i:
            parts.append(f"M{x:.1f} 50V100")
        rows.append(
            f'<svg class="rail" viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true">'
            f'<path d="{"".join(parts) or "M0 0"}"/></svg>'
        )
    return rows, [at(lane[name]) / 100 for name in order], lanes


def reduce_edges(order: Sequence[str], edges: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The edges that no longer path implies. Unknown names are ignored."""
    known = set(order)
    above: dict[str, set[str]] = {}
    out: dict[str, list[str]] = {}
    for name in order:
        direct = [p for p in dict.fromkeys(edges.get(name, ())) if p in known and p in above]
        implied = set().union(*(above[p] for p in direct)) if direct else set()
        out[name] = [p for p in direct if p not in implied]
        above[name] = implied | set(direct)
    return out


def table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    wide: Sequence[int] = (),
    numeric: Sequence[int] = (),
    kind: str = "",
) -> str:
    """A table that scrolls inside its box. Cells are HTML (already escaped); caption and columns are escaped here.

    wide: columns that take the free width (bars). numeric: columns set right. The first column is the row's header.
    """
    if not rows:
        return ""

    def mark(i: int) -> str:
        return ' class="wide"' if i in wide else ' class="num"' if i in numeric else ""

    head = "".join(f'<th scope="col"{mark(i)}>{esc(c)}</th>' for i, c in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f'<th scope="row"{mark(0)}>{c}</th>' if i == 0 else f"<td{mark(i)}>{c}</td>" for i, c in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(caption)}"><table class="{kind}">'
        f"<caption><span>{esc(caption)}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def heat(
    caption: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], tuple[float, str]], corner: str = ""
) -> str:
    """A table whose cells are shaded by a share in [0, 1]; the words in a cell are always there too. Missing cells say so."""
    body = []
    for r in rows:
        line = [esc(r)]
        for c in columns:
            cell = cells.get((r, c))
            value = finite(cell[0]) if cell else None
            if cell is None or value is None:
                line.append('<span class="heat none">—</span>')
            else:
                line.append(f'<span class="heat" style="--v:{min(1.0, max(0.0, value)):.3f}">{esc(cell[1])}</span>')
        body.append(line)
    return table(caption, [corner, *columns], body, kind="heatmap")
