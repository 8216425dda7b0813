"""Balance losses and the selection bias: closed forms, brute force per population, finite differences, and the GShard formula of a peer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from upslope.model.aux import RouterStats
from upslope.model.balance import aux_loss, bias_step, max_violation, populations, z_loss
from upslope.model.config import AuxLoss, Router, TopK
from upslope.model.router import route

E, K = 6, 2
LENGTHS = (5, 9, 1, 4, 7)
OVERS = (AuxLoss(weight=0.3, over="sequence"), AuxLoss(weight=0.3, over="micro", group=2), AuxLoss(weight=0.3, over="global"))


def of_tokens(probs: Tensor, chosen: Tensor, lengths: tuple[int, ...], square: Tensor | None = None) -> RouterStats:
    """Statistics from probabilities (T, E) and choices (T, k), summed segment by segment."""
    hot = torch.nn.functional.one_hot(chosen, probs.shape[1]).sum(1).to(probs.dtype)
    square = torch.zeros(len(probs), dtype=probs.dtype) if square is None else square
    parts = zip(hot.split(lengths), probs.split(lengths), square.split(lengths))
    sums = [torch.stack(column) for column in zip(*((h.sum(0), p.sum(0), s.sum(0)) for h, p, s in parts))]
    return RouterStats(sums[0], sums[1], sums[2], torch.tensor(lengths), chosen.shape[1])


def whole(stats: RouterStats, term: AuxLoss) -> Tensor:
    return aux_loss(stats, torch.arange(len(stats.lengths)), stats.counts, stats.lengths, term)


def random(seed: int = 0, lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    probs = torch.softmax(2 * torch.randn(sum(lengths), E, generator=g, dtype=torch.float64), -1)
    return probs, probs.topk(K).indices


def brute(probs: Tensor, chosen: Tensor, groups: list[list[int]], weight: float) -> float:
    """The definition, over populations given as lists of tokens."""
    total = 0.0
    for tokens in groups:
        f = [sum(int(e in chosen[t].tolist()) for t in tokens) / (K * len(tokens)) for e in range(E)]
        p = [sum(float(probs[t, e]) for t in tokens) / len(tokens) for e in range(E)]
        total += len(tokens) / len(probs) * E * sum(a * b for a, b in zip(f, p))
    return weight * total


def token_groups(over: str, group: int) -> list[list[int]]:
    starts = [sum(LENGTHS[:s]) for s in range(len(LENGTHS))]
    rows = [list(range(a, a + n)) for a, n in zip(starts, LENGTHS)]
    if over == "sequence":
        return rows
    size = len(rows) if over == "global" else group
    return [[t for row in rows[i : i + size] for t in row] for i in range(0, len(rows), size)]


@pytest.mark.parametrize("term", OVERS, ids=lambda t: t.over)
def test_each_population_as_by_its_definition(term: AuxLoss) -> None:
    probs, chosen = random()
    assert float(whole(of_tokens(probs, chosen, LENGTHS), term)) == pytest.approx(
        brute(probs, chosen, token_groups(term.over, term.group), 0.3), rel=1e-12
    )


def test_the_three_populations_differ() -> None:
    stats = of_tokens(*random(), LENGTHS)
    assert len({round(float(whole(stats, t)), 9) for t in OVERS}) == 3
    assert populations(5, OVERS[1]).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("term", OVERS, ids=lambda t: t.over)
def test_perfect_balance_costs_the_weight(term: AuxLoss) -> None:
    lengths = (3, 6, 3)
    probs = torch.full((12, E), 1 / E, dtype=torch.float64)
    chosen = torch.arange(24).view(12, 2) % E
    assert float(whole(of_tokens(probs, chosen, lengths), term)) == pytest.approx(0.3, rel=1e-12)


@pytest.mark.parametrize("term", OVERS, ids=lambda t: t.over)
def test_all_on_one_expert_costs_the_number_of_experts(term: AuxLoss) -> None:
    probs = torch.zeros(10, E, dtype=torch.float64)
    probs[:, 2] = 1
    assert float(whole(of_tokens(probs, torch.full((10, 1), 2), (4, 6)), term)) == pytest.approx(0.3 * E, rel=1e-12)


@pytest.mark.parametrize("term", OVERS, ids=lambda t: t.over)
@pytest.mark.parametrize("parts", [[[0], [1], [2], [3], [4]], [[0, 3], [1, 4], [2]], [[4, 1, 2], [0, 3]]])
def test_parts_add_up_to_the_step(term: AuxLoss, parts: list[list[int]]) -> None:
    probs, chosen = random()
    stats = of_tokens(probs, chosen, LENGTHS)
    total = 0.0
    for places in parts:
        at = torch.tensor(places)
        part = RouterStats(stats.counts[at], stats.probs[at], stats.square[at], stats.lengths[at], K)
        total += float(aux_loss(part, at, stats.counts, stats.lengths, term))
    assert total == pytest.approx(float(whole(stats, term)), rel=1e-12)


@pytest.mark.parametrize("term", OVERS, ids=lambda t: t.over)
def test_the_gradient_is_that_of_the_probabilities_at_fixed_choices(term: AuxLoss) -> None:
    logits = torch.randn(sum(LENGTHS), E, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    chosen = logits.topk(K).indices

    def loss(z: Tensor) -> Tensor:
        return whole(of_tokens(torch.softmax(z, -1), chosen, LENGTHS), term)

    leaf = logits.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    for t, e in ((0, 0), (6, 3), (25, 5)):
        step = torch.zeros_like(logits)
        step[t, e] = 1e-5
        slope = float(loss(logits + step) - loss(logits - step)) / 2e-5
        assert float(leaf.grad[t, e]) == pytest.approx(slope, rel=1e-6, abs=1e-10)


def test_the_global_loss_of_one_layer_is_the_peers() -> None:
    """transformers 5.23.0: load_balancing_loss_func counts choices, not shares of them, so its value is k times ours."""
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    logits = torch.randn(30, E, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    probs = torch.softmax(logits, -1)
    theirs = load_balancing_loss_func((logits,), E, K)
    ours = whole(of_tokens(probs, probs.topk(K).indices, (12, 18)), AuxLoss(weight=1.0, over="global"))
    assert float(theirs) == pytest.approx(K * float(ours), rel=1e-6)


def test_router_z_is_the_mean_square_of_logsumexp() -> None:
    logits = torch.randn(26, E, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    probs, chosen = random()
    stats = of_tokens(probs, chosen, LENGTHS, torch.logsumexp(logits, -1) ** 2)
    assert float(z_loss(stats, 26)) == pytest.approx(float((logits.exp().sum(-1).log() ** 2).mean()), rel=1e-12)


def test_the_bias_moves_against_the_load() -> None:
    bias = torch.tensor([0.1, 0.0, -0.2, 0.0])
    moved = bias_step(bias, torch.tensor([9.0, 1.0, 5.0, 5.0]), 0.01)
    assert torch.allclose(moved, torch.tensor([0.09, 0.01, -0.2, 0.0]))
    assert torch.equal(bias_step(bias, torch.tensor([9.0, 1.0, 5.0, 5.0]), 0.0), bias)


def test_violation_by_hand() -> None:
    assert float(max_violation(torch.tensor([4.0, 4.0, 4.0]))) == 0.0
    assert float(max_violation(torch.tensor([10.0, 1.0, 1.0]))) == pytest.approx(1.5)


def test_the_bias_balances_a_skewed_router() -> None:
    g = torch.Generator().manual_seed(0)
    skew = torch.linspace(-1.5, 1.5, 8)
    config, bias, violations = Router(score="sigmoid", select=TopK(k=2)), torch.zeros(8), []
    for _ in range(300):
        chosen = route(torch.randn(512, 8, generator=g) + skew, config, bias, None).chosen
        counts = torch.bincount(chosen.flatten(), minlength=8).float()
        violations.append(float(max_violation(counts)))
        bias = bias_step(bias, counts, 0.01)
    assert violations[0] > 1.0
    assert sum(violations[-20:]) / 20 < 0.3
    assert torch.equal(bias.argsort(), torch.arange(7, -1, -1))
