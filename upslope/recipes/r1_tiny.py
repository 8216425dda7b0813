"""r1_tiny: the order of DeepSeek-R1 on the tiny model: cold start, RL, rejection sampling, SFT on the keepers, RL again."""

from __future__ import annotations

from upslope.config import FrozenDict, Input
from upslope.machine.stage import Recipe, Stage
from upslope.recipes.tiny import ROW, ROWS, accuracy, base, climb, data, fine_tune
from upslope.stages.evaluate import Evaluate
from upslope.stages.keep import Keep
from upslope.stages.sample import Sample
from upslope.stages.synthesize import Demos, Synthesize


def r1_tiny(seed: int = 0) -> Recipe:
    """DeepSeek-R1's order at tiny size: cold start → rl → sample → sft → rl."""
    pretrain_tokens, midtrain_tokens = 840 * ROWS * ROW, 280 * ROWS * ROW
    problems = Input(stage="problems")
    stages: dict[str, Stage] = {
        **data(pretrain_tokens, midtrain_tokens, texts=45_000, worked=16_000),
        **base(pretrain_tokens, midtrain_tokens),
        "demos": Synthesize(form=Demos(tasks=(problems,), count=12_800, direct=0.6)),
        "cold_start": fine_tune("midtrain", "demos", steps=200),
        "eval_cold_start": Evaluate(checkpoint=Input(stage="cold_start"), tasks=problems, suites=accuracy()),
        "rl_reasoning": climb("cold_start", steps=22),
        "samples": Sample(checkpoint=Input(stage="rl_reasoning"), tasks=problems, prompts=2048, samples=4),
        "keepers": Keep(traces=(Input(stage="samples"),), per_prompt=2),
        "sft": fine_tune("midtrain", "keepers", steps=120),
        "eval_sft": Evaluate(checkpoint=Input(stage="sft"), tasks=problems, suites=accuracy()),
        "rl_all": climb("sft", steps=22),
        "eval_rl": Evaluate(checkpoint=Input(stage="rl_all"), tasks=problems, suites=accuracy()),
    }
    return Recipe(name="r1_tiny", seed=seed, stages=FrozenDict(stages))
