"""Averages of checkpoints against the decayed run that they stand in for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from upslope.config import UsageError
from upslope.optim.averaging import EMA, average, decay_weights, weights_of
from upslope.optim.schedule import Shape


def trunk(n: int, each: int, multipliers: list[float] | None = None) -> list[dict[str, Tensor]]:
    """n checkpoints of SGD on gradients that do not depend on the weights, `each` steps apart; multipliers: of the steps in between."""
    g = torch.Generator().manual_seed(0)
    theta = torch.randn(5, generator=g, dtype=torch.float64)
    states = [{"w": theta.clone(), "steps": torch.tensor(0)}]
    for i in range(1, n):
        for _ in range(each):
            theta = theta - 0.1 * (multipliers[i - 1] if multipliers else 1.0) * torch.randn(5, generator=g, dtype=torch.float64)
        states.append({"w": theta.clone(), "steps": torch.tensor(i * each)})
    return states


@pytest.mark.parametrize("shape", ["linear", "1-sqrt", "cosine", "exponential"])
def test_the_average_is_where_the_decayed_run_ends(shape: Shape) -> None:
    n, end = 9, 0.05
    w = decay_weights(n, shape, end)
    multipliers = [1 - sum(w[: i + 1]) for i in range(n - 1)]  # what an update before checkpoint i + 1 keeps
    got = average(trunk(n, 4), w)
    assert float((got["w"] - trunk(n, 4, multipliers)[-1]["w"]).norm()) < 1e-12
    assert int(got["steps"]) == 32
    assert multipliers == pytest.approx([{
        "linear": 1 - 0.95 * i / n,
        "1-sqrt": 1 - 0.95 * math.sqrt(i / n),
        "cosine": 0.05 + 0.475 * (1 + math.cos(math.pi * i / n)),
        "exponential": 0.05 ** (i / n),
    }[shape] for i in range(1, n)])  # fmt: skip


def test_closed_forms() -> None:
    assert decay_weights(8, "linear") == pytest.approx([1 / 8] * 8)
    assert decay_weights(4, "1-sqrt") == pytest.approx([math.sqrt((i + 1) / 4) - math.sqrt(i / 4) for i in range(4)])
    assert weights_of([0.5, 0.25]) == [0.5, 0.25, 0.25]
    assert weights_of([]) == [1.0]
    states = trunk(5, 1)
    mean = torch.stack([s["w"] for s in states]).mean(0)
    assert float((average(iter(states), decay_weights(5, "linear"))["w"] - mean).norm()) < 1e-14


def test_sums_are_taken_in_float64() -> None:
    states = [{"w": torch.full((3,), v).bfloat16()} for v in (256.0, 1.0, 1.0, -256.0)]
    got = average(states, [0.25] * 4)["w"]
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [0.5] * 3


def test_wrong_averages_are_refused() -> None:
    s = trunk(2, 1)
    with pytest.raises(UsageError, match="must sum to 1"):
        average(s, [0.5, 0.4])
    with pytest.raises(UsageError, match="2 weights for 1 states"):
        average(s[:1], [0.5, 0.5])
    with pytest.raises(UsageError, match="1 weights for more states"):
        average(s, [1.0])
    with pytest.raises(UsageError, match="other names or shapes"):
        average([s[0], {"v": s[0]["w"]}], [0.5, 0.5])
    with pytest.raises(UsageError, match="must fall"):
        weights_of([0.5, 0.6])
    with pytest.raises(UsageError, match="at least one"):
        decay_weights(0)


def test_ema_in_closed_form_and_resumed() -> None:
    values = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ema = EMA({"w": values[0]}, 0.8)
    for i, v in enumerate(values[1:]):
        if i == 2:
            other = EMA({"w": torch.zeros(4, dtype=torch.float64)}, 0.8)
            other.load(ema.state())
            ema = other
        ema.update({"w": v})
    wanted = 0.8**5 * values[0] + sum((0.2 * 0.8 ** (5 - i) * values[i] for i in range(1, 6)), torch.zeros(4, dtype=torch.float64))
    assert float((ema.averages["w"] - wanted).norm()) < 1e-14
    assert EMA({"w": values[0].bfloat16()}, 0.5).averages["w"].dtype == torch.float32
    with pytest.raises(UsageError, match="must be in"):
        EMA({}, 1.0)
