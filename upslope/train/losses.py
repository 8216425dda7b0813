"""Losses that imitate, distil and prefer. Each is a pure function, already divided by the totals of the whole step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from upslope.config import UsageError
from upslope.train.batch import Batch, Totals
from upslope.train.protocol import Out, Sums, Wants


@dataclass(frozen=True)
class Imitate:
    """Cross-entropy of the imitated tokens, and z-loss: sum_t w_t (-log p_t + z lse_t^2) / sum w.

    Statistics: nll (nats per imitated token), lse2 (mean squared log-normaliser, where z_loss is on).
    Source: Chowdhery et al. 2022 (PaLM, z-loss 1e-4); OLMo 2 uses 1e-5.
    """

    z_loss: float = 0.0

    @property
    def wants(self) -> Wants:
        """Fields of `Out`."""
        return frozenset({"logprob", "lse"} if self.z_loss else {"logprob"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        """The loss of one part."""
        if b.imitate is None or total.imitate <= 0:
            raise UsageError("imitation: no token of the step has a weight\nway out: check that some messages are trained (train = true)")
        assert out.logprob is not None
        nll = -(b.imitate * out.logprob).sum() / total.imitate
        if not self.z_loss:
            return nll, Sums.of(nll=nll)
        assert out.lse is not None
        square = (b.imitate * out.lse.square()).sum() / total.imitate
        return nll + self.z_loss * square, Sums.of(nll=nll, lse2=square)


@dataclass(frozen=True)
class DistilLoss:
    """A divergence between teacher P and student Q per column, over the teacher's k tokens and one bucket for the rest.

        M = beta P + (1 - beta) Q;  D = beta KL(P || M) + (1 - beta) KL(Q || M);  loss = sum_t w_t D_t / sum w

    beta = 0 is forward KL(P || Q), beta = 1 is reverse KL(Q || P): the limits, after scaling. The bucket makes D a lower
    bound of the divergence over the vocabulary, exact where the k tokens are all of it. Statistics: divergence.
    Source: Agarwal et al. 2024 (GKD, arXiv 2306.13649).
    """

    beta: float = 1.0
    wants: Wants = frozenset({"top"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        """The loss of one part."""
        if b.distil is None or total.distil <= 0:
            raise UsageError("distillation: no token of the step has a weight")
        assert out.top is not None
        read = b.distil.weight != 0
        weight, p, q = b.distil.weight[read], b.distil.logprobs[read], out.top[read]
        rest = b.distil.rest[read].to(q.dtype)
        left = 1 - q.exp().sum(-1)
        tail = torch.isfinite(rest)
        if self.beta > 0 and bool((left.detach()[~tail] > 1e-3).any()):
            raise UsageError(
                "distillation: the teacher has no mass outside its k tokens, and the student has some: KL(Q||P) is infinite\n"
                "way out: store the teacher's tail mass (rest), or use beta = 0 (forward KL)"
            )
        left = left.clamp_min(torch.finfo(q.dtype).tiny)
        inside = _divergence(p.to(q.dtype), q, self.beta).sum(-1)
        outside = torch.where(tail, _divergence(torch.where(tail, rest, 0.0), torch.where(tail, left, 1.0).log(), self.beta), 0.0)
        value = (weight * (inside + outside)).sum() / total.distil
        return value, Sums.of(divergence=value)


def _divergence(p: Tensor, q: Tensor, beta: float) -> Tensor:
    """Terms of the generalised Jensen-Shannon divergence from log-probs; beta 0 and 1 are forward and reverse KL."""
    if beta == 0:
        return p.exp() * (p - q)
    if beta == 1:
        return q.exp() * (q - p)
    m = torch.logaddexp(p + torch.log(torch.tensor(beta, dtype=p.dtype)), q + torch.log1p(torch.tensor(-beta, dtype=p.dtype)))
    return beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation: -log sigmoid(beta (R_w - R_l)), R = log pi(y) - log pi_ref(y), mean over pairs.

    pi(y) is over a segment's imitated tokens (`Batch.imitate` is the completion mask); `Batch.ref` holds the
    reference's. normalise: divide each R by its number of tokens (Tulu 3's dpo_norm; beta about 5). nll: weight of the
    chosen completions' mean NLL (Llama 3: 0.2). Statistics, means over pairs: accuracy (R_w > R_l, ties half), margin,
    chosen and rejected (R of each). Source: Rafailov et al. 2023, arXiv 2305.18290.
    """

    beta: float = 0.1
    normalise: bool = False
    nll: float = 0.0
    wants: Wants = frozenset({"logprob"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        """The loss of one part."""
        if b.pairs is None or b.imitate is None or b.ref is None or total.pairs <= 0:
            raise UsageError("DPO: the batch needs pairs, completion weights (imitate) and reference log-probs (ref)")
        assert out.logprob is not None
        logp, size = per_segment(b.imitate * out.logprob, b), per_segment(b.imitate, b)
        ratio = logp - b.ref.to(logp.dtype)
        if self.normalise:
            ratio = ratio / size
        chosen, rejected = ratio[b.pairs[:, 0]], ratio[b.pairs[:, 1]]
        margin = chosen - rejected
        loss = -F.logsigmoid(self.beta * margin).sum() / total.pairs
        if self.nll:
            loss = loss - self.nll * (logp / size)[b.pairs[:, 0]].sum() / total.pairs
        stats = {"accuracy": wins(margin), "margin": margin.sum(), "chosen": chosen.sum(), "rejected": rejected.sum()}
        return loss, Sums.of(**{k: v / total.pairs for k, v in stats.items()})


@dataclass(frozen=True)
class BradleyTerry:
    """Reward model: -log sigmoid(s_w - s_l) + center (s_w + s_l)^2, mean over pairs; s is the scalar head's score.

    Statistics, means over pairs: accuracy (s_w > s_l, ties half), margin, level ((s_w + s_l) / 2).
    Source: Bradley and Terry 1952; Ouyang et al. 2022; centering of Eisenstein et al. 2023 (arXiv 2312.09244).
    """

    center: float = 0.01
    wants: Wants = frozenset({"score"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None) -> tuple[Tensor, Sums]:
        """The loss of one part."""
        if b.pairs is None or total.pairs <= 0:
            raise UsageError("Bradley-Terry: the batch needs pairs")
        assert out.score is not None
        chosen, rejected = out.score[b.pairs[:, 0]], out.score[b.pairs[:, 1]]
        loss = (-F.logsigmoid(chosen - rejected) + self.center * (chosen + rejected).square()).sum() / total.pairs
        stats = {"accuracy": wins(chosen - rejected), "margin": (chosen - rejected).sum(), "level": (chosen + rejected).sum() / 2}
        return loss, Sums.of(**{k: v / total.pairs for k, v in stats.items()})


def per_segment(columns: Tensor, b: Batch) -> Tensor:
    """(S,) sums of a (T,) column over each segment."""
    return columns.new_zeros(b.segments).index_add(0, b.seg, columns)


def wins(margin: Tensor) -> Tensor:
    """Number of positive margins, ties counted half."""
    return (margin.detach() > 0).double().sum() + 0.5 * (margin.detach() == 0).double().sum()
