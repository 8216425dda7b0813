"""What every mixer's cache must do: token by token equals one shot, also after fork and rewind, at odd lengths, in any slots."""

from __future__ import annotations

import pytest
import torch

from tests.model.knobs import MODELS
from tests.model.support import MIXERS, loud, segments, tokens, variant
from upslope.model.cache import Cache
from upslope.model.transformer import Transformer

TOLERANCE = 1e-5
CONFIGS = {name: variant(name) for name in MIXERS} | {
    f"attention: {name}": MODELS[name] for name in ("window", "window_sinks", "softcap", "all", "cla", "cla_window", "local_global")
}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    """A model of every mixer there is."""
    return loud(CONFIGS[request.param]).requires_grad_(False)


def cache_of(model: Transformer, slots: int = 4, capacity: int = 2) -> Cache:
    return Cache(model.config, slots, capacity, slack=1)


def feed(model: Transformer, cache: Cache, slots: list[int], parts: list[torch.Tensor]) -> list[torch.Tensor]:
    h = model(torch.cat(parts), segments(*(len(p) for p in parts)), cache=cache.at(slots))
    return list(h.split([len(p) for p in parts]))


@pytest.mark.parametrize("pieces", [(1,) * 13, (13,), (7, 6), (1, 5, 7), (3, 1, 1, 8)])
def test_any_pieces_equal_one_shot(model: Transformer, pieces: tuple[int, ...]) -> None:
    ids, cache = tokens(13), cache_of(model)
    got = torch.cat([feed(model, cache, [2], [part])[0] for part in ids.split(list(pieces))])
    assert (got - model(ids)).abs().max() <= TOLERANCE
    assert cache.lengths.tolist() == [0, 0, 13, 0]


def test_slots_of_unequal_length_decode_together(model: Transformer) -> None:
    texts = [tokens(n, seed=n) for n in (9, 3, 14)]
    cache, slots, cuts = cache_of(model), [3, 0, 2], (4, 1, 9)
    feed(model, cache, slots, [t[:c] for t, c in zip(texts, cuts)])
    last = feed(model, cache, slots, [t[c:] for t, c in zip(texts, cuts)])
    for text, cut, got in zip(texts, cuts, last):
        assert (got - model(text)[cut:]).abs().max() <= TOLERANCE


def test_one_token_a_row_in_a_run_of_slots(model: Transformer) -> None:
    texts = [tokens(n, seed=n) for n in (5, 2, 8)]
    cache = cache_of(model)
    feed(model, cache, [0, 1, 2], [t[:-1] for t in texts])
    last = feed(model, cache, [0, 1, 2], [t[-1:] for t in texts])
    assert all((got - model(text)[-1:]).abs().max() <= TOLERANCE for text, got in zip(texts, last))


def test_forks_go_their_own_ways(model: Transformer) -> None:
    stem, ends = tokens(7), [tokens(n, seed=9 + n) for n in (3, 5)]
    cache = cache_of(model)
    feed(model, cache, [1], [stem])
    cache.fork(1, 3)
    for slot, end in zip((1, 3), ends):
        for i in range(len(end)):
            got = feed(model, cache, [slot], [end[i : i + 1]])[0]
            assert (got - model(torch.cat((stem, end[: i + 1])))[-1:]).abs().max() <= TOLERANCE
    assert cache.lengths.tolist() == [0, 10, 0, 12]


def test_many_forks_at_once(model: Transformer) -> None:
    cache, stems = cache_of(model, slots=6), [tokens(4, seed=1), tokens(9, seed=2)]
    feed(model, cache, [0, 1], stems)
    cache.fork(torch.tensor([0, 1, 1]), torch.tensor([5, 3, 2]))
    end = tokens(1, seed=5)
    got = feed(model, cache, [5, 3, 2], [end, end, end])
    for stem, one in zip((stems[0], stems[1], stems[1]), got):
        assert (one - model(torch.cat((stem, end)))[-1:]).abs().max() <= TOLERANCE


def test_rewind_forgets_exactly_the_end(model: Transformer) -> None:
    ids, other, cache = tokens(11), tokens(4, seed=3), cache_of(model)
    feed(model, cache, [0], [ids])
    if not cache.rewind(0, 5):
        pytest.skip("this mixer cannot rewind: callers fork beforehand")
    got = feed(model, cache, [0], [other])[0]
    assert (got - model(torch.cat((ids[:5], other)))[5:]).abs().max() <= TOLERANCE
    with pytest.raises(ValueError, match="cannot go back to 10"):
        cache.rewind(0, 10)


def test_a_freed_slot_starts_anew(model: Transformer) -> None:
    cache, second = cache_of(model), tokens(6, seed=4)
    feed(model, cache, [0], [tokens(9)])
    cache.free(0)
    assert (feed(model, cache, [0], [second])[0] - model(second)).abs().max() <= TOLERANCE


def test_growing_loses_nothing(model: Transformer) -> None:
    cache, ids = cache_of(model, slots=1, capacity=1), tokens(9)
    feed(model, cache, [0], [ids[:3]])
    cache.reserve(4, 40)
    feed(model, cache, [3], [tokens(5, seed=8)])
    assert (feed(model, cache, [0], [ids[3:]])[0] - model(ids)[3:]).abs().max() <= TOLERANCE


def test_misuse_is_refused(model: Transformer) -> None:
    cache = cache_of(model)
    with pytest.raises(ValueError, match="one segment a pass"):
        cache.at([1, 1])
    with pytest.raises(ValueError, match="2 segments for 1 slots"):
        model(tokens(2), segments(1, 1), cache=cache.at([0]))
