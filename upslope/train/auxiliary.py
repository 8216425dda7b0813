"""Losses that a model asks for beside the training objective: load balance, router z-loss, indexer divergence, multi-token prediction.

Each is divided by totals of the whole step, so that parts add up to the same loss however the step is split. Where a balance loss is over
tokens of several parts, a pass without gradient counts the choices of the step first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from upslope.model.aux import Aux, RouterStats, Want
from upslope.model.balance import aux_loss, bias_step, max_violation, populations, z_loss
from upslope.model.config import CSA, MLA, MTP, AuxLoss, BiasBalance, Compressed, Indexer, Mixer
from upslope.model.moe import MixtureOfExperts
from upslope.train.batch import Batch
from upslope.train.head import target_logprobs
from upslope.train.protocol import Sums
from upslope.train.ranks import Alone, Ranks

Counts = dict[tuple[int, int], Tensor]
"""(layer, pass) → choices (S, E) float64 of a step's segments; a predictor that serves several depths makes a pass per depth."""


def index_weight(mixer: Mixer) -> float:
    """The weight of a mixer's indexer loss; 0 where it has none."""
    if isinstance(mixer, MLA) and isinstance(mixer.select, Indexer):
        return mixer.select.loss
    return mixer.history.loss if isinstance(mixer, Compressed) and isinstance(mixer.history, CSA) else 0.0


def predicted(part: Batch, depth: int) -> tuple[Tensor, Tensor]:
    """The columns (n,) that depth k predicts, from the row k + 1 before in the same segment, and their weights (n,)."""
    assert part.imitate is not None
    at = ((part.imitate != 0) & (part.pos > depth)).nonzero()[:, 0]
    return at, part.imitate[at]


class Auxiliary:
    """The side losses of one model. routers: its mixtures of experts by layer. index: weight by layer. mtp: the config's, if weighted."""

    def __init__(self, routers: dict[int, MixtureOfExperts], index: dict[int, float], mtp: MTP | None) -> None:
        self.routers, self.index, self.mtp = routers, index, mtp

    @classmethod
    def of(cls, model: Any) -> Self | None:
        """What a model asks for; None where that is nothing, so that its passes carry no side outputs."""
        config = getattr(model, "config", None)
        if config is None:
            return None
        mtp = config.mtp if config.mtp is not None and config.mtp.weight else None
        layers = [*config.layers(), *([config.blocks[mtp.block]] * mtp.depth if mtp else [])]
        index = {i: weight for i, layer in enumerate(layers) if (weight := index_weight(layer.mixer))}
        routers = {m.layer: m for m in model.modules() if isinstance(m, MixtureOfExperts)}
        return cls(routers, index, mtp) if routers or index or mtp else None

    def step(self, batch: Batch, places: Sequence[Tensor], ranks: Ranks | None = None) -> AuxiliaryStep:
        """The side losses of one optimizer step. places: per part (S_part,) int64, the segments of the batch that it holds.

        ranks: those that share the step, each with its own parts.
        """
        return AuxiliaryStep(self, batch, places, ranks or Alone())


class AuxiliaryStep:
    """The side losses of one step: its denominators, and the choices seen so far.

    spans: whether some balance loss is over tokens of several parts, so that `survey` must see all parts before the first call.
    """

    def __init__(self, of: Auxiliary, batch: Batch, places: Sequence[Tensor], ranks: Ranks) -> None:
        self.of, self.ranks, self.tokens, self.lengths = of, ranks, float(len(batch)), batch.lengths()
        mtp = of.mtp if batch.imitate is not None else None
        masses = {k: float(predicted(batch, k)[1].sum(dtype=torch.float64)) for k in range(1, mtp.depth + 1)} if mtp else {}
        self.masses = {k: mass for k, mass in masses.items() if mass > 0}
        asked: dict[Want, bool] = {"router": bool(of.routers), "index": bool(of.index), "mtp": bool(self.masses)}
        self.wants: frozenset[Want] = frozenset(want for want, yes in asked.items() if yes)
        self.surveyed: Counts = {}
        self.counts: Counts = {}
        self._summed: Counts | None = None
        terms = {t for m in of.routers.values() for t in m.config.balance if isinstance(t, AuxLoss)}
        pops = [populations(batch.segments, t) for t in sorted(terms, key=repr)]
        held = ranks.add({str(i): torch.tensor(float(_held(pop, places))) for i, pop in enumerate(pops)}) if pops else {}
        self.spans = any(held[str(i)] > int(pop[-1]) + 1 for i, pop in enumerate(pops))

    def surveyed_all(self) -> None:
        """After the last part: the choices of the other ranks join in."""
        self.surveyed = self._everywhere(self.surveyed)

    def survey(self, aux: Aux, at: Tensor) -> None:
        """Takes in the choices of a pass over one part. at: its place."""
        self._count(aux, at, self.surveyed)

    def __call__(self, aux: Aux, part: Batch, at: Tensor, logits: Callable[[Tensor], Tensor], chunk: int) -> tuple[Tensor, Sums]:
        """(loss of one part, its statistics), both to be added up over parts.

        Statistics: balance, router_z: means over layers and terms, before weights (1 is perfect balance); index_kl: summed over layers;
        mtp_nll: mean over depths. A part that holds no segment of the batch (at is empty) adds nothing.
        """
        if not len(at):
            return self._nothing(aux, part, logits, chunk), Sums()
        self._count(aux, at, self.counts)
        counts = self.surveyed or self.counts
        routed = [(layer, key, one) for layer, stats in aux.router.items() for key, one in self._passes(layer, stats, len(at))]
        balance, square, total = [], [], torch.zeros((), dtype=torch.float64, device=at.device)
        for layer, key, one in routed:
            config = self.of.routers[layer].config
            for term in config.balance:
                if isinstance(term, AuxLoss):
                    loss = aux_loss(one, at, counts[key], self.lengths, term)
                    total = total + loss
                    balance.append(loss.detach() / term.weight)
            square.append(z_loss(one, self.tokens))
            if config.router.z_loss:
                total = total + config.router.z_loss * square[-1]
        said: dict[str, Tensor | float] = {}
        for name, values in (("balance", balance), ("router_z", square)):
            if values:
                said[name] = torch.stack(values).mean()
        if aux.index:
            total = total + sum(self.of.index.get(i, 0.0) * kl for i, (kl, _) in aux.index.items()) / self.tokens
            said["index_kl"] = sum(kl.detach() for kl, _ in aux.index.values()) / self.tokens
        if self.of.mtp is not None and self.masses:
            nll = self._predictions(aux, part, logits, chunk)
            total = total + self.of.mtp.weight / self.of.mtp.depth * nll
            said["mtp_nll"] = nll / len(self.masses)
        return total, Sums.of(**said)

    @torch.no_grad()
    def settle(self) -> None:
        """Moves the selection biases by the choices of the step, once it is accepted."""
        counts = self._step_counts()
        for layer, module in self.of.routers.items():
            seen = [c.sum(0) for (i, _), c in counts.items() if i == layer]
            for term in module.config.balance:
                if isinstance(term, BiasBalance) and module.select_bias is not None and seen:
                    module.select_bias.copy_(bias_step(module.select_bias, torch.stack(seen).sum(0), term.rate))

    def violation(self) -> Sums:
        """max_vio: the mean over layers of the step's MaxVio."""
        counts = self._step_counts()
        return Sums.of(max_vio=torch.stack([max_violation(c.sum(0)) for c in counts.values()]).mean()) if counts else Sums()

    def _step_counts(self) -> Counts:
        """Choices of the whole step, once all parts are through."""
        if self._summed is None:
            self._summed = self._everywhere(self.counts)
        return self._summed

    def _everywhere(self, counts: Counts) -> Counts:
        """Choices of all ranks' segments."""
        both = self.ranks.add({f"{layer}.{i}": count for (layer, i), count in sorted(counts.items())})
        return {(int(layer), int(i)): count for key, count in both.items() for layer, _, i in (key.partition("."),)}

    def _nothing(self, aux: Aux, part: Batch, logits: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        """Zero, with a backward pass that goes wherever that of any part goes: ranks meet there."""
        total = torch.zeros((), dtype=torch.float64, device=part.ids.device)
        for stats in aux.router.values():
            total = total + 0.0 * (stats.probs.sum() + stats.square.sum())
        for kl, _ in aux.index.values():
            total = total + 0.0 * kl
        return total if self.of.mtp is None or not self.masses else total + 0.0 * self._predictions(aux, part, logits, chunk)

    def _predictions(self, aux: Aux, part: Batch, logits: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        """The depths' mean negative log-likelihoods, summed."""
        total = torch.zeros((), dtype=torch.float64, device=part.ids.device)
        for k, mass in self.masses.items():
            at, weight = predicted(part, k)
            total = total - (weight * target_logprobs(aux.mtp[k - 1][at - k - 1], part.ids[at], logits, chunk)).sum() / mass
        return total

    def _count(self, aux: Aux, at: Tensor, into: Counts) -> None:
        for layer, stats in aux.router.items():
            for key, one in self._passes(layer, stats, len(at)):
                blank = one.counts.new_zeros(len(self.lengths), one.counts.shape[1], dtype=torch.float64)
                into.setdefault(key, blank)[at] = one.counts.to(torch.float64)

    def _passes(self, layer: int, stats: RouterStats, segments: int) -> list[tuple[tuple[int, int], RouterStats]]:
        """A layer's statistics by pass over the part's segments; none of a part that holds no segment of the batch."""
        if not segments:
            return []
        return [
            ((layer, i), stats._replace(counts=c, probs=p, square=s, lengths=n))
            for i, (c, p, s, n) in enumerate(zip(*(t.split(segments) for t in stats[:4])))
        ]


def _held(pop: Tensor, places: Sequence[Tensor]) -> int:
    """Populations of which parts hold segments, counted once per part: above their number where one is torn."""
    return sum(len(pop[at.cpu()].unique()) for at in places)
