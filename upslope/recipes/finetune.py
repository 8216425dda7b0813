"""finetune: your checkpoint, your chats, your reward: SFT, then RL, with a measured before and after."""

from __future__ import annotations

from typing import cast

from upslope.config import Duration, FrozenDict, Input, Source, find_kind
from upslope.evals.subject import Deployment
from upslope.evals.suites import Accuracy
from upslope.machine.stage import Recipe, Stage
from upslope.optim.config import AdamW
from upslope.optim.schedule import LinearToZero
from upslope.rl.objective import dapo
from upslope.rl.protocol import Reward
from upslope.rl.rewards import Exact
from upslope.stages.evaluate import Evaluate
from upslope.stages.import_ import Import, ImportChats, ImportCheckpoint, ImportTasks
from upslope.stages.rl import Rl
from upslope.stages.sft import Sft
from upslope.train.init import Load


def finetune(model: str, data: str, reward: str = "", seed: int = 0) -> Recipe:
    """Your HF folder and chats (JSONL) → sft → rl with your scoring function → a folder that opens in transformers.

    model: a Hugging Face folder of a mapped family (safetensors, tokenizer). data: JSON lines with `messages`; in RL the
    last answer is the truth and everything before it the prompt. reward: `file.py:score`, a function
    `score(task, answer) -> float`; without it an answer is right when it equals the truth.
    """
    tasks = Input(stage="tasks")
    graded = cast(Reward, find_kind(Reward, reward)()) if reward else Exact()
    deployment = Deployment(max_new=64)
    stages: dict[str, Stage] = {
        "base": Import(form=ImportCheckpoint(source=Source(uri=model))),
        "chats": Import(form=ImportChats(source=Source(uri=data), split="train")),
        "tasks": Import(form=ImportTasks(source=Source(uri=data))),
        "eval_base": Evaluate(checkpoint=Input(stage="base"), tasks=tasks, suites=(Accuracy(),), deployment=deployment),
        "sft": Sft(
            init=Load(checkpoint=Input(stage="base")),
            chats=(Input(stage="chats"),),
            length=Duration(amount=3, unit="ep"),
            chats_per_step=16,
            optim=AdamW(lr=2e-4, weight_decay=0.0),
            schedule=LinearToZero(warmup=0.03),
        ),
        "eval_sft": Evaluate(checkpoint=Input(stage="sft"), tasks=tasks, suites=(Accuracy(),), deployment=deployment),
        "rl": Rl(
            init=Load(checkpoint=Input(stage="sft")),
            tasks=tasks,
            reward=graded,
            objective=dapo(),
            optim=AdamW(lr=1e-4, weight_decay=0.0),
            steps=20,
            prompts=16,
            samples=8,
            max_new=64,
        ),
        "eval_rl": Evaluate(checkpoint=Input(stage="rl"), tasks=tasks, suites=(Accuracy(),), deployment=deployment),
    }
    return Recipe(name="finetune", seed=seed, stages=FrozenDict(stages))
