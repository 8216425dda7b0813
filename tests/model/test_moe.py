"""Mixtures of experts against every expert on every token in plain loops; routing by hand cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.support import loud, segments, tokens
from upslope.config import FrozenDict
from upslope.model.aux import Aux, RouterStats
from upslope.model.cache import Cache
from upslope.model.config import (
    Attention,
    AuxLoss,
    BiasBalance,
    Gated,
    Hashed,
    Layer,
    ModelConfig,
    MoE,
    Nothing,
    Relu2,
    Rope,
    Router,
    TopK,
    ZeroOut,
)
from upslope.model.flow import Flow
from upslope.model.init import initialise
from upslope.model.moe import MixtureOfExperts
from upslope.model.packing import Packing
from upslope.model.router import route, top_experts
from upslope.model.transformer import Transformer

D, E, VOCAB = 10, 6, 40
BASE = MoE(experts=E, expert=Gated(hidden=7), router=Router(select=TopK(k=2)))
BIAS = (BiasBalance(),)


def routed(**changes: Any) -> MoE:
    return BASE.replace(router=BASE.router.replace(**changes))


MOES = {
    "qwen3": BASE,
    "raw_softmax": routed(renorm=False, scale=3.0),
    "one": routed(select=TopK(k=1)),
    "all": routed(select=TopK(k=E), scale=0.5),
    "v3": MoE(
        experts=E,
        expert=Gated(hidden=7),
        router=Router(score="sigmoid", select=TopK(k=3, groups=3, keep=2), scale=2.5),
        shared=Gated(hidden=9),
        balance=BIAS,
    ),
    "v2": routed(select=TopK(k=2, groups=3, keep=1, group_score="max"), renorm=False, scale=16.0),
    "v4": routed(score="sqrtsoftplus", select=TopK(k=2), scale=1.5).replace(expert=Gated(hidden=7, limit=0.6), balance=BIAS),
    "hash": routed(score="sqrtsoftplus", select=Hashed(k=2), scale=1.5),
    "oss": routed(bias=True).replace(expert=Gated(hidden=7, act="swish1702", limit=0.8, bias=True)),
    "gelu": BASE.replace(expert=Gated(hidden=7, act="gelu")),
    "nemotron": MoE(
        experts=E, expert=Relu2(hidden=7), router=Router(score="sigmoid", select=TopK(k=2)), shared=Relu2(hidden=5), latent=4, balance=BIAS
    ),
    "latent": BASE.replace(latent=4, shared=Gated(hidden=5)),
}


def model_of(moe: MoE, **changes: Any) -> ModelConfig:
    mixer = Attention(heads=2, kv_heads=1, head_dim=6, position=Rope(base=50.0))
    return ModelConfig(d_model=D, blocks=FrozenDict(b=Layer(mixer=mixer, ffn=moe)), pattern=(("b", 2),), vocab=VOCAB, **changes)


def made(moe: MoE, seed: int = 0, dtype: torch.dtype = torch.float64) -> MixtureOfExperts:
    """A module with loud weights and a selection bias that changes choices."""
    m = MixtureOfExperts(moe, model_of(moe), 3)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in m.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.5 if p.ndim == 1 else 1.5 / p.shape[-1] ** 0.5))
        if m.select_bias is not None:
            m.select_bias.copy_(0.3 * torch.randn(E, generator=g))
        if m.table is not None:
            m.table.copy_(torch.rand(VOCAB, E, generator=g).argsort(1)[:, : m.table.shape[1]])
    return m.to(dtype)


def flow_of(ids: Tensor, seg: Tensor, aux: Aux | None = None, dtype: torch.dtype = torch.float64) -> Flow:
    return Flow(ids, torch.zeros_like(ids), Packing(seg), None, "auto", aux, dtype)


def data(count: int = 23, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, D, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(dtype)
    return x, tokens(count, VOCAB), segments(9, 1, count - 10)


def reference_choice(moe: MoE, scores: list[float], bias: list[float]) -> list[int]:
    """The chosen experts of one token, by sorting."""
    select = moe.router.select
    assert isinstance(select, TopK)
    biased = [s + b for s, b in zip(scores, bias)]
    size = moe.experts // select.groups
    groups = [list(range(i * size, (i + 1) * size)) for i in range(select.groups)]

    def rank(group: list[int]) -> float:
        best = sorted((biased[e] for e in group), reverse=True)
        return best[0] if select.group_score == "max" else sum(best[:2])

    kept = sorted(groups, key=rank, reverse=True)[: select.keep] if select.groups > 1 else groups
    return sorted((e for group in kept for e in group), key=lambda e: -biased[e])[: select.k]


def reference(m: MixtureOfExperts, x: Tensor, ids: Tensor) -> Tensor:
    """Every expert on every token, weighted by 0 where it was not chosen."""
    moe, ex = m.config, m.experts
    logits = x @ m.router.weight.T + (0 if m.router.bias is None else m.router.bias)
    if moe.router.score == "softmax":
        scores = logits.exp() / logits.exp().sum(1, keepdim=True)
    else:
        scores = 1 / (1 + (-logits).exp()) if moe.router.score == "sigmoid" else (1 + logits.exp()).log() ** 0.5
    bias = [0.0] * moe.experts if m.select_bias is None else m.select_bias.tolist()
    chosen = [reference_choice(moe, s, bias) for s in scores.tolist()] if m.table is None else m.table[ids].tolist()
    rows = []
    for t, experts in enumerate(chosen):
        weights = [scores[t, e] for e in experts]
        total = sum(weights) if moe.router.renorm else 1.0
        mask = [torch.zeros((), dtype=x.dtype)] * moe.experts
        for e, w in zip(experts, weights):
            mask[e] = moe.router.scale * w / total
        rows.append(torch.stack(mask))
    weight = torch.stack(rows)  # (T, E)
    inner = x if m.latent_down is None else x @ m.latent_down.weight.T
    outs = []
    for e in range(moe.experts):
        up = inner @ ex.up[e].T + (0 if ex.up_bias is None else ex.up_bias[e])
        if isinstance(moe.expert, Gated):
            assert ex.gate is not None
            g = inner @ ex.gate[e].T + (0 if ex.gate_bias is None else ex.gate_bias[e])
            hidden = gated(moe.expert, g, up)
        else:
            hidden = torch.where(up > 0, up, 0) ** 2
        outs.append(hidden @ ex.down[e].T + (0 if ex.down_bias is None else ex.down_bias[e]))
    y = torch.einsum("te,etd->td", weight, torch.stack(outs))
    y = y if m.latent_up is None else y @ m.latent_up.weight.T
    s: Any = m.shared
    if s is None:
        return y
    up = x @ s.up.weight.T
    hidden = torch.where(up > 0, up, 0) ** 2 if isinstance(moe.shared, Relu2) else gated(moe.shared, x @ s.gate.weight.T, up)
    return y + hidden @ s.down.weight.T


def gated(c: Any, g: Tensor, up: Tensor) -> Tensor:
    if c.limit is not None:
        g, up = torch.where(g > c.limit, c.limit, g), torch.where(up > c.limit, c.limit, torch.where(up < -c.limit, -c.limit, up))
    if c.act == "gelu":
        return 0.5 * g * (1 + torch.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) * up
    return g / (1 + (-g).exp()) * up if c.act == "silu" else g / (1 + (-1.702 * g).exp()) * (up + 1)


@pytest.mark.parametrize("name", MOES)
def test_outputs_and_gradients_are_those_of_every_expert_on_every_token(name: str) -> None:
    m = made(MOES[name])
    x, ids, seg = data()
    probe = torch.randn(x.shape, generator=torch.Generator().manual_seed(8), dtype=x.dtype)
    found: list[dict[str, Any]] = []
    for f in (lambda h: m(h, flow_of(ids, seg)), lambda h: reference(m, h, ids)):
        leaf = x.clone().requires_grad_()
        m.zero_grad()
        out = f(leaf)
        (out * probe).sum().backward()
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in m.named_parameters()}
        found.append({"out": out.detach(), "x": leaf.grad, **grads})
    for key, wanted in found[1].items():
        assert torch.allclose(found[0][key], wanted, rtol=1e-9, atol=1e-10), key
    assert all(float(g.abs().max()) > 1e-6 for n, g in found[1].items() if not n.startswith("router") or name != "one")


def test_an_expert_without_tokens_has_a_zero_gradient() -> None:
    moe = BASE.replace(router=BASE.router.replace(bias=True))
    m = made(moe)
    with torch.no_grad():
        m.router.bias[4] = -1e3  # type: ignore[index]
    x, ids, seg = data()
    m(x, flow_of(ids, seg)).sum().backward()
    for p in m.experts.parameters():
        assert p.grad is not None and torch.count_nonzero(p.grad[4]) == 0 and torch.count_nonzero(p.grad[3]) > 0


def test_tokens_do_not_see_each_other() -> None:
    m = made(MOES["v3"])
    x, ids, seg = data()
    whole = m(x, flow_of(ids, seg))
    turn = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(m(x[turn], flow_of(ids[turn], seg)), whole[turn], atol=1e-12)
    alone = torch.cat([m(x[t, None], flow_of(ids[t, None], seg[:1])) for t in range(len(x))])
    assert torch.allclose(alone, whole, atol=1e-12)


def test_group_scores_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.0, 0.5, 0.6]])  # groups (0.9, 0) and (0.5, 0.6)
    assert set(top_experts(scores, TopK(k=2, groups=2, keep=1, group_score="max"))[0].tolist()) == {0, 1}
    assert set(top_experts(scores, TopK(k=2, groups=2, keep=1, group_score="top2"))[0].tolist()) == {2, 3}
    assert set(top_experts(scores, TopK(k=2))[0].tolist()) == {0, 3}


def test_closed_groups_lose_even_to_negative_scores() -> None:
    scores = torch.tensor([[-3.0, -4.0, -5.0, -0.5, -9.0, -9.0]])
    assert set(top_experts(scores, TopK(k=3, groups=2, keep=1, group_score="top2"))[0].tolist()) == {0, 1, 2}
    assert set(top_experts(scores, TopK(k=3, groups=2, keep=1, group_score="max"))[0].tolist()) == {3, 4, 5}


def test_the_selection_bias_selects_and_does_not_weigh() -> None:
    config = Router(score="sigmoid", select=TopK(k=2), scale=3.0)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    routes = route(logits, config, torch.tensor([-9.0, 0.0, 0.0, 9.0]), None)
    assert set(routes.chosen[0].tolist()) == {1, 3}
    s = torch.sigmoid(logits[0])
    wanted = {1: 3 * s[1] / (s[1] + s[3]), 3: 3 * s[3] / (s[1] + s[3])}
    for e, w in zip(routes.chosen[0].tolist(), routes.weights[0]):
        assert float(w) == pytest.approx(float(wanted[e]))


def test_softmax_renormed_is_the_softmax_of_the_chosen_logits() -> None:
    logits = torch.randn(9, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    routes = route(logits, Router(select=TopK(k=3)), None, None)
    assert torch.allclose(routes.weights, torch.softmax(logits.gather(1, routes.chosen), 1), atol=1e-14)


def test_a_hash_table_is_drawn_from_the_seed_and_spreads() -> None:
    config = model_of(MOES["hash"])

    def tables(seed: int) -> list[Tensor]:
        return [b.ffn.table for b in initialise(Transformer(config.replace(vocab=600)), seed).blocks]  # type: ignore[union-attr, misc]

    one, again, other = tables(0), tables(0), tables(1)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert not torch.equal(one[0], one[1])
    assert one[0].dtype == torch.int64
    assert all(len(set(row)) == 2 for row in one[0].tolist())
    counts = torch.bincount(one[0].flatten(), minlength=E)
    assert int(counts.min()) > 150 and int(counts.max()) < 250  # 200 each, on average


def test_a_hash_ignores_the_hidden_state_and_its_weights_do_not() -> None:
    m = made(MOES["hash"])
    x, ids, seg = data()
    aux, moved = Aux(), Aux()
    a = m(x, flow_of(ids, seg, aux))
    b = m(x.flip(0), flow_of(ids, seg, moved))
    assert torch.equal(aux.router[3].counts, moved.router[3].counts)
    assert not torch.allclose(a, b)


def test_statistics_per_segment() -> None:
    for name in ("qwen3", "v3", "hash"):
        m = made(MOES[name])
        x, ids, seg = data()
        aux = Aux()
        m(x, flow_of(ids, seg, aux))
        stats = aux.router[3]
        logits = (x @ m.router.weight.T).detach()
        score = {"qwen3": lambda z: torch.softmax(z, 1), "v3": torch.sigmoid, "hash": lambda z: torch.nn.functional.softplus(z).sqrt()}
        s = score[name](logits)
        bias = None if m.select_bias is None else m.select_bias
        chosen = route(logits, m.config.router, bias, None if m.table is None else m.table[ids]).chosen
        for i, at in enumerate(torch.arange(len(x)).split((9, 1, 13))):
            assert torch.allclose(stats.probs[i], (s[at] / s[at].sum(1, keepdim=True)).sum(0), atol=1e-12)
            assert stats.counts[i].tolist() == torch.bincount(chosen[at].flatten(), minlength=E).tolist()
            assert float(stats.square[i].detach()) == pytest.approx(float((logits[at].exp().sum(1).log() ** 2).sum()), rel=1e-10)
        assert stats.lengths.tolist() == [9, 1, 13] and stats.k == m.config.router.select.k
        assert stats.probs.requires_grad and stats.square.requires_grad and not stats.counts.requires_grad


def test_statistics_join_segment_by_segment() -> None:
    one = RouterStats(torch.ones(2, 3), torch.ones(2, 3), torch.ones(2), torch.tensor([4, 5]), 2)
    both = one.plus(one._replace(lengths=torch.tensor([6, 7])))
    assert both.counts.shape == (4, 3) and both.lengths.tolist() == [4, 5, 6, 7]


def test_no_statistics_unless_wanted() -> None:
    m = made(BASE)
    x, ids, seg = data()
    aux = Aux(frozenset({"max_logit"}))
    m(x, flow_of(ids, seg, aux))
    assert aux.router == {}


def test_router_logits_are_float32_under_bf16() -> None:
    m = made(MOES["v3"], dtype=torch.float32)
    x, ids, seg = data(dtype=torch.float32)
    wide, narrow = Aux(), Aux()
    a = m(x, flow_of(ids, seg, wide))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        b = m(x, flow_of(ids, seg, narrow))
    for p, q in zip(wide.router[3][:4], narrow.router[3][:4]):
        assert torch.equal(p, q)
    assert 1e-4 < float(((a - b).norm() / a.norm()).detach()) < 0.02  # the experts' matrices, and only they, ran in bf16


def test_bf16_gradients_are_near_float32() -> None:
    oss = MOES["oss"].replace(expert=Gated(hidden=7, act="swish1702", bias=True))  # a clamp's gradient jumps where rounding crosses it
    for name, moe in {"v3": MOES["v3"], "oss": oss, "nemotron": MOES["nemotron"]}.items():
        m = made(moe, dtype=torch.float32)
        x, ids, seg = data(dtype=torch.float32)
        found: list[dict[str, Any]] = []
        for narrow in (False, True):
            m.zero_grad()
            leaf = x.clone().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=narrow):
                out = m(leaf, flow_of(ids, seg))
            out.float().square().sum().backward()
            found.append({"x": leaf.grad, **{n: p.grad for n, p in m.named_parameters()}})
        for key, wanted in found[0].items():
            assert found[1][key].dtype == torch.float32
            assert float((found[1][key] - wanted).norm() / wanted.norm()) < 0.05, (name, key)


def test_two_runs_agree_to_the_bit() -> None:
    x, ids, seg = data(dtype=torch.float32)
    seen = []
    for _ in range(2):
        m = made(MOES["v3"], dtype=torch.float32)
        m(x, flow_of(ids, seg)).sum().backward()
        seen.append([p.grad for p in m.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*seen))


def test_bias_and_table_exist_where_configured() -> None:
    assert set(dict(made(BASE).named_buffers())) == set()
    assert set(dict(made(MOES["v3"]).named_buffers())) == {"select_bias"}
    assert set(dict(made(MOES["hash"]).named_buffers())) == {"table"}
    assert set(dict(made(BASE.replace(balance=(AuxLoss(weight=0.1),))).named_buffers())) == set()
    model = initialise(Transformer(model_of(MOES["v3"])), 0)
    assert torch.equal(model.blocks[0].ffn.select_bias, torch.zeros(E))  # type: ignore[union-attr, arg-type]
    assert "blocks.0.ffn.select_bias" in model.state_dict()


def test_a_latent_mixture_starts_silent_and_learns() -> None:
    moe = MoE(experts=E, expert=Gated(hidden=7, bias=True), router=Router(select=TopK(k=2)), latent=4)
    model = initialise(Transformer(model_of(moe, init=ZeroOut())), 0)
    m = model.blocks[0].ffn
    assert isinstance(m, MixtureOfExperts)
    x, ids, seg = data(dtype=torch.float32)
    out = m(x, flow_of(ids, seg, dtype=torch.float32))
    assert torch.count_nonzero(out) == 0
    (out * torch.linspace(-1, 1, D)).sum().backward()
    assert m.experts.down.grad is not None and torch.count_nonzero(m.experts.down.grad) > 0


@pytest.mark.parametrize("name", ["v3", "hash", "nemotron", "oss"])
def test_decoding_with_a_cache_is_one_shot(name: str) -> None:
    config = model_of(MOES[name])
    model = loud(config, dtype=torch.float64)
    g = torch.Generator().manual_seed(2)
    for b in model.blocks:
        if b.ffn.table is not None:  # type: ignore[union-attr]
            b.ffn.table.copy_(torch.rand(VOCAB, E, generator=g).argsort(1)[:, :2])  # type: ignore[union-attr, operator]
    ids, seg = tokens(18, VOCAB), segments(11, 7)
    with torch.no_grad():
        whole = model(ids, seg)
        cache = Cache(config, 2)
        parts = [ids[:11], ids[11:]]
        seen: list[list[Tensor]] = [[], []]
        first = model(torch.cat([p[:4] for p in parts]), segments(4, 4), cache=cache.at([0, 1]))
        for i in range(2):
            seen[i].append(first[4 * i : 4 * i + 4])
            for t in range(4, len(parts[i])):
                seen[i].append(model(parts[i][t, None], cache=cache.at([i])))
    assert torch.allclose(torch.cat([*seen[0], *seen[1]]), whole, atol=1e-10)


def test_a_mixture_without_attention_is_a_block_too() -> None:
    config = model_of(BASE).replace(blocks=FrozenDict(b=Layer(mixer=Nothing(), ffn=BASE)))
    assert torch.isfinite(loud(config)(tokens(9, VOCAB))).all()
