from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokens.conftest import Setup
from upslope.config import UsageError
from upslope.tokens.mixture import Mixture
from upslope.tokens.shards import TokenShards
from upslope.tokens.stream import WINDOW, Sample, Stream, permute
from upslope.tokens.tokenizer import Tokenizer


def key(s: Sample) -> tuple[bytes, bytes, tuple[object, ...]]:
    return s.ids.tobytes(), s.seg.tobytes(), s.pieces


@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=40, deadline=None)
def test_feistel_is_a_permutation(n: int, seed: int) -> None:
    assert sorted(permute(i, n, seed) for i in range(n)) == list(range(n))


def test_feistel_looks_random_and_depends_on_the_key() -> None:
    n = 4096
    a = np.array([permute(i, n, 1) for i in range(n)])
    b = np.array([permute(i, n, 2) for i in range(n)])
    assert abs(np.corrcoef(np.arange(n), a)[0, 1]) < 0.05
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
    assert np.abs(np.diff(a)).mean() > n / 4  # neighbours do not stay neighbours


def test_sample_is_pure_whatever_was_asked_before(setup: Setup) -> None:
    shards, mixture = setup({"a": 300, "b": 200}, {"a": 0.3, "b": 0.7}, tokens=400_000)
    one = Stream([shards], mixture, 32, seed=1)
    first = [key(one.sample(k)) for k in range(200)]
    order = np.random.default_rng(0).permutation(200)
    two = Stream([shards], mixture, 32, seed=1)
    two.sample(11_000)  # another window first
    for k in order:
        assert key(two.sample(int(k))) == first[k]
    assert key(Stream([shards], mixture, 32, seed=1).sample(177)) == first[177]  # a resume at 177
    assert [key(Stream([shards], mixture, 32, seed=2).sample(k)) for k in range(20)] != first[:20]


def test_any_world_size_sees_the_same_samples(setup: Setup) -> None:
    shards, mixture = setup({"a": 300, "b": 200}, {"a": 0.5, "b": 0.5})
    whole = [key(Stream([shards], mixture, 16, seed=3).sample(k)) for k in range(60)]
    for world in (2, 3, 5):
        ranks = [Stream([shards], mixture, 16, seed=3) for _ in range(world)]
        assert [key(ranks[k % world].sample(k)) for k in range(60)] == whole


def test_windows_join_without_gap_or_repeat(setup: Setup) -> None:
    weights = {"a": 1.0, "b": 0.07, "c": ((0.0, 0.0), (1.0, 2.0))}
    shards, mixture = setup({"a": 9, "b": 9, "c": 9}, weights, tokens=3 * WINDOW * 16)
    stream = Stream([shards], mixture, 16, seed=0)
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for number in range(4):
        window = stream._window(number)
        assert len(window.sources) == WINDOW
        assert window.base.tolist() == [len(seen[s]) for s in range(3)]
        for s, unit in zip(window.sources.tolist(), window.units.tolist(), strict=True):
            seen[s].append(unit)
    assert all(units == list(range(len(units))) for units in seen.values())
    assert sum(map(len, seen.values())) == 4 * WINDOW


@given(weights=st.lists(st.integers(1, 1000), min_size=2, max_size=6), ramp=st.booleans())
@settings(max_examples=30, deadline=None)
def test_mixture_proportions_hold_at_every_prefix(tmp_path_factory: pytest.TempPathFactory, weights: list[int], ramp: bool) -> None:
    names = [f"s{i}" for i in range(len(weights))]
    points = {n: ((0.0, float(w)), (0.5, float(w % 7 + 1)), (1.0, 1.0)) if ramp else float(w) for n, w in zip(names, weights, strict=True)}
    mixture = Mixture.write(tmp_path_factory.mktemp("m"), points, 1)
    stream = object.__new__(Stream)
    stream.mixture, stream.total, stream._windows = mixture, 3000, __import__("collections").OrderedDict()
    stream.sources = [None] * len(names)  # type: ignore[list-item]  # only their number matters here
    window = stream._window(0)
    taken = np.cumsum(np.eye(len(names))[window.sources], axis=0)  # (W, S)
    x = np.arange(1, WINDOW + 1)
    due = mixture.cumulative(x, 3000)
    np.testing.assert_allclose(due.sum(axis=1), x, rtol=1e-12)
    share = np.stack([list(mixture.shares(p).values()) for p in np.minimum(x / 3000, 1)])
    bound = (1 + len(names) * np.maximum(share, share.max(axis=0) if ramp else share)) / 2 + 1e-9
    assert (np.abs(taken - due) <= bound).all()
    if len(names) == 2 and not ramp:
        assert np.abs(taken - due).max() <= 1 + 1e-9


def test_each_epoch_has_the_same_blocks_in_another_order(setup: Setup) -> None:
    shards, mixture = setup({"a": 120}, {"a": 1.0}, tokens=100_000)
    stream = Stream([shards], mixture, 32, seed=5)
    blocks = stream.sources[0].blocks
    epochs = [[key(stream.sample(e * blocks + i)) for i in range(blocks)] for e in range(3)]
    assert len(set(epochs[0])) == blocks
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("length", [7, 32, 500])
def test_pieces_say_where_each_token_came_from(setup: Setup, length: int) -> None:
    shards, mixture = setup({"a": 60, "b": 2}, {"a": 0.6, "b": 0.4}, tokens=100_000)
    stream = Stream([shards], mixture, length, seed=5)
    covered: Counter[tuple[str, int, int]] = Counter()
    for k in range(40):
        s = stream.sample(k)
        assert s.ids.shape == s.seg.shape == (length,)
        assert s.ids.dtype == s.seg.dtype == np.int32
        at = 0
        for number, piece in enumerate(s.pieces):
            d = int(np.flatnonzero(shards.docs(piece.source) == piece.doc)[0])
            begin = int(shards.offsets(piece.source)[d])
            n = piece.stop - piece.start
            assert n > 0
            assert np.array_equal(s.ids[at : at + n], shards.tokens(piece.source)[begin + piece.start : begin + piece.stop])
            assert (s.seg[at : at + n] == number).all()
            covered.update((piece.source, piece.doc, t) for t in range(piece.start, piece.stop))
            at += n
        assert at == length
    if length == 500:  # nothing is left out: 40 rows of 500 are many epochs of either source
        assert len(covered) == sum(shards.counts(s).tokens for s in ("a", "b"))


def test_another_length_reads_the_same_files(setup: Setup) -> None:
    shards, mixture = setup({"a": 50}, {"a": 1.0})
    for length in (16, 32):
        stream = Stream([shards], mixture, length, seed=0)
        blocks = stream.sources[0].blocks
        pieces = [p for k in range(blocks) for p in stream.sample(k).pieces]
        assert sum(p.stop - p.start for p in pieces) == blocks * length
        assert {p.doc for p in pieces} == set(range(50))


def test_caps_refuse_or_alarm_and_epochs_are_counted(setup: Setup) -> None:
    shards, mixture = setup({"a": 20, "b": 20}, {"a": 0.5, "b": 0.5}, tokens=4000, caps={"a": 2.0})
    with pytest.raises(UsageError, match=r"a: .* epochs, at most 2"):
        Stream([shards], mixture, 16, seed=0)
    short = Stream([shards], mixture, 16, seed=0, total=10)  # a shorter run keeps within the cap ...
    with pytest.raises(UsageError, match="beyond its cap"):
        [short.sample(k) for k in range(200)]  # ... and stops where it would not
    assert short.epochs(10)["a"] == pytest.approx(5 * 16 / shards.counts("a").tokens)
    loud = Stream([shards], Mixture.write(mixture.path, {"a": 0.5, "b": 0.5}, 4000, {"a": 2.0}, "alarm"), 16, seed=0)
    assert loud.over() == ["a"]
    loud.sample(249)


def test_bad_streams_are_refused(setup: Setup, tmp_path: Path, tokenizer: Tokenizer) -> None:
    shards, mixture = setup({"a": 20, "b": 0}, {"a": 1.0})
    with pytest.raises(UsageError, match="did you mean a"):
        Stream([shards], Mixture.write(tmp_path / "m1", {"aa": 1.0}, 10), 8, 0)
    with pytest.raises(UsageError, match="no tokens"):
        Stream([shards], Mixture.write(tmp_path / "m2", {"b": 1.0}, 10), 8, 0)
    twin = TokenShards.write(tmp_path / "twin", tokenizer, {"a": ["x"]})
    with pytest.raises(UsageError, match="in two of the token shards"):
        Stream([shards, twin], mixture, 8, 0)
    for weights in ({"a": -1.0}, {"a": 0.0}, {"a@heldout": 1.0}, {"a": ((0.5, 1.0), (0.5, 2.0))}, {"a": float("nan")}, {"a": ()}):
        with pytest.raises(UsageError):
            Mixture.write(tmp_path / "m3", weights, 10)  # type: ignore[arg-type]
