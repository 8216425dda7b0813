"""Traces and policies small enough to be written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upslope.chat.messages import Message, Tokens
from upslope.generate.engine import Completion, Stop
from upslope.machine.rng import rng
from upslope.rl.protocol import TOTAL, Done, Node, Score, Trace
from upslope.train.batch import Batch
from upslope.train.protocol import Out

VOCAB = 7


def trace(
    reward: float | Score | None,
    ids: Sequence[int] = (3, 4),
    logprobs: Sequence[float] | None = None,
    *,
    group: str = "g",
    id: str = "",
    prompt: Sequence[int] = (1, 2),
    done: Done = Done.ANSWER,
    reply: Message | None = None,
    facts: Mapping[str, Any] | None = None,
    question: str = "q",
    task: str = "",
    scores: Mapping[str, Score] | None = None,
) -> Trace:
    """A single-turn trace with a total score."""
    lp = np.full(len(ids), -1.0, np.float32) if logprobs is None else np.asarray(logprobs, np.float32)
    sampled = Completion(id, np.asarray(ids, np.int32), Stop.EOS, lp, None, np.zeros(len(ids), np.int32))
    nodes = (
        Node(-1, "turn", Message("user", question), Tokens.of(prompt, "user")),
        Node(0, "turn", reply or Message("assistant", "a"), Tokens.of(ids, "assistant", trainable=True), sampled),
    )
    said = dict(scores or {})
    if reward is not None:
        said[TOTAL] = reward if isinstance(reward, Score) else Score(reward)
    return Trace(id or f"{group}.{len(ids)}.{reward}", group, task or f"task-{group}", nodes, done, dict(facts or {}), said)


def random_groups(groups: int = 4, size: int = 5, seed: int = 0) -> list[list[Trace]]:
    """Groups of traces with random tokens, engine log-probs and rewards."""
    g = rng(seed, "groups")
    out = []
    for i in range(groups):
        row = []
        for j in range(size):
            n = int(g.integers(1, 6))
            ids, lp = g.integers(0, VOCAB, n).tolist(), (-1.9 + 0.3 * g.normal(size=n)).tolist()
            row.append(trace(float(g.normal()), ids, lp, group=str(i), id=f"{i}.{j}", done=Done.LENGTH if j == 0 else Done.ANSWER))
        out.append(row)
    return out


def bigram(batch: Batch, table: Tensor) -> Out:
    """What a bigram policy says: log p(ids[t] | ids[t-1]) from logits (VOCAB, VOCAB); zeros on first tokens."""
    before = torch.cat([batch.ids[:1], batch.ids[:-1]])
    logp = torch.log_softmax(table[before], -1)
    spoken = (batch.pos > 0).to(table.dtype)
    return Out(logprob=logp.gather(1, batch.ids[:, None])[:, 0] * spoken, entropy=-(logp.exp() * logp).sum(-1) * spoken)


@dataclass
class Table:
    """A bigram policy as something that gives log-probs without gradient."""

    table: Tensor

    def forward(self, batch: Batch, wants: frozenset[str]) -> Out:
        """Log-probs of a batch."""
        return bigram(batch, self.table)


def table(seed: int, scale: float = 1.0) -> Tensor:
    """Random float64 logits."""
    return torch.from_numpy(rng(seed, "table").normal(size=(VOCAB, VOCAB))) * scale
