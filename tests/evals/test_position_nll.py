"""NLL by position: flat for a bigram, in closed form for a model that copies, with a jump where its rotation breaks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.evals.constructed import TURN, bench, bigram, copying
from upslope.config import UsageError
from upslope.evals.artifacts import Row
from upslope.evals.position_nll import BEYOND, NLL, PositionNll, edges, summary, text
from upslope.machine.rng import rng
from upslope.model.transformer import Transformer
from upslope.stats.intervals import mean_t
from upslope.train.extension import Extension, Interpolate

V, EOS, LENGTH = 24, 23, 8 * TURN
COPIED = 0.95
LOGIT = 6.0


def documents(count: int = 12, size: int = LENGTH + 5) -> list[np.ndarray]:
    """x[t + 1] = x[t - 1] with probability COPIED, else anything."""
    made = []
    for i in range(count):
        g = rng(i, "copies")
        ids = g.integers(0, EOS, size)
        for t in range(2, size):
            if g.random() < COPIED:
                ids[t] = ids[t - 2]
        made.append(ids)
    return made


def rows_of(model: Transformer, docs: list[np.ndarray] | None = None, /, **fields: Any) -> list[Row]:
    docs = documents() if docs is None else docs
    return PositionNll.model_validate({"length": LENGTH, **fields}).run(bench(model, {"x": docs, "short": [docs[0][:9]]}, EOS))


def test_a_bigram_is_flat_and_its_buckets_are_the_means_of_its_table() -> None:
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    logp = torch.log_softmax(table.double(), -1).numpy()
    docs = [rng(i, "iid").integers(0, EOS, LENGTH) for i in range(20)]
    found = summary(rows_of(bigram(table), docs))
    costs = np.stack([-logp[d[:-1], d[1:]] for d in docs])  # cost of the token with t before it at t - 1
    for b in found["buckets"]:
        assert b["nll"] == pytest.approx(costs[:, b["from"] - 1 : b["to"]].mean(), abs=1e-4)
        if b["to"] > b["from"]:
            assert abs(b["nll"] - costs.mean()) < b["high"] - b["low"]
        want = mean_t(costs[:, b["from"] - 1 : b["to"]].mean(1))
        assert (b["low"], b["high"]) == (pytest.approx(want.low, abs=1e-4), pytest.approx(want.high, abs=1e-4))
    assert found["beyond"]["past"] == TURN and found["beyond"]["low"] < 0 < found["beyond"]["high"]


def closed_form(docs: list[np.ndarray], start: int, stop: int) -> float:
    """Mean cost of positions start ... stop - 1 for a model that gives the token before the last one LOGIT more than any other."""
    rest = np.log(np.exp(LOGIT) + V - 1)
    return float(np.mean([rest - LOGIT * (d[start:stop] == d[start - 2 : stop - 2]) for d in docs]))


def test_a_copy_model_costs_what_its_formula_says_and_jumps_past_its_length_until_it_is_extended() -> None:
    docs = documents()
    broken = summary(rows_of(copying(V, LOGIT), docs))
    mended = summary(rows_of(copying(V, LOGIT, Extension(context=LENGTH, method=Interpolate())), docs, trained=TURN))
    inside = [b for b in broken["buckets"] if b["from"] >= 2 and b["to"] < TURN]
    assert len(inside) == 4
    for b in inside:
        assert b["nll"] == pytest.approx(closed_form(docs, b["from"], b["to"] + 1), abs=2e-3)
    for b in mended["buckets"]:
        if b["from"] >= 2:
            assert b["nll"] == pytest.approx(closed_form(docs, b["from"], b["to"] + 1), abs=2e-3)
    assert broken["beyond"]["low"] > 0.3
    assert abs(mended["beyond"]["value"]) < 0.1
    assert mended["beyond"]["past"] == broken["beyond"]["past"] == TURN


def test_the_rise_is_paired_by_document() -> None:
    docs = documents()
    rows = rows_of(copying(V, LOGIT), docs)
    nll = {r.item: r.value for r in rows if r.metric == NLL}
    beyond = [r for r in rows if r.metric == BEYOND]
    assert len(beyond) == len(docs)
    for r in beyond:
        doc = r.item.split("/", 1)[1]
        sizes, means = zip(*[(e - s, nll[f"{s:07d}-{e - 1:07d}/{doc}"]) for s, e in ((32, 64), (64, 128), (128, 256))], strict=True)
        last = nll[f"{16:07d}-{31:07d}/{doc}"]
        assert r.value == pytest.approx(np.average(means, weights=sizes) - last, abs=1e-9)


@pytest.mark.parametrize(("length", "per_octave", "trained"), [(64, 1, 0), (100, 1, 48), (1000, 3, 128), (2, 1, 0), (512, 2, 512)])
def test_buckets_hold_every_position_once(length: int, per_octave: int, trained: int) -> None:
    bounds = edges(length, per_octave, trained)
    assert bounds[0] == 1 and bounds[-1] == length and sorted(set(bounds)) == bounds
    ratio = 2 ** (1 / per_octave)
    assert all(b <= a * ratio + 1.5 for a, b in zip(bounds, bounds[1:], strict=False))
    assert trained in (0, length) or trained in bounds


@pytest.mark.parametrize(("field", "value"), [("length", 128), ("documents", 3), ("per_octave", 2), ("trained", 64)])
def test_every_field_changes_the_rows(field: str, value: int) -> None:
    model = copying(V, LOGIT)
    assert rows_of(model) == rows_of(model)
    assert rows_of(model) != rows_of(model, None, **{field: value})


def test_short_documents_are_left_out_and_too_few_refused() -> None:
    docs = documents()
    found = summary(rows_of(copying(V, LOGIT), docs))
    assert {b["n"] for b in found["buckets"]} == {len(docs)}
    with pytest.raises(UsageError, match=f"0 held-out documents have 4000 tokens.*the longest has {LENGTH + 5}"):
        rows_of(copying(V, LOGIT), docs, length=4000)
    assert not [r for r in rows_of(copying(V, LOGIT), docs, length=TURN) if r.metric == BEYOND]
    shown = text(found).splitlines()
    assert len(shown) == len(found["buckets"]) + 2
    assert "past 32 tokens: +" in shown[-1]
