"""Multi-token prediction against the paper's equations on single documents; no document sees another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.model.support import loud, segments, tokens
from upslope.config import FrozenDict
from upslope.model.aux import Aux
from upslope.model.config import MTP, Attention, BiasBalance, Gated, HyperConnections, Layer, ModelConfig, MoE, PreNorm, Rope, Router, TopK
from upslope.model.init import initialise
from upslope.model.mtp import Predictor
from upslope.model.transformer import Transformer

D, H, BASE, EPS, VOCAB = 12, 6, 50.0, 1e-2, 40
ATTENTION = Attention(heads=2, kv_heads=1, head_dim=H, position=Rope(base=BASE), qk_norm=None)
DENSE = Layer(mixer=ATTENTION, ffn=Gated(hidden=10), norm=PreNorm(eps=EPS))
LENGTHS = (9, 1, 2, 7, 3)


def config(mtp: MTP, layer: Layer = DENSE) -> ModelConfig:
    base = ModelConfig(d_model=D, blocks=FrozenDict(b=layer), pattern=(("b", 2),), vocab=VOCAB)
    return base.replace(mtp=mtp, final_norm=base.final_norm.replace(eps=EPS))


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / ((x * x).mean(1, keepdim=True) + EPS) ** 0.5 * gain


def turned(x: Tensor) -> Tensor:
    """Rotary embedding of x (T, D) at positions 0, 1, ..., as complex numbers."""
    half = H // 2
    angle = torch.arange(len(x), dtype=x.dtype)[:, None] * BASE ** (-2 * torch.arange(half, dtype=x.dtype) / H)
    z = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), 1)


def block(b: torch.nn.Module, x: Tensor) -> Tensor:
    """The plain pre-norm block on one document."""
    p = dict(b.named_parameters())
    n = norm(x, p["mixer_half.before.weight"])
    q, k, v = (n @ p[f"mixer.{c}.weight"].T for c in "qkv")
    heads = []
    for h in range(2):
        scores = turned(q[:, h * H : h * H + H]) @ turned(k).T / H**0.5
        heads.append(torch.softmax(scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf), 1) @ v)
    x = x + torch.cat(heads, 1) @ p["mixer.o.weight"].T
    n = norm(x, p["ffn_half.before.weight"])
    g = n @ p["ffn.gate.weight"].T
    return x + (g * torch.sigmoid(g) * (n @ p["ffn.up.weight"].T)) @ p["ffn.down.weight"].T


def paper(model: Transformer, ids: Tensor) -> list[Tensor]:
    """States (T - k, d) of depths k = 1, 2, ... of one document, only where the token k ahead exists."""
    assert model.mtp is not None and model.config.mtp is not None
    h = model(ids)
    out = []
    for k in range(1, model.config.mtp.depth + 1):
        layer = model.mtp.layers[0 if model.config.mtp.shared else k - 1]
        assert isinstance(layer, Predictor)
        rows = len(ids) - k
        if rows < 1:
            break
        pair = torch.cat((norm(h[:rows], layer.hidden_norm.weight), norm(model.embed.weight[ids[k:]], layer.embed_norm.weight)), 1)
        h = block(layer.block, pair @ layer.join.weight.T)
        out.append(norm(h, layer.final_norm.weight))
    return out


def predicted(model: Transformer, ids: Tensor, seg: Tensor) -> list[Tensor]:
    aux = Aux(frozenset({"mtp"}))
    model(ids, seg, aux=aux)
    return aux.mtp


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_packed_states_are_the_papers_on_each_document(depth: int, shared: bool) -> None:
    model = loud(config(MTP(depth=depth, block="b", shared=shared)), dtype=torch.float64)
    assert model.mtp is not None and len(model.mtp.layers) == (1 if shared else depth)
    ids, seg = tokens(sum(LENGTHS), VOCAB), segments(*LENGTHS)
    packed = predicted(model, ids, seg)
    assert [tuple(h.shape) for h in packed] == [(len(ids), D)] * depth
    seen = 0
    for document, *rows in zip(ids.split(LENGTHS), *(h.split(LENGTHS) for h in packed)):
        for got, wanted in zip(rows, paper(model, document)):
            assert torch.allclose(got[: len(wanted)], wanted, atol=1e-10)
            seen += len(wanted)
    assert seen == sum(max(0, n - k) for n in LENGTHS for k in range(1, depth + 1))


def test_no_row_depends_on_another_document() -> None:
    model = loud(config(MTP(depth=2, block="b")), dtype=torch.float64)
    ids, seg = tokens(16, VOCAB), segments(7, 9)
    other = torch.cat((ids[:7], (ids[7:] + 1) % VOCAB))
    for a, b in zip(predicted(model, ids, seg), predicted(model, other, seg)):
        assert torch.equal(a[:7], b[:7])
        assert not torch.equal(a[7:], b[7:])


def test_a_token_ahead_moves_its_row_and_none_before() -> None:
    model = loud(config(MTP(depth=2, block="b")), dtype=torch.float64)
    ids, seg = tokens(9, VOCAB), segments(9)
    other = ids.clone()
    other[5] = (other[5] + 1) % VOCAB
    for k, (a, b) in enumerate(zip(predicted(model, ids, seg), predicted(model, other, seg)), 1):
        same = (a == b).all(1).tolist()
        assert same == [True] * (5 - k) + [False] * (4 + k)


def test_the_trunk_is_untouched_and_nothing_runs_unasked() -> None:
    model = loud(config(MTP(depth=2, block="b")), dtype=torch.float64)
    ids, seg = tokens(12, VOCAB), segments(5, 7)
    aux = Aux(frozenset({"router"}))
    quiet = model(ids, seg, aux=aux)
    assert aux.mtp == []
    assert torch.equal(model(ids, seg, aux=Aux(frozenset({"router", "mtp"}))), quiet)


def test_modules_number_their_layers_after_the_trunks() -> None:
    moe = MoE(experts=4, expert=Gated(hidden=6), router=Router(select=TopK(k=2)), balance=(BiasBalance(),))
    layer = DENSE.replace(ffn=moe)
    ids, seg = tokens(12, VOCAB), segments(5, 7)
    for shared, layers in ((False, {0: 2, 1: 2, 2: 2, 3: 2}), (True, {0: 2, 1: 2, 2: 4})):
        model = loud(config(MTP(depth=2, block="b", shared=shared), layer), dtype=torch.float64)
        aux = Aux()
        model(ids, seg, aux=aux)
        assert {i: len(s.lengths) for i, s in aux.router.items()} == layers


def test_with_hyper_connections_and_in_bf16() -> None:
    layer = DENSE.replace(residual=HyperConnections(streams=2))
    model = initialise(Transformer(config(MTP(depth=2, block="b"), layer)), 0)
    ids, seg = tokens(12, VOCAB), segments(5, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = predicted(model, ids, seg)
    assert all(h.shape == (12, D) and h.dtype == torch.float32 and bool(torch.isfinite(h).all()) for h in states)
