"""tulu3_tiny: the order of Tulu 3 on the tiny model: SFT, preferences (DPO) on own pairs, RL with verifiable rewards."""

from __future__ import annotations

from upslope.config import FrozenDict, Input
from upslope.machine.stage import Recipe, Stage
from upslope.recipes.tiny import ROW, ROWS, accuracy, base, climb, data, dpo, fine_tune
from upslope.stages.contrast import Contrast
from upslope.stages.evaluate import Evaluate
from upslope.stages.sample import Sample
from upslope.stages.synthesize import Demos, Synthesize


def tulu3_tiny(seed: int = 0) -> Recipe:
    """Tulu 3's order at tiny size: sft → preference → rl."""
    pretrain_tokens, midtrain_tokens = 840 * ROWS * ROW, 280 * ROWS * ROW
    problems = Input(stage="problems")
    stages: dict[str, Stage] = {
        **data(pretrain_tokens, midtrain_tokens, texts=45_000, worked=16_000),
        **base(pretrain_tokens, midtrain_tokens),
        "demos": Synthesize(form=Demos(tasks=(problems,), count=12_800, direct=0.6)),
        "sft": fine_tune("midtrain", "demos", steps=200),
        "eval_sft": Evaluate(checkpoint=Input(stage="sft"), tasks=problems, suites=accuracy()),
        "drafts": Sample(checkpoint=Input(stage="sft"), tasks=problems, prompts=1664, samples=6),
        "pairs": Contrast(traces=(Input(stage="drafts"),), per_prompt=2, heldout=0.4),
        "preference": dpo("sft", "pairs"),
        "eval_preference": Evaluate(checkpoint=Input(stage="preference"), tasks=problems, suites=accuracy()),
        "rl": climb("preference", steps=36),
        "eval_rl": Evaluate(checkpoint=Input(stage="rl"), tasks=problems, suites=accuracy()),
    }
    return Recipe(name="tulu3_tiny", seed=seed, stages=FrozenDict(stages))
