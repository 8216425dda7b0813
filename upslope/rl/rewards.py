"""Rewards that need no model: exact verification, format, length, a random control, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from upslope.config import Config
from upslope.machine.rng import rng
from upslope.rl.protocol import TASK, TOTAL, Grader, Opener, Reward, Score, Trace


class Exact(Reward):
    """1 if the answer is exactly right by the family's verifier, else 0; a truncated answer is 0."""

    kind: ClassVar[str] = "exact"

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group; invalid where the verifier itself fails."""
        return [{TOTAL: verified(t)} for t in group]


class Format(Reward):
    """The share of format rules that the answer keeps: it ended by itself, it says something outside the thinking block,
    and it thought (`thinking = "required"`) or did not (`"absent"`).
    """

    kind: ClassVar[str] = "format"

    thinking: Literal["any", "required", "absent"] = "any"

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group, one part per rule."""
        return [self._one(t) for t in group]

    def _one(self, trace: Trace) -> Mapping[str, Score]:
        reply = trace.reply
        rules = {"ended": not trace.done.truncated, "answered": bool(reply.content.strip())}
        if self.thinking != "any":
            rules["thought"] = bool(reply.reasoning.strip()) == (self.thinking == "required")
        parts = {name: Score(float(kept)) for name, kept in rules.items()}
        return {**parts, TOTAL: Score(sum(rules.values()) / len(rules))}


class Length(Reward):
    """A task reward less a price on tokens: R = task - coefficient * rho * |y| / limit.

    rho: the group's pass rate on the task, at least 1 / K (K valid siblings), so that hard prompts may think long; or 1
    where by_difficulty is False. limit: tokens, the most that a sample may have. Source: Xiang et al. 2025 (ALP,
    2506.05256); MAI's length term has the same form.
    """

    kind: ClassVar[str] = "length"

    limit: int = Field(gt=0)
    coefficient: float = Field(default=0.25, gt=0)
    by_difficulty: bool = True
    task: Reward = Exact()

    def prepare(self, ctx: Opener) -> Grader:
        """Makes the task reward ready."""
        return _Length(self, self.task.prepare(ctx))

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group, for task rewards that need no preparation."""
        return _Length(self, self.task).score(group)


class _Length(NamedTuple):
    config: Length
    task: Grader

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        return self.score_all([group])[0]

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        return [self._group(g, said) for g, said in zip(groups, self.task.score_all(groups), strict=True)]

    def _group(self, group: Sequence[Trace], said: Sequence[Mapping[str, Score]]) -> list[Mapping[str, Score]]:
        solved = [s[TOTAL].value for s in said if s[TOTAL].valid]
        rho = max(sum(solved) / len(solved), 1 / len(solved)) if self.config.by_difficulty and solved else 1.0
        out: list[Mapping[str, Score]] = []
        for trace, scores in zip(group, said, strict=True):
            task = scores[TOTAL]
            price = length_price(trace.length, self.config.limit, self.config.coefficient, rho)
            out.append({**scores, TASK: task, "length": Score(-price), TOTAL: task._replace(value=task.value - price)})
        return out

    def close(self) -> None:
        self.task.close()


def length_price(tokens: int, limit: int, coefficient: float, rho: float) -> float:
    """coefficient * rho * tokens / limit, all ≥ 0."""
    return coefficient * rho * tokens / limit


class Overlong(Reward):
    """A soft punishment near the hard limit: 0 up to limit - cache tokens, then falling linearly to -1 at limit.

    Meant as a part of a weighted sum. cache: tokens over which it falls. Source: Yu et al. 2025 (DAPO, eq. 13).
    """

    kind: ClassVar[str] = "overlong"

    limit: int = Field(gt=0)
    cache: int = Field(gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Overlong:
        if self.cache > self.limit:
            raise ValueError(f"cache = {self.cache} must not exceed limit = {self.limit}")
        return self

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group."""
        return [{TOTAL: Score(overlong(t.length, self.limit, self.cache))} for t in group]


def overlong(tokens: int, limit: int, cache: int) -> float:
    """min(0, (limit - cache - tokens) / cache), at least -1."""
    return max(-1.0, min(0.0, (limit - cache - tokens) / cache))


class Random(Reward):
    """A control: 1 with the given probability, whatever the answer. What a run gains under it, the reward did not teach."""

    kind: ClassVar[str] = "random"

    probability: float = Field(default=0.5, gt=0, lt=1)

    def prepare(self, ctx: Opener) -> Grader:
        """Takes its seed from the stage."""
        return _Random(self.probability, ctx.seed_of("random-reward"))


class _Random(NamedTuple):
    probability: float
    seed: int

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        return [{TOTAL: Score(float(rng(self.seed, "reward", t.id).random() < self.probability), True, "random control")} for t in group]

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        return [self.score(g) for g in groups]

    def close(self) -> None:
        return


class Part(Config):
    """One term of a weighted sum. name: under which its score is kept; the kind where empty."""

    reward: Reward
    weight: float = 1.0
    name: str = ""

    @property
    def label(self) -> str:
        """The name under which the part is kept."""
        return self.name or str(type(self.reward).kind).rpartition(":")[2]


class Weighted(Reward):
    """A weighted sum; its first part is the task, on which constant groups are judged. Invalid where any part is.

    For a rule that must never be bought back by quality, a sum is the wrong tool: see `align.gated`.
    """

    kind: ClassVar[str] = "weighted"

    parts: Annotated[tuple[Part, ...], Field(min_length=1)]

    def prepare(self, ctx: Opener) -> Grader:
        """Makes every part ready."""
        return _Weighted(self.parts, tuple(p.reward.prepare(ctx) for p in self.parts))

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        """Scores of one group, for parts that need no preparation."""
        return _Weighted(self.parts, tuple(p.reward for p in self.parts)).score(group)


class _Weighted(NamedTuple):
    parts: tuple[Part, ...]
    graders: tuple[Grader, ...]

    def score(self, group: Sequence[Trace]) -> list[Mapping[str, Score]]:
        return self.score_all([group])[0]

    def score_all(self, groups: Sequence[Sequence[Trace]]) -> list[list[Mapping[str, Score]]]:
        said = [g.score_all(groups) for g in self.graders]
        return [[self._sum([s[i][j] for s in said]) for j in range(len(group))] for i, group in enumerate(groups)]

    def _sum(self, said: Sequence[Mapping[str, Score]]) -> Mapping[str, Score]:
        parts = {p.label: s[TOTAL] for p, s in zip(self.parts, said, strict=True)}
        value = sum(p.weight * parts[p.label].value for p in self.parts)
        broken = [f"{name}: {s.evidence}" for name, s in parts.items() if not s.valid]
        total = Score(0.0, False, "; ".join(broken)) if broken else Score.of(value)
        return {**parts, TASK: said[0].get(TASK, said[0][TOTAL]), TOTAL: total}

    def close(self) -> None:
        for grader in self.graders:
            grader.close()


def verified(trace: Trace) -> Score:
    """The family's exact verdict on a trace's answer."""
    from upslope.tasks.verify import verify

    if trace.done.truncated:
        return Score(0.0, True, "truncated")
    facts = trace.facts if isinstance(trace.facts, dict) else {}
    try:
        return Score.of(verify(str(facts["family"]), facts["truth"], trace.reply.content))
    except Exception as e:  # a verifier's own failure says nothing about the model
        return Score(0.0, False, f"{type(e).__name__}: {e}")
