"""Conformance of a training step: for every loss, value and gradient do not depend on split, packing or order (float64)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.train.support import batch, grads, model, only, scalar
from upslope.optim.config import AdamW
from upslope.train.batch import Batch, Totals, join
from upslope.train.losses import DPO, BradleyTerry, DistilLoss, Imitate
from upslope.train.protocol import Loss, Out, StepReport, Sums, Wants
from upslope.train.trainer import Trainer

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Whitened:
    """A loss with a survey: policy gradient with advantages standardised over the whole step, and an entropy bonus."""

    wants: Wants = frozenset({"logprob", "entropy"})

    def survey(self, out: Out, b: Batch) -> Sums:
        assert b.policy is not None
        a, w = b.policy.advantage, b.policy.weight
        return Sums.of(n=w.sum(), first=(w * a).sum(), second=(w * a * a).sum())

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        assert b.policy is not None
        assert sums is not None
        assert out.logprob is not None
        assert out.entropy is not None
        mean = sums["first"] / sums["n"]
        std = (sums["second"] / sums["n"] - mean**2).sqrt()
        gain = (b.policy.advantage - mean) / std * out.logprob + 0.1 * out.entropy
        loss = -(b.policy.weight * gain).sum() / total.policy
        return loss, Sums.of(surrogate=loss)


LOSSES: dict[str, tuple[Loss, tuple[str, ...]]] = {
    "imitate": (Imitate(z_loss=1e-2), ("imitate",)),
    "distil-reverse": (DistilLoss(beta=1.0), ("distil",)),
    "distil-forward": (DistilLoss(beta=0.0), ("distil",)),
    "distil-jsd": (DistilLoss(beta=0.3), ("distil",)),
    "dpo": (DPO(beta=0.7, nll=0.2), ("imitate", "pairs", "ref")),
    "dpo-norm": (DPO(beta=2.0, normalise=True), ("imitate", "pairs", "ref")),
    "bradley-terry": (BradleyTerry(center=0.05), ("pairs",)),
    "whitened": (Whitened(), ("policy",)),
}


def measure(b: Batch, loss: Loss, micro: int = 0, chunk: int = 4096) -> tuple[StepReport, dict[str, Tensor]]:
    """One step with the update taken out: its report and the gradients that the optimizer would have seen."""
    trainer = Trainer(model(), AdamW(), clip=None, micro_tokens=micro, chunk=chunk, scalar=scalar())
    found: dict[str, Tensor] = {}
    trainer.optimizer.step = lambda lr: found.update(grads(trainer))  # type: ignore[method-assign]
    return trainer.step(b, loss, 1e-3), found


def same(a: tuple[StepReport, dict[str, Tensor]], b: tuple[StepReport, dict[str, Tensor]]) -> None:
    assert abs(a[0].loss - b[0].loss) <= TOLERANCE
    assert abs(a[0].grad_norm - b[0].grad_norm) <= TOLERANCE
    assert set(a[1]) == set(b[1])
    for name in a[1]:
        assert float((a[1][name] - b[1][name]).norm()) <= TOLERANCE * max(1.0, float(a[1][name].norm())), name
    for name, value in a[0].sums.items():
        assert value == pytest.approx(b[0].sums[name], abs=TOLERANCE)


@pytest.mark.parametrize("name", LOSSES)
def test_split_into_micro_batches_changes_nothing(name: str) -> None:
    loss, columns = LOSSES[name]
    b = only(batch(), *columns)
    whole = measure(b, loss)
    assert whole[0].grad_norm > 1e-3
    for micro in (1, 10, 17, 25):
        assert len(b.split(micro)) > 1
        same(whole, measure(b, loss, micro))


@pytest.mark.parametrize("name", LOSSES)
def test_chunks_of_the_head_change_nothing(name: str) -> None:
    loss, columns = LOSSES[name]
    b = only(batch(), *columns)
    same(measure(b, loss), measure(b, loss, chunk=5))


@pytest.mark.parametrize("name", LOSSES)
def test_order_of_segments_changes_nothing(name: str) -> None:
    loss, columns = LOSSES[name]
    b = only(batch(), *columns)
    turned = b.select(torch.tensor([3, 0, 5, 2, 4, 1]))
    same(measure(b, loss), measure(turned, loss))
    same(measure(b, loss), measure(turned, loss, micro=14))


@pytest.mark.parametrize("name", LOSSES)
def test_packed_equals_the_sum_over_segments_alone(name: str) -> None:
    """Each unit in a batch of its own, against global totals: so attention never crosses a segment, and adding is the answer."""
    loss, columns = LOSSES[name]
    b = only(batch(), *columns)
    trainer = Trainer(model(), AdamW(), clip=None, scalar=scalar())
    sums = None
    units = [b.select(torch.tensor(u)) for u in b._units()]
    if isinstance(loss, Whitened):
        sums = Sums()
        for u in units:
            sums = sums.plus(loss.survey(trainer.forward(u, loss.wants), u))
    value = 0.0
    for u in units:
        piece, _ = loss(trainer._out(u, loss.wants), u, b.totals(), sums)
        piece.backward()
        value += float(piece.detach())
    report, expected = measure(b, loss)
    assert value == pytest.approx(report.loss, abs=TOLERANCE)
    for n, g in grads(trainer).items():
        assert float((g - expected[n]).norm()) <= TOLERANCE * max(1.0, float(g.norm())), n


def test_two_steps_side_by_side_are_one_step_of_the_joined_batch() -> None:
    """Ranks: the sum of two parts' losses, each divided by the totals of both, is the loss of the whole."""
    a, b = only(batch(seed=1), "imitate"), only(batch((4, 8), seed=2), "imitate")
    whole = join([a, b])
    total = a.totals().plus(b.totals())
    assert total == whole.totals()
    trainer = Trainer(model(), AdamW())
    loss = Imitate()
    parts = [float(loss(trainer.forward(x, loss.wants), x, total, None)[0]) for x in (a, b)]
    assert sum(parts) == pytest.approx(float(loss(trainer.forward(whole, loss.wants), whole, total, None)[0]), abs=TOLERANCE)


def test_averaging_per_micro_batch_would_be_wrong() -> None:
    """The bug that global totals exclude: the mean of per-part means differs from the global mean."""
    b = only(batch((3, 40, 3, 5)), "imitate")
    trainer = Trainer(model(), AdamW())
    loss = Imitate()
    parts = b.split(12)
    means = [float(loss(trainer.forward(p, loss.wants), p, p.totals(), None)[0]) for p in parts]
    whole = float(loss(trainer.forward(b, loss.wants), b, b.totals(), None)[0])
    assert abs(sum(means) / len(means) - whole) > 1e-3


def test_forward_gives_columns_in_the_order_of_the_batch_whatever_the_split() -> None:
    b = replace(only(batch(), "policy", "pairs"), pairs=torch.tensor([[0, 5], [1, 3]]))
    wants: Wants = frozenset({"logprob", "entropy", "score", "value", "lse"})
    outs = [Trainer(model(), AdamW(), micro_tokens=m, scalar=scalar()).forward(b, wants) for m in (0, 8)]
    for x, y in zip(outs[0], outs[1]):
        assert (x is None) == (y is None)
        if x is not None and y is not None:
            assert not x.requires_grad
            torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
