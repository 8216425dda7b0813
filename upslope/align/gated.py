"""A gate instead of an average: what is vetoed gets the least reward, however good it is otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, NamedTuple

from pydantic import Field, model_validator

from upslope.rl.protocol import TOTAL, Grader, Opener, Reward, Score, Trace
from upslope.rl.rewards import Part


class Gated(Reward):
    """R = minimum where any veto scores below `threshold`; else max(minimum, quality).

    Vetoes are asked first; quality is not even graded where one fails, and no quality can buy a veto back. A weighted sum
    of the two would pay for violations: of the policy-breaking answers in one published audit, 87.8 % had a good quality
    score. An invalid veto makes the trace invalid: what cannot be judged is not learnt from.

    Source: MAI-Thinking-1 (gate, audit); DeepSeek and GLM reports on rule rewards beside learned ones.
    """

    kind: ClassVar[str] = "gated"

    vetoes: Annotated[tuple[Part, ...], Field(min_length=1)]
    quality: Reward
    threshold: float = 0.5
    minimum: float = -1.0

    @model_validator(mode="after")
    def _unweighted(self) -> Gated:
        if any(v.weight != 1.0 for v in self.vetoes):
            raise ValueError("a veto has no weight: nothing can outweigh it; leave `weight` out")
        return self

    def prepare(self, ctx: Opener) -> Grader:
        """Makes vetoes and quality ready."""
        return _Gated(self, tuple(v.reward.prepare(ctx) for v in self.vetoes), self.quality.prepare(ctx))

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group, for rewards that need no preparation."""
        return _Gated(self, tuple(v.reward for v in self.vetoes), self.quality).score(group)


class _Gated(NamedTuple):
    config: Gated
    vetoes: tuple[Grader, ...]
    quality: Grader

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        return self.score_all([group])[0]

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        labels = [f"veto_{v.label}" for v in self.config.vetoes]
        said = [g.score_all(groups) for g in self.vetoes]
        parts = [[{n: s[i][j][TOTAL] for n, s in zip(labels, said, strict=True)} for j in range(len(g))] for i, g in enumerate(groups)]
        passed = [[j for j, p in enumerate(row) if all(s.valid and s.value >= self.config.threshold for s in p.values())] for row in parts]
        judged = self.quality.score_all([[g[j] for j in js] for g, js in zip(groups, passed, strict=True)])
        out: list[list[Mapping[str, Score]]] = []
        for row, js, scores in zip(parts, passed, judged, strict=True):
            quality = dict(zip(js, scores, strict=True))
            out.append([self._total(p, quality.get(j)) for j, p in enumerate(row)])
        return out

    def _total(self, vetoes: Mapping[str, Score], quality: Mapping[str, Score] | None) -> Mapping[str, Score]:
        broken = [f"{name}: {s.evidence}" for name, s in vetoes.items() if not s.valid]
        if broken:
            return {**vetoes, TOTAL: Score(0.0, False, "; ".join(broken))}
        floor = self.config.minimum
        if quality is None:
            why = "; ".join(s.evidence or n for n, s in vetoes.items() if s.value < self.config.threshold)
            return {**vetoes, TOTAL: Score(floor, True, why)}
        said = quality[TOTAL]
        parts = {**vetoes, **{k: s for k, s in quality.items() if k != TOTAL}, "quality": said}
        return {**parts, TOTAL: said._replace(value=max(floor, said.value)) if said.valid else said}

    def close(self) -> None:
        for grader in (*self.vetoes, self.quality):
            grader.close()
