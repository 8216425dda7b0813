"""Transfer rules: closed forms, composition, and that activations move alike at every width under them and not without."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.model.config import FanIn, dense
from upslope.model.init import initialise
from upslope.model.transformer import Transformer
from upslope.optim.build import build
from upslope.optim.config import AdamW, Muon
from upslope.optim.transfer import Probe, Size, branch_factor, coordinate_check, exponents, init_factor, transfer

BASE = Size(64)


class Net(nn.Module):
    """tanh network: embedding of 8 inputs, two hidden matrices, started at 1 / sqrt(fan-in)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(width)
        self.embed = nn.Embedding(8, width)
        self.one = nn.Linear(width, width, bias=False)
        self.two = nn.Linear(width, width, bias=False)
        self.lm_head = nn.Linear(width, 4, bias=False)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g))
            for lin in (self.one, self.two):
                lin.weight.div_(math.sqrt(width))
            self.lm_head.weight.div_(width)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.lm_head(torch.tanh(self.two(torch.tanh(self.one(self.embed(ids))))))
        return out


def loss(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(torch.arange(8)), torch.arange(8) % 4)


@pytest.mark.parametrize(
    ("config", "without"),
    [
        (AdamW(lr=2e-3, weight_decay=0.0), 0.6),
        (Muon(lr=1e-2, weight_decay=0.0, ns_dtype="fp32", adamw=AdamW(lr=2e-3, weight_decay=0.0)), 0.25),
    ],
)
def test_outputs_move_alike_at_every_width_under_the_rule(config: AdamW | Muon, without: float) -> None:
    widths = (64, 128, 256, 512)

    def make(width: int, rule: bool) -> Probe:
        net = Net(width)
        c = transfer(config, BASE, Size(width)) if rule else config
        return Probe(net, build(net.named_parameters(), c), loss, ("one", "two"))

    flat = exponents(coordinate_check(lambda w: make(w, True), widths))
    steep = exponents(coordinate_check(lambda w: make(w, False), widths))
    assert max(abs(v) for v in flat.values()) < 0.15, flat
    assert min(steep.values()) > without, steep


@pytest.mark.parametrize(
    "config", [AdamW(lr=2e-3, weight_decay=0.0), Muon(lr=1e-2, weight_decay=0.0, adamw=AdamW(lr=2e-3, weight_decay=0.0))]
)
def test_the_residual_stream_of_a_transformer_moves_alike_at_every_width(config: AdamW | Muon) -> None:
    ids = torch.arange(48) % 31

    def make(width: int, rule: bool) -> Probe:
        heads = width // 16
        small = dense(width, 2, heads, heads, 16, 3 * width, context=64, vocab=32).replace(init=FanIn(embed_std=1.0))
        model = initialise(Transformer(small), 0)
        with torch.no_grad():  # a readout starts a power of the width lower than a hidden matrix
            model.head_weight.mul_(init_factor(BASE, Size(width)))
        c = transfer(config, BASE, Size(width)) if rule else config

        def predict(_: nn.Module) -> Tensor:
            return nn.functional.cross_entropy(model.logits(model(ids))[:-1], ids[1:])

        return Probe(model, build(model.named_parameters(), c), predict, ("blocks.0", "blocks.1.mixer", "blocks.1"))

    widths = (64, 128, 256)
    flat = exponents(coordinate_check(lambda w: make(w, True), widths))
    steep = exponents(coordinate_check(lambda w: make(w, False), widths))
    assert max(abs(v) for v in flat.values()) < 0.1, flat
    assert min(steep.values()) > 0.25, steep


def test_the_original_scale_of_muon_needs_no_rule_for_width() -> None:
    c = Muon(lr=0.1, scale="original", weight_decay=0.0)
    assert transfer(c, BASE, Size(512)) == c.replace(adamw=c.rest.replace(hidden_lr=0.125))


def test_rules_in_closed_form() -> None:
    base, to = Size(64, 4, 1000, 10_000), Size(256, 16, 4000, 80_000)
    c = AdamW(lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    got = transfer(c, base, to, alpha=0.5)
    assert isinstance(got, AdamW)
    assert got.lr == pytest.approx(2e-3)
    assert got.hidden_lr == pytest.approx(0.25 * 0.5)
    assert got.betas == pytest.approx((0.6, 0.92))
    assert got.eps == pytest.approx(0.5e-8)
    forgets = [x.lr * x.hidden_lr * x.weight_decay for x in (c, got)]
    assert forgets[1] * to.tokens / to.batch == pytest.approx(forgets[0] * base.tokens / base.batch)
    independent = transfer(c.replace(decay="independent"), base, to)
    assert independent.weight_decay == pytest.approx(0.1 * 4 / 8)
    muon = Muon(lr=1e-3, weight_decay=0.1)
    moved = transfer(muon, base, to)
    assert moved.lr == pytest.approx(1e-3 * 2 / 2)
    assert moved.lr * moved.weight_decay == pytest.approx(1e-4 * 4 / 8)
    assert branch_factor(base, to, 0.5) == 0.5
    assert init_factor(base, to) == 0.5


def test_rules_compose_and_the_identity_is_one() -> None:
    a, b, d = Size(64, 4, 1000, 10), Size(96, 6, 1500, 20), Size(256, 8, 3000, 70)
    for c in (AdamW(weight_decay=0.2), AdamW(decay="independent")):
        assert transfer(c, a, a) == c
        one, two = transfer(transfer(c, a, b, 0.5), b, d, 0.5), transfer(c, a, d, 0.5)
        for name in ("lr", "hidden_lr", "betas", "eps", "weight_decay"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-12)


def test_what_cannot_be_carried_is_refused() -> None:
    with pytest.raises(UsageError, match="leaves no betas"):
        transfer(AdamW(), Size(1, 1, 1), Size(1, 1, 30))
    with pytest.raises(UsageError, match="both or neither"):
        transfer(AdamW(), Size(1), Size(1, tokens=5))
    net = Net(8)

    def probe(_: int) -> Probe:
        return Probe(net, build(net.named_parameters(), AdamW()), loss, ("one",))

    with pytest.raises(UsageError, match="gave no output"):
        coordinate_check(lambda w: probe(w)._replace(loss=lambda n: net.embed.weight.sum()), (8,))
    assert math.isnan(exponents(coordinate_check(probe, (8,)))["one"])
