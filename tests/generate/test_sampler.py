"""The sampler: exact probabilities, kept sets against a plain reference, noise that is independent and keyed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from upslope.generate.sampler import Knobs, draw, restrict, uniforms


def knobs(rows: int, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0) -> Knobs:
    return Knobs(np.full(rows, temperature, np.float32), np.full(rows, top_p, np.float32), np.full(rows, top_k, np.int64))


def test_noise_is_keyed_by_seed_and_position_alone() -> None:
    seed, position = np.array([5, 5, 6, 5], np.uint64), np.array([1, 2, 1, 1], np.int64)
    a = uniforms(seed, position)
    assert a[0] == a[3]
    assert len(set(a.tolist())) == 3
    assert np.array_equal(uniforms(seed[::-1].copy(), position[::-1].copy()), a[::-1])


def splitmix64(state: int, count: int) -> list[int]:
    """The generator as published, in Python integers."""
    out, full = [], 2**64 - 1
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & full
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & full
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & full
        out.append(z ^ (z >> 31))
    return out


def test_noise_is_splitmix64_started_at_the_hashed_seed() -> None:
    assert splitmix64(1234567, 2) == [6457827717110365317, 3203168211198807973]  # published outputs for this seed
    for seed in (0, 7, 2**64 - 1):
        words = splitmix64(splitmix64(seed, 1)[0], 5)
        got = uniforms(np.full(5, seed, np.uint64), np.arange(5))
        assert got.tolist() == [(w >> 41) / 2**23 for w in words]


def test_noise_is_uniform_and_uncorrelated_over_neighbours() -> None:
    seeds, positions = np.meshgrid(np.arange(200, dtype=np.uint64), np.arange(200), indexing="ij")
    u = uniforms(seeds.ravel(), positions.ravel().astype(np.int64)).reshape(200, 200).astype(float)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    for x, y in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:]), (u, u.T)):
        off = ~np.eye(200, dtype=bool) if x is u else slice(None)
        assert abs(np.corrcoef(x[off].ravel(), y[off].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature: float) -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    n = 20_000
    noise = uniforms(np.arange(n, dtype=np.uint64), np.zeros(n, np.int64))
    drawn = draw(logits.expand(n, 4).contiguous(), knobs(n, temperature), noise)
    p = torch.softmax(logits / temperature, -1)
    counts = torch.bincount(drawn.tokens, minlength=4).numpy()
    assert stats.chisquare(counts, p.double().numpy() / p.double().sum().item() * n).pvalue > 1e-3
    assert torch.allclose(drawn.logprobs, p.log()[drawn.tokens], atol=1e-5)


def reference(logprobs: list[float], top_k: int, top_p: float) -> dict[int, float]:
    """The kept set by its definition: token → renormalised probability."""
    p = np.exp(logprobs) / np.exp(logprobs).sum()
    order = sorted(range(len(p)), key=lambda i: (-p[i], i))[: top_k or None]
    mass = {i: p[i] / p[order].sum() for i in order}
    kept, total = [], 0.0
    for i in order:
        if top_p < 1 and total >= top_p:
            break
        kept.append(i)
        total += mass[i]
    return {i: mass[i] / total for i in kept}


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (3, 1.0), (1, 1.0), (4, 0.6), (0, 1e-6), (99, 0.99)])
def test_kept_sets_equal_the_definition(top_k: int, top_p: float) -> None:
    logprobs = torch.log_softmax(torch.randn(20, 12, generator=torch.Generator().manual_seed(0)) * 2, -1)
    got = restrict(logprobs, torch.full((20,), top_k), torch.full((20,), top_p))
    for row, out in zip(logprobs.tolist(), got):
        wanted = reference(row, top_k, top_p)
        assert set(torch.isfinite(out).nonzero()[:, 0].tolist()) == set(wanted)
        assert all(float(out[i].exp()) == pytest.approx(w, abs=1e-5) for i, w in wanted.items())


def test_ties_go_to_the_lower_id() -> None:
    out = restrict(torch.zeros(1, 4).log_softmax(-1), torch.tensor([2]), torch.tensor([1.0]))
    assert torch.isfinite(out)[0].tolist() == [True, True, False, False]


def test_rows_keep_their_own_settings() -> None:
    logits = torch.tensor([[3.0, 2.9, 0.0]]).repeat(4, 1)
    mixed = Knobs(np.array([0, 1, 1, 2], np.float32), np.array([1, 0.3, 1, 1], np.float32), np.array([0, 0, 2, 0], np.int64))
    high = np.full(4, 1 - 2.0**-23, np.float32)
    drawn = draw(logits, mixed, high)
    assert drawn.tokens.tolist() == [0, 0, 1, 2]
    assert drawn.logprobs[0] == 0
    assert drawn.logprobs[1] == pytest.approx(0, abs=1e-6)
    assert float(drawn.logprobs[2].exp()) == pytest.approx(1 / (1 + np.exp(0.1)), abs=1e-5)


@pytest.mark.parametrize("noise", [0.0, 0.3, 1 - 2.0**-23])
def test_a_token_without_mass_is_never_drawn(noise: float) -> None:
    logits = torch.full((1, 9), -torch.inf)
    logits[0, 4], logits[0, 6] = 0.0, 0.5
    assert int(draw(logits, knobs(1), np.array([noise], np.float32)).tokens) in (4, 6)


def test_not_finite_is_reported_by_row() -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = torch.nan
    for temperature in (0.0, 1.0):
        assert draw(logits, knobs(3, temperature), np.full(3, 0.5, np.float32)).finite.tolist() == [True, False, True]
