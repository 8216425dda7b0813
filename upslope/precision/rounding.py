"""Randomness of stochastic rounding: a pure function of seed, parameter and step, so that replicas and resumed runs draw the same bits."""

from __future__ import annotations

import torch

from upslope.machine.rng import seed_of


def generator(seed: int, *index: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator keyed by (seed, index) alone, such as (seed, step, name): replicas of a parameter must not draw apart, or they drift.

    The bits are those of the device's own generator: equal on equal kinds of device.
    """
    return torch.Generator(device=device).manual_seed(seed_of(seed, "rounding", *index))
