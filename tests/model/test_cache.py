"""Caches: any way of feeding tokens equals one shot, for every knob; a window's memory is bounded, and never gives back what it lost."""

from __future__ import annotations

import pytest
import torch

from tests.model.knobs import BASE, KNOBS, MODELS, stack
from tests.model.support import loud, segments, tokens
from upslope.machine.rng import rng
from upslope.model.cache import Cache, Memory, Step
from upslope.model.memory import Field
from upslope.model.transformer import Transformer

EXACT = 1e-9
RINGS = [n for n, config in MODELS.items() if any(getattr(layer.mixer, "window", None) for layer in config.layers())]


def built(name: str) -> Transformer:
    return loud(MODELS[name], dtype=torch.float64).requires_grad_(False)


def cache_of(model: Transformer, slots: int = 4, slack: int = 1) -> Cache:
    return Cache(model.config, slots, capacity=2, dtype=torch.float64, slack=slack)


def feed(model: Transformer, cache: Cache, slots: list[int], parts: list[torch.Tensor]) -> list[torch.Tensor]:
    h = model(torch.cat(parts), segments(*(len(p) for p in parts)), cache=cache.at(slots))
    return list(h.split([len(p) for p in parts]))


# Lengths round one and two windows of 4 tokens, in rings of 4 + slack columns.
PIECES = [(1,) * 13, (13,), (3, 1, 1, 8), (4, 4, 5), (5, 1, 7), (9, 4), (8, 1, 4), (7, 6)]


@pytest.mark.parametrize("name", MODELS)
def test_any_pieces_equal_one_shot(name: str) -> None:
    model, ids = built(name), tokens(13)
    model.backend = "eager"
    wanted = model(ids)
    model.backend = "auto"
    for i, pieces in enumerate(PIECES):
        cache = cache_of(model, slack=i % 3)
        got = torch.cat([feed(model, cache, [2], [part])[0] for part in ids.split(list(pieces))])
        assert (got - wanted).abs().max() <= EXACT * wanted.abs().max(), pieces


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", [*RINGS, "sinks", "qk_norm", "cla"])
def test_a_random_walk_of_appends_forks_and_rewinds(name: str, seed: int) -> None:
    model, draw = built(name), rng(seed, "walk", name)
    cache = cache_of(model, slack=int(draw.integers(4)))
    held: list[list[int]] = [[] for _ in range(4)]
    rewound = refused = 0
    for _ in range(25):
        what, slot = draw.choice(["append", "append", "append", "fork", "rewind", "rewind", "free"]), int(draw.integers(4))
        if what == "append":
            slots = draw.permutation(4)[: draw.integers(1, 5)].tolist()
            most = 1 if draw.random() < 0.4 else 9
            parts = [torch.from_numpy(draw.integers(0, 64, draw.integers(1, most + 1))) for _ in slots]
            got = feed(model, cache, slots, parts)
            for s, part, h in zip(slots, parts, got):
                held[s] += part.tolist()
                wanted = model(torch.tensor(held[s]))[-len(part) :]
                assert (h - wanted).abs().max() <= EXACT * wanted.abs().max()
        elif what == "fork":
            other = int(draw.integers(4))
            if other != slot:
                cache.fork(slot, other)
                held[other] = list(held[slot])
        elif what == "rewind" and held[slot]:
            length = max(0, len(held[slot]) - int(draw.integers(1, 5)))
            if cache.rewind(slot, length):
                held[slot], rewound = held[slot][:length], rewound + 1
            else:
                refused += 1
        elif what == "free" and draw.random() < 0.3:
            cache.free(slot)
            held[slot] = []
        assert cache.lengths.tolist() == [len(h) for h in held]
    assert rewound
    assert refused == 0 or any(any(m.ring.values()) for m in cache.layers)


def test_a_ring_goes_back_while_it_holds_what_is_needed() -> None:
    model, ids = built("window"), tokens(20)
    for length, can in ((18, True), (17, True), (16, False), (3, False), (0, True)):
        cache = cache_of(model, slack=2)
        feed(model, cache, [1], [ids])
        assert cache.rewind(1, length) is can, length
        assert int(cache.lengths[1]) == (length if can else 20)
        more = tokens(3, seed=5)
        kept = ids[: int(cache.lengths[1])]
        assert (feed(model, cache, [1], [more])[0] - model(torch.cat((kept, more)))[-3:]).abs().max() <= EXACT
    cache = cache_of(model, slack=2)
    feed(model, cache, [1], [ids])
    assert cache.rewind(1, 17)
    feed(model, cache, [1], [ids[:1]])
    assert not cache.rewind(1, 16), "tokens 11 ... 13 were overwritten before the first rewind"
    cache.fork(1, 0)
    assert not cache.rewind(0, 16)
    cache.free(1)
    feed(model, cache, [1], [ids[:5]])
    assert cache.rewind(1, 1), "what an earlier tenant wrote does not count"


def test_the_memory_of_a_window_is_bounded() -> None:
    config = MODELS["local_global"]
    cache = Cache(config, 3, capacity=100, slack=2)
    local, full = (3 * 2 * (8 + 8) * columns * 4 for columns in (4 + 2, 100))
    assert [m.nbytes for m in cache.layers] == [local, local, full, local]
    assert cache.nbytes == 3 * local + full
    model = loud(config).requires_grad_(False)
    feed(model, cache, [0], [tokens(150)])
    assert cache.capacity == 150
    assert [m.nbytes for m in cache.layers] == [local, local, full * 3 // 2, local]
    exact = Cache(config, 1, capacity=100, slack=0)
    for layer in exact.layers:
        assert layer.nbytes == 4 * sum(f.elements(100) for f in layer.spec.values())
    assert Cache(MODELS["cla"], 3, 10).layers[1].nbytes == 0, "a layer that reuses remembers nothing"


def test_full_columns_are_read_in_place() -> None:
    model = built("plain")
    cache = cache_of(model)
    feed(model, cache, [0, 1, 2], [tokens(5), tokens(3), tokens(4)])
    step = cache.begin(torch.tensor([1, 2]), torch.tensor([1, 1]), torch.float64)
    values, mask = cache.layers[0].window(step, "k")
    assert values.data_ptr() == cache.layers[0].data["k"][1].data_ptr()
    assert values.shape == (2, 2, 5, 8)
    assert mask is not None
    assert mask.isinf().tolist() == [[[[False] * 4 + [True]]], [[[False] * 5]]]


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
@pytest.mark.parametrize("slack", [0, 1, 4])
def test_a_window_shows_each_token_exactly_what_it_may_see(shape: tuple[int, ...], slack: int) -> None:
    """Every column holds its token's slot and position, so what a query sees can be listed."""
    draw = rng(slack, "window", str(shape))
    memory = Memory([Field("x", shape, keep=4), Field("all", shape)], 3, 80, torch.float64, torch.device("cpu"), slack)
    lengths = torch.zeros(3, dtype=torch.long)
    for _ in range(15):
        slots = torch.from_numpy(draw.permutation(3)[: draw.integers(1, 4)])
        counts = torch.from_numpy(draw.integers(1, int(draw.choice([2, 3, 9])), len(slots)))
        step = Step(slots, lengths[slots], counts, torch.device("cpu"), torch.float64)
        lengths[slots] += counts
        value = (100 * step.slot + step.column).double()
        x = value.view(-1, *(1,) * len(shape)).expand(-1, *shape)
        for name, reader, reach in (("x", None, 4), ("x", 2, 2), ("all", None, 1000), ("all", 3, 3)):
            if reader is None:
                memory.append(step, name, x)
            columns, mask = memory.window(step, name, reader)
            assert columns.shape[:-2] == (len(slots), *shape[:-1])
            for row, (slot, count) in enumerate(zip(slots.tolist(), counts.tolist())):
                held = columns[row].reshape(-1, columns.shape[-2], 3)[-1, :, 0]
                for n in range(count):
                    seen = held if mask is None else held[mask[0 if len(mask) == 1 else row, 0, n] == 0]
                    position = int(lengths[slot]) - count + n
                    wanted = [100 * slot + p for p in range(max(0, position - reach + 1), position + 1)]
                    assert sorted(seen.tolist()) == wanted
            assert step.pad(x).shape[:-2] == (len(slots), *shape[:-1])


def test_packed_segments_of_odd_lengths_decode_out_of_order() -> None:
    for name in ("all", "cla_window"):
        model, texts = built(name), [tokens(n, seed=n) for n in (9, 4, 14)]
        cache, cuts = cache_of(model, slack=0), (5, 1, 9)
        first = feed(model, cache, [3, 0, 2], [t[:c] for t, c in zip(texts, cuts)])
        second = feed(model, cache, [2, 3], [texts[2][9:10], texts[0][5:7]])
        third = feed(model, cache, [0, 3, 2], [texts[1][1:], texts[0][7:], texts[2][10:]])
        got = [torch.cat((first[0], second[1], third[1])), torch.cat((first[1], third[0])), torch.cat((first[2], second[0], third[2]))]
        for text, h in zip(texts, got):
            assert (h - model(text)).abs().max() <= EXACT


def test_many_forks_of_a_wrapped_ring() -> None:
    model, stems = built("window"), [tokens(11, seed=1), tokens(3, seed=2)]
    cache = Cache(model.config, 6, 2, torch.float64, slack=1)
    feed(model, cache, [0, 1], stems)
    cache.fork(torch.tensor([0, 1, 0]), torch.tensor([5, 3, 2]))
    cache.reserve(9, 100)
    end = tokens(2, seed=5)
    for stem, h in zip((stems[0], stems[1], stems[0]), feed(model, cache, [5, 3, 2], [end] * 3)):
        assert (h - model(torch.cat((stem, end)))[-2:]).abs().max() <= EXACT


def test_knobs_and_models_are_the_ones_meant() -> None:
    assert set(KNOBS) < set(MODELS)
    assert {"window", "window_one", "window_sinks", "all", "cla_window", "cla_of_full", "local_global"} == set(RINGS)
    assert stack(BASE).depth == 1
