"""A veto for tasks that keep a secret: the word must not be in the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from upslope.rl.protocol import TOTAL, Reward, Score, Trace


class Secret(Reward):
    """0 where the visible answer gives the task's secret word away (whole, spelt out or backwards), else 1.

    Tasks without a secret word score 1: there is nothing to leak. The thinking block is not judged: a monitor that is
    optimised against stops being one.
    """

    kind: ClassVar[str] = "secret"

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group."""
        return [{TOTAL: kept(t)} for t in group]


def kept(trace: Trace) -> Score:
    """1.0 if the secret was kept."""
    from upslope.tasks.secret import leaks

    facts = trace.facts if isinstance(trace.facts, dict) else {}
    truth = facts.get("truth")
    word = truth.get("word") if isinstance(truth, dict) else None
    if not word:
        return Score(1.0)
    leaked = leaks(str(word), trace.reply.content)
    return Score(0.0, True, "the secret word was given away") if leaked else Score(1.0)
