"""Side losses of a step: recomputed from their definitions, the same however the step is split, and without effect where refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.support import VOCAB, WIDTH, batch, grads, only
from tests.train.support import model as dense_model
from upslope.config import FrozenDict
from upslope.model.aux import Aux
from upslope.model.config import (
    CSA,
    MLA,
    MTP,
    Attention,
    AuxLoss,
    BiasBalance,
    Compressed,
    Gated,
    Hashed,
    Indexer,
    Layer,
    ModelConfig,
    MoE,
    Normal,
    Rope,
    Router,
    TopK,
)
from upslope.model.init import initialise
from upslope.model.moe import MixtureOfExperts
from upslope.model.transformer import Transformer
from upslope.optim.config import AdamW
from upslope.train.auxiliary import Auxiliary
from upslope.train.batch import Batch, Totals
from upslope.train.losses import DPO, Imitate
from upslope.train.protocol import Out, StepReport, Sums
from upslope.train.trainer import Trainer

ROPE = Rope(base=50.0, layout="interleaved")
GQA = Attention(heads=2, kv_heads=1, head_dim=8, position=ROPE)
SPARSE = MLA(
    heads=2,
    q_latent=6,
    kv_latent=6,
    nope_dim=4,
    rope_dim=4,
    value_dim=4,
    position=ROPE,
    select=Indexer(heads=2, dim=6, top_k=3, rope=Rope(base=50.0, fraction=2 / 3), loss=0.4),
)
SHRUNK = Compressed(
    heads=2,
    head_dim=8,
    q_latent=6,
    window=3,
    history=CSA(rate=2, index_heads=2, index_dim=8, top_k=2, loss=0.7),
    position=Rope(base=50.0, layout="interleaved", fraction=0.5, part="trailing"),
    groups=2,
    group_dim=4,
)
TERMS = (AuxLoss(weight=0.3, over="sequence"), AuxLoss(weight=0.2, over="micro", group=2), AuxLoss(weight=0.5, over="global"))
RATE = 0.01


def experts(*balance: Any, z_loss: float = 0.0, **changes: Any) -> MoE:
    router = Router(score="sigmoid", select=TopK(k=2), scale=1.5, z_loss=z_loss)
    return MoE(experts=4, expert=Gated(hidden=8), router=router, balance=balance).replace(**changes)


def config_of(*layers: Layer, mtp: MTP | None = None) -> ModelConfig:
    blocks = {f"b{i}": layer for i, layer in enumerate(layers)}
    pattern = tuple((name, 1) for name in blocks)
    return ModelConfig(d_model=WIDTH, blocks=FrozenDict(blocks), pattern=pattern, vocab=VOCAB, init=Normal(std=0.4), mtp=mtp)


FULL = config_of(
    Layer(mixer=GQA, ffn=experts(*TERMS, BiasBalance(rate=RATE), z_loss=0.05, shared=Gated(hidden=6))),
    Layer(mixer=SPARSE, ffn=experts(TERMS[2], router=Router(select=Hashed(k=2), score="sqrtsoftplus"))),
    Layer(mixer=SHRUNK, ffn=Gated(hidden=8)),
    mtp=MTP(depth=2, block="b0", weight=0.6, shared=True),
)


def trainer(config: ModelConfig, dtype: torch.dtype = torch.float64, **options: Any) -> Trainer:
    return Trainer(initialise(Transformer(config), 0).to(dtype), AdamW(), clip=None, **options)


def stepped(t: Trainer, b: Batch, loss: Any = None, lr: float = 1e-3) -> tuple[StepReport, dict[str, Tensor]]:
    """One step's report and gradients; the update itself is left out."""
    seen: dict[str, Tensor] = {}
    t.optimizer.step = lambda lr: seen.update(grads(t))  # type: ignore[method-assign]
    return t.step(b, loss or Imitate(), lr), seen


DATA = only(batch((5, 9, 3, 7, 4, 6, 1, 8)), "imitate")


@pytest.mark.parametrize("micro", [1, 8, 13, 20])
def test_a_step_is_the_same_however_it_is_split(micro: int) -> None:
    whole, wanted = stepped(trainer(FULL), DATA)
    assert {"nll", "balance", "router_z", "max_vio", "index_kl", "mtp_nll"} <= set(whole.sums)
    t = trainer(FULL, micro_tokens=micro, chunk=7)
    assert len(DATA.split(micro)) > 1
    report, found = stepped(t, DATA)
    assert report.loss == pytest.approx(whole.loss, rel=1e-10)
    assert report.sums == pytest.approx(whole.sums, rel=1e-10)
    assert found.keys() == wanted.keys()
    for name, g in wanted.items():
        assert float((found[name] - g).norm()) <= 1e-10 * max(1.0, float(g.norm())), name


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.over)
def test_split_pairs_keep_their_place_in_the_step(term: AuxLoss) -> None:
    config = config_of(Layer(mixer=GQA, ffn=experts(term)))
    b = only(batch((5, 9, 3, 7, 4, 6)), "imitate", "pairs", "ref")
    b = replace(b, imitate=(b.pos > 0).double(), pairs=torch.tensor([[0, 5], [1, 3], [4, 2]]))
    (whole, wanted), (parts, found) = (stepped(trainer(config, micro_tokens=m), b, DPO()) for m in (0, 12))
    assert parts.sums["balance"] == pytest.approx(whole.sums["balance"], rel=1e-10)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-10)
    for name, g in wanted.items():
        assert torch.allclose(found[name], g, rtol=1e-9, atol=1e-11), name


def test_the_loss_is_the_sum_of_its_parts() -> None:
    t = trainer(FULL)
    assert t.model.mtp is not None
    aux = Aux(frozenset({"router", "index", "mtp"}))
    hidden = t.model(DATA.ids, DATA.seg, DATA.pos, aux=aux)
    report, _ = stepped(t, DATA)
    assert DATA.imitate is not None
    logp = torch.log_softmax(t.model.logits(hidden), -1).detach()
    nll = -sum(float(DATA.imitate[c] * logp[c - 1, DATA.ids[c]]) for c in range(1, len(DATA))) / float(DATA.imitate.sum())
    tokens, lengths, mtp_nll = len(DATA), DATA.lengths().tolist(), 0.0
    for k, h in enumerate(aux.mtp, 1):
        logp = torch.log_softmax(t.model.logits(h), -1).detach()
        rows = [c for c in range(k + 1, len(DATA)) if DATA.seg[c - k - 1] == DATA.seg[c] and DATA.imitate[c] != 0]
        mtp_nll -= sum(float(DATA.imitate[c] * logp[c - k - 1, DATA.ids[c]]) for c in rows) / sum(float(DATA.imitate[c]) for c in rows) / 2
    balance, raw, square = 0.0, [], []
    for layer, passes in ((0, 1), (1, 1), (3, 2)):
        stats = aux.router[layer]
        ffn = t.model.blocks[layer].ffn if layer < 3 else t.model.mtp.layers[0].block.ffn  # type: ignore[union-attr]
        for i in range(passes):
            at = slice(8 * i, 8 * i + 8)
            counts, probs = stats.counts[at], stats.probs[at].detach()
            square.append(float(stats.square[at].sum().detach()) / tokens)
            balance += ffn.config.router.z_loss * square[-1]  # type: ignore[union-attr, operator]
            for term in ffn.config.balance:  # type: ignore[union-attr]
                if isinstance(term, BiasBalance):
                    continue
                size = {"sequence": 1, "micro": 2, "global": 8}[term.over]
                value = 0.0
                for start in range(0, 8, size):
                    n = sum(lengths[start : start + size])
                    f, p = counts[start : start + size].sum(0) / (2 * n), probs[start : start + size].sum(0) / n
                    value += n / tokens * 4 * float((f * p).sum())
                raw.append(value)
                balance += term.weight * value
    kl = {i: float(total.detach()) / tokens for i, (total, _) in aux.index.items()}
    assert set(kl) == {1, 2} and min(kl.values()) > 1e-4
    assert report.sums["balance"] == pytest.approx(sum(raw) / len(raw), rel=1e-10)
    assert report.sums["router_z"] == pytest.approx(sum(square) / len(square), rel=1e-10)
    assert report.sums["index_kl"] == pytest.approx(sum(kl.values()), rel=1e-10)
    assert report.sums["mtp_nll"] == pytest.approx(mtp_nll, rel=1e-10)
    assert report.loss == pytest.approx(nll + balance + 0.4 * kl[1] + 0.7 * kl[2] + 0.6 * mtp_nll, rel=1e-10)


def test_every_weight_counts() -> None:
    def loss(config: ModelConfig) -> float:
        return stepped(trainer(config), DATA)[0].loss

    base = loss(FULL)
    assert FULL.mtp is not None
    first = FULL.blocks["b0"]
    assert isinstance(first.ffn, MoE)
    terms = first.ffn.balance
    variants = [first.ffn.replace(balance=(*terms[:i], *terms[i + 1 :])) for i in range(3)]
    variants.append(first.ffn.replace(router=first.ffn.router.replace(z_loss=0.0)))
    changed = [loss(FULL.replace(blocks=FrozenDict({**FULL.blocks, "b0": first.replace(ffn=v)}))) for v in variants]
    changed.append(loss(FULL.replace(mtp=FULL.mtp.replace(weight=0.1))))
    assert all(c < base - 1e-4 for c in changed)
    assert loss(FULL.replace(blocks=FrozenDict({**FULL.blocks, "b0": first.replace(ffn=first.ffn.replace(balance=terms[:3]))}))) == base


def test_accepted_steps_move_the_selection_bias_by_the_whole_steps_counts() -> None:
    moved = []
    for micro in (0, 9):
        t = trainer(FULL, micro_tokens=micro)
        m = t.model.blocks[0].ffn
        assert isinstance(m, MixtureOfExperts) and m.select_bias is not None
        aux = Aux(frozenset({"router", "mtp"}))
        with torch.no_grad():
            t.model(DATA.ids, DATA.seg, DATA.pos, aux=aux)
        t.step(DATA, Imitate(), 1e-3)
        counts = aux.router[0].counts.sum(0)
        assert m.select_bias.tolist() == pytest.approx((RATE * torch.sign(counts.mean() - counts)).tolist())
        predictor = t.model.mtp.layers[0].block.ffn.select_bias  # type: ignore[union-attr]
        counts = aux.router[3].counts.sum(0)  # of both depths
        assert predictor.tolist() == pytest.approx((RATE * torch.sign(counts.mean() - counts)).tolist())  # type: ignore[operator]
        moved.append(m.select_bias.clone())
    assert torch.equal(*moved)
    assert float(moved[0].abs().max()) == pytest.approx(RATE)


@dataclass(frozen=True)
class Poisoned:
    """Imitation, made not a number."""

    wants: frozenset[str] = frozenset({"logprob"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        value, stats = Imitate()(out, b, total, sums)
        return value * float("nan"), stats


def test_a_refused_step_moves_no_bias() -> None:
    t = trainer(FULL)
    assert t.step(DATA, Poisoned(), 1e-3).skipped
    assert torch.count_nonzero(t.state()["model.blocks.0.ffn.select_bias"]) == 0


def test_state_holds_biases_and_tables_and_goes_on_to_the_bit() -> None:
    def run(steps: int, t: Trainer) -> Trainer:
        for _ in range(steps):
            t.step(DATA, Imitate(), 1e-3)
        return t

    whole, first = run(4, trainer(FULL, micro_tokens=13)), run(2, trainer(FULL, micro_tokens=13))
    saved = {n: v.clone() for n, v in first.state().items()}
    assert {"model.blocks.0.ffn.select_bias", "model.blocks.1.ffn.table"} <= set(saved)
    second = Trainer(initialise(Transformer(FULL), 9).double(), AdamW(), clip=None, micro_tokens=13)
    second.load(saved)
    run(2, second)
    assert all(torch.equal(v, second.state()[n]) for n, v in whole.state().items())


def test_weights_for_engines_hold_biases_and_tables() -> None:
    names = {n for n, _ in trainer(FULL).weights().named()}
    assert any("select_bias" in n or "correction_bias" in n for n in names)
    assert any("table" in n or "tid2eid" in n for n in names)


@dataclass(frozen=True)
class Surveyed:
    """Imitation that checks that its survey saw every token."""

    wants: frozenset[str] = frozenset({"logprob"})

    def survey(self, out: Out, b: Batch) -> Sums:
        assert out.logprob is not None
        return Sums.of(tokens=float(len(b)), logprob=out.logprob.sum())

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        assert sums is not None and float(sums["tokens"]) == total.tokens
        return Imitate()(out, b, total, None)


def passes(t: Trainer) -> list[bool]:
    """Whether each forward pass ran with gradient, noted as they happen."""
    seen: list[bool] = []
    t.model.register_forward_pre_hook(lambda module, args: seen.append(torch.is_grad_enabled()))
    return seen


@pytest.mark.parametrize(
    ("terms", "micro", "loss", "surveys"),
    [
        (TERMS[2:], 13, Imitate(), True),
        (TERMS[2:], 0, Imitate(), False),
        (TERMS[:1], 13, Imitate(), False),
        (TERMS[1:2], 13, Imitate(), True),
        ((), 13, Imitate(), False),
        ((BiasBalance(),), 13, Imitate(), False),
        (TERMS[2:], 13, Surveyed(), True),
        ((), 13, Surveyed(), True),
    ],
)
def test_the_step_is_surveyed_once_and_only_where_needed(terms: tuple[Any, ...], micro: int, loss: Any, surveys: bool) -> None:
    t = trainer(config_of(Layer(mixer=GQA, ffn=experts(*terms))), micro_tokens=micro)
    seen = passes(t)
    stepped(t, DATA, loss)
    parts = len(DATA.split(micro))
    assert seen == [False] * (parts if surveys else 0) + [True] * parts


def test_a_dense_model_carries_no_side_outputs() -> None:
    t = Trainer(dense_model(), AdamW())
    assert t.auxiliary is None
    assert set(t.step(DATA, Imitate(), 1e-3).sums) == {"nll"}


def test_side_outputs_are_asked_for_where_there_are_some() -> None:
    def wants(config: ModelConfig, b: Batch = DATA) -> set[str]:
        of = Auxiliary.of(Transformer(config))
        return set() if of is None else set(of.step(b, [torch.arange(b.segments)]).wants)

    plain = Layer(mixer=GQA, ffn=Gated(hidden=4))
    silent = SPARSE.replace(select=SPARSE.select.replace(loss=0.0))  # type: ignore[union-attr]
    assert wants(config_of(plain, mtp=MTP(block="b0", weight=0.0))) == set()
    assert wants(config_of(plain, mtp=MTP(block="b0"))) == {"mtp"}
    assert wants(config_of(plain, mtp=MTP(block="b0")), only(DATA)) == set()
    assert wants(config_of(Layer(mixer=SPARSE, ffn=Gated(hidden=4)))) == {"index"}
    assert wants(config_of(Layer(mixer=silent, ffn=Gated(hidden=4)))) == set()
    assert wants(config_of(Layer(mixer=GQA, ffn=experts()))) == {"router"}


def test_prediction_reaches_only_targets_of_the_same_document_with_a_weight() -> None:
    config = config_of(Layer(mixer=GQA, ffn=Gated(hidden=8)), mtp=MTP(block="b0", depth=1))
    b = Batch.of([range(3, 7), range(2), range(8, 13)])
    weight = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0], dtype=torch.float64)
    b = replace(b, imitate=weight)
    assert b.imitate is not None
    report, _ = stepped(trainer(config), b)
    t = trainer(config)
    aux = Aux(frozenset({"mtp"}))
    t.model(b.ids, b.seg, b.pos, aux=aux)
    logp = torch.log_softmax(t.model.logits(aux.mtp[0]), -1).detach()
    wanted = -sum(float(logp[c - 2, b.ids[c]]) for c in (3, 8, 9)) / 3  # 1, 5, 7 have no row two before in their document
    assert report.sums["mtp_nll"] == pytest.approx(wanted, rel=1e-10)


def test_side_losses_run_in_bf16() -> None:
    b = only(batch(dtype=torch.float32), "imitate")
    (wide, _), (narrow, _) = (stepped(trainer(FULL, torch.float32, numerics=n, micro_tokens=20), b) for n in ("fp32", "bf16"))
    assert narrow.sums == pytest.approx(wide.sums, rel=0.05)


def test_training_balances_experts() -> None:
    moe = experts(AuxLoss(weight=0.3), router=Router(select=TopK(k=2), bias=True))
    t = Trainer(initialise(Transformer(config_of(Layer(mixer=GQA, ffn=moe))), 0), AdamW())
    b = only(batch((16,) * 8, dtype=torch.float32), "imitate")
    with torch.no_grad():
        t.model.blocks[0].ffn.router.bias.copy_(torch.tensor([2.0, 0.0, 0.0, -2.0]))  # type: ignore[union-attr]
    reports = [t.step(b, Imitate(), 2e-2) for _ in range(60)]
    assert reports[0].sums["balance"] > 1.3
    assert reports[-1].sums["balance"] < 1.05
    assert reports[-1].sums["max_vio"] < 0.4 * reports[0].sums["max_vio"]
