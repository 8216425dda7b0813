"""Load balancing of experts as pure functions: auxiliary losses over a population of tokens, router z-loss, selection bias.

    aux = weight · Σ_pop N_pop/N · E Σ_i f_i P_i,   f_i = c_i / (k N_pop),   P_i = Σ_{t in pop} p_ti / N_pop

f comes from the counts of the whole step and P from sums that add over its parts, so the sum over parts is the loss of the step however it
is split. Sources: arXiv 2006.16668 (GShard), 2412.19437 (per sequence), 2501.11873 (global); bias: 2408.15664; z-loss: 2202.08906.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upslope.model.aux import RouterStats
from upslope.model.config import AuxLoss


def populations(segments: int, term: AuxLoss) -> Tensor:
    """(S,) int64: the population of each segment of a step, numbered from 0."""
    if term.over == "global":
        return torch.zeros(segments, dtype=torch.long)
    return torch.arange(segments) // (term.group if term.over == "micro" else 1)


def aux_loss(part: RouterStats, at: Tensor, counts: Tensor, lengths: Tensor, term: AuxLoss) -> Tensor:
    """One part's share of a balance loss; the gradient runs through its probabilities alone.

    part: statistics of some segments of a step; at (S_part,) int64: which. counts (S, E), lengths (S,): of all segments of the step.
    Returns a scalar; over all parts: `weight` at perfect balance, weight · E / k with all tokens on the same k experts.
    """
    pop = populations(len(lengths), term).to(counts.device)
    load = counts.new_zeros(int(pop[-1]) + 1, counts.shape[1]).index_add(0, pop, counts)
    share = load / load.sum(1, keepdim=True)  # f (populations, E): each token makes k choices
    return term.weight * counts.shape[1] / float(lengths.sum()) * (share[pop[at]] * part.probs).sum()


def z_loss(part: RouterStats, tokens: float) -> Tensor:
    """One part's share of the mean over a step's tokens of logsumexp(logits)²."""
    return part.square.sum() / tokens


def bias_step(bias: Tensor, counts: Tensor, rate: float) -> Tensor:
    """The selection bias (E,) after a step with these counts (E,): up for experts below the mean load, down for those above."""
    return bias + rate * torch.sign(counts.mean() - counts).to(bias.dtype)


def max_violation(counts: Tensor) -> Tensor:
    """MaxVio = max_i c_i / mean(c) - 1 of counts (E,): 0 at perfect balance. Source: arXiv 2408.15664 §3.1."""
    return counts.max() / counts.mean() - 1
