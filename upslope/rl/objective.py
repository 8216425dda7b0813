"""The objective: every named algorithm is one setting of one token-level policy gradient.

loss = (1 / N) sum_t w_t [ m_t S(r_t, A_t) + beta KL_t - c H_t ]   over the action tokens of the *global* step, where

    A  advantage   a group member against its siblings                              (`advantage.py`)
    r  ratio       of the current policy to the one before the update, by token or by sequence
    S  surrogate   clip or cispo                                                    (`surrogate.py`)
    m  mismatch    truncated importance weight, trainer against engine
    w  reduce      1 | 1 / len(sequence) | 1 / length, with N = sum_t w_t, or the number of sequences for a constant
    KL, H          penalty to a reference (`kl.py`), entropy bonus

`batch` stamps the columns once; the loss is a pure function of one part of the step, already divided by global totals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field

from upslope.config import Config
from upslope.rl import surrogate as surrogates
from upslope.rl.advantage import Baseline, group_advantages
from upslope.rl.kl import KL, kl_term
from upslope.rl.protocol import TASK, Score, Trace
from upslope.rl.surrogate import Cispo, Clip

if TYPE_CHECKING:
    from torch import Tensor

    from upslope.train.batch import Batch, Totals
    from upslope.train.protocol import Out, Sums


class Forward(Protocol):
    """What gives log-probabilities of a batch without gradient: a Trainer, or a frozen reference model."""

    def forward(self, batch: Batch, wants: frozenset[str]) -> Out: ...


class ByToken(Config):
    """Every action token of the step weighs the same, so long answers weigh more. Source: DAPO (2503.14476)."""

    kind: Literal["token"] = "token"


class BySequence(Config):
    """Every sequence weighs the same: a mean of token means; short right answers are favoured. Source: GRPO (2402.03300)."""

    kind: Literal["sequence"] = "sequence"


class ByConstant(Config):
    """The sum over tokens divided by (sequences * length): no bias by length. Source: Dr.GRPO (2503.20783).

    length: tokens; the most new tokens that a sample may have is usual.
    """

    kind: Literal["constant"] = "constant"
    length: int = Field(gt=0)


Reduce = Annotated[ByToken | BySequence | ByConstant, Field(discriminator="kind")]
Surrogate = Annotated[Clip | Cispo, Field(discriminator="kind")]


class Chosen(NamedTuple):
    """What of a step is learnt from. traces, advantages: in order of groups. left_out: reason → number of traces."""

    traces: list[Trace]
    advantages: np.ndarray
    left_out: Counter[str]


class Objective(Config):
    """A policy-gradient objective from independent choices; the defaults are DAPO's.

    advantage: grpo (group mean and std) | mean (Dr.GRPO) | rloo. ratio: token | sequence. surrogate: Clip | Cispo.
    reduce: token | sequence | constant. kl: None or KL. entropy: coefficient of an entropy bonus.
    mismatch: cap of the trainer / engine importance weight, None = no correction. drop_constant: leave out groups whose
    task scores are all equal. mask_truncated: traces that were cut off give no gradient (their rewards still count in
    the group's baseline).
    """

    advantage: Baseline = "grpo"
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Surrogate = Clip()
    reduce: Reduce = ByToken()
    kl: KL | None = None
    entropy: float = Field(default=0.0, ge=0)
    mismatch: Annotated[float, Field(gt=0)] | None = None
    drop_constant: bool = True
    mask_truncated: bool = False

    def choose(self, groups: Sequence[Sequence[Trace]]) -> Chosen:
        """Which traces teach, and with what advantage: a ledger, so that nothing is dropped silently.

        Left out: `invalid` scores, `alone` (no valid sibling), `constant` groups, `truncated` traces, `empty` samples.
        """
        traces: list[Trace] = []
        advantages: list[float] = []
        left_out: Counter[str] = Counter()
        for group in groups:
            valid = [t for t in group if t.total.valid]
            left_out["invalid"] += len(group) - len(valid)
            if len(valid) < 2:
                left_out["alone"] += len(valid)
                continue
            if self.drop_constant and len({task_score(t).value for t in valid}) == 1:
                left_out["constant"] += len(valid)
                continue
            for trace, advantage in zip(valid, group_advantages(np.array([t.total.value for t in valid]), self.advantage), strict=True):
                if self.mask_truncated and trace.done.truncated:
                    left_out["truncated"] += 1
                elif trace.length == 0:
                    left_out["empty"] += 1
                else:
                    traces.append(trace)
                    advantages.append(float(advantage))
        return Chosen(traces, np.array(advantages), +left_out)

    def batch(self, chosen: Chosen, trainer: Forward | None = None, reference: Forward | None = None) -> Batch:
        """The columns of a step: one segment per trace, weights and advantages on its sampled tokens only.

        trainer: gives `old`, the log-probs before the update, in the trainer's numerics; None where the batch serves one
        update: then `loss(on_policy=True)` takes them from its own forward. reference: gives `ref`; needed where `kl` is
        set. ValueError for no traces, or a KL without reference.
        """
        import torch

        from upslope.train.batch import Batch, Policy

        if not chosen.traces:
            raise ValueError("no trace to learn from: every group was left out")
        if self.kl is not None and reference is None:
            raise ValueError("objective.kl is set: a reference is needed")
        segments, weights, advantages, sampled = [], [], [], []
        for trace, advantage in zip(chosen.traces, chosen.advantages, strict=True):
            ids, action, logprobs = trace_columns(trace)
            segments.append(ids)
            weights.append(action * self._weight(int(action.sum())))
            advantages.append(action * np.float32(advantage))
            sampled.append(logprobs)
        column = [torch.from_numpy(np.concatenate(c).astype(np.float32)) for c in (weights, advantages, sampled)]
        policy = Policy(weight=column[0], advantage=column[1], old=column[2], sampled=column[2])
        batch = Batch.of([torch.from_numpy(s.astype(np.int64)) for s in segments], policy=policy)
        wants = frozenset({"logprob"})
        if trainer is not None:
            old = trainer.forward(batch, wants).logprob
            assert old is not None
            policy = replace(policy, old=old)
        if self.kl is not None and reference is not None:
            policy = replace(policy, ref=reference.forward(batch, wants).logprob)
        return replace(batch, policy=policy)

    def loss(self, on_policy: bool = False) -> PolicyLoss:
        """The loss. on_policy: the batch serves this one update, so the policy before it is the one in the forward."""
        return PolicyLoss(self, on_policy)

    def _weight(self, actions: int) -> np.float32:
        if isinstance(self.reduce, BySequence):
            return np.float32(1 / max(1, actions))
        if isinstance(self.reduce, ByConstant):
            return np.float32(1 / self.reduce.length)
        return np.float32(1)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of an Objective; see the module's equation. Statistics are means over the step, weighted by w.

    clip_fraction; ratio; mismatch = k3 of trainer against engine; mismatch_limited; kl; entropy (where computed).
    """

    objective: Objective
    on_policy: bool = False

    @property
    def wants(self) -> frozenset[str]:
        """Log-probs, and the entropy only where it has a coefficient."""
        return frozenset({"logprob", "entropy"} if self.objective.entropy else {"logprob"})

    def __call__(self, out: Out, b: Batch, total: Totals, sums: Sums | None = None) -> tuple[Tensor, Sums]:
        """(scalar, statistics) of one part of the step, divided by the totals of the whole step."""
        from upslope.train.protocol import Sums as S

        o, p, logprob = self.objective, b.policy, out.logprob
        assert p is not None
        assert logprob is not None
        action = p.weight != 0
        old = logprob.detach() if self.on_policy else p.old
        ratio = surrogates.token_ratio(logprob, old)
        if o.ratio == "sequence":
            ratio = surrogates.sequence_ratio(logprob, old, action, b.seg, b.segments)
        if isinstance(o.surrogate, Clip):
            term = surrogates.clip(ratio, p.advantage, o.surrogate)
        else:
            term = surrogates.cispo(ratio, logprob, p.advantage, o.surrogate)
        loss = term.loss
        stats = {"ratio": ratio, "clip_fraction": term.limited, "mismatch": kl_term(p.sampled, old, old, "k3", False)}
        if o.mismatch is not None:
            weight = surrogates.mismatch_weight(old, p.sampled, o.mismatch)
            loss = loss * weight
            stats["mismatch_limited"] = weight >= o.mismatch
        if o.kl is not None:
            assert p.ref is not None
            kl = kl_term(logprob, p.ref, old, o.kl.estimator, o.kl.weighted)
            loss = loss + o.kl.coefficient * kl
            stats["kl"] = kl
        if o.entropy:
            assert out.entropy is not None
            loss = loss - o.entropy * out.entropy
            stats["entropy"] = out.entropy
        count = total.segments if isinstance(o.reduce, ByConstant) else total.policy
        weighted = (p.weight * loss).where(action, loss.new_zeros(()))
        mean = {k: (p.weight.double() * v.detach().double()).where(action, 0.0).sum() / total.policy for k, v in stats.items()}
        return weighted.sum() / count, S.of(**mean)


def task_score(trace: Trace) -> Score:
    """The score that says how well the task itself was done, before format and length terms; the total where there is none."""
    return trace.scores.get(TASK, trace.total)


def trace_columns(trace: Trace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids int32, action float32 0 / 1, engine log-probs float32), each (T,): the tokens of a trace as they were sampled."""
    ids, action, logprobs = [], [], []
    for node in trace.nodes:
        if node.sampled is not None:
            ids.append(node.sampled.ids)
            action.append(np.ones(len(node.sampled.ids), np.float32))
            logprobs.append(node.sampled.logprobs)
        else:
            ids.append(node.tokens.ids)
            action.append(np.zeros(len(node.tokens.ids), np.float32))
            logprobs.append(np.zeros(len(node.tokens.ids), np.float32))
    return np.concatenate(ids), np.concatenate(action), np.concatenate(logprobs)


def grpo(kl: float = 0.04) -> Objective:
    """GRPO as first published: symmetric clip, mean of sequence means, plain k3 to the reference. Source: 2402.03300."""
    penalty = KL(estimator="k3", coefficient=kl, weighted=False) if kl else None
    return Objective(surrogate=Clip(low=0.2, high=0.2), reduce=BySequence(), kl=penalty, drop_constant=False)


def dapo() -> Objective:
    """DAPO: clip-higher, token mean, constant groups out, no KL; its soft length punishment is a reward (`Overlong`).

    The paper's overlong filter, an earlier step of its ablation, is `mask_truncated = True`. Source: 2503.14476.
    """
    return Objective()


def dr_grpo(length: int) -> Objective:
    """Dr.GRPO: no division by std or by sequence length. length: most new tokens. Source: 2503.20783."""
    return Objective(advantage="mean", surrogate=Clip(low=0.2, high=0.2), reduce=ByConstant(length=length), drop_constant=False)


def cispo() -> Objective:
    """CISPO: capped importance weight on the log-likelihood, token mean. Source: 2506.13585."""
    return Objective(surrogate=Cispo())


def gspo() -> Objective:
    """GSPO: sequence ratios with bounds of 3e-4 / 4e-4, mean of sequence means. Source: 2507.18071."""
    return Objective(ratio="sequence", surrogate=Clip(low=3e-4, high=4e-4), reduce=BySequence(), drop_constant=False)
