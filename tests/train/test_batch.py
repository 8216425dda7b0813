"""Batches: alignment, additive totals, splitting by whole segments and pairs, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.support import batch, only
from upslope.config import UsageError
from upslope.train.batch import Batch, Totals, join


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(0, 40), st.integers(0, 3))
def test_split_keeps_every_token_once_and_totals_add(sizes: list[int], tokens: int, seed: int) -> None:
    sizes = sizes + sizes[-1:] * (len(sizes) % 2)
    b = batch(tuple(sizes), seed=seed)
    parts = b.split(tokens)
    total = Totals()
    for p in parts:
        p.check()
        total = total.plus(p.totals())
        assert tokens == 0 or len(p) <= tokens or p.segments == 2
    assert total == pytest.approx(b.totals())
    assert sorted(int(o) for p in parts for o in p.origin) == list(range(len(sizes)))
    for p in parts:
        for s, o in enumerate(p.origin.tolist()):
            mine, theirs = p.seg == s, b.seg == o
            assert torch.equal(p.ids[mine], b.ids[theirs])
            assert p.imitate is not None
            assert b.imitate is not None
            assert torch.equal(p.imitate[mine], b.imitate[theirs])
            assert p.distil is not None
            assert b.distil is not None
            assert torch.equal(p.distil.logprobs[mine], b.distil.logprobs[theirs])
            assert p.ref is not None
            assert b.ref is not None
            assert p.ref[s] == b.ref[o]


def test_pairs_stay_together_even_when_far_apart() -> None:
    b = replace(batch((4, 4, 4, 4, 4, 4)), pairs=torch.tensor([[0, 5], [3, 1]]))
    parts = b.split(8)
    assert [p.origin.tolist() for p in parts] == [[0, 5], [1, 3], [2, 4]]
    assert [None if p.pairs is None else p.pairs.tolist() for p in parts] == [[[0, 1]], [[1, 0]], []]


def test_a_pair_is_never_torn() -> None:
    with pytest.raises(UsageError, match="torn"):
        batch().select(torch.tensor([0, 2]))


def test_columns_speak_where_a_weight_says_so() -> None:
    b = batch((3, 4))
    assert torch.equal(only(b).speaking(), b.pos > 0)
    some = replace(only(b, "imitate"), imitate=torch.tensor([0, 1, 0, 0, 0, 2.0, 0]))
    assert some.speaking().tolist() == [False, True, False, False, False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"imitate": torch.ones(7)}, "first token"),
        ({"imitate": torch.tensor([0, float("nan"), 0, 0, 0, 0, 0])}, "finite"),
        ({"imitate": torch.zeros(6)}, "columns"),
        ({"seg": torch.tensor([0, 0, 0, 2, 2, 2, 2])}, "steps"),
        ({"pairs": torch.tensor([[0, 7]])}, "segment 7"),
    ],
)
def test_a_batch_that_breaks_the_rules_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    b = only(batch((3, 4)))
    b.check()
    with pytest.raises(UsageError, match=message):
        replace(b, **change).check()


def test_an_empty_segment_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        Batch.of([[1, 2], []])


def test_join_renumbers() -> None:
    a, b = batch((3, 4), seed=1), batch((2, 5), seed=2)
    j = join([a, b])
    j.check()
    assert j.pairs is not None
    assert j.pairs.tolist() == [[0, 1], [2, 3]]
    assert torch.equal(j.select(torch.tensor([2, 3])).ids, b.ids)
