"""Losses against closed forms and brute force over the vocabulary, and that every knob changes the result."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.train.support import VOCAB, batch, model, only, scalar
from upslope.config import UsageError
from upslope.optim.config import AdamW
from upslope.train.batch import Batch, Distil, Replay
from upslope.train.losses import DPO, BradleyTerry, DistilLoss, Imitate, wins
from upslope.train.protocol import Out
from upslope.train.trainer import Trainer


def full_logprobs(b: Batch) -> torch.Tensor:
    """(T, V): row t is the distribution of token t given what precedes it; zero rows for first tokens. One segment at a time."""
    m, rows = model(), []
    with torch.no_grad():
        for s in range(b.segments):
            ids = b.ids[b.seg == s]
            logp = torch.log_softmax(m.logits(m(ids)), -1)
            rows.append(torch.cat([torch.zeros_like(logp[:1]), logp[:-1]]))
    return torch.cat(rows)


def run(loss: Any, b: Batch) -> tuple[float, dict[str, float]]:
    trainer = Trainer(model(), AdamW(), scalar=scalar())
    value, sums = loss(trainer.forward(b, loss.wants), b, b.totals(), None)
    return float(value), {k: float(v) for k, v in sums.items()}


def test_imitation_is_the_weighted_mean_nll_plus_z_loss() -> None:
    b = batch()
    assert b.imitate is not None
    logp = full_logprobs(b)
    nll = -(b.imitate * logp.gather(1, b.ids[:, None])[:, 0]).sum() / b.imitate.sum()
    m = model().requires_grad_(False)
    h = torch.cat([m(b.ids[b.seg == s]) for s in range(b.segments)])
    lse = torch.logsumexp(m.logits(h), -1)
    before = torch.cat([torch.zeros(1, dtype=lse.dtype), lse[:-1]])
    z = (b.imitate * before**2).sum() / b.imitate.sum()
    value, sums = run(Imitate(z_loss=0.3), b)
    assert value == pytest.approx(float(nll + 0.3 * z), abs=1e-12)
    assert sums == pytest.approx({"nll": float(nll), "lse2": float(z)})


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_distillation_over_the_whole_vocabulary_is_the_divergence_by_brute_force(beta: float) -> None:
    b = batch(full=True)
    assert b.distil is not None
    p, q = b.distil.logprobs.exp(), full_logprobs(b).exp()
    m = beta * p + (1 - beta) * q
    if beta == 0:
        d = (p * (p / q).log()).sum(-1)
    elif beta == 1:
        d = (q * (q / p).log()).sum(-1)
    else:
        d = beta * (p * (p / m).log()).sum(-1) + (1 - beta) * (q * (q / m).log()).sum(-1)
    expected = (b.distil.weight * d).sum() / b.distil.weight.sum()
    assert run(DistilLoss(beta), b)[0] == pytest.approx(float(expected), abs=1e-9)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_top_k_is_the_divergence_of_k_tokens_and_a_bucket(beta: float) -> None:
    b = batch(k=3)
    assert b.distil is not None
    q_all = full_logprobs(b).exp()
    q = q_all.gather(1, b.distil.ids)
    p = torch.cat([b.distil.logprobs.exp(), b.distil.rest.exp()[:, None]], 1)
    q = torch.cat([q, 1 - q.sum(1, keepdim=True)], 1)
    m = beta * p + (1 - beta) * q
    d = {0.0: p * (p / q).log(), 1.0: q * (q / p).log()}.get(beta, beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()).sum(-1)
    read = b.distil.weight > 0
    expected = (b.distil.weight * d)[read].sum() / b.distil.weight.sum()
    assert run(DistilLoss(beta), b)[0] == pytest.approx(float(expected), abs=1e-9)
    whole = run(DistilLoss(beta), batch(full=True))[0]
    assert run(DistilLoss(beta), b)[0] <= whole + 1e-9


def test_the_divergences_of_the_reference_vector() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float64).log(), torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64).log()
    b = replace(Batch.of([[0]]), distil=Distil(torch.ones(1, dtype=torch.float64), torch.arange(3)[None], p, torch.full((1,), -math.inf)))
    for beta, value in {0.1: 0.0558908, 0.5: 0.1513581, 0.9: 0.0583987, 0.0: 0.6348973, 1.0: 0.6758058}.items():
        assert float(DistilLoss(beta)(Out(top=q), b, b.totals(), None)[0]) == pytest.approx(value, abs=1e-6)


def test_reverse_kl_refuses_a_teacher_without_tail() -> None:
    b = batch(k=3)
    assert b.distil is not None
    cut = replace(b, distil=replace(b.distil, rest=torch.full_like(b.distil.rest, -math.inf)))
    with pytest.raises(UsageError, match="infinite"):
        run(DistilLoss(1.0), cut)
    assert math.isfinite(run(DistilLoss(0.0), cut)[0])


def test_dpo_closed_form() -> None:
    b = batch()
    assert b.imitate is not None
    assert b.ref is not None
    logp = b.imitate * full_logprobs(b).gather(1, b.ids[:, None])[:, 0]
    total = torch.stack([logp[b.seg == s].sum() for s in range(b.segments)])
    size = torch.stack([b.imitate[b.seg == s].sum() for s in range(b.segments)])
    ratio = total - b.ref
    margin = ratio[0::2] - ratio[1::2]
    value, sums = run(DPO(beta=0.3), b)
    assert value == pytest.approx(float((1 + (-0.3 * margin).exp()).log().mean()), abs=1e-10)
    assert sums["accuracy"] == pytest.approx(float((margin > 0).double().mean()))
    assert sums["chosen"] == pytest.approx(float(ratio[0::2].mean()))
    short = (ratio / size)[0::2] - (ratio / size)[1::2]
    expected = (1 + (-5 * short).exp()).log().mean() - 0.2 * (total / size)[0::2].mean()
    assert run(DPO(beta=5.0, normalise=True, nll=0.2), b)[0] == pytest.approx(float(expected), abs=1e-10)


def test_dpo_reference_vectors() -> None:
    """beta 0.1, log-ratios -1 and -3: 0.5981387; normalised, beta 5, lengths 10 and 20: 0.5759395."""
    b = Batch.of([[0] * 11, [0] * 21])
    after = (b.pos > 0).double()
    b = replace(b, imitate=after, pairs=torch.tensor([[0, 1]]), ref=torch.zeros(2, dtype=torch.float64))
    logprob = torch.where(b.seg == 0, -1 / 10, -3 / 20).double() * after
    assert float(DPO(0.1)(Out(logprob=logprob), b, b.totals(), None)[0]) == pytest.approx(0.5981387, abs=1e-6)
    assert float(DPO(5.0, normalise=True)(Out(logprob=logprob), b, b.totals(), None)[0]) == pytest.approx(0.5759395, abs=1e-6)


def test_bradley_terry_closed_form() -> None:
    b, m, head = batch(), model(), scalar()
    scores = torch.stack([head(m(b.ids[b.seg == s]))[-1] for s in range(b.segments)]).double()
    w, l = scores[0::2], scores[1::2]
    expected = ((1 + (l - w).exp()).log() + 0.05 * (w + l) ** 2).mean()
    value, sums = run(BradleyTerry(center=0.05), b)
    assert value == pytest.approx(float(expected.detach()), abs=1e-6)
    assert sums["accuracy"] == pytest.approx(float((w > l).double().mean()))


def test_ties_count_half() -> None:
    assert float(wins(torch.tensor([1.0, 0.0, -1.0]))) == 1.5


KNOBS: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = [
    (Imitate(), {"z_loss": 1e-3}, ("imitate",)),
    (DistilLoss(), {"beta": 0.5}, ("distil",)),
    (DPO(), {"beta": 0.2}, ("imitate", "pairs", "ref")),
    (DPO(), {"normalise": True}, ("imitate", "pairs", "ref")),
    (DPO(), {"nll": 0.1}, ("imitate", "pairs", "ref")),
    (BradleyTerry(), {"center": 0.1}, ("pairs",)),
]


@pytest.mark.parametrize(("loss", "change", "columns"), KNOBS)
def test_every_knob_changes_the_loss(loss: Any, change: dict[str, Any], columns: tuple[str, ...]) -> None:
    b = only(batch(), *columns)
    assert abs(run(loss, b)[0] - run(replace(loss, **change), b)[0]) > 1e-6


@pytest.mark.parametrize(("loss", "columns"), [(Imitate(), ()), (DistilLoss(), ("imitate",)), (DPO(), ("imitate",)), (BradleyTerry(), ())])
def test_a_loss_without_its_columns_is_refused(loss: Any, columns: tuple[str, ...]) -> None:
    b = only(batch(), *columns)
    with pytest.raises(UsageError):
        loss(Out(logprob=torch.zeros(len(b))), b, b.totals(), None)


def test_entropy_and_gradients_of_the_fused_statistics_against_autograd() -> None:
    from upslope.train.head import TokenStats

    g = torch.Generator().manual_seed(0)
    z = torch.randn(6, VOCAB, generator=g, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, VOCAB, (6,), generator=g)
    weights = torch.randn(3, 6, generator=g, dtype=torch.float64)
    fused = TokenStats.apply(z, target, True)
    (mine,) = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, fused)), z)
    logp = torch.log_softmax(z, -1)
    plain = (logp.gather(1, target[:, None])[:, 0], -(logp.exp() * logp).sum(-1), torch.logsumexp(z, -1))
    (theirs,) = torch.autograd.grad(sum((w * x).sum() for w, x in zip(weights, plain)), z)
    for a, b in zip(fused, plain):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_replaying_a_kept_set_renormalises_over_it() -> None:
    b = only(batch((4, 5)), "policy")
    kept = torch.full((len(b), 4), -1)
    for t in range(1, len(b), 2):
        kept[t, :3] = torch.stack([b.ids[t], (b.ids[t] + 1) % VOCAB, (b.ids[t] + 5) % VOCAB])
    out = Trainer(model(), AdamW()).forward(replace(b, replay=Replay(kept=kept)), frozenset({"logprob", "entropy"}))
    assert out.logprob is not None
    assert out.entropy is not None
    logp = full_logprobs(b)
    for t in range(len(b)):
        if b.pos[t] == 0:
            continue
        row = logp[t] if kept[t, 0] < 0 else torch.log_softmax(logp[t, kept[t, :3]], -1)
        expected = row[b.ids[t]] if kept[t, 0] < 0 else row[0]
        assert float(out.logprob[t]) == pytest.approx(float(expected), abs=1e-10)
        assert float(out.entropy[t]) == pytest.approx(float(-(row.exp() * row).sum()), abs=1e-10)
