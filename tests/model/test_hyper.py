"""Hyper-connections against the equations written as loops, and what Sinkhorn promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.model.support import loud, segments, tokens
from upslope.config import FrozenDict
from upslope.model.cache import Cache
from upslope.model.config import Attention, Gated, HyperConnections, Layer, ModelConfig, Normal, Rope
from upslope.model.hyper import Collapse, HyperConnection, sinkhorn
from upslope.model.init import initialise
from upslope.model.transformer import Transformer

N, D = 3, 5
CONFIG = HyperConnections(streams=N, iterations=4, eps=0.01, norm_eps=0.1)


def filled(m: HyperConnection | Collapse) -> HyperConnection | Collapse:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return m.double()


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def coefficients(m: HyperConnection | Collapse, x: Tensor) -> Tensor:
    """W · flat(X) / rms, before scale and base."""
    flat = x.flatten()
    return m.weight @ (flat / math.sqrt(float((flat * flat).mean()) + 0.1))


@torch.no_grad()
def reference(m: HyperConnection, x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """One token's X (n, d): A X, and X' where f (d, d) is the half between."""
    raw = coefficients(m, x)
    z = [float(raw[i] * m.scale[min(i // N, 2)] + m.base[i]) for i in range(2 * N + N * N)]
    a = [sigmoid(v) + 0.01 for v in z[:N]]
    c = [2 * sigmoid(v) for v in z[N : 2 * N]]
    b = []
    for i in range(N):
        row = [math.exp(v) for v in z[2 * N + i * N : 2 * N + (i + 1) * N]]
        b.append([v / sum(row) + 0.01 for v in row])
    for step in range(2 * 4 - 1):  # columns first, and last
        for i in range(N):
            line = [b[j][i] if step % 2 == 0 else b[i][j] for j in range(N)]
            for j in range(N):
                if step % 2 == 0:
                    b[j][i] /= sum(line) + 0.01
                else:
                    b[i][j] /= sum(line) + 0.01
    h = sum(a[i] * x[i] for i in range(N))
    out = f @ h
    return h, torch.stack([c[i] * out + sum(b[j][i] * x[j] for j in range(N)) for i in range(N)])


def test_reading_and_writing_are_the_equations() -> None:
    m = filled(HyperConnection(CONFIG, D))
    x, f = torch.randn(7, N, D, dtype=torch.float64), torch.randn(D, D, dtype=torch.float64)
    h, weights = m.read(x)
    got = m.write(x, h @ f.T, weights)
    for t in range(7):
        want_h, want = reference(m, x[t], f)
        assert (h[t] - want_h).abs().max() < 1e-12 and (got[t] - want).abs().max() < 1e-12


@torch.no_grad()
def test_the_collapse_is_its_equation() -> None:
    m = filled(Collapse(CONFIG, D))
    x = torch.randn(4, N, D, dtype=torch.float64)
    for t, row in enumerate(m(x)):
        z = coefficients(m, x[t])
        want = sum((sigmoid(float(z[i] * m.scale[0] + m.base[i])) + 0.01) * x[t, i] for i in range(N))
        assert (row - want).abs().max() < 1e-12


def test_sinkhorn_is_doubly_stochastic_so_that_mixing_does_not_grow_streams() -> None:
    b = sinkhorn(torch.rand(50, 4, 4, dtype=torch.float64) + 1e-3, 200, 1e-12)
    assert (b.sum(-1) - 1).abs().max() < 1e-8 and (b.sum(-2) - 1).abs().max() < 1e-8
    assert torch.linalg.matrix_norm(b, 2).max() < 1 + 1e-8


def test_gradients_are_those_of_finite_differences() -> None:
    m = filled(HyperConnection(CONFIG, D))
    x = torch.randn(2, N, D, dtype=torch.float64, requires_grad=True)

    def whole(x: Tensor, *_: Tensor) -> Tensor:
        h, weights = m.read(x)
        return m.write(x, h.square(), weights)

    assert torch.autograd.gradcheck(whole, (x, *m.parameters()))


def model() -> Transformer:
    block = Layer(
        mixer=Attention(heads=2, kv_heads=1, head_dim=8, position=Rope(base=50.0)),
        ffn=Gated(hidden=20),
        residual=HyperConnections(iterations=3),
    )
    config = ModelConfig(d_model=16, blocks=FrozenDict(one=block), pattern=(("one", 2),), vocab=64, init=Normal(std=0.02))
    return loud(config, dtype=torch.float64)


def test_a_model_of_streams_packs_and_decodes() -> None:
    m, ids = model(), tokens(12)
    with torch.no_grad():
        want = m(ids)
        cache = Cache(m.config, 1, dtype=torch.float64)
        assert (torch.cat([m(i[None], cache=cache.at([0])) for i in ids]) - want).abs().max() < 1e-10
        assert (m(torch.cat((ids[:5], ids)), segments(5, 12))[5:] - want).abs().max() < 1e-10


def test_a_fresh_model_adds_to_the_mean_of_its_streams() -> None:
    """Base zero: A = 1/2 + eps, C = 1, B = 1/n up to the draw of W, which zero makes exact."""
    m = initialise(Transformer(model().config), 0).double()
    streams = m.blocks[0].mixer_half.streams
    assert streams.scale.tolist() == [1, 1, 1] and not streams.base.any() and 0.01 < streams.weight.std() < 0.03
    with torch.no_grad():
        streams.weight.zero_()
        x = torch.randn(3, 4, 16, dtype=torch.float64)
        h, weights = streams.read(x)
        assert (h - 2 * x.mean(1)).abs().max() < 1e-4
        assert (streams.write(x, h, weights) - (x.mean(1) + h)[:, None]).abs().max() < 1e-4


def test_coefficients_stay_in_float32_under_autocast() -> None:
    m = filled(HyperConnection(CONFIG, D)).float()
    x = torch.randn(6, N, D)
    plain, _ = m.read(x)
    with torch.autocast("cpu", torch.bfloat16):
        h, weights = m.read(x)
        out = m.write(x, h.bfloat16(), weights)
    assert torch.equal(h, plain) and out.dtype == torch.float32


@pytest.mark.parametrize("leaf", ["streams", "iterations", "eps", "norm_eps"])
def test_every_knob_is_heard(leaf: str) -> None:
    m, ids = model(), tokens(6)
    residual = m.config.blocks["one"].residual
    value = getattr(residual, leaf)
    changed = residual.replace(**{leaf: value + 1 if isinstance(value, int) else 0.3})
    other = m.config.replace(blocks=FrozenDict(one=m.config.blocks["one"].replace(residual=changed)))
    with torch.no_grad():
        assert (loud(other, dtype=torch.float64)(ids) - m(ids)).abs().max() > 1e-6
