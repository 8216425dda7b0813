"""Optimizers against torch's, state exactness, roles, and that every knob changes the result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from upslope.config import UsageError
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.muon import newton_schulz
from upslope.optim.roles import decayed, role

SHAPES = {
    "embed.weight": (11, 6),
    "layers.0.q.weight": (6, 6),
    "layers.0.up.weight": (16, 6),
    "layers.0.down.weight": (6, 16),
    "layers.1.q.weight": (6, 6),
    "norm.weight": (6,),
    "lm_head.weight": (11, 6),
    "experts.weight": (3, 6, 8),
}


def params(seed: int = 0, dtype: torch.dtype = torch.float32, only: Any = None) -> dict[str, nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    return {n: nn.Parameter(torch.randn(s, generator=g, dtype=dtype)) for n, s in SHAPES.items() if only is None or n in only}


def gradients(p: dict[str, nn.Parameter], step: int) -> None:
    g = torch.Generator().manual_seed(100 + step)
    for v in p.values():
        v.grad = torch.randn(v.shape, generator=g, dtype=torch.float64).to(v.dtype)


def run(config: AdamW | Muon, steps: int = 4, dtype: torch.dtype = torch.float64, lr: float | None = None) -> dict[str, nn.Parameter]:
    p = params(dtype=dtype)
    opt = build(p.items(), config)
    for k in range(steps):
        gradients(p, k)
        opt.step(lr or config.lr)
    return p


def test_roles() -> None:
    p = params()
    assert [role(n, v) for n, v in p.items()] == ["embedding", "matrix", "matrix", "matrix", "matrix", "vector", "head", "matrix"]
    assert [n for n, v in p.items() if not decayed(n, v)] == ["embed.weight", "norm.weight"]


def test_adamw_equals_torch() -> None:
    mine, theirs = params(dtype=torch.float64), params(dtype=torch.float64)
    config = AdamW(lr=3e-3, betas=(0.8, 0.97), eps=1e-6, weight_decay=0.3)
    opt = build(mine.items(), config)
    groups = [{"params": [v for n, v in theirs.items() if decayed(n, v) == d], "weight_decay": 0.3 if d else 0.0} for d in (True, False)]
    ref = torch.optim.AdamW(groups, lr=3e-3, betas=(0.8, 0.97), eps=1e-6)
    for k in range(7):
        gradients(mine, k)
        gradients(theirs, k)
        opt.step(3e-3)
        ref.step()
    for n in mine:
        torch.testing.assert_close(mine[n], theirs[n], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torch_on_matrices(nesterov: bool) -> None:
    only = [n for n in SHAPES if n.startswith("layers")]
    mine, theirs = params(only=only), params(only=only)
    opt = build(mine.items(), Muon(lr=2e-2, momentum=0.9, nesterov=nesterov, ns_steps=5, weight_decay=0.1))
    ref = torch.optim.Muon(
        list(theirs.values()), lr=2e-2, weight_decay=0.1, momentum=0.9, nesterov=nesterov, ns_steps=5, adjust_lr_fn="match_rms_adamw"
    )
    for k in range(3):
        gradients(mine, k)
        gradients(theirs, k)
        opt.step(2e-2)
        ref.step()
    for n in mine:
        assert float((mine[n] - theirs[n]).detach().abs().max()) <= 1e-5, n


def test_newton_schulz_lifts_singular_values_and_keeps_directions() -> None:
    g = torch.randn(5, 12, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    o = newton_schulz(g, 5)
    s = torch.linalg.svdvals(o)
    assert float(s.min()) > 0.6
    assert float(s.max()) < 1.25
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    core = u.mT @ o @ vh.mT
    assert float((core - torch.diag_embed(torch.diagonal(core, dim1=-2, dim2=-1))).abs().max()) < 1e-9


def test_a_stack_of_matrices_is_updated_slice_by_slice() -> None:
    config = Muon(lr=1e-2, ns_dtype="fp32")
    p = params(dtype=torch.float64)
    whole = p["experts.weight"]
    gradients(p, 0)
    single = {f"e{i}": nn.Parameter(whole.detach()[i].clone()) for i in range(3)}
    for i in range(3):
        assert whole.grad is not None
        single[f"e{i}"].grad = whole.grad[i].clone()
    build(p.items(), config).step(1e-2)
    build(single.items(), config).step(1e-2)
    torch.testing.assert_close(whole.detach(), torch.stack([v.detach() for v in single.values()]), rtol=0, atol=1e-14)


def test_the_update_of_muon_has_the_rms_of_adamw() -> None:
    for shape in ((64, 64), (64, 256), (256, 64)):
        w = nn.Parameter(torch.zeros(shape))
        w.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        build([("layers.w", w)], Muon(lr=1.0)).step(1.0)
        assert 0.13 < float(w.detach().square().mean().sqrt()) < 0.25


MUTANTS: list[tuple[AdamW | Muon, dict[str, Any]]] = [
    (AdamW(), {"lr": 2e-3}),
    (AdamW(), {"betas": (0.8, 0.95)}),
    (AdamW(), {"betas": (0.9, 0.99)}),
    (AdamW(), {"eps": 1e-2}),
    (AdamW(), {"weight_decay": 0.0}),
    (Muon(), {"lr": 2e-3}),
    (Muon(), {"momentum": 0.8}),
    (Muon(), {"nesterov": False}),
    (Muon(), {"ns_steps": 4}),
    (Muon(), {"ns_dtype": "fp32"}),
    (Muon(), {"weight_decay": 0.0}),
    (Muon(), {"adamw": AdamW(lr=2e-3)}),
    (Muon(), {"adamw": AdamW(betas=(0.5, 0.95))}),
]


@pytest.mark.parametrize(("config", "change"), MUTANTS)
def test_every_knob_changes_the_result(config: AdamW | Muon, change: dict[str, Any]) -> None:
    a, b = run(config), run(config.replace(**change))
    assert any(not torch.equal(a[n], b[n]) for n in a)


def test_no_decay_on_embeddings_and_norms() -> None:
    for config in (AdamW(weight_decay=0.0), Muon(weight_decay=0.0, adamw=AdamW(weight_decay=0.0))):
        heavy = config.replace(weight_decay=0.5) if isinstance(config, AdamW) else Muon(weight_decay=0.5, adamw=AdamW(weight_decay=0.5))
        a, b = run(config), run(heavy)
        assert {n for n in a if torch.equal(a[n], b[n])} == {"embed.weight", "norm.weight"}


@pytest.mark.parametrize("config", [AdamW(), Muon()])
def test_state_resumes_exactly(config: AdamW | Muon) -> None:
    whole = run(config, 5, torch.float32)
    p = params()
    first = build(p.items(), config)
    for k in range(3):
        gradients(p, k)
        first.step(config.lr)
    saved = {k: v.clone() for k, v in first.state().items()}
    second = build(p.items(), config)
    second.load(saved)
    for k in range(3, 5):
        gradients(p, k)
        second.step(config.lr)
    assert all(torch.equal(whole[n], p[n]) for n in p)


def test_state_of_another_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match="names differ"):
        build(params().items(), AdamW()).load(build(params().items(), Muon()).state())


def test_without_settings_of_its_own_the_rest_follows() -> None:
    a, b = run(Muon(lr=2e-2, weight_decay=0.3)), run(Muon(lr=2e-2, weight_decay=0.3, adamw=AdamW(lr=2e-2, weight_decay=0.3)))
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_parts_scale_together() -> None:
    both = run(Muon(lr=1e-2, adamw=AdamW(lr=2e-3)), lr=5e-3)
    halved = run(Muon(lr=5e-3, adamw=AdamW(lr=1e-3)))
    assert all(torch.equal(both[n], halved[n]) for n in both)


def test_a_parameter_without_gradient_is_left_alone() -> None:
    p = params()
    before = p["lm_head.weight"].detach().clone()
    opt = build(p.items(), Muon())
    gradients(p, 0)
    p["lm_head.weight"].grad = None
    opt.step(1e-2)
    assert torch.equal(before, p["lm_head.weight"])
