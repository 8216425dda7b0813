"""The objective: published vectors, gradients, invariance, and every knob bites."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.rl.support import Table, bigram, random_groups, table, trace
from upslope.rl import surrogate
from upslope.rl.advantage import group_advantages
from upslope.rl.kl import KL, kl_term
from upslope.rl.objective import ByConstant, BySequence, ByToken, Objective, PolicyLoss, cispo, dapo, dr_grpo, grpo, gspo
from upslope.rl.protocol import TASK, Done, Score
from upslope.rl.surrogate import Cispo, Clip
from upslope.train.batch import Batch

PRESETS = {"grpo": grpo(), "dapo": dapo(), "dr_grpo": dr_grpo(8), "cispo": cispo(), "gspo": gspo()}
ALL = {
    **PRESETS,
    "everything": Objective(
        advantage="rloo",
        surrogate=Clip(low=0.05, high=0.1, dual=1.05, outer=1.2),
        kl=KL(estimator="k1", coefficient=0.3),
        entropy=0.02,
        mismatch=1.1,
    ),
}


def made(objective: Objective, seed: int = 0) -> Batch:
    return objective.batch(objective.choose(random_groups(seed=seed)), Table(table(1)), Table(table(2)))


def value(objective: Objective, batch: Batch, logits: Tensor) -> Tensor:
    return objective.loss()(bigram(batch, logits), batch, batch.totals())[0]


# ── vectors (float64, computed independently from the papers' formulas) ─────────────────────────────────────────────


@pytest.mark.parametrize(
    ("how", "rewards", "expected"),
    [
        ("grpo", [1, 0, 0, 1], [0.866024, -0.866024, -0.866024, 0.866024]),
        ("grpo", [1, 0, 0, 0], [1.5, -0.5, -0.5, -0.5]),
        ("mean", [1, 0, 0, 0], [0.75, -0.25, -0.25, -0.25]),
        ("rloo", [1, 0, 0, 0], [1, -1 / 3, -1 / 3, -1 / 3]),
        ("grpo", [3.0], [0.0]),
        ("grpo", [2, 2, 2], [0, 0, 0]),
    ],
)
def test_advantages_of_the_papers(how: Any, rewards: list[float], expected: list[float]) -> None:
    assert np.allclose(group_advantages(np.array(rewards), how), expected, atol=3e-6)


def test_advantages_refuse_what_is_not_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        group_advantages(np.array([1.0, math.nan]))


def test_sequence_ratio_of_the_paper() -> None:
    lp, old = torch.tensor([9.0, 0.01, -0.02, 0.04], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    action = torch.tensor([False, True, True, True])
    s = surrogate.sequence_ratio(lp, old, action, torch.zeros(4, dtype=torch.int64), 1)
    assert s[1].item() == pytest.approx(1.0100502, abs=1e-7)
    assert surrogate.token_ratio(lp, old)[1:].tolist() == pytest.approx([1.01005, 0.98020, 1.04081], abs=1e-5)
    term = surrogate.clip(s[1:2], torch.ones(1, dtype=torch.float64), Clip(low=3e-4, high=4e-4))
    assert term.loss.item() == pytest.approx(-1.0004)
    assert term.limited.all()


def test_clip_branches() -> None:
    r = torch.tensor([0.5, 1.1, 1.5, 0.5, 1.1, 1.5], dtype=torch.float64)
    a = torch.tensor([1.0, 1, 1, -1, -1, -1], dtype=torch.float64)
    term = surrogate.clip(r, a, Clip(low=0.2, high=0.28))
    assert term.loss.tolist() == pytest.approx([-0.5, -1.1, -1.28, 0.8, 1.1, 1.5])
    assert term.limited.tolist() == [False, False, True, True, False, False]
    dual = surrogate.clip(torch.tensor([9.0, 9.0]), torch.tensor([-1.0, 1.0]), Clip(dual=3.0))
    assert dual.loss.tolist() == pytest.approx([3.0, -1.28])
    outer = surrogate.clip(torch.tensor([90.0]), torch.tensor([-1.0]), Clip(outer=50.0))
    assert outer.loss.tolist() == pytest.approx([50.0])


def test_cispo_gives_every_token_a_gradient_of_bounded_weight() -> None:
    lp = torch.tensor([0.0, 3.0, -3.0], dtype=torch.float64, requires_grad=True)
    term = surrogate.cispo(lp.exp(), lp, torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64), Cispo(cap=5.0))
    (grad,) = torch.autograd.grad(term.loss.sum(), lp)
    assert grad.tolist() == pytest.approx([-1.0, -5.0, 2 * math.exp(-3)])
    assert term.limited.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("estimator", "weighted", "target"),
    [("k1", True, "reverse"), ("k3", True, "reverse"), ("k2", False, "reverse"), ("k3", False, "forward")],
)
def test_gradient_of_each_kl_estimator_by_exact_expectation(estimator: Any, weighted: bool, target: str) -> None:
    logits, ref = table(3)[0].clone().requires_grad_(), torch.log_softmax(table(4)[0], 0)
    logp = torch.log_softmax(logits, 0)
    p = logp.exp().detach()
    (got,) = torch.autograd.grad((p * kl_term(logp, ref, logp.detach(), estimator, weighted)).sum(), logits, retain_graph=True)
    kl = (logp.exp() * (logp - ref)).sum() if target == "reverse" else (ref.exp() * (ref - logp)).sum()
    (true,) = torch.autograd.grad(kl, logits)
    assert torch.allclose(got, true, atol=1e-12)


@pytest.mark.parametrize("bad", [{"estimator": "k1", "weighted": False}, {"estimator": "k2", "weighted": True}])
def test_kl_terms_with_a_wrong_gradient_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="use weighted"):
        KL(**bad)


def test_mismatch_weight_is_truncated_and_carries_no_gradient() -> None:
    old = torch.tensor([0.0, 2.0], requires_grad=True)
    weight = surrogate.mismatch_weight(old, torch.tensor([0.5, 0.0]), 2.0)
    assert weight.tolist() == pytest.approx([math.exp(-0.5), 2.0])
    assert not weight.requires_grad


# ── the loss as a whole ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ALL)
def test_gradient_by_finite_differences(name: str) -> None:
    objective, batch = ALL[name], made(ALL[name])
    point = table(5, 0.3) + table(1)
    if isinstance(objective.surrogate, Cispo):  # its weight is held constant by definition: compare with the weight frozen
        out = bigram(batch, point)
        assert out.logprob is not None
        assert batch.policy is not None
        p = batch.policy
        weight = (out.logprob - p.old).exp().clamp(max=5.0).detach()

        def f(x: Tensor) -> Tensor:
            lp = bigram(batch, x).logprob
            assert lp is not None
            return -(p.weight * weight * p.advantage * lp).sum() / batch.totals().policy
    else:

        def f(x: Tensor) -> Tensor:
            return value(objective, batch, x)

    x = point.clone().requires_grad_()
    (grad,) = torch.autograd.grad(value(objective, batch, x), x)
    for direction in (table(6), table(7)):
        eps = 1e-6
        slope = (f(point + eps * direction) - f(point - eps * direction)) / (2 * eps)
        assert slope.item() == pytest.approx((grad * direction).sum().item(), rel=1e-5, abs=1e-9)
    assert grad.norm() > 0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("tokens", [1, 9, 25])
def test_any_split_gives_the_same_loss_gradient_and_statistics(name: str, tokens: int) -> None:
    objective, batch = ALL[name], made(ALL[name])
    logits = (table(5, 0.3) + table(1)).requires_grad_()
    loss = objective.loss()
    whole, stats = loss(bigram(batch, logits), batch, batch.totals())
    parts = [loss(bigram(b, logits), b, batch.totals()) for b in batch.split(tokens)]
    assert len(parts) > 1
    total = sum((p[0] for p in parts), torch.zeros((), dtype=torch.float64))
    assert abs(whole.item() - total.item()) <= 1e-10
    difference = torch.autograd.grad(whole, logits, retain_graph=True)[0] - torch.autograd.grad(total, logits)[0]
    assert difference.norm() <= 1e-10
    for key in stats:
        assert stats[key].item() == pytest.approx(sum(p[1][key].item() for p in parts), abs=1e-10)


def test_one_update_needs_no_second_forward() -> None:
    objective = ALL["everything"]
    chosen = objective.choose(random_groups())
    policy = table(1).requires_grad_()
    twice = objective.batch(chosen, Table(policy.detach()), Table(table(2)))
    once = objective.batch(chosen, None, Table(table(2)))
    a = objective.loss()(bigram(twice, policy), twice, twice.totals())
    b = objective.loss(on_policy=True)(bigram(once, policy), once, once.totals())
    assert torch.equal(torch.autograd.grad(a[0], policy)[0], torch.autograd.grad(b[0], policy)[0])
    assert a[1] == b[1]
    assert b[1]["ratio"].item() == 1.0
    assert b[1]["clip_fraction"].item() == 0.0


def test_on_policy_gradient_is_the_policy_gradient() -> None:
    """With r = 1 every token surrogate has the gradient of A log p."""
    for name in ("dapo", "cispo"):
        objective = PRESETS[name]
        batch = objective.batch(objective.choose(random_groups()))
        policy = table(1).requires_grad_()
        loss = objective.loss(on_policy=True)(bigram(batch, policy), batch, batch.totals())[0]
        assert batch.policy is not None
        lp = bigram(batch, policy).logprob
        assert lp is not None
        plain = -(batch.policy.weight * batch.policy.advantage * lp).sum() / batch.totals().policy
        assert torch.allclose(torch.autograd.grad(loss, policy)[0], torch.autograd.grad(plain, policy)[0], atol=1e-14)


def test_reduce_is_a_weight() -> None:
    groups = [[trace(1.0, (1, 2, 3, 4), group="a"), trace(0.0, (5,), group="a")]]
    token = Objective(reduce=ByToken())
    batch = token.batch(token.choose(groups))
    assert batch.policy is not None
    assert batch.policy.weight.tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1]
    assert batch.totals().policy == 5
    sequence = Objective(reduce=BySequence())
    batch = sequence.batch(sequence.choose(groups))
    assert batch.totals().policy == pytest.approx(2)
    flat = torch.zeros(7, 7, dtype=torch.float64)  # every token has log p = -log 7: the loss is the mean of -A
    constant = Objective(reduce=ByConstant(length=8), advantage="mean")
    batch = constant.batch(constant.choose(groups))
    loss = constant.loss(on_policy=True)(bigram(batch, flat), batch, batch.totals())[0]
    assert loss.item() == pytest.approx(-(4 * 0.5 - 1 * 0.5) / (2 * 8))


KNOBS: dict[str, Objective] = {
    "advantage": Objective(advantage="mean"),
    "ratio": Objective(ratio="sequence"),
    "surrogate.kind": Objective(surrogate=Cispo()),
    "surrogate.low": Objective(surrogate=Clip(low=0.01)),
    "surrogate.high": Objective(surrogate=Clip(high=0.01)),
    "surrogate.dual": Objective(surrogate=Clip(dual=1.01)),
    "surrogate.outer": Objective(surrogate=Clip(outer=1.01)),
    "surrogate.cap": Objective(surrogate=Cispo(cap=1.0)),
    "reduce": Objective(reduce=BySequence()),
    "reduce.constant": Objective(reduce=ByConstant(length=8)),
    "reduce.length": Objective(reduce=ByConstant(length=9)),
    "kl.k3": Objective(kl=KL(coefficient=0.1)),
    "kl.k1": Objective(kl=KL(coefficient=0.1, estimator="k1")),
    "kl.plain": Objective(kl=KL(coefficient=0.1, weighted=False)),
    "kl.k2": Objective(kl=KL(coefficient=0.1, estimator="k2", weighted=False)),
    "kl.coefficient": Objective(kl=KL(coefficient=0.2)),
    "entropy": Objective(entropy=0.01),
    "mismatch": Objective(mismatch=0.9),
    "mismatch.cap": Objective(mismatch=1.3),
    "mask_truncated": Objective(mask_truncated=True),
    "default": Objective(),
}


def test_every_knob_changes_the_gradient() -> None:
    seen: dict[bytes, str] = {}
    for name, objective in KNOBS.items():
        batch = made(objective)
        logits = (table(5, 0.3) + table(1)).requires_grad_()
        key = torch.autograd.grad(value(objective, batch, logits), logits)[0].numpy().tobytes()
        assert key not in seen, f"{name} and {seen[key]} give the same gradient"
        seen[key] = name


# ── what is learnt from ─────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_left_out_silently() -> None:
    groups = [
        [trace(1.0, group="a"), trace(0.0, group="a"), trace(Score(0.0, False, "grader died"), group="a")],
        [trace(1.0, group="b"), trace(1.0, group="b")],
        [trace(1.0, group="c"), trace(None, group="c")],
        [trace(1.0, group="d", done=Done.LENGTH), trace(0.0, group="d"), trace(0.0, (), group="d")],
    ]
    chosen = Objective(mask_truncated=True).choose(groups)
    assert dict(chosen.left_out) == {"invalid": 2, "constant": 2, "alone": 1, "truncated": 1, "empty": 1}
    assert len(chosen.traces) + sum(chosen.left_out.values()) == sum(len(g) for g in groups)
    assert chosen.advantages[0] == pytest.approx(0.7071, abs=1e-4)  # the invalid sibling is not a 0 in the baseline


def test_constant_groups_are_judged_by_the_task_not_by_length() -> None:
    group = [trace(1.0 - 0.1 * i, group="a", id=str(i), scores={TASK: Score(1.0)}) for i in range(3)]
    assert not Objective().choose([group]).traces
    assert len(Objective(drop_constant=False).choose([group]).traces) == 3


def test_a_step_without_traces_and_a_penalty_without_reference_are_refused() -> None:
    with pytest.raises(ValueError, match="no trace"):
        Objective().batch(Objective().choose([]))
    with pytest.raises(ValueError, match="reference"):
        grpo().batch(grpo().choose(random_groups()))


def test_the_loss_reads_no_more_than_it_needs() -> None:
    assert PolicyLoss(Objective()).wants == {"logprob"}
    assert PolicyLoss(Objective(entropy=0.1)).wants == {"logprob", "entropy"}
