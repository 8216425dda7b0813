"""Muon against torch's over many steps, its variants against the plain one, and heads as matrices of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.optim.build import build
from upslope.optim.config import Muon
from upslope.optim.muon import newton_schulz, update_scale

SHAPES = ((6, 6), (16, 6), (6, 16), (6, 6))


def made(dtype: torch.dtype) -> list[nn.Parameter]:
    g = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=g, dtype=torch.float64).to(dtype)) for s in SHAPES]


def feed(ps: list[nn.Parameter], step: int) -> None:
    g = torch.Generator().manual_seed(100 + step)
    for p in ps:
        p.grad = torch.randn(p.shape, generator=g, dtype=torch.float64).to(p.dtype)


def named(ps: list[nn.Parameter]) -> list[tuple[str, Tensor]]:
    return [(f"layers.{i}.weight", p) for i, p in enumerate(ps)]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize(("scale", "theirs"), [("rms", "match_rms_adamw"), ("original", "original")])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_twenty_steps_equal_torchs(
    monkeypatch: pytest.MonkeyPatch, nesterov: bool, scale: str, theirs: str, dtype: torch.dtype, bound: float
) -> None:
    """torch always iterates in bfloat16; with that cast taken out its own code is the exact reference."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda t: t.clone())
    a, b = made(dtype), made(dtype)
    config = Muon.model_validate({"lr": 2e-2, "momentum": 0.9, "nesterov": nesterov, "scale": scale, "ns_dtype": "fp32"})
    mine = build(named(a), config)
    ref = torch.optim.Muon(b, lr=2e-2, weight_decay=0.1, momentum=0.9, nesterov=nesterov, adjust_lr_fn=theirs)
    for k in range(20):
        feed(a, k)
        feed(b, k)
        mine.step(2e-2)
        ref.step()
    for x, y in zip(a, b):
        assert float((x - y).detach().norm() / y.detach().norm()) <= bound


def test_ten_hybrid_steps_bring_singular_values_to_one() -> None:
    g = torch.randn(4, 12, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(g, full_matrices=False)
    x = s / s.norm(dim=-1, keepdim=True)
    for a, b, c in [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2:
        x = a * x + b * x**3 + c * x**5  # the iteration acts on each singular value alone
    got = newton_schulz(g, 8, polish=2)
    assert float((got - u @ torch.diag_embed(x) @ vh).norm()) < 1e-10
    plain, hybrid = ((torch.linalg.svdvals(o) - 1).abs().max() for o in (newton_schulz(g, 8), got))
    assert float(hybrid) < 0.03 < 0.1 < float(plain)


def test_scales() -> None:
    assert update_scale("original", 64, 16) == 2.0
    assert update_scale("original", 16, 64) == 1.0
    assert update_scale("rms", 16, 64) == update_scale("rms", 64, 16) == pytest.approx(1.6)


def test_heads_are_matrices_of_their_own() -> None:
    config = Muon(lr=1e-2, ns_dtype="fp32", split="heads", scale="original")
    g = torch.Generator().manual_seed(5)
    start, grad = torch.randn(12, 7, generator=g, dtype=torch.float64), torch.randn(12, 7, generator=g, dtype=torch.float64)
    whole = nn.Parameter(start.clone())
    whole.grad = grad.clone()
    other = nn.Parameter(start.clone())
    other.grad = grad.clone()
    build([("b.q.weight", whole), ("b.o.weight", other)], config, heads={"b.q.weight": 3}).step(1e-2)
    pieces = [nn.Parameter(t.clone()) for t in start.chunk(3)]
    for p, t in zip(pieces, grad.chunk(3)):
        p.grad = t.clone()
    build(named(pieces), config.replace(split="none")).step(1e-2)
    assert float((whole - torch.cat([p.detach() for p in pieces])).detach().abs().max()) < 1e-14
    single = nn.Parameter(start.clone())
    single.grad = grad.clone()
    build([("w", single)], config.replace(split="none")).step(1e-2)
    assert torch.equal(single, other)
    assert not torch.equal(whole, other)


def test_heads_that_do_not_fit_are_refused() -> None:
    w = [("b.q.weight", nn.Parameter(torch.zeros(10, 4)))]
    with pytest.raises(UsageError, match="10 rows, which are not 3 heads"):
        build(w, Muon(split="heads"), heads={"b.q.weight": 3})
    with pytest.raises(UsageError, match="no parameter has heads"):
        build(w, Muon(split="heads"))


@pytest.mark.parametrize("change", [{"ns_polish": 2}, {"scale": "original"}, {"state": "bf16"}, {"state": "bf16-sr"}, {"split": "heads"}])
def test_every_new_knob_changes_the_result(change: dict[str, object]) -> None:
    out = []
    for config in (Muon(), Muon.model_validate(change)):
        ps = made(torch.float32)
        opt = build(named(ps), config, heads={"layers.1.weight": 4})
        for k in range(3):
            feed(ps, k)
            opt.step(1e-2)
        out.append(torch.cat([p.detach().flatten() for p in ps]))
    assert not torch.equal(*out)
