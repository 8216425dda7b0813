"""Needles: a model that can find them finds all, one whose rotation is broken past its length does not, extension mends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.evals.constructed import TURN, bench, bigram, inductive
from upslope.config import UsageError
from upslope.evals.artifacts import Row
from upslope.evals.needle import FOUND, GUESSED, LIFT, NATS_A_TOKEN, Needle, haystack, said, summary, text
from upslope.machine.rng import rng
from upslope.model.transformer import Transformer
from upslope.stats.intervals import wilson
from upslope.train.extension import Base, Extension, Interpolate, YaRN

V, EOS = 40, 39
KEYS = "abcdefghij"  # ids 0 to 9; the filler has the others


def filler(count: int = 40, size: int = 100) -> dict[str, list[np.ndarray]]:
    g = rng(3, "filler")
    return {"b": [g.integers(10, EOS, size) for _ in range(count)], "a": [g.integers(10, EOS, 7)]}


def rows_of(model: Transformer, **fields: Any) -> list[Row]:
    """The form begins with a token because the first of all sees itself as the token before it."""
    fixed = {"key": 1, "alphabet": KEYS, "samples": 6, "form": "z{key}{value}"}
    return Needle.model_validate({**fixed, **fields}).run(bench(model, filler(), EOS))


def share(rows: list[Row], metric: str = FOUND) -> float:
    return float(np.mean([r.value for r in rows if r.metric == metric]))


def test_an_induction_head_finds_every_needle_within_its_length() -> None:
    rows = rows_of(inductive(V), lengths=(16, TURN), depths=(0.0, 0.3, 0.5, 1.0))
    found = summary(rows)
    assert share(rows) == 1.0
    assert share(rows, GUESSED) < 0.2
    assert all(c["found"] == 1.0 and c["lift"] > 2.0 and c["n"] == 6 for c in found["cells"])
    assert len(found["cells"]) == 8 and [c["length"] for c in found["lengths"]] == [16, TURN]
    want = wilson(48, 48)
    assert (found["all"]["low"], found["all"]["high"]) == (round(want.low, 5), 1.0)


LONG = 16 * TURN


@pytest.mark.parametrize("method", [Interpolate(), Base(base=(LONG / 2 / np.pi) ** 2), YaRN()])
def test_past_its_length_it_fails_and_an_extension_mends_it(method: Any) -> None:
    where = {"lengths": (LONG,), "depths": (0.3, 0.6, 0.9)}
    broken = rows_of(inductive(V), **where)
    mended = rows_of(inductive(V, Extension(context=LONG, method=method)), **where)
    assert share(broken) < 0.3
    assert share(mended) == 1.0
    assert share(mended, NATS_A_TOKEN) < 0.2 < 1.0 < share(broken, NATS_A_TOKEN)


def test_a_model_without_memory_finds_none() -> None:
    rows = rows_of(bigram(torch.randn(V, V, generator=torch.Generator().manual_seed(0))), lengths=(64,), depths=(0.5,), samples=40)
    assert share(rows) <= 0.1
    assert {r.value for r in rows if r.metric == LIFT} == {0.0}  # the last token is all that it sees


def test_texts_are_as_said() -> None:
    fill = np.concatenate([d for docs in filler().values() for d in docs])
    for depth, at in ((0.0, 0), (0.5, 42), (1.0, 84)):
        h = haystack(fill, np.arange(10), rng(1, "h"), 100, depth, 2, 3, ([36], [37], [38, 38]))
        ids = h.ids.tolist()
        assert len(ids) == len(h.without) == 100
        question, needle = ids[-7:], ids[at : at + 9]
        assert needle == [*question, 38, 38]
        assert question[0] == 36 and question[3] == 37 and all(x < 10 for x in question[1:3] + question[4:])
        assert h.without[-7:].tolist() == question
        rest = ids[:at] + ids[at + 9 : -7]
        kept = h.without[:-7].tolist()
        assert rest == kept[: len(rest)]
        assert any(kept == fill[i : i + 93].tolist() for i in range(len(fill)))


def test_a_key_is_new_to_its_text() -> None:
    fill = rng(0, "few").integers(0, 4, 300)
    for i in range(50):
        h = haystack(fill, np.arange(4), rng(i, "h"), 40, 0.5, 3, 1)
        key = h.ids[-4:-1]
        hits = (np.lib.stride_tricks.sliding_window_view(h.without[:-4], 3) == key).all(1).sum()
        assert hits == 0
    with pytest.raises(UsageError, match="a longer key"):
        haystack(fill, np.arange(4), rng(0, "h"), 100, 0.5, 1, 1)
    with pytest.raises(UsageError, match="leaves none for the value"):
        haystack(fill, np.arange(9, 10), rng(0, "h"), 40, 0.5, 3, 1)
    with pytest.raises(UsageError, match="the held-out documents have 300"):
        haystack(fill, np.arange(4), rng(0, "h"), 400, 0.5, 3, 1)
    with pytest.raises(UsageError, match="do not hold a needle"):
        haystack(fill, np.arange(4), rng(0, "h"), 8, 0.5, 3, 1)


def test_the_cost_of_a_value_is_that_of_the_model_and_no_packing_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from upslope.evals import needle

    g = torch.Generator().manual_seed(1)
    table = torch.randn(V, V, generator=g)
    texts = [rng(i, "t").integers(0, V, n) for i, n in enumerate((9, 30, 12))]
    right, nats = said(bigram(table), texts, 3)
    logp = torch.log_softmax(table.double(), -1).numpy()
    for t, ok, cost in zip(texts, right, nats, strict=True):
        assert cost == pytest.approx(-np.mean([logp[t[i - 1], t[i]] for i in (-3, -2, -1)]), abs=1e-5)
        assert ok == all(logp[t[i - 1]].argmax() == t[i] for i in (-3, -2, -1))
    best = [0]
    for _ in range(5):
        best.append(int(logp[best[-1]].argmax()))
    assert said(bigram(table), [np.array(best)], 4)[0].tolist() == [True]
    monkeypatch.setattr(needle, "PACK", 10)
    np.testing.assert_allclose(said(bigram(table), texts, 3)[1], nats, atol=1e-6)


CHANGES: dict[str, Any] = {
    "lengths": (24,),
    "depths": (0.2,),
    "samples": 7,
    "key": 2,
    "value": 2,
    "alphabet": "abcd",
    "form": "z{key}y{value}",
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_rows(field: str) -> None:
    model = bigram(torch.randn(V, V, generator=torch.Generator().manual_seed(0)))  # unlike the others, it treats no two tokens alike
    fixed = {"lengths": (32,), "depths": (0.5,)}
    assert rows_of(model, **fixed) == rows_of(model, **fixed)
    assert rows_of(model, **fixed) != rows_of(model, **{**fixed, field: CHANGES[field]})


def test_wrong_forms_are_refused_and_the_grid_can_be_read() -> None:
    for form in ("{value}{key}", "{key}", "{key}{key}{value}"):
        with pytest.raises(ValidationError, match="once"):
            Needle(form=form)
    with pytest.raises(UsageError, match="no held-out documents"):
        Needle().run(bench(inductive(V), {}, EOS))
    lines = text(summary(rows_of(inductive(V), lengths=(16, 32), depths=(0.0, 1.0)))).splitlines()
    assert len(lines) == 4
    assert lines[1].split()[:3] == ["tokens", "0%", "100%"]
    assert lines[2].split()[:4] == ["16", "100", "100", "100%"]
