"""Packing by histogram is best fit decreasing: every token once, no document cut that fits, as few rows as the sequential algorithm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens.conftest import Setup
from upslope.tokens.packing import best_fit
from upslope.tokens.stream import Stream


def sequential(pieces: list[int], length: int) -> int:
    """Rows that plain best fit decreasing needs, one piece at a time."""
    rooms: list[int] = []
    for size in sorted(pieces, reverse=True):
        fits = [r for r in rooms if r >= size]
        if fits:
            rooms.remove(min(fits))
            rooms.append(min(fits) - size)
        else:
            rooms.append(length - size)
    return len(rooms)


@given(lengths=st.lists(st.integers(0, 70), max_size=60), length=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_every_token_once_and_rows_as_few_as_best_fit_decreasing(lengths: list[int], length: int) -> None:
    plan = best_fit(np.array(lengths, np.int64), length)
    seen = {(d, t) for d, b, e in zip(plan.doc, plan.begin, plan.end) for t in range(b, e)}
    assert seen == {(d, t) for d, n in enumerate(lengths) for t in range(n)} and int((plan.end - plan.begin).sum()) == sum(lengths)
    assert ((plan.tokens() > 0) & (plan.tokens() <= length)).all()
    assert plan.cut() == sum(n > length for n in lengths)
    pieces = [n % length for n in lengths if n % length]
    assert plan.rows == sequential(pieces, length) + sum(n // length for n in lengths)


def test_a_million_documents_fill_their_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(6, 1.1, 1_000_000).astype(np.int64) + 1, 100_000)
    plan = best_fit(lengths, 2048)
    assert plan.tokens().sum() == lengths.sum() and plan.tokens().sum() / (plan.rows * 2048) > 0.99


def test_packed_samples_are_whole_documents_and_an_epoch_reads_each_once(setup: Setup) -> None:
    shards, mixture = setup({"a": 60}, {"a": 1.0}, tokens=100_000)
    stream = Stream([shards], mixture, 64, seed=1, packing="best_fit")
    rows = stream.sources[0].blocks
    seen: dict[int, int] = {}
    for k in range(rows):
        sample = stream.sample(k)
        assert len(sample.ids) == len(sample.seg) <= 64 and sample.seg.max() + 1 == len(sample.pieces)
        for i, piece in enumerate(sample.pieces):
            seen[piece.doc] = seen.get(piece.doc, 0) + piece.stop - piece.start
            start = shards.offsets("a")[list(shards.docs("a")).index(piece.doc)]
            np.testing.assert_array_equal(sample.ids[sample.seg == i], shards.tokens("a")[start + piece.start : start + piece.stop])
    assert seen == dict(zip(shards.docs("a").tolist(), np.diff(shards.offsets("a")).tolist()))
    assert stream.epochs(rows)["a"] == pytest.approx(1.0)
    packed, concat = stream.packed()["a"], Stream([shards], mixture, 64, seed=1).packed()["a"]
    assert packed.cut <= concat.cut and concat.fill == 1.0 and 0.5 < packed.fill <= 1.0
    lengths, offsets = np.diff(shards.offsets("a")), shards.offsets("a")
    crossing = sum(a // 64 != (b - 1) // 64 for a, b in zip(offsets[:-1], offsets[1:]))
    assert concat.cut == crossing / len(lengths) and packed.cut == (lengths > 64).mean()
    ids = [Stream([shards], mixture, 64, seed=s, packing="best_fit").sample(0).pieces[0].doc for s in range(8)]
    assert len(set(ids)) > 1
