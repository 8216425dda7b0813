"""Dynamic loss scaling: step for step the rule of torch.amp.GradScaler, and training in fp16 that works with it and fails without."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.support import batch, model, only
from upslope.generate.local import LocalEngine
from upslope.machine.context import Context
from upslope.machine.events import Events, read
from upslope.optim.config import AdamW
from upslope.optim.schedule import WSD
from upslope.precision.autocast import autocast
from upslope.precision.config import Numerics
from upslope.precision.scaling import LossScale
from upslope.train.batch import Batch
from upslope.train.fit import fit
from upslope.train.losses import Imitate
from upslope.train.trainer import Trainer


def theirs(finite: list[bool], **options: Any) -> tuple[list[float], list[float]]:
    """(scales after each step, gradients after unscaling) of torch's scaler on a weight whose gradient is 3, or infinite."""
    scaler = torch.amp.GradScaler("cpu", **options)
    w = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([w], lr=0.0)
    scales: list[float] = []
    grads: list[float] = []
    for good in finite:
        w.grad = None
        scaler.scale((3.0 if good else math.inf) * w.sum()).backward()
        scaler.unscale_(optimizer)
        assert w.grad is not None
        grads.append(float(w.grad))
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales, grads


def ours(finite: list[bool], scale: LossScale) -> tuple[list[float], list[float]]:
    w = nn.Parameter(torch.ones(1))
    scales: list[float] = []
    grads: list[float] = []
    for good in finite:
        w.grad = None
        scale.scale((3.0 if good else math.inf) * w.sum()).backward()
        assert w.grad is not None
        scale.unscale([w.grad])
        grads.append(float(w.grad))
        scale.update(bool(torch.isfinite(w.grad).all()))
        scales.append(scale.value)
    return scales, grads


SCRIPTS = {
    "calm": [True] * 30,
    "one overflow": [True] * 9 + [False] + [True] * 20,
    "just before growth": [True] * 4 + [False] + [True] * 5 + [False] * 2 + [True] * 12,
    "drawn": [bool(x) for x in np.random.default_rng(0).random(70) < 0.9],
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    "fields", [{}, {"growth": 4.0}, {"backoff": 0.25}, {"interval": 3}, {"value": 2.0**10}], ids=lambda f: next(iter(f), "")
)
def test_scripted_sequences_give_the_scales_of_torch(script: str, fields: dict[str, float]) -> None:
    given = {"value": 2.0**16, "growth": 2.0, "backoff": 0.5, "interval": 5, **fields}
    names = {"value": "init_scale", "growth": "growth_factor", "backoff": "backoff_factor", "interval": "growth_interval"}
    wanted = theirs(SCRIPTS[script], **{names[n]: v for n, v in given.items()})
    found = ours(SCRIPTS[script], LossScale(**given))  # type: ignore[arg-type]
    assert found == wanted
    if fields and len(set(SCRIPTS[script])) == 2:
        assert found[0] != ours(SCRIPTS[script], LossScale(interval=5))[0]  # every field counts


def test_the_defaults_are_those_of_torch() -> None:
    scaler, mine = torch.amp.GradScaler("cpu"), LossScale()
    assert (mine.value, mine.growth, mine.backoff, mine.interval) == (
        scaler.get_scale() or 2.0**16,
        scaler.get_growth_factor(),
        scaler.get_backoff_factor(),
        scaler.get_growth_interval(),
    )
    for _ in range(1999):
        mine.update(True)
    assert mine.value == 2.0**16
    mine.update(True)
    assert mine.value == 2.0**17


def test_it_ends_at_one_instead_of_vanishing() -> None:
    scale = LossScale(4.0)
    for _ in range(5):
        scale.update(False)
    assert scale.value == 1.0


def test_the_state_goes_on_where_it_was() -> None:
    script = SCRIPTS["drawn"]
    whole, half = LossScale(interval=5), LossScale(interval=5)
    wanted = ours(script, whole)[0]
    for good in script[:33]:
        half.update(good)
    again = LossScale(interval=5)
    again.load({n: t.clone() for n, t in half.state().items()})
    assert ours(script[33:], again)[0] == wanted[33:]


def test_fp16_rounds_products_to_half_and_overflows() -> None:
    a = torch.tensor([[1.0, 2.0**-11]])
    with autocast("fp16"):
        product = a @ torch.ones(2, 1)
        large = torch.full((1, 1), 300.0) @ torch.full((1, 1), 300.0)
        total = torch.logsumexp(a, -1)
    assert product.dtype == torch.float16
    assert float(product) == 1.0
    assert torch.isinf(large).all()
    assert total.dtype == torch.float32


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────


def data(step: int) -> Batch:
    return only(batch((4, 6, 5, 3), seed=step % 2, dtype=torch.float32), "imitate")


def run(folder: Path, steps: int = 30, **options: Any) -> tuple[Trainer, list[float], list[dict[str, Any]]]:
    ctx = Context.scratch(folder)
    ctx.events = Events(folder / "log" / "e.jsonl")
    trainer = Trainer(model(torch.float32), AdamW(lr=5e-3), numerics="fp16", events=ctx.events)
    history = fit(trainer, data, Imitate(), WSD(warmup=2), steps, ctx, save_seconds=0.0, **options)
    return trainer, history.series["loss"], read(folder / "log")


def test_training_in_fp16_follows_training_in_fp32(tmp_path: Path) -> None:
    trainer, losses, _ = run(tmp_path)
    exact = Trainer(model(torch.float32), AdamW(lr=5e-3))
    wanted = [exact.step(data(k), Imitate(), 5e-3 * WSD(warmup=2).at(k, 30)).loss for k in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert max(abs(a - b) for a, b in zip(losses, wanted)) < 0.03
    assert losses != wanted
    assert trainer.scale is not None and trainer.scale.calm == 30 and trainer.refused == 0


def test_an_overflow_is_no_refusal_and_lowers_the_scale(tmp_path: Path) -> None:
    """From a scale of 2**40 every step overflows until it is low enough, more often in a row than `patience` allows refusals."""
    trainer = Trainer(model(torch.float32), AdamW(lr=5e-3), numerics="fp16", patience=2, events=Events(tmp_path / "e.jsonl"))
    assert trainer.scale is not None
    trainer.scale.value = 2.0**40
    before = {n: t.clone() for n, t in trainer.named_parameters().items()}
    report = trainer.step(data(0), Imitate(), 5e-3)
    assert "overflow" in report.skipped and math.isfinite(report.loss)
    assert all(torch.equal(t, before[n]) for n, t in trainer.named_parameters().items())
    lowered = 1
    while trainer.step(data(0), Imitate(), 5e-3).skipped:
        lowered += 1
    assert lowered > 2
    assert trainer.scale.value == 2.0 ** (40 - lowered)
    assert trainer.refused == 0 and trainer.in_a_row == 0
    assert [e["what"] for e in read(tmp_path) if e["kind"] == "alarm"] == ["fp16 gradients overflowed; the loss scale is lowered"] * lowered


def test_gradients_that_underflow_without_a_scale_are_kept_by_it() -> None:
    """A loss weighted by 1e-7 has gradients below the smallest number of fp16."""
    w = nn.Parameter(torch.eye(8))
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    found: list[torch.Tensor] = []
    for scale in (LossScale(1.0), LossScale(2.0**16)):
        w.grad = None
        with autocast("fp16"):
            y = x @ w
        scale.scale(1e-9 * y.float().sum()).backward()
        assert w.grad is not None
        scale.unscale([w.grad])
        found.append(w.grad.clone())
    wanted = 1e-9 * x.sum(0)[:, None].expand(8, 8)
    assert not found[0].any()
    assert float((found[1] - wanted).norm() / wanted.norm()) < 5e-3


def test_a_fit_in_fp16_resumes_to_the_same_bits(tmp_path: Path) -> None:
    class Crash(Exception):
        pass

    def fragile(k: int) -> Batch:
        if k == 5:
            raise Crash
        return data(k)

    def go(folder: Path, batches: Any) -> dict[str, bytes]:
        trainer = Trainer(model(torch.float32), AdamW(lr=5e-3), numerics="fp16")
        assert trainer.scale is not None
        trainer.scale.value, trainer.scale.interval = 2.0**24, 3
        fit(trainer, batches, Imitate(), WSD(warmup=2), 9, Context.scratch(folder), save_seconds=0.0)
        return {n: t.detach().numpy().tobytes() for n, t in trainer.state().items()}

    whole = go(tmp_path / "whole", data)
    with pytest.raises(Crash):
        go(tmp_path / "again", fragile)
    assert go(tmp_path / "again", data) == whole


def test_an_engine_in_fp16_agrees_with_a_trainer_in_fp16() -> None:
    ids = [3, 7, 1, 12, 5, 9]
    m = model(torch.float32)
    every: tuple[Numerics, ...] = ("fp16", "bf16", "fp32")
    found = {n: LocalEngine(m, numerics=n).score([ids])[0].logprobs for n in every}
    b = Batch.of([torch.tensor(ids)])
    for numerics, got in found.items():
        wanted = Trainer(m, AdamW(), numerics=numerics).forward(b, frozenset({"logprob"})).logprob
        assert wanted is not None
        assert np.abs(got[1:] - wanted[1:].numpy()).max() < {"fp16": 2e-3, "bf16": 2e-2, "fp32": 1e-5}[numerics]
    assert 0 < np.abs(found["fp16"][1:] - found["fp32"][1:]).max() < np.abs(found["bf16"][1:] - found["fp32"][1:]).max()
