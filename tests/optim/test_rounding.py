"""Narrow state: stochastic rounding is unbiased and repeatable; masters keep what 16 bits lose; resumption is exact."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.rounding import random_bits, stochastic


def test_random_bits_are_uniform_and_streams_differ() -> None:
    a, b = random_bits(torch.Size((200_000,)), 1), random_bits(torch.Size((200_000,)), 2)
    assert int(a.min()) >= 0
    assert int(a.max()) < 65536
    counts = torch.bincount(a.long() // 4096, minlength=16).double()
    chi2 = float(((counts - 12500) ** 2 / 12500).sum())
    assert chi2 < 45  # 15 degrees of freedom: p < 1e-4 beyond
    assert abs(float(torch.corrcoef(torch.stack((a, b)).double())[0, 1])) < 0.01
    assert abs(float(torch.corrcoef(torch.stack((a[1:], a[:-1])).double())[0, 1])) < 0.01
    x, mask = 5 * 0x9E3779B97F4A7C15 + 7, 2**64 - 1  # SplitMix64 in Python's integers
    x &= mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    assert int(random_bits(torch.Size((9,)), 7)[5]) == x >> 48


@pytest.mark.parametrize("value", [1.001, -3.337, 1e-3, -7e-41, 2.0**127 * 1.99])
def test_rounding_is_unbiased_and_to_a_neighbour(value: float) -> None:
    x = torch.full((100_000,), value)
    got = stochastic(x, 3).double()
    near = torch.unique(got)
    assert len(near) <= 2
    ulp = float((near.max() - near.min()) if len(near) == 2 else 0.0)
    assert float(near.min()) <= float(x[0]) <= float(near.max())
    assert abs(float(got.mean()) - float(x[0])) <= 5 * 0.5 * ulp / math.sqrt(len(x))


def test_what_is_exact_or_not_finite_stays() -> None:
    x = torch.tensor([0.0, -0.0, 1.0, -2.5, math.inf, -math.inf])
    assert torch.equal(stochastic(x, 1).float(), x)
    assert bool(stochastic(torch.tensor([math.nan]), 1).isnan())


def run(config: AdamW | Muon, dtype: torch.dtype = torch.float32, seed: int = 0, steps: int = 6, cut: int = 0) -> torch.Tensor:
    """Weights after some steps; cut: where the run is saved and resumed by another optimizer."""
    g = torch.Generator().manual_seed(0)
    p = {n: nn.Parameter(torch.randn(s, generator=g).to(dtype)) for n, s in {"a.weight": (8, 6), "norm.weight": (6,)}.items()}
    opt = build(p.items(), config, seed=seed)
    for k in range(steps):
        if cut and k == cut:
            saved = {n: t.clone() for n, t in opt.state().items()}
            opt = build(p.items(), config, seed=seed)
            opt.load(saved)
        for t in p.values():
            t.grad = torch.randn(t.shape, generator=g).to(dtype)
        opt.step(config.lr)
    return torch.cat([t.detach().float().flatten() for t in p.values()])


NARROW: list[AdamW | Muon] = [
    kind.model_validate({"state": state, "narrow_weights": weights})
    for kind in (AdamW, Muon)
    for state in ("bf16", "bf16-sr")
    for weights in ("master", "stochastic")
]


@pytest.mark.parametrize("config", NARROW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_runs_resume_to_the_bit(config: AdamW | Muon, dtype: torch.dtype) -> None:
    assert torch.equal(run(config, dtype), run(config, dtype, cut=3))


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_state_and_seed_change_the_result_where_they_should(kind: type[Any]) -> None:
    wide, near, sr = (run(kind(state=s, lr=1e-2)) for s in ("fp32", "bf16", "bf16-sr"))
    assert not torch.equal(wide, near)
    assert not torch.equal(near, sr)
    assert not torch.equal(sr, run(kind(state="bf16-sr", lr=1e-2), seed=1))
    assert torch.equal(wide, run(kind(lr=1e-2), seed=1))
    assert float((near - wide).norm() / wide.norm()) < 5e-3
    assert float((sr - wide).norm() / wide.norm()) < 1e-2
    three = [run(kind(narrow_weights=w, lr=1e-2), torch.bfloat16) for w in ("master", "nearest", "stochastic")]
    assert not any(torch.equal(three[i], three[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_moments_are_stored_in_bfloat16_and_equal_rounded_ones() -> None:
    p = nn.Parameter(torch.zeros(50))
    p.grad = torch.randn(50, generator=torch.Generator().manual_seed(1))
    opt = build([("x", p)], AdamW(state="bf16"))
    opt.step(1e-3)
    state = opt.state()
    assert state["x.m"].dtype == torch.bfloat16
    assert torch.equal(state["x.m"], (p.grad * (1 - 0.9)).bfloat16())


def test_small_updates_are_lost_by_nearest_rounding_and_kept_by_master_and_chance() -> None:
    """Weights of 1 take 400 updates of -1e-3 (AdamW with a constant gradient), less than half a bfloat16 ulp below 1 (2^-9)."""
    found = {}
    for how in ("master", "nearest", "stochastic"):
        p = nn.Parameter(torch.ones(4000, dtype=torch.bfloat16))
        opt = build([("x", p)], AdamW.model_validate({"lr": 1e-3, "narrow_weights": how, "betas": (0.0, 0.0)}))
        for _ in range(400):
            p.grad = torch.ones_like(p)
            opt.step(1e-3)
        found[how] = float(p.detach().double().mean())
    assert found["nearest"] == 1.0
    assert found["master"] == pytest.approx(0.6, abs=2e-3)
    assert found["stochastic"] == pytest.approx(0.6, abs=2e-3)


def test_a_weight_changed_from_outside_counts() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    opt = build([("x", p)], AdamW(lr=1e-4))
    p.grad = torch.ones_like(p)
    opt.step(1e-4)
    with torch.no_grad():
        p[1] = 5.0
    p.grad = torch.zeros_like(p)
    opt.step(1e-30)
    assert float(p.detach()[1]) == 5.0
    assert float(opt.masters()["x"][1]) == 5.0
    assert float(opt.masters()["x"][0]) == pytest.approx(1 - 1e-4)


def test_decay_independent_of_the_learning_rate() -> None:
    """Without gradient signal only the decay acts: (1 - multiplier wd) per step, whatever the peak; vectors and embeddings never."""
    for lr in (1e-3, 1e-1):
        p = {n: nn.Parameter(torch.ones(s, dtype=torch.float64)) for n, s in (("a", (3, 3)), ("embed.weight", (3, 3)), ("norm", (3,)))}
        for config in (AdamW(lr=lr, decay="independent"), Muon(lr=0.5, adamw=AdamW(lr=lr, decay="independent"))):
            name = "a" if isinstance(config, AdamW) else "head.weight"
            mine = {n if n != "a" else name: nn.Parameter(t.detach().clone()) for n, t in p.items()}
            opt = build(mine.items(), config)
            for multiplier in (1.0, 0.5):
                for t in mine.values():
                    t.grad = torch.zeros_like(t)
                opt.step(config.lr * multiplier)
            assert float(mine[name].detach()[0, 0]) == pytest.approx(0.9 * 0.95, rel=1e-14)
            assert float(mine["embed.weight"].detach().min()) == float(mine["norm"].detach().min()) == 1.0


def test_hidden_lr_scales_matrices_and_heads_alone() -> None:
    names = {"a": (3, 3), "lm_head.weight": (3, 3), "embed.weight": (3, 3), "norm": (3,)}
    moved = []
    for factor in (1.0, 0.25):
        p = {n: nn.Parameter(torch.ones(s, dtype=torch.float64)) for n, s in names.items()}
        for t in p.values():
            t.grad = torch.ones_like(t)
        build(p.items(), AdamW(lr=0.1, hidden_lr=factor, weight_decay=0.2)).step(0.1)
        moved.append({n: 1 - float(t.detach().flatten()[0]) for n, t in p.items()})
    for n in names:
        assert moved[1][n] == pytest.approx(moved[0][n] * (0.25 if n in ("a", "lm_head.weight") else 1.0), rel=1e-6)
