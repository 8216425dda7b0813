"""Packing never changes a result: packed equals alone, order does not matter, backends agree, the future is not seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.model.support import MIXERS, SMALL, loud, segments, tokens, variant
from upslope.model.aux import Aux
from upslope.model.transformer import Transformer

LENGTHS = (5, 1, 12, 11, 3, 12)


def alone(model: Transformer, ids: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    return torch.cat([model(part, segments(len(part))) for part in ids.split(list(lengths))])


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("lengths", [LENGTHS, (6, 6, 6), (9,)])
def test_packed_equals_alone(name: str, lengths: tuple[int, ...]) -> None:
    model, ids = loud(variant(name), dtype=torch.float64), tokens(sum(lengths))
    assert (model(ids, segments(*lengths)) - alone(model, ids, lengths)).norm() <= 1e-10


def test_packed_gradients_equal_the_sum_of_those_alone() -> None:
    model, ids = loud(SMALL, dtype=torch.float64), tokens(sum(LENGTHS))

    def gradients(h: torch.Tensor) -> torch.Tensor:
        model.zero_grad()
        F.cross_entropy(model.logits(h), ids.roll(1)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    assert (gradients(model(ids, segments(*LENGTHS))) - gradients(alone(model, ids, LENGTHS))).norm() <= 1e-10


def test_the_order_of_segments_does_not_matter() -> None:
    model, ids = loud(SMALL, dtype=torch.float64), tokens(sum(LENGTHS))
    parts = ids.split(list(LENGTHS))
    order = [3, 0, 5, 2, 1, 4]
    mixed = model(torch.cat([parts[i] for i in order]), segments(*(LENGTHS[i] for i in order))).split([LENGTHS[i] for i in order])
    straight = model(ids, segments(*LENGTHS)).split(list(LENGTHS))
    assert all((mixed[n] - straight[i]).norm() <= 1e-10 for n, i in enumerate(order))


@pytest.mark.parametrize("name", MIXERS)
def test_the_fast_backend_equals_the_reference_with_gradients(name: str) -> None:
    model, ids, seg = loud(variant(name), dtype=torch.float64), tokens(sum(LENGTHS)), segments(*LENGTHS)
    results = []
    for backend in ("sdpa", "eager"):
        model.backend = backend
        model.zero_grad()
        h = model(ids, seg)
        h.square().sum().backward()
        results.append(torch.cat([h.flatten(), *(p.grad.flatten() for p in model.parameters() if p.grad is not None)]).detach())
    assert (results[0] - results[1]).norm() <= 1e-8 * results[0].norm()


def test_a_token_sees_neither_the_future_nor_other_segments() -> None:
    model, ids, seg = loud(SMALL, dtype=torch.float64), tokens(12), segments(7, 5)
    before = model(ids, seg)
    ids[4] = (ids[4] + 1) % 64
    changed = (model(ids, seg) - before).norm(dim=1) > 1e-12
    assert changed.tolist() == [False] * 4 + [True] * 3 + [False] * 5


def test_positions_matter_with_rope_and_only_relatively() -> None:
    model, ids, seg = loud(SMALL, dtype=torch.float64), tokens(6), segments(6)
    pos = torch.arange(6)
    base = model(ids, seg, pos)
    assert torch.equal(base, model(ids))
    assert torch.allclose(base, model(ids, seg, pos + 17), atol=1e-10)
    assert not torch.allclose(base, model(ids, seg, pos * 2), atol=1e-3)


def test_without_rope_positions_do_not_matter() -> None:
    config = variant("nope")
    model = loud(config.replace(blocks={"one": config.blocks["one"]}, pattern=("one",)), dtype=torch.float64)
    ids, seg = tokens(6), segments(6)
    assert torch.equal(model(ids, seg, torch.arange(6)), model(ids, seg, torch.arange(6) * 3))


def test_bf16_autocast_stays_near_and_keeps_the_stream_wide() -> None:
    model, ids, seg = loud(SMALL), tokens(sum(LENGTHS)), segments(*LENGTHS)
    model.requires_grad_(False)
    exact = model(ids, seg)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids, seg)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05


def test_the_largest_logit_is_reported_on_request_and_merges() -> None:
    model, ids, seg = loud(SMALL), tokens(9), segments(9)
    seen = Aux()
    plain = model(ids, seg)
    assert torch.allclose(model(ids, seg, aux=seen), plain, atol=1e-5)
    assert set(seen.max_logit) == {0, 1}
    parts = []
    for half in (segments(4), segments(5)):
        part = Aux()
        model(ids[:4] if len(half) == 4 else ids[4:], half, aux=part)
        parts.append(part)
    together = Aux()
    model(ids, segments(4, 5), aux=together)
    merged = parts[0] + parts[1]
    assert all(torch.allclose(merged.max_logit[i], together.max_logit[i], atol=1e-5) for i in (0, 1))


def test_a_tied_head_is_the_embedding() -> None:
    model = loud(variant("mha"))
    assert model.head_weight is model.embed.weight
    h = model(tokens(3))
    assert torch.equal(model.logits(h), h @ model.embed.weight.T)
