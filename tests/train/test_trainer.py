"""The trainer: refuses what is not finite, clips, restores to the bit, runs bf16, and every knob counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.support import batch, grads, model, only, scalar
from upslope.config import UsageError
from upslope.machine.events import Events, read
from upslope.optim.config import AdamW, Muon
from upslope.train.batch import Batch, Replay, Totals
from upslope.train.losses import BradleyTerry, Imitate
from upslope.train.protocol import Out, Sums
from upslope.train.trainer import Diverged, Trainer

DATA = only(batch(dtype=torch.float32), "imitate")


@dataclass(frozen=True)
class Poisoned:
    """Imitation times a factor, which may be nan."""

    factor: float
    wants: frozenset[str] = frozenset({"logprob"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        value, stats = Imitate()(out, b, total, sums)
        return value * self.factor, stats


def trained(steps: int = 3, loss: Any = None, optim: Any = None, **options: Any) -> Trainer:
    t = Trainer(model(torch.float32), optim or Muon(), **options)
    for _ in range(steps):
        t.step(DATA, loss or Imitate(), t.optimizer.config.lr)
    return t


def bytes_of(t: Trainer) -> dict[str, bytes]:
    return {n: v.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for n, v in t.state().items()}


def test_a_step_lowers_the_loss_and_reports() -> None:
    t = Trainer(model(torch.float32), Muon())
    reports = [t.step(DATA, Imitate(), 3e-3) for _ in range(15)]
    assert reports[-1].loss < 0.7 * reports[0].loss
    assert reports[0].totals.tokens == len(DATA)
    assert reports[0].sums["nll"] == pytest.approx(reports[0].loss)
    assert reports[0].skipped == ""
    assert all(p.grad is None for p in t.optimizer.parameters)


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_raises_the_alarm(factor: float, tmp_path: Any) -> None:
    t = Trainer(model(torch.float32), Muon(), patience=3, events=Events(tmp_path / "e.jsonl"))
    t.step(DATA, Imitate(), 1e-3)
    before = {n: v for n, v in bytes_of(t).items() if not n.startswith("trainer.")}
    report = t.step(DATA, Poisoned(factor), 1e-3)
    assert "loss" in report.skipped
    assert before == {n: v for n, v in bytes_of(t).items() if not n.startswith("trainer.")}
    assert t.refused == 1
    t.step(DATA, Imitate(), 1e-3)
    assert t.in_a_row == 0
    t.step(DATA, Poisoned(factor), 1e-3)
    t.step(DATA, Poisoned(factor), 1e-3)
    with pytest.raises(Diverged, match="3 steps in a row"):
        t.step(DATA, Poisoned(factor), 1e-3)
    assert len([e for e in read(tmp_path) if e["kind"] == "alarm"]) == 4


def test_state_restores_to_the_bit() -> None:
    for optim in (AdamW(), Muon()):
        whole = trained(5, optim=optim)
        first = trained(3, optim=optim)
        saved = {n: v.clone() for n, v in first.state().items()}
        second = Trainer(model(torch.float32, seed=9), optim)
        second.load(saved)
        for _ in range(2):
            second.step(DATA, Imitate(), optim.lr)
        assert bytes_of(second) == bytes_of(whole)


def test_clipping_scales_the_gradient_and_reports_the_norm_before() -> None:
    seen: dict[str, Tensor] = {}
    t = Trainer(model(torch.float32), AdamW(), clip=0.01)
    t.optimizer.step = lambda lr: seen.update(grads(t))  # type: ignore[method-assign]
    report = t.step(DATA, Imitate(), 1e-3)
    assert report.grad_norm > 0.1
    assert float(torch.stack([g.norm() for g in seen.values()]).norm()) == pytest.approx(0.01, rel=1e-5)


KNOBS: list[dict[str, Any]] = [
    {"clip": 1e-3},
    {"clip": None, "loss": Poisoned(100.0)},
    {"numerics": "bf16"},
    {"loss": Imitate(z_loss=1e-2)},
    {"optim": AdamW()},
]


@pytest.mark.parametrize("change", KNOBS)
def test_every_knob_changes_the_weights(change: dict[str, Any]) -> None:
    a, b = trained(optim=change.pop("optim", None), **change), trained(loss=change.get("loss") if "clip" in change else None)
    assert any(not torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters()))


def test_bf16_is_near_fp32() -> None:
    a, b = trained(1), trained(1, numerics="bf16")
    for x, y in zip(a.model.parameters(), b.model.parameters()):
        assert x.dtype == torch.float32
        assert float((x - y).detach().abs().max()) < 0.02


def test_a_frozen_parameter_stays() -> None:
    m = model(torch.float32)
    m.embed.weight.requires_grad_(False)
    before = m.embed.weight.clone()
    t = Trainer(m, AdamW())
    t.step(DATA, Imitate(), 1e-2)
    assert torch.equal(before, m.embed.weight)


def test_the_scalar_head_is_trained_along() -> None:
    head = scalar(torch.float32)
    before = head.weight.detach().clone()
    t = Trainer(model(torch.float32), Muon(), scalar=head)
    b = only(batch(dtype=torch.float32), "pairs")
    losses = [t.step(b, BradleyTerry(), 3e-3).loss for _ in range(10)]
    assert not torch.equal(before, head.weight)
    assert losses[-1] < losses[0]


def test_clear_errors() -> None:
    t = Trainer(model(torch.float32), AdamW())
    with pytest.raises(UsageError, match="scalar head"):
        t.step(only(batch(dtype=torch.float32), "pairs"), BradleyTerry(), 1e-3)
    with pytest.raises(UsageError, match="routes"):
        t.forward(replace(DATA, replay=Replay(routes=torch.zeros(len(DATA), 2, 1))), frozenset({"logprob"}))
    with pytest.raises(UsageError, match="wants"):
        t.forward(DATA, frozenset({"logits"}))


@pytest.mark.parametrize(
    "changed",
    [
        Muon(split="heads"),
        Muon(ns_polish=2),
        Muon(scale="original"),
        Muon(state="bf16"),
        Muon(adamw=AdamW(decay="independent")),
        AdamW(hidden_lr=0.5),
        AdamW(decay="independent"),
        AdamW(state="bf16-sr"),
    ],
)
def test_every_optimizer_choice_reaches_the_weights(changed: AdamW | Muon) -> None:
    plain = bytes_of(trained(optim=type(changed)(adamw=AdamW()) if isinstance(changed, Muon) and changed.adamw else type(changed)()))
    other = bytes_of(trained(optim=changed))
    assert any(plain[n] != other[n] for n in plain if n.startswith("model."))
