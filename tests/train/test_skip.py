"""The skip rule against planted spikes; its state survives a stop to the bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from upslope.train.skip import Back, Decision, Go, Rewind, Skip, SkipRule, Watch, decide

RULE = SkipRule()


def series(n: int, seed: int = 0) -> list[tuple[float, float]]:
    rng = np.random.default_rng(seed)
    return [(float(3 - k / n + 0.05 * rng.standard_normal()), float(1 + 0.1 * rng.standard_normal())) for k in range(n)]


def run(rule: SkipRule, values: list[tuple[float, float]], watch: Watch | None = None, start: int = 0) -> tuple[list[Decision], Watch]:
    watch, found = watch or Watch(), []
    for k, (loss, norm) in enumerate(values):
        decision, watch = decide(rule, watch, start + k, loss, norm)
        found.append(decision)
    return found, watch


def test_clean_series_are_let_through() -> None:
    for seed in range(5):
        found, _ = run(RULE, series(400, seed))
        assert found == [Go()] * 400
    assert run(RULE, [(1.0, 1.0)] * 300)[0] == [Go()] * 300
    assert run(RULE, [(0.1 + k * 1e-18, 0.3) for k in range(300)])[0] == [Go()] * 300


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("value", [50.0, math.nan, math.inf])
def test_planted_spikes_of_loss_or_norm_are_skipped_and_only_they(column: int, value: float) -> None:
    values = series(300)
    for at in (100, 101, 250):
        values[at] = (value, values[at][1]) if column == 0 else (values[at][0], value)
    found, _ = run(RULE, values)
    assert [k for k, d in enumerate(found) if isinstance(d, Skip)] == [100, 101, 250]


def test_the_limit_is_mean_and_six_sample_deviations_of_the_last_window() -> None:
    values = series(200)
    recent = np.array([v[0] for v in values[-128:]])
    limit = recent.mean() + 6 * recent.std(ddof=1)
    _, watch = run(RULE, values)
    assert isinstance(decide(RULE, watch, 200, limit + 1e-9, 1.0)[0], Skip)
    assert decide(RULE, watch, 200, limit - 1e-9, 1.0)[0] == Go()
    assert decide(RULE, watch, 200, -100.0, 1.0)[0] == Go()


def test_each_field_of_the_rule_counts() -> None:
    values = series(200)
    _, watch = run(RULE, values)
    assert isinstance(decide(RULE, watch, 200, 2.8, 1.0)[0], Skip) is False
    assert isinstance(decide(SkipRule(sigmas=1.0), watch, 200, 2.8, 1.0)[0], Skip)
    assert isinstance(decide(RULE, run(RULE, values[:63])[1], 63, 50.0, 1.0)[0], Go)
    assert isinstance(decide(SkipRule(least=63), run(RULE, values[:63])[1], 63, 50.0, 1.0)[0], Skip)
    assert len(run(RULE, values)[1].losses) == 128
    assert len(run(SkipRule(window=16, least=8), values)[1].losses) == 16


def test_a_new_level_is_accepted_after_patience_but_never_a_non_finite_one() -> None:
    values = series(100) + [(9.0, 1.0)] * 30
    for patience in (4, 10):
        found, _ = run(SkipRule(patience=patience), values)
        assert [isinstance(d, Skip) for d in found[100:]] == [True] * (patience - 1) + [False] * (31 - patience)
    found, _ = run(RULE, series(100) + [(math.nan, 1.0)] * 30)
    assert all(isinstance(d, Skip) for d in found[100:])


@pytest.mark.parametrize(("back", "to"), [(Back(), 100), (Back(back=30), 200), (Back(anchor=50), 150), (Back(back=0, anchor=7), 245)])
def test_spikes_in_a_row_go_back_to_an_anchor_and_pass_over_all_batches_since(back: Back, to: int) -> None:
    found, _ = run(SkipRule(back=back), series(250) + [(50.0, 1.0)] * 3)
    assert isinstance(found[250], Skip) and isinstance(found[251], Skip)
    last = found[252]
    assert isinstance(last, Rewind)
    assert (last.to_step, last.skip_batches) == (to, 253 - to)
    assert isinstance(run(SkipRule(back=Back(after=1)), [*series(250), (50.0, 1.0)])[0][-1], Rewind)


def test_going_back_takes_the_old_window_with_the_new_counts_and_ends_at_most() -> None:
    rule = SkipRule(back=Back(most=2, anchor=50, back=50))
    values = series(200)
    _, saved = run(rule, values[:100])
    watch, bad, shifts = saved, [(50.0, 1.0)] * 3, []
    for _ in range(2):
        found, now = run(rule, values[100:120] + bad, watch, 100)
        to = found[-1]
        assert isinstance(to, Rewind) and to.to_step == 50
        watch = now.rewound(saved, to)
        shifts.append(watch.shift)
        assert watch.losses == saved.losses and watch.spikes == 0
    assert shifts == [73, 146] and watch.rewinds == 2
    found, _ = run(rule, values[100:120] + bad, watch, 100)
    assert all(isinstance(d, Skip) for d in found[-3:])


def test_stopped_anywhere_and_resumed_through_json_the_decisions_are_the_same() -> None:
    values = series(300, 7)
    for at in (90, 91, 200, 201, 202):
        values[at] = (50.0, 1.0)
    rule = SkipRule(back=Back(most=9, anchor=1000))
    whole, end = run(rule, values)
    assert sum(isinstance(d, Rewind) for d in whole) == 1
    for cut in (10, 91, 201, 202):
        first, watch = run(rule, values[:cut])
        rest, last = run(rule, values[cut:], Watch.of(json.loads(json.dumps(watch.state()))), cut)
        assert first + rest == whole and last == end
