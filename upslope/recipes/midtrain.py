"""midtrain: a base model in three mixtures, an annealing, a context that grows in steps; then: does it use it, is it ready for RL?

One mechanism throughout: a `Pretrain` stage continues the one before it, weights and optimizer, on the next part of one schedule, with its
own mixture and, where rows get longer, an extension. Mixtures in the manner of MiMo-7B (general text; problems at 70 %; worked solutions
added; arXiv 2505.07608), the annealing of OLMo 2 (2501.00656); the mixture stays when the length changes (MAI). Sizes: those of `tiny`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from upslope.config import Duration, FrozenDict, Input, UsageError
from upslope.evals.needle import Needle
from upslope.evals.position_nll import PositionNll
from upslope.machine.stage import Recipe, Stage
from upslope.model.config import tiny as tiny_model
from upslope.optim.config import AdamW, Muon
from upslope.optim.schedule import Part, Piece, Segments, Whole
from upslope.recipes.tiny import DOCS, FAMILIES, ROW, ROWS, data
from upslope.stages.long_context import LongContext
from upslope.stages.mix import Mix
from upslope.stages.pretrain import Pretrain
from upslope.stages.readiness import Readiness
from upslope.stages.tokenize import Tokenize
from upslope.train.extension import Base, Extension, Keep, Method
from upslope.train.init import Continue, Scratch

STEPS = {"general": 260, "math": 240, "thinking": 100, "anneal": 120}
"""Optimizer steps before the context grows."""
SHARES = {
    "general": {"real": 0.7, "worked": 0.3},
    "math": {"real": 0.3, "worked": 0.7},
    "thinking": {"real": 0.25, "worked": 0.65, "reasoning": 0.1},
    "anneal": {"real": 0.15, "reasoning": 0.85},
}
"""Mixtures by stage; "real" stands for the sources of the crawl, in equal parts."""


LATE = 120
SCHEDULE = Segments(
    warmup=20,
    pieces=(
        Piece(length=sum(STEPS.values()) - STEPS["anneal"]),
        Piece(length=STEPS["anneal"], end=0.1),
        Piece(length=LATE, start=0.1, end=0.1),
    ),
)
"""Of everything: a plateau through three mixtures, a decay to a tenth on the fourth, and that tenth while rows get longer."""


class Stretch(NamedTuple):
    """A stage of a chain. steps: optimizer steps. mixture: stage that makes its mixture. length: tokens a row, as many a step as before
    (0 = as the template). method: what happens to rotation where rows get longer."""

    name: str
    steps: int
    mixture: str
    length: int = 0
    method: Method = Keep()


LONGER = (
    Stretch("long_256", LATE // 2, "mix_anneal", 2 * ROW, Base(base=40_000.0)),
    Stretch("long_512", LATE // 2, "mix_anneal", 4 * ROW, Base(base=160_000.0)),
)
"""Four times the base for twice the length: as steep as MiMo, which goes from 10,000 to 640,000 for four times the length."""


def chained(template: Pretrain, whole: Whole, stretches: Sequence[Stretch]) -> dict[str, Pretrain]:
    """Stages that run one schedule one after the other; the first starts as `template` does, each other continues the one before it.

    A longer row changes the rows of a step, never its tokens, and nothing of the model but rotation. UsageError where the tokens of a step
    are not whole rows.
    """
    tokens, total, first = template.rows * template.row_length, sum(s.steps for s in stretches), 0
    found: dict[str, Pretrain] = {}
    for s in stretches:
        length = s.length or template.row_length
        if tokens % length:
            raise UsageError(
                f"stage {s.name!r}: a step of {tokens} tokens is not whole rows of {length}\nway out: a length that divides it"
            )
        stage = template.replace(
            mixture=Input(stage=s.mixture),
            schedule=Part(whole=whole, first=first, total=total),
            length=Duration(amount=s.steps, unit="st"),
            rows=tokens // length,
            row_length=length,
            order=s.name,
        )
        if found:
            extend = Extension(context=length, method=s.method) if s.length else None
            stage = stage.replace(init=Continue(checkpoint=Input(stage=list(found)[-1]), extend=extend), tokenizer=None)
        found[s.name] = stage
        first += s.steps
    return found


def midtrain(seed: int = 0) -> Recipe:
    """Mid-training in minutes on two cores, from the pages of `tiny` to a base model with a verdict on RL."""
    chain = (*(Stretch(name, n, f"mix_{name}") for name, n in STEPS.items()), *LONGER)
    read = {
        mixture: sum(s.steps for s in chain if s.mixture == mixture) * ROWS * ROW for mixture in dict.fromkeys(s.mixture for s in chain)
    }
    made = data(1, 1, texts=20_000, worked=10_000)
    shards = made["shards"]
    assert isinstance(shards, Tokenize)
    stages: dict[str, Stage] = {name: s for name, s in made.items() if name not in ("mix", "midmix")}
    stages["shards"] = shards.replace(holdout=0.08)
    for name, shares in SHARES.items():
        real = {source: shares["real"] / len(DOCS) for source in DOCS}
        weights = {**real, **{source: share for source, share in shares.items() if source != "real"}}
        stages[f"mix_{name}"] = Mix(shards=(Input(stage="shards"),), weights=FrozenDict(weights), tokens=read[f"mix_{name}"], cap=6.0)
    stages |= chained(
        Pretrain(
            init=Scratch(model=tiny_model(context=ROW)),
            tokenizer=Input(stage="tokenizer"),
            shards=(Input(stage="shards"),),
            mixture=Input(stage="mix_general"),
            rows=ROWS,
            row_length=ROW,
            z_loss=1e-4,
            optim=Muon(lr=6e-3, weight_decay=0.0, adamw=AdamW(lr=6e-3, weight_decay=0.0)),
        ),
        SCHEDULE,
        chain,
    )
    last, longest = LONGER[-1].name, LONGER[-1].length
    check = LongContext(
        checkpoint=Input(stage=last),
        shards=(Input(stage="shards"),),
        needle=Needle(lengths=(ROW, 2 * ROW, longest), depths=(0.0, 0.25, 0.5, 0.75, 1.0), samples=16),
        position=PositionNll(length=longest, trained=ROW),
    )
    probe = Readiness(checkpoint=Input(stage=last), tasks=Input(stage="problems"), families=FAMILIES, prompts=112, max_new=48)
    stages |= {
        "context_before": check.replace(checkpoint=Input(stage="anneal")),
        "context": check,
        "ready_before": probe.replace(checkpoint=Input(stage="general")),
        "ready": probe,
    }
    return Recipe(name="midtrain", seed=seed, stages=FrozenDict(stages))
