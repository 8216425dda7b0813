"""Optimizer settings carried from a small model to a large one, and a check that they carry.

With m = width ratio, l = depth ratio, k = batch ratio (target / base), hidden matrices and heads:

    AdamW       hidden_lr /= m (updates are coherent: their effect on activations grows with the fan-in); lr unchanged for the rest
    Muon        "rms" lr /= sqrt(m) (spectral norm of an update is 0.2 lr sqrt(max(A, B))); "original" lr unchanged
    depth       a residual branch is multiplied by l^-a, and its learning rate by l^(a - 1): a = 1/2 ... 1
    batch       lr *= sqrt(k), 1 - b -> k (1 - b), eps /= sqrt(k): the same trajectory in tokens, for AdamW; Muon: lr *= sqrt(k)
    decay       rate of forgetting per token stays: coupled lr wd, or wd if independent, is multiplied by k, and divided by the ratio of
                training lengths where those are given

Sources: Yang et al. 2022, arXiv 2203.03466 (muP); Yang et al. 2023, arXiv 2310.17813 (spectral condition);
Dey et al. 2025, arXiv 2505.01618 (depth); Malladi et al. 2022, arXiv 2205.10287 (batch); Wang and Aitchison 2024, arXiv 2405.13698 (decay).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from upslope.config import UsageError
from upslope.optim.build import Optimizer
from upslope.optim.config import AdamW, Muon


class Size(NamedTuple):
    """width: of the residual stream. depth: layers. batch: tokens a step. tokens: of the whole training (0: not part of the rule)."""

    width: int
    depth: int = 1
    batch: int = 1
    tokens: int = 0


def branch_factor(base: Size, to: Size, alpha: float = 1.0) -> float:
    """What the residual branches are multiplied by, relative to the base: l^-alpha."""
    return (to.depth / base.depth) ** -alpha


def init_factor(base: Size, to: Size) -> float:
    """What the standard deviation of hidden matrices is multiplied by: m^(-1/2); 1 / sqrt(fan-in) does it of itself."""
    return (to.width / base.width) ** -0.5


def transfer(config: AdamW | Muon, base: Size, to: Size, alpha: float = 1.0) -> AdamW | Muon:
    """The config for size `to` that behaves as `config` does at size `base`; the identity where they are equal.

    alpha: exponent of the branch factor that the model of size `to` has; 1 leaves learning rates alone.
    UsageError where the batch ratio leaves no momentum (k (1 - b) >= 1), or only one training length is given.
    """
    if (base.tokens > 0) != (to.tokens > 0):
        raise UsageError(f"transfer: tokens {base.tokens} and {to.tokens}; give both or neither")
    m, k, deep = to.width / base.width, to.batch / base.batch, (to.depth / base.depth) ** (alpha - 1)
    per_step = k * (base.tokens / to.tokens if to.tokens else 1.0)
    if isinstance(config, AdamW):
        return _adamw(config, deep / m, k, per_step)
    faster = math.sqrt(k) * deep * (m**-0.5 if config.scale == "rms" else 1.0)
    rest = _adamw(config.rest, deep / m, k, per_step)
    return config.replace(lr=config.lr * faster, weight_decay=config.weight_decay * per_step / faster, adamw=rest)


def _adamw(config: AdamW, hidden: float, k: float, per_step: float) -> AdamW:
    """hidden: factor on the rate of hidden matrices; k: batch ratio; per_step: factor on what decay forgets in a step."""
    betas = tuple(1 - k * (1 - b) for b in config.betas)
    if min(betas) < 0:
        raise UsageError(f"transfer: a batch {k:g} times as large leaves no betas of {config.betas}\nway out: a smaller batch")
    coupled = config.decay == "lr"
    return config.replace(
        lr=config.lr * math.sqrt(k),
        hidden_lr=config.hidden_lr * hidden,
        betas=betas,
        eps=config.eps / math.sqrt(k),
        weight_decay=config.weight_decay * per_step / (math.sqrt(k) * hidden if coupled else 1.0),
    )


class Probe(NamedTuple):
    """A model at its start, its optimizer, and what to train it on. watch: names of the modules whose outputs are measured."""

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[nn.Module], Tensor]
    watch: Sequence[str]


class Row(NamedTuple):
    """Root mean square of the change of a module's output after the steps, at a width."""

    width: int
    module: str
    change: float


def coordinate_check(make_model: Callable[[int], Probe], widths: Iterable[int], steps: int = 3) -> list[Row]:
    """How far outputs move in `steps` steps at each width: flat in width under a rule that transfers, a power of it under none.

    make_model: width → probe; the loss reads the same data at every width. Each probe's model is trained in place.
    """
    rows = []
    for width in widths:
        probe = make_model(width)
        before = _outputs(probe)
        for _ in range(steps):
            probe.optimizer.clear()
            probe.loss(probe.model).backward()  # type: ignore[no-untyped-call]
            probe.optimizer.step(probe.optimizer.config.lr)
        probe.optimizer.clear()
        after = _outputs(probe)
        rows += [Row(width, n, float((after[n] - before[n]).double().square().mean().sqrt())) for n in probe.watch]
    return rows


def exponents(rows: Iterable[Row]) -> dict[str, float]:
    """Per module the slope of log(change) in log(width), by least squares; nan for less than two widths."""
    points: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        points.setdefault(r.module, []).append((math.log(r.width), math.log(max(r.change, 1e-300))))
    found = {}
    for name, at in points.items():
        x, y = (sum(c) / len(at) for c in zip(*at))
        spread = sum((a - x) ** 2 for a, _ in at)
        found[name] = sum((a - x) * (b - y) for a, b in at) / spread if spread > 0 else math.nan
    return found


@torch.no_grad()
def _outputs(probe: Probe) -> dict[str, Tensor]:
    """The watched modules' outputs in one pass of the loss."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[object, ...], Tensor], None]:
        def hook(_: nn.Module, __: tuple[object, ...], out: Tensor) -> None:
            seen[name] = out.detach().clone()

        return hook

    handles = [probe.model.get_submodule(n).register_forward_hook(keep(n)) for n in probe.watch]
    try:
        probe.loss(probe.model)
    finally:
        for h in handles:
            h.remove()
    if missing := [n for n in probe.watch if n not in seen]:
        raise UsageError(f"coordinate check: {missing[0]!r} gave no output in the loss\nway out: watch modules that the loss runs")
    return seen
