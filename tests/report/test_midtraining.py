"""The sections on mid-training: every number of the facts is on the page; what is missing or broken is no error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.report.fixture import Builder
from upslope.evals import needle, position_nll
from upslope.evals.artifacts import Row
from upslope.evals.readiness import Sampled, Thresholds, judge, rows_of
from upslope.report import html
from upslope.report.sections.midtraining import long_context, readiness


def context_facts() -> dict[str, Any]:
    grid = [
        Row("needle", f"{length:07d}/{depth:g}/{i:04d}", metric, value)
        for length in (128, 512)
        for depth in (0.0, 0.5)
        for i in range(4)
        for metric, value in (("correct", float(i < 3)), ("guessed", 0.0), ("lift", 1.25), ("value_nats", 0.5))
    ]
    curve = [
        Row("position_nll", f"{position_nll.bucket(a, 2 * a)}/x/{d}", "nll", 3.0 + 0.1 * d - a / 100)
        for a in (1, 2, 4, 8)
        for d in range(3)
    ]
    curve += [Row("position_nll", f"past 8/x/{d}", "beyond", 0.321 + d / 100) for d in range(3)]
    return {"needle": needle.summary(grid), "position_nll": position_nll.summary(curve)}


def probe() -> tuple[dict[str, Any], str]:
    groups = {f"f/1/{i}": [Sampled(j < i % 3, True, True, 9, 0.0, str(j)) for j in range(4)] for i in range(30)}
    verdict = judge(rows_of("readiness", groups, (1, 4), 4), Thresholds(), 4)
    return verdict.json(), verdict.text()


def test_the_numbers_are_on_the_page(tmp_path: Path) -> None:
    b = Builder(tmp_path)
    facts, (found, text) = context_facts(), probe()
    b.add("context", "long_context", facts=facts)
    b.add("ready", "readiness", facts=found, headline=text)
    record = b.record()
    shown = long_context(record)
    assert shown is not None
    for words in ("75% of 4", "needles found, by tokens", "+0.331", "128", "512", "context"):
        assert words in shown.html, words
    (chart,) = shown.charts
    assert list(chart.series[0].y) == [pytest.approx(3.1 - a / 100) for a in (1, 2, 4, 8)]
    said = readiness(record)
    assert said is not None
    for words in (text, "groups with right and wrong answers", "pass@4", ">= 20%: met", "66.7%"):
        assert words.replace(">=", "&gt;=") in said.html or words in said.html, words
    page = html.render(record)
    assert 'id="long-context"' in page and 'id="readiness"' in page
    assert "could not be drawn" not in page


def test_a_run_without_them_has_no_such_section_and_broken_facts_are_no_error(tmp_path: Path) -> None:
    b = Builder(tmp_path)
    b.add("sft", "sft")
    assert long_context(b.record()) is None and readiness(b.record()) is None
    broken: list[dict[str, Any]] = [
        {"needle": 3, "position_nll": {"buckets": [None, {"from": "x"}]}},
        {"needle": {"cells": [{}]}, "checks": "x"},
    ]
    for i, facts in enumerate(broken):
        b.add(f"c{i}", "long_context", facts=facts)
        b.add(f"r{i}", "readiness", facts={"numbers": {"mixed": {"value": None}}, **facts})
    b.add("unfinished", "readiness", state="failed")
    assert "could not be drawn" not in html.render(b.record())
