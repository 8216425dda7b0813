"""From logits to tokens: temperature, kept set, and noise that is a function of (request seed, token position) alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64: a bijection of 64-bit words in which every output bit depends on every input bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: npt.NDArray[np.uint64], position: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """One uniform number in [0, 1) per row, a pure function of its (seed, position): (R,), (R,) → (R,) float32, multiples of 2^-23.

    SplitMix64 read as a counter-based generator, the row's seed hashed first so that neighbouring seeds share nothing.
    23 bits, so that u · total < total holds also after rounding. Source: Steele et al. 2014, doi 10.1145/2660193.2660195.
    """
    with np.errstate(over="ignore"):
        start = _mix(seed + _GAMMA)
        word = _mix(start + (position.astype(np.uint64) + np.uint64(1)) * _GAMMA)
    return ((word >> np.uint64(41)).astype(np.float64) * 2.0**-23).astype(np.float32)


class Knobs(NamedTuple):
    """Sampling settings per row, (R,) each: temperature (0 = greedy), top_p (1 = off), top_k (0 = off)."""

    temperature: npt.NDArray[np.float32]
    top_p: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int64]


class Drawn(NamedTuple):
    """tokens (R,), logprobs (R,) of the distribution sampled from, finite (R,): whether the row's logits were."""

    tokens: Tensor
    logprobs: Tensor
    finite: Tensor


def restrict(logprobs: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Log-probabilities of the kept set, renormalised; −inf outside. (R, V), (R,), (R,) → (R, V).

    The top_k most likely tokens, then, among them, the smallest set with mass ≥ top_p; ties go to the lower id.
    Source: nucleus sampling, arXiv 1904.09751 §3.1.
    """
    size = logprobs.shape[-1]
    ordered, index = logprobs.sort(stable=True, dim=-1, descending=True)
    count = torch.where(top_k > 0, top_k, size).clamp(max=size)
    ordered = ordered.masked_fill(torch.arange(size, device=logprobs.device) >= count[:, None], -torch.inf)
    mass = torch.softmax(ordered, -1)
    before = mass.cumsum(-1) - mass
    outside = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    outside[:, 0] = False
    kept = torch.log_softmax(ordered.masked_fill(outside, -torch.inf), -1)
    return torch.empty_like(kept).scatter_(-1, index, kept)


def draw(logits: Tensor, knobs: Knobs, noise: npt.NDArray[np.float32]) -> Drawn:
    """One token per row by inverse CDF. logits (R, V) float32; noise (R,) in [0, 1).

    p = softmax(logits / temperature) on the kept set; the token is the first whose cumulative mass exceeds noise · total.
    A greedy row takes the most likely token, with log-probability 0: its distribution is a point.
    """
    device = logits.device
    greedy = knobs.temperature == 0
    if (knobs.temperature != 1).any():
        divisor = torch.from_numpy(np.where(greedy, np.float32(1), knobs.temperature)).to(device)
        logprobs = torch.log_softmax(logits / divisor[:, None], -1)
    else:
        logprobs = torch.log_softmax(logits, -1)
    limited = ((knobs.top_k > 0) | (knobs.top_p < 1)) & ~greedy
    if limited.any():
        rows = torch.from_numpy(np.flatnonzero(limited)).to(device)
        k, p = (torch.from_numpy(np.ascontiguousarray(x[limited])).to(device) for x in (knobs.top_k, knobs.top_p))
        logprobs[rows] = restrict(logprobs[rows], k, p)
    mass = logprobs.exp().cumsum(-1)
    total = mass[:, -1:]
    target = torch.from_numpy(noise).to(device)[:, None] * total
    tokens = torch.searchsorted(mass, target, right=True).clamp_(max=logits.shape[-1] - 1)
    chosen = logprobs.gather(1, tokens)[:, 0]
    tokens = tokens[:, 0]
    if greedy.any():
        point = torch.from_numpy(greedy).to(device)
        tokens = torch.where(point, logits.argmax(-1), tokens)
        chosen = torch.where(point & torch.isfinite(total[:, 0]), 0.0, chosen)
    return Drawn(tokens, chosen, torch.isfinite(total[:, 0]))
