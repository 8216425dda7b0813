"""Conformance: any Stream is a pure function of k whose rows are cut, without loss, from the documents it names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from upslope.tokens.mixture import Mixture
from upslope.tokens.shards import TokenShards
from upslope.tokens.stream import Sample, Stream
from upslope.tokens.tokenizer import train_bpe
from upslope.train.build import of_stream

LENGTH, ROWS = 24, 120
Make = Callable[[int, int], Stream]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> TokenShards:
    root = tmp_path_factory.mktemp("stream")
    texts = {"long": [f"document {i} " * (3 + i % 5) for i in range(60)], "short": [f"{i} is {i * i}" for i in range(90)]}
    return TokenShards.write(root / "shards", train_bpe([t for part in texts.values() for t in part], 300, root / "tokenizer"), texts)


@pytest.fixture(params=[Stream])
def make(request: pytest.FixtureRequest, shards: TokenShards, tmp_path: Path) -> Make:
    """(seed, length) → a fresh stream of the implementation."""
    mixture = Mixture.write(tmp_path / "mixture", {"long": 0.7, "short": 0.3}, tokens=LENGTH * ROWS)
    return lambda seed, length: request.param([shards], mixture, length, seed=seed)


def bits(s: Sample) -> tuple[bytes, bytes, object]:
    return s.ids.tobytes(), s.seg.tobytes(), s.pieces


def test_a_sample_is_a_function_of_k_alone(make: Make) -> None:
    one = [bits(make(0, LENGTH).sample(k)) for k in (7, 3, 100)]
    other = make(0, LENGTH)
    assert [bits(other.sample(k)) for k in (100, 7, 3)] == [one[2], one[0], one[1]]
    assert bits(make(1, LENGTH).sample(7)) != one[0]


def test_rows_are_full_and_segments_are_numbered_in_order(make: Make) -> None:
    stream = make(0, LENGTH)
    for k in range(ROWS):
        s = stream.sample(k)
        assert s.ids.shape == s.seg.shape == (LENGTH,)
        assert s.ids.dtype == s.seg.dtype == np.int32
        assert s.seg[0] == 0
        assert set(np.diff(s.seg).tolist()) <= {0, 1}
        assert len(s.pieces) == int(s.seg[-1]) + 1


def test_every_segment_is_the_piece_of_the_document_that_it_names(make: Make, shards: TokenShards) -> None:
    stream = make(0, LENGTH)
    for k in range(0, ROWS, 7):
        s = stream.sample(k)
        for i, piece in enumerate(s.pieces):
            row = int(np.flatnonzero(shards.docs(piece.source) == piece.doc)[0])
            start = int(shards.offsets(piece.source)[row])
            assert s.ids[s.seg == i].tolist() == shards.tokens(piece.source)[start + piece.start : start + piece.stop].tolist()


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_that_share_the_rows_see_the_same_steps(make: Make, world: int) -> None:
    whole = [bits(make(0, LENGTH).sample(k)) for k in range(24)]
    ranks = [make(0, LENGTH) for _ in range(world)]
    assert [bits(ranks[k % world].sample(k)) for k in range(24)] == whole


def test_an_epoch_reads_every_document(make: Make, shards: TokenShards) -> None:
    stream = make(0, LENGTH)
    seen = {(p.source, p.doc) for k in range(1000) for p in stream.sample(k).pieces}
    assert {d for s, d in seen if s == "short"} == set(shards.docs("short").tolist())
    assert {d for s, d in seen if s == "long"} == set(shards.docs("long").tolist())


def test_another_length_reads_the_same_tokens(make: Make, shards: TokenShards) -> None:
    s = make(0, 2 * LENGTH).sample(5)
    assert len(s.ids) == 2 * LENGTH
    piece = s.pieces[0]
    row = int(np.flatnonzero(shards.docs(piece.source) == piece.doc)[0])
    start = int(shards.offsets(piece.source)[row])
    assert s.ids[s.seg == 0].tolist() == shards.tokens(piece.source)[start + piece.start : start + piece.stop].tolist()


def test_a_step_is_a_batch_that_keeps_the_rules(make: Make) -> None:
    b = of_stream(make(0, LENGTH), 16, 8)
    b.check()
    assert len(b) == 8 * LENGTH
    assert sorted(set(b.origin.tolist())) == list(range(16, 24))
