"""A lab's preset as a recipe: the tiny recipe's graph, with the lab's model shrunk to a size and the lab's kind of optimizer."""

from __future__ import annotations

import math

from upslope.config import FrozenDict, UsageError
from upslope.machine.stage import Recipe
from upslope.model.cost import flops, params, published, weight_bytes
from upslope.optim.config import AdamW
from upslope.recipes.labs import get
from upslope.recipes.labs.lab import Lab
from upslope.recipes.scale import scale
from upslope.recipes.tiny import tiny
from upslope.stages.pretrain import Pretrain
from upslope.train.init import Scratch

ADAMW = AdamW(lr=3e-3, weight_decay=0.0)  # at these sizes, where Muon takes 6e-3, and no decay either
PEAK, SHARE = 989e12, 0.4  # H100 dense bf16 FLOP/s (data sheet), and the share of it that is assumed to be reached
GPU_BYTES = 80e9
STATE = 16  # bytes a parameter: bf16 weight and gradient, fp32 master, two fp32 moments


def lab_recipe(name: str, size: str, seed: int = 0) -> Recipe:
    """The preset `name` at `size`: data, tokenizer, mixture and every later stage as in `tiny`; model and optimizer as the lab's.

    Rates and lengths are those that suit the tiny size, not the lab's: see `tiny`. UsageError for an unknown name or size.
    """
    lab, base = get(name), tiny(seed)
    stages = dict(base.stages)
    start, middle = stages["pretrain"], stages["midtrain"]
    assert isinstance(start, Pretrain) and isinstance(start.init, Scratch) and isinstance(middle, Pretrain)
    model = scale(lab.model, size, context=start.init.model.context)
    stages["pretrain"] = start.replace(init=Scratch(model=model))
    if lab.training.optimizer == "adamw":
        stages["pretrain"] = stages["pretrain"].replace(optim=ADAMW)
        stages["midtrain"] = middle.replace(optim=ADAMW.replace(lr=ADAMW.lr * middle.optim.lr / start.optim.lr))
    return Recipe(name=f"{name}_{size}".replace(".", "_"), seed=seed, stages=FrozenDict(stages))


def price(lab: Lab, length: int = 4096) -> str:
    """What the real size would cost, in words."""
    total, active = published(lab.model)
    state = STATE * params(lab.model) / GPU_BYTES
    size = (
        f"{lab.title}: {count(total)} parameters, {count(active)} of them active, {weight_bytes(lab.model, 'bf16') / 1e9:,.0f} GB in bf16"
    )
    trillions = lab.training.trillions or 1.0
    seen = f"{trillions:g}T tokens" + ("" if lab.training.trillions else " (the preset states no total: per 1T)")
    work = 3 * flops(lab.model, length) * trillions * 1e12
    hours = work / (PEAK * SHARE) / 3600
    return (
        f"{size}\npre-training on {seen}: {work:.1e} FLOPs at {length:,} tokens of context, "
        f"{count(hours)} H100 hours at {SHARE:.0%} of bf16 peak\n"
        f"weights, gradients and fp32 AdamW state alone ({STATE} bytes a parameter) fill {max(1, math.ceil(state)):,} GPUs of 80 GB"
    )


def count(x: float) -> str:
    """Three digits and a unit."""
    for unit, word in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= unit:
            return f"{x / unit:.3g}{word}"
    return f"{x:.3g}"


def refuse(name: str) -> UsageError:
    """Why a preset does not start without a size."""
    lab = get(name)
    return UsageError(
        f"{price(lab)}\na preset never starts at real size by itself\n"
        f"way out: --size tiny (or 1M, 10M, ...): the same knobs, smaller dimensions; `upslope presets {name}` shows them"
    )
